"""Commands that start from the preloaded process end as those of a fresh interpreter do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import preloaded

COMMANDS = {
    "print": "import os, sys; print(sys.argv, sys.path[1], os.getcwd(), sys.stdin.read()); print('e', file=sys.stderr)",
    "status": "raise SystemExit(3)",
    "text": "raise SystemExit('error: no')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "atexit": "import atexit; atexit.register(print, 'last')",
    "process": "from multiprocessing import get_context\nprint(get_context('spawn').Pool(1).map(abs, [-3]))",
    "environment": "import os; print(os.environ['MINE'], os.environ['PYTHONPATH'], os.sched_getaffinity(0))",
}


def start(python: str, code: str, folder: Path, **more: str) -> tuple[int, str, str]:
    """Run code; return its exit status, and what it printed to both streams."""
    path = preloaded.start()  # which adds to os.environ
    environment = {**os.environ, **path, "PYTHONPATH": "/nowhere", "MINE": "1", **more}
    command = [python, "-c", code, "a", "--b"]
    done = subprocess.run(
        command, cwd=folder, env=environment, input="text", capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_as_that_of_a_fresh_interpreter(name: str, tmp_path: Path) -> None:
    expected = start(sys.executable, COMMANDS[name], tmp_path)
    assert start("python", COMMANDS[name], tmp_path) == expected


def test_libraries_are_there_unless_the_environment_would_have_changed_them(tmp_path: Path) -> None:
    code = "import sys, os; os._exit('torch' in sys.modules)"
    assert start("python", code, tmp_path)[0] == 1
    assert start("python", code, tmp_path, OMP_NUM_THREADS="5")[0] == 0


def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    path = preloaded.start()
    environment = {**os.environ, **path}
    code = (
        "import time\ntry:\n  print(flush=True)\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  raise SystemExit(130)"
    )
    process = subprocess.Popen(["python", "-c", code], env=environment, stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.stdout.close()
