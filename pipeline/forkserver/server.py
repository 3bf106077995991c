"""The process of a fork server: import libraries, and fork for each command, until the parent process exits.

The server loads no code of the project; each fork imports that itself. The server has one thread, since a fork would
lack the other threads and the locks that they hold. It does not initialise CUDA, which a fork could then not use.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.forkserver.child import are_hidden, become, search_path
from pipeline.forkserver.client import describe_process

TIMEOUT = 10  # seconds in which a program must send its command


def serve(path: str, libraries: Sequence[str], unneeded: Sequence[str]) -> None:
    """Import libraries, listen on a socket, and fork for each command, until standard input is closed.

    path:      the socket; its folder is removed when the server stops accepting commands
    libraries: modules to import
    unneeded:  modules that the libraries must not import along

    Returns after the last running command has ended.
    """
    try:
        process = describe_process()  # before a library changes anything
        own = __name__.partition(".")[0]
        for name in [name for name in sys.modules if name.partition(".")[0] == own]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(unneeded))  # type: ignore[arg-type]  # None makes the import fail
        for name in libraries:
            with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
                importlib.import_module(name)
        for name in unneeded:
            del sys.modules[name]
        end_idle_threads()
        gc.collect()
        gc.freeze()  # a fork then shares the memory of the libraries
        if _has_one_thread():
            _Server(path, process).run()
    finally:  # without the programs, DVC runs the next ones in PATH
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def end_idle_threads() -> None:
    """End the threads of OpenBLAS by a fork: OpenBLAS starts them at import, and ends them before every fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns that there are threads
        child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _has_one_thread() -> bool:
    return len([*Path("/proc/self/task").iterdir()]) == 1


class _Server:
    """The loop that accepts commands and sends exit statuses to the programs."""

    def __init__(self, path: str, process: dict[str, Any]) -> None:
        self._path, self._process = path, process
        self._modules = {name.partition(".")[0] for name in sys.modules} | {"sitecustomize", "usercustomize"}
        self._programs: dict[int, socket.socket] = {}
        """The connection to the program of each fork, by the process ID of the fork."""

        self._events = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._ended, self._wake = socket.socketpair()

    def run(self) -> None:
        """Accept commands until standard input is closed, then wait for the running ones."""
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        unready = Path(f"{self._path}.")
        self._listener.bind(str(unready))
        self._listener.listen(64)
        unready.rename(self._path)
        self._on(self._listener, self._accept)
        self._on(self._ended, self._report_exits)
        self._on(0, self._stop)
        while self._listener.fileno() >= 0 or self._programs:
            for key, _ in self._events.select():
                if key.fileobj in self._events.get_map():  # an earlier event may have closed it
                    key.data()

    def _on(self, source: Any, act: Callable[[], None]) -> None:
        self._events.register(source, selectors.EVENT_READ, act)

    def _stop(self) -> None:
        for source in (0, self._listener):
            self._events.unregister(source)
        self._listener.close()
        shutil.rmtree(Path(self._path).parent, ignore_errors=True)

    def _accept(self) -> None:
        """Fork for the command of a program, or close the connection: the program then runs an interpreter."""
        program, _ = self._listener.accept()
        program.settimeout(TIMEOUT)
        server, files = os.getpid(), list[int]()
        try:
            request = _receive(program, files)
            os.fchdir(files[3])
            folders = search_path(request["call"], request["environment"])
            same = request["process"] == self._process and not are_hidden(self._modules, folders)
            process = os.fork() if same and _has_one_thread() else None
        except (OSError, EOFError):  # the program has exited, its folder is gone, or no process can be started
            process = None
        if process == 0:
            signal.set_wakeup_fd(-1)
            for source in (self._listener, self._ended, self._wake, program, *self._programs.values()):
                source.close()
            self._events.close()
            os.close(files.pop())
            become(request, files, folders, server)
        for file in files:
            os.close(file)
        if process is None:
            program.close()
            return
        with contextlib.suppress(OSError):  # the fork or the program has just exited
            os.setpgid(process, request["group"])
        self._programs[process] = program
        self._on(program, functools.partial(self._forward_signals, process, program))
        with contextlib.suppress(OSError):
            program.sendall(os.getpgrp().to_bytes(8, "big"))

    def _forward_signals(self, process: int, program: socket.socket) -> None:
        """Forward signals from a program to its fork; kill the fork if the program has exited."""
        try:
            signals = program.recv(64)
        except OSError:
            signals = b""
        if not signals:
            self._events.unregister(program)
        for number in signals or [signal.SIGKILL]:
            os.kill(process, number)

    def _report_exits(self) -> None:
        """Send the exit statuses of finished forks to their programs."""
        self._ended.recv(4096)
        for process, program in [*self._programs.items()]:
            number, status = os.waitpid(process, os.WNOHANG)
            if number:
                del self._programs[process]
                with contextlib.suppress(KeyError):  # the program has exited
                    self._events.unregister(program)
                with contextlib.suppress(OSError):
                    program.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
                program.close()


def _receive(program: socket.socket, files: list[int]) -> dict[str, Any]:
    """Receive the request of a program; append its standard streams and its current folder to `files`."""
    size, received, _, _ = socket.recv_fds(program, 8, 4, socket.MSG_WAITALL)
    files += received
    if len(size) < 8 or len(files) < 4:
        raise EOFError
    left, parts = int.from_bytes(size, "big"), list[bytes]()
    while left:
        parts.append(program.recv(left))
        left -= len(parts[-1])
        if not parts[-1]:
            raise EOFError
    request: dict[str, Any] = json.loads(b"".join(parts))
    return request
