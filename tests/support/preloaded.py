"""A process that has imported the libraries, and forks for each command: a stage starts in a tenth of a second.

`start()` gives the PATH on which `python`, `dvc` and `icecore` are programs that hand their arguments, environment,
folder and open files to this process. They pass signals on to the fork, and end with its exit status. This process has
none of the project's code: a command imports that itself, from its own PYTHONPATH.

The programs start the real interpreter for other options than `-m` and `-c`, and where a variable differs that shapes
an interpreter or a library. Tests that kill processes take the real interpreter.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from support import preloaded_client
from support.preloaded_client import SOCKET

PROGRAMS: Mapping[str, list[str]] = {"python": [], "dvc": ["-m", "dvc"], "icecore": ["-m", "pipeline.cli.main"]}
PROGRAM = """\
#!{python} -IS
import sys
sys.path.insert(0, {folder!r})
import preloaded_client
preloaded_client.run({python!r}, [*{before!r}, *sys.argv[1:]], {expected!r})
"""
FOLDER = Path(__file__).parent


def start(*, wait: bool = True) -> Mapping[str, str]:
    """Start the process, once for all processes of a test run; return the variable `PATH` of commands."""
    if SOCKET not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="icecore-test-"))
        expected = preloaded_client.shaping(os.environ)
        for name, before in PROGRAMS.items():
            text = PROGRAM.format(python=sys.executable, folder=str(FOLDER), before=before, expected=expected)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, "-P", str(FOLDER / "preloaded_server.py"), str(folder / "socket")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        atexit.register(_stop, process, folder)
        os.environ[SOCKET] = str(folder / "socket")
    path = Path(os.environ[SOCKET])
    while wait and not path.exists():  # a command that comes too early starts the real interpreter
        time.sleep(0.01)
    return {"PATH": os.pathsep.join([str(path.parent), str(Path(sys.executable).parent), os.environ["PATH"]])}


def _stop(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder)
