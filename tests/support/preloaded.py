"""Commands of tests start from a fork server, as stages of `icecore repro` do: one serves all processes of a test run.

Tests that kill processes take the real interpreter.
"""

import atexit
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.forkserver.start import LIBRARIES, OF_HEADS, ForkServer

PROGRAMS: Mapping[str, tuple[str, ...]] = {"python": ("-m ", "-c "), "dvc": ("",), "icecore": ("",)}
OF_DVC = "dvc.cli dvc.cli.parser dvc.repo dvc.repo.reproduce dvc.repo.commit dvc.stage.run dvc_data.index"
OF_REPORT = ("matplotlib.pyplot", "jinja2")
PRELOADED = (*LIBRARIES, *OF_HEADS, *OF_REPORT, *OF_DVC.split())
FOLDER = "ICECORE_TEST_PROGRAMS"


def start(*, wait: bool = True) -> Mapping[str, str]:
    """Start the server, unless it runs; return the variable `PATH` of commands."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if FOLDER not in os.environ:
        server = ForkServer({**os.environ, "PATH": path}, PROGRAMS, PRELOADED)
        atexit.register(server.stop)
        server.start()
        os.environ[FOLDER] = str(server.socket.parent)
    folder = Path(os.environ[FOLDER])
    # A command that comes too early starts the real interpreter. A server that fails removes the folder.
    while wait and folder.exists() and not (folder / "socket").exists():
        time.sleep(0.01)
    return {"PATH": os.pathsep.join([str(folder), path])}
