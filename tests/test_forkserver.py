"""Commands in forks of a server end as those of a fresh interpreter do; nothing of a server outlives its starter."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import preloaded

from pipeline.forkserver.start import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere commands start without a server")

Variables = Mapping[str, str]
COMMANDS = {
    "print": "import os, sys; print(sys.argv, sys.path[:2], os.getcwd(), input()); print('e', file=sys.stderr)",
    "status": "raise SystemExit(3)",
    "text": "raise SystemExit('error: no')",
    "error": "def fail():\n    return 1 / 0\nfail()",
    "hook": "import sys; sys.excepthook = lambda kind, error, trace: print(kind, error)\nraise ValueError('no')",
    "interrupt": "raise KeyboardInterrupt",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "aborted": "import os; os.abort()",
    "atexit": "import atexit; atexit.register(print, 'last')",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('done'))).start()",
    "process": "from multiprocessing import get_context\nprint(get_context('spawn').Pool(1).map(abs, [-3]))",
    "environment": "import os; print(os.environ['ICECORE_MINE'], os.environ['PYTHONPATH'], os.sched_getaffinity(0))",
    "full": "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('text')",
    "streams": "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr):\n"
    "  print(s, s.errors, s.line_buffering, s.write_through, s.isatty())",
    "process state": "import os, signal; print(os.umask(0), len(os.listdir('/proc/self/fd')), signal.getsignal(2), "
    "signal.getsignal(17), signal.pthread_sigmask(0, []), os.getpgrp() == os.getpid())",
    "random": "import random, tempfile; print(random.random() < 2, tempfile.gettempdir())",
}


@pytest.fixture(scope="module")
def commands() -> Iterator[Variables]:
    """The variables of commands that a server runs, which has one library."""
    with started_server(["xxhash"]) as server:
        yield server.environment


@contextmanager
def started_server(libraries: Sequence[str]) -> Iterator[ForkServer]:
    """Start a server from this process, and wait until it accepts commands."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with ForkServer(environment, {"python": ("-m ", "-c "), "icecore": ("stage ",)}, libraries) as server:
        server.start()
        while not server.socket.exists():
            assert server.socket.parent.exists(), "the server has failed"
            time.sleep(0.01)
        yield server


