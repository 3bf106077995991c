"""What a command does that starts from the preloaded process, see `preloaded.py`; imports little, to be quick."""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

SOCKET = "ICECORE_TEST_PRELOADED"
SHAPING = (
    "PYTHON",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "KMP_",
    "GOMP_",
    "TORCH",
    "CUDA",
    "LD_",
    "MALLOC_",
    "LC_",
    "LANG",
    "MPL",
)
"""Beginnings of variables that an interpreter or a library reads when it starts."""


OTHERS = ("PYTHONPATH", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that do not count: each command has its own path, and scikit-learn and torch set the rest on import."""


def shaping(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that shape an interpreter and its libraries."""
    return {name: value for name, value in environment.items() if name.startswith(SHAPING) and name not in OTHERS}


def run(python: str, call: Sequence[str], expected: Mapping[str, str]) -> NoReturn:
    """Have the preloaded process run `-m module …` or `-c code …`, and end as the command does.

    python: the interpreter that is started instead where its options or `shaping` variables differ from `expected`.
    """
    path = os.environ.get(SOCKET, "")  # pathlib takes as long to import as the rest
    if call[:1] not in (["-m"], ["-c"]) or shaping(os.environ) != expected or not os.path.exists(path):  # noqa: PTH110
        os.execv(python, [python, *call])
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    place = {"folder": os.getcwd(), "environment": dict(os.environ), "cores": cores}  # noqa: PTH109
    request = json.dumps({"call": call, **place}).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    process = _number(server)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(process, number))
    status = _number(server)
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _number(server: socket.socket) -> int:
    data = server.recv(8)
    if not data:
        sys.exit("the preloaded process ended before this command")
    return int.from_bytes(data, "big", signed=True)
