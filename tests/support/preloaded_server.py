"""The preloaded process: see `preloaded.py`. `python preloaded_server.py SOCKET` ends when its standard input does."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

LIBRARIES = """
    torch torch._dynamo torchvision.transforms.v2 torchvision.models lightning_fabric safetensors.torch
    sklearn.linear_model sklearn.neighbors sklearn.preprocessing sklearn.pipeline sklearn.decomposition
    scipy.stats scipy.special pyarrow.parquet pyarrow.compute pyarrow.dataset h5py pydantic PIL.Image
    xxhash fsspec psutil tqdm typer jinja2 matplotlib.pyplot ruamel.yaml
    dvc.cli dvc.cli.parser dvc.repo dvc.repo.reproduce dvc.repo.commit dvc.stage.run dvc_data.index
"""


def serve(path: str) -> None:
    """Listen at a path and fork for each command, until standard input is closed; the fork runs it."""
    ended, wake = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as events:
        listener.bind(path)
        listener.listen(64)
        for name in LIBRARIES.split():
            with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
                importlib.import_module(name)
        assert not {"pipeline", "stages"} & {*sys.modules}
        gc.collect()
        gc.freeze()
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
                elif source in clients.values():  # a client sends one request: it has ended
                    process = next(number for number, one in clients.items() if one is source)
                    events.unregister(source)
                    os.kill(process, signal.SIGKILL)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the request of a client, and its standard input, output and error."""
    size, files, _, _ = socket.recv_fds(client, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += client.recv(int.from_bytes(size, "big") - len(data))
    return json.loads(data), files


def _answer(events: selectors.BaseSelector, client: socket.socket, status: int) -> None:
    """Send a client the exit status of its command."""
    with contextlib.suppress(KeyError):
        events.unregister(client)
    with contextlib.suppress(OSError):  # the client has ended
        client.sendall(status.to_bytes(8, "big", signed=True))
    client.close()


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Make this process what Python would be that was started for the command, and end with its status."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    status = _run(*request["call"])
    threading._shutdown()
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
    except BaseException:  # noqa: BLE001 - the interpreter prints whatever ends it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)
