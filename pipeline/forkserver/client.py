"""The programs of a fork server: hand a command over to the server, and end as the command does.

A program imports little, to be quick. It stays until the command ends, for whoever waits for it, and passes signals on.
A terminal's Ctrl-C reaches the command itself, which takes the program's place in the process group.
"""

# ruff: noqa: PTH115, PTH208
# Without pathlib, which takes as long to import as all the rest.
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
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"),  # which libraries set on import
}
"""Variables of the environment that may differ between the server and a command: no library reads them on import."""

FREE_BEGINNINGS = ("DVC_", "ICECORE_", "PYTEST_")

INHERITED = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp", "Mems_allowed")
"""Beginnings of the lines of /proc/self/status about what a process gets from its parent."""

FILES = ("cgroup", "limits", "oom_score_adj", "personality")
"""Files below /proc/self about the same."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(path: str, before: Sequence[str], beginnings: tuple[str, ...]) -> NoReturn:
    """Run the command of `sys.argv` in a fork of the server, or by the interpreter; end as the command does.

    path:       the server's socket
    before:     arguments of the interpreter that stand before those of the program
    beginnings: how a command begins that the server may run
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    call = [*before, *sys.argv[1:]]
    mine = " ".join(sys.argv[1:]).startswith(beginnings) and _has_standard_files()
    if mine and (server := _hand_over(path, call)) is not None:
        _end(_follow(server))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    os.execv(sys.executable, [sys.executable, *call])


def describe_process() -> dict[str, Any]:
    """Return what this process passes on to those that it starts, without its open files and its current folder."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        parts: dict[str, Any] = {"status": [line for line in file if line.startswith(INHERITED)]}
    for name in FILES:
        with open(f"/proc/self/{name}", encoding="utf-8", errors="replace") as file:
            parts[name] = file.read()
    parts["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
    parts["root"] = os.readlink("/proc/self/root")
    parts["session"] = os.getsid(0)
    parts["priority"] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]
    if "OMP_NUM_THREADS" not in os.environ:  # where it is set, libraries do not count the cores
        parts["cores"] = sorted(os.sched_getaffinity(0))
    parts["environment"] = _fixed(os.environ)
    return parts


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are to be the same in the server and in a command."""
    names = (name for name in environment if name not in FREE and not name.startswith(FREE_BEGINNINGS))
    return {name: environment[name] for name in sorted(names)}


def _hand_over(path: str, call: Sequence[str]) -> socket.socket | None:
    """Send a command to the server; return the connection when a fork runs the command, None when none will."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        state = {"process": describe_process(), "group": os.getpgrp(), "cores": sorted(os.sched_getaffinity(0))}
        request = json.dumps({"call": call, "environment": dict(os.environ), **state}).encode()
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until `_follow` passes them on
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2, folder])
        server.sendall(request)
        group = receive_number(server)
    except (OSError, EOFError):  # no server yet, or a folder that is gone
        return None
    if group == 0:
        return None
    with contextlib.suppress(OSError):  # the server has just ended
        os.setpgid(0, group)  # the fork is in the group of before; a signal to that is not to come twice
    return server


def _has_standard_files() -> bool:
    """Return whether the command would inherit the three standard streams, and no other open file."""
    inherited = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the list itself was open
            if os.get_inheritable(number):
                inherited.append(number)
    return sorted(inherited) == [0, 1, 2]


def _follow(server: socket.socket) -> int:
    """Pass signals on to the fork until it ends; return its exit status, or minus the signal that ended it."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # the fork has just ended
            server.send(bytes([number]))

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    try:
        return receive_number(server)
    except (OSError, EOFError):  # the server was killed, and the system then kills its forks
        return -signal.SIGKILL


def receive_number(connection: socket.socket) -> int:
    """Return the next number of a connection; raises EOFError where the other side has closed it."""
    data = connection.recv(8, socket.MSG_WAITALL)
    if len(data) < 8:
        raise EOFError
    return int.from_bytes(data, "big", signed=True)


def _end(status: int) -> NoReturn:
    """End this process as the fork ended."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the fork has left its core file
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
