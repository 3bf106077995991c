"""A process that has imported the libraries, and forks for each command: a stage starts in a tenth of a second.

`start()` returns the environment of commands that are to be started so: `python`, `dvc` and `icecore` are programs first
on their PATH, which hand their arguments, environment, folder and open files to the process, pass signals on, and end with
the status that the command ends with. The process has none of the project's own code: a command imports that itself,
from its own PYTHONPATH. Commands whose environment would have made another interpreter or other libraries of it are run
as they are without all this; so are all in an environment without `SOCKET`. Tests that kill processes use it not.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

SOCKET = "ICECORE_TEST_PRELOADED"
LIBRARIES = (
    *("torch", "torch._dynamo", "torchvision.transforms.v2", "torchvision.models", "lightning_fabric", "safetensors.torch"),
    *("sklearn.linear_model", "sklearn.neighbors", "sklearn.preprocessing", "sklearn.pipeline", "sklearn.decomposition"),
    *("pyarrow.parquet", "pyarrow.compute", "pyarrow.dataset", "h5py", "pydantic", "PIL.Image", "tqdm", "typer", "jinja2"),
    *("scipy.stats", "scipy.special", "xxhash", "fsspec", "psutil", "matplotlib.pyplot", "ruamel.yaml"),
    *("dvc.cli", "dvc.cli.parser", "dvc.repo", "dvc.repo.reproduce", "dvc.repo.commit", "dvc.stage.run", "dvc_data.index"),
)
SHAPING = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH", "CUDA", "LD_", "MALLOC_", "LC_", "LANG", "MPL")
"""Beginnings of variables that an interpreter or a library reads when it starts."""

PROGRAM = """\
#!{python} -IS
import os, signal, socket, sys

def itself():
    os.execv({python!r}, [{python!r}, *before, *sys.argv[1:]])

before = {before!r}
call = before + sys.argv[1:]
shaping = {{name: value for name, value in os.environ.items() if name.startswith({shaping!r}) and name != "PYTHONPATH"}}
if call[:1] not in (["-m"], ["-c"]) or shaping != {environment!r} or not os.path.exists(os.environ.get({variable!r}, "")):
    itself()
import json
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ[{variable!r}])
request = json.dumps({{"call": call, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
def answer():
    data = server.recv(8)
    if not data:
        sys.exit("the process that has imported the libraries ended before this command")
    return int.from_bytes(data, "big", signed=True)

process = answer()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(process, number))
status = answer()
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""
PROGRAMS: Mapping[str, list[str]] = {
    "python": [],
    "dvc": ["-m", "dvc"],
    "icecore": ["-m", "pipeline.cli.main"],
}


def shaping(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that shape an interpreter and its libraries; where modules lie is given with each command."""
    return {name: value for name, value in environment.items() if name.startswith(SHAPING) and name != "PYTHONPATH"}


@functools.cache
def start() -> Mapping[str, str]:
    """Start the process, unless one above this one has; return `PATH` and `SOCKET` for who is to use it."""
    if SOCKET not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="icecore-test-"))
        for name, before in PROGRAMS.items():
            text = PROGRAM.format(
                python=sys.executable,
                before=before,
                shaping=SHAPING,
                environment=shaping(os.environ),
                variable=SOCKET,
            )
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, "-P", __file__, str(folder / "socket")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        atexit.register(_stop, process, folder)
        os.environ[SOCKET] = str(folder / "socket")
        while not Path(os.environ[SOCKET]).exists():  # commands that come too early would be run as they are
            assert process.poll() is None
            time.sleep(0.01)
    socket_path = os.environ[SOCKET]
    path = os.pathsep.join([str(Path(socket_path).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, SOCKET: socket_path}


def _stop(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder)


def serve(path: str) -> None:
    """Fork for every command until who started this process is gone; in the fork, run the command and end."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as events:
        listener.bind(path)
        listener.listen(64)
        for name in LIBRARIES:
            with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
                importlib.import_module(name)
        assert not {"pipeline", "stages"} & {*sys.modules}
        gc.collect()
        gc.freeze()
        ended, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (listener, ended, 0):
            events.register(source, selectors.EVENT_READ)
        clients: dict[int, socket.socket] = {}
        while True:
            for source in [key.fileobj for key, _ in events.select()]:
                if source == 0:
                    return
                if source is listener:
                    client, _ = listener.accept()
                    request, files = _receive(client)
                    process = os.fork()
                    if not process:
                        signal.set_wakeup_fd(-1)
                        for other in (listener, ended, wake, client, *clients.values(), events):
                            other.close()
                        _become(request, files)
                    for file in files:
                        os.close(file)
                    client.sendall(process.to_bytes(8, "big"))
                    clients[process] = client
                    events.register(client, selectors.EVENT_READ)
                elif source is ended:
                    ended.recv(4096)
                    for process in list(clients):
                        done, status = os.waitpid(process, os.WNOHANG)
                        if done:
                            _answer(events, clients.pop(process), os.waitstatus_to_exitcode(status))
                elif source in clients.values():  # nothing more comes from a client: it is gone
                    process = next(number for number, one in clients.items() if one is source)
                    events.unregister(source)
                    os.kill(process, signal.SIGKILL)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb", buffering=0) as stream:
        data = b""
        while len(data) < int.from_bytes(size, "big"):
            data += stream.read(int.from_bytes(size, "big") - len(data))
    return json.loads(data), files


def _answer(events: selectors.BaseSelector, client: socket.socket, status: int) -> None:
    with contextlib.suppress(KeyError):
        events.unregister(client)
    with contextlib.suppress(OSError):  # it is gone
        client.sendall(status.to_bytes(8, "big", signed=True))
    client.close()


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Make this process what Python would be that was started for the command, and end with its status."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    status = _run(*request["call"])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)  # taking all libraries down takes longer than most commands


def _run(kind: str, what: str, *rest: str) -> int:
    """Run `-m module` or `-c code`; return the exit status, as Python has it."""
    sys.orig_argv = [sys.executable, kind, what, *rest]
    sys.argv = [what if kind == "-m" else kind, *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)
