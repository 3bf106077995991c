"""The programs of a fork server: send a command to the server, and exit as the command does.

A program imports little, to start fast. It runs until the command ends, so that its parent can wait for it, and
forwards signals. Ctrl-C in a terminal reaches the command directly: the fork replaces the program in the process group.
"""

# ruff: noqa: PTH115, PTH208
# Without pathlib, which takes as long to import as all other modules here.
import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

FREE = {
    *("PATH", "PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_"),
    *("COLUMNS", "LINES"),  # which readline sets
    *("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_NVML_BASED_CUDA_CHECK"),  # which libraries set, and read when they compute
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"),  # set by libraries at import
}
"""Environment variables that may differ between the server and a command: no library reads them at import."""

FREE_PREFIXES = ("DVC_", "ICECORE_", "PYTEST_")

INHERITED = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp", "Mems_allowed")
"""Prefixes of the lines of /proc/self/status with what a process inherits from its parent."""

FILES = ("cgroup", "limits", "oom_score_adj", "personality")
"""Files below /proc/self with what a process inherits from its parent."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(path: str, before: Sequence[str], beginnings: tuple[str, ...]) -> NoReturn:
    """Run the command of `sys.argv` in a fork of the server, or in an interpreter; exit as the command does.

    path:       the server's socket
    before:     arguments of the interpreter before those of the program
    beginnings: prefixes of the commands that the server may run
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    call = [*before, *sys.argv[1:]]
    may_fork = " ".join(sys.argv[1:]).startswith(beginnings) and _has_standard_files()
    if may_fork and (server := _request_fork(path, call)) is not None:
        _exit_as(_wait_for_fork(server))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.execv(sys.executable, [sys.executable, *call])


def describe_process() -> dict[str, Any]:
    """Return everything that child processes inherit from this process, without open files and the current folder."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        parts: dict[str, Any] = {"status": [line for line in file if line.startswith(INHERITED)]}
    for name in FILES:
        with open(f"/proc/self/{name}", encoding="utf-8", errors="replace") as file:
            parts[name] = file.read()
    parts["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
    parts["root"] = os.readlink("/proc/self/root")
    parts["session"] = os.getsid(0)
    parts["priority"] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]
    if "OMP_NUM_THREADS" not in os.environ:  # if it is set, libraries do not count the cores
        parts["cores"] = sorted(os.sched_getaffinity(0))
    parts["environment"] = _fixed_variables(os.environ)
    return parts


def _fixed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that must be equal in the server and in a command."""
    names = (name for name in environment if name not in FREE and not name.startswith(FREE_PREFIXES))
    return {name: environment[name] for name in sorted(names)}


def _request_fork(path: str, call: Sequence[str]) -> socket.socket | None:
    """Send a command to the server; return the connection if a fork runs the command, None if not."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        state = {"process": describe_process(), "group": os.getpgrp(), "cores": sorted(os.sched_getaffinity(0))}
        request = json.dumps({"call": call, "environment": dict(os.environ), **state}).encode()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until `_wait_for_fork` forwards them
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2, folder])
        server.sendall(request)
        group = receive_number(server)
    except (OSError, EOFError):  # no server yet, or a folder that is gone
        return None
    if group == 0:
        return None
    with contextlib.suppress(OSError):  # the server has just ended
        os.setpgid(0, group)  # the fork has the old group; a signal to that group must not arrive twice
    return server


def _has_standard_files() -> bool:
    """Return whether the command would inherit the three standard streams and no other open file."""
    inherited = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the listing itself was open
            if os.get_inheritable(number):
                inherited.append(number)
    return sorted(inherited) == [0, 1, 2]


def _wait_for_fork(server: socket.socket) -> int:
    """Forward signals to the fork until it exits; return its exit status, or minus the signal that killed it."""

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # the fork has just ended
            server.send(bytes([number]))

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    try:
        return receive_number(server)
    except (OSError, EOFError):  # the server was killed, so the kernel kills its forks
        return -signal.SIGKILL


def receive_number(connection: socket.socket) -> int:
    """Receive a number; raises EOFError if the other side has closed the connection."""
    data = connection.recv(8, socket.MSG_WAITALL)
    if len(data) < 8:
        raise EOFError
    return int.from_bytes(data, "big", signed=True)


def _exit_as(status: int) -> NoReturn:
    """Exit as the fork did: with its status, or by its signal."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the fork has written its core file
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