def run(commands: Variables, folder: Path, *command: str, **more: str) -> tuple[int, str, str]:
    """Run a command in a folder; return its exit status, and what it printed to both streams."""
    environment = {**commands, "PYTHONPATH": "/nowhere", "ICECORE_MINE": "1", **more}
    done = subprocess.run(
        command, cwd=folder, env=environment, input="text", capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_as_that_of_a_fresh_interpreter(commands: Variables, name: str, tmp_path: Path) -> None:
    arguments = ("-c", COMMANDS[name], "a", "--b")
    expected = run(commands, tmp_path, sys.executable, *arguments)
    assert run(commands, tmp_path, "python", *arguments) == expected


@pytest.mark.parametrize("name", ["right", "wrong", "missing", "package"])
def test_a_module_is_run_as_by_a_fresh_interpreter(commands: Variables, name: str, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(
        "import sys; print(__name__, __file__, __spec__.name, sys.argv, sys.orig_argv[1:])"
    )
    (tmp_path / "wrong.py").write_text("import no_such_library")
    (tmp_path / "package").mkdir()
    expected = run(commands, tmp_path, sys.executable, "-m", name, "a")
    assert run(commands, tmp_path, "python", "-m", name, "a") == expected


def test_a_stage_of_an_installed_project_is_run_as_by_a_fresh_interpreter(commands: Variables, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("prepare: {}\nsplits: {}\n")
    expected = run(commands, tmp_path, str(Path(sys.executable).with_name("icecore")), "stage", "settings")
    assert run(commands, tmp_path, "icecore", "stage", "settings") == expected
    assert "splits" in expected[2]


def is_forked(commands: Variables, folder: Path, *before: str, **more: str) -> bool:
    """Return whether a fork of the server runs `python` behind other words."""
    code = "import sys; print('xxhash' in sys.modules)"
    status, output, error = run(commands, folder, *before, "python", "-c", code, **more)
    assert status == 0, error
    return output == "True\n"


def test_an_interpreter_runs_what_a_fork_would_run_otherwise(commands: Variables, tmp_path: Path) -> None:
    assert is_forked(commands, tmp_path)
    assert is_forked(commands, tmp_path, "env", "ICECORE_MINE=2", "DVC_STAGE=fit")
    (tmp_path / "xxhash.yaml").touch()  # no module, though named as a library
    assert is_forked(commands, tmp_path)
    assert not is_forked(commands, tmp_path, OMP_NUM_THREADS="5")
    assert not is_forked(commands, tmp_path, SOME_LIBRARY="1")
    assert not is_forked(commands, tmp_path, "nice", "-n", "1")
    assert not is_forked(commands, tmp_path, "setsid", "--wait")
    for words in ("umask 077", "ulimit -c 0; ulimit -n 256", "trap '' INT", "exec 7>file", "exec 0<&-"):
        assert not is_forked(commands, tmp_path, "sh", "-c", f'{words}; exec "$@"', "sh"), words


def test_a_module_of_the_user_hides_a_library_that_is_loaded(commands: Variables, tmp_path: Path) -> None:
    code = "import xxhash; print(xxhash.__file__)"

    def file(folder: Path, **more: str) -> Path:
        return Path(run(commands, folder, "python", "-c", code, **more)[1].strip())

    (tmp_path / "xxhash").mkdir()  # no package: Python passes over it
    assert file(tmp_path).parent.parent.name == "site-packages"
    (tmp_path / "xxhash" / "__init__.py").touch()
    assert file(tmp_path) == tmp_path / "xxhash" / "__init__.py"
    (tmp_path / "empty").mkdir()
    assert file(tmp_path / "empty", PYTHONPATH=str(tmp_path)) == tmp_path / "xxhash" / "__init__.py"


def test_a_server_has_the_libraries_of_stages_and_neither_code_of_the_project_nor_cuda(tmp_path: Path) -> None:
    code = "import sys, torch; print(*sys.modules); print(torch.cuda._is_in_bad_fork(), sys.argv)"
    with started_server(preloaded.PRELOADED) as server:
        status, output, _ = run(server.environment, tmp_path, "python", "-c", code)
    modules, rest = output.splitlines()
    assert (status, rest) == (0, "False ['-c']")
    assert {"torch._dynamo", "sklearn.linear_model", "scipy.stats"} <= {*modules.split()}
    assert not {"pipeline", "stages", "pyarrow", "dask"} & {*modules.split()}


SLEEPING = """
import os, time
try:
    print(os.getpid(), os.getppid(), "asleep", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.2)  # a second one would end this
    raise SystemExit(130)
"""


def sleep(commands: Variables) -> tuple["subprocess.Popen[str]", int, int]:
    """Start a command that sleeps; return its program, and the numbers of the fork and the server."""
    program = subprocess.Popen(["python", "-c", SLEEPING], env=commands, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    with program.stdout as output:
        fork, server = map(int, output.readline().split()[:2])
    assert fork != program.pid
    return program, fork, server


def wait_for_end(process: int) -> None:
    """Wait until a process has ended, which need not be a child."""
    end = time.monotonic() + 30
    while Path(f"/proc/{process}/stat").exists() and Path(f"/proc/{process}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the process goes on"
        time.sleep(0.01)


def test_a_signal_reaches_the_command_once(commands: Variables) -> None:
    program, _, _ = sleep(commands)
    program.send_signal(signal.SIGINT)
    assert program.wait() == 130
    program, _, _ = sleep(commands)
    program.terminate()
    assert program.wait() == -signal.SIGTERM


def test_a_command_ends_with_its_program(commands: Variables) -> None:
    program, fork, _ = sleep(commands)
    program.kill()
    program.wait()
    wait_for_end(fork)


def test_a_command_ends_with_a_server_that_is_killed() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with ForkServer(environment, {"python": ("-c ",)}, []) as server:
        server.start()
        while not server.socket.exists():
            time.sleep(0.01)
        program, fork, number = sleep(server.environment)
        os.kill(number, signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL  # as DVC reports a stage that was killed for memory
        wait_for_end(fork)
        done = subprocess.run(["python", "-c", "print(1)"], env=server.environment, capture_output=True, check=True)
        assert done.stdout == b"1\n"
    assert not server.socket.parent.exists()


def test_commands_start_without_a_server_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    long = tmp_path / ("a" * 100)
    long.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(long))
        with ForkServer(environment, {"python": ("-c ",)}, []) as server:
            server.start()
            assert server.environment == environment
            assert [*long.iterdir()] == []
    elsewhere = environment | {"PATH": str(tmp_path)}  # not the programs of this interpreter
    assert ForkServer(elsewhere, {"python": ("-c ",)}, []).environment == elsewhere
    with ForkServer(environment, {"python": ("-c ",)}, ["unittest.__main__"]) as server:  # which ends its process
        server.start()
        end = time.monotonic() + 30
        while server.socket.parent.exists():
            assert time.monotonic() < end, "the folder of a server that failed is left"
            time.sleep(0.01)
        done = subprocess.run(["python", "-c", "print(1)"], env=server.environment, capture_output=True, check=True)
        assert done.stdout == b"1\n"


STARTER = """
import os, signal, subprocess, sys, time
from pipeline.forkserver.start import ForkServer
with ForkServer({**os.environ}, {"python": ("-c ",)}, []) as server:
    server.start()
    while not server.socket.exists():
        time.sleep(0.01)
    print(server.socket.parent, flush=True)
    program = subprocess.Popen(["python", "-c", sys.argv[1]], env=server.environment, stderr=subprocess.STDOUT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does
    print("status", program.wait())
"""


def test_a_server_whose_starter_is_killed_ends_after_its_commands(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    code = "import os, sys, time\nprint(os.getppid(), flush=True)\nsys.stdin.read()\nopen('done', 'w').close()"
    command = [sys.executable, "-c", STARTER, code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes) as starter:  # type: ignore[call-overload]
        folder, server = (starter.stdout.readline().strip() for _ in range(2))
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        starter.kill()
        starter.wait()
        end = time.monotonic() + 30
        while Path(folder).exists():
            assert time.monotonic() < end, "the folder is left"
            time.sleep(0.01)
        assert Path(f"/proc/{server}").exists()  # for the command, whose work is kept
    wait_for_end(int(server))
    assert (tmp_path / "done").exists()


TERMINAL = """
import os, pty, sys
number, terminal = pty.fork()
if not number:
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
text = b""
try:
    while part := os.read(terminal, 1000):
        text += part
        if b"asleep" in part:
            os.write(terminal, b"\\x03")
except OSError:  # the end, on Linux
    pass
print(text.decode(), os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
"""
AT_TERMINAL = """
import os, sys
print([stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout.line_buffering)
print(os.tcgetpgrp(0) == os.getpgrp(), os.get_terminal_size().columns, open("/dev/tty").isatty())
"""


def test_ctrl_c_at_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PATH": path}
    command = [sys.executable, "-c", TERMINAL, STARTER, AT_TERMINAL + SLEEPING]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["[True, True, True] True", "True 0 True"]
    assert lines[-2:] == ["^Cstatus 130", " 0"], done.stdout
