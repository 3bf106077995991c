"""The code of a decoding process: it puts arrays into memory that is shared with the main process."""

import mmap
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.loading.samples import Item, Reject, read_sample
from pipeline.readers import Reader
from pipeline.runtime import end_with_parent


@dataclass(frozen=True)
class SharedArray:
    """An array in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


Packed = Mapping[str, SharedArray | np.ndarray]


_own: dict[str, Any] = {}


def begin(reader: Reader, memory: str) -> None:
    """Make a process ready. `memory`: a path of the memory that it shares with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    end_with_parent()
    with open(memory, "r+b") as file:
        _own.update(reader=reader, memory=mmap.mmap(file.fileno(), 0))


def ping() -> None:
    """Return at once, to show that the process is there."""


def decode(items: list[Item], where: int | None, room: int) -> list[Packed | Reject]:
    """Decode items; their arrays go to shared memory from `where` on as long as there is room."""
    end = None if where is None else where + room
    result: list[Packed | Reject] = []
    for sample in (read_sample(_own["reader"], item) for item in items):
        if isinstance(sample, Reject) or where is None or end is None:
            result.append(sample)
            continue
        packed: dict[str, SharedArray | np.ndarray] = {}
        for name, array in sample.items():
            if where + array.nbytes > end:
                packed[name] = array
                continue
            _own["memory"][where : where + array.nbytes] = np.ascontiguousarray(array).data.cast("B")
            packed[name] = SharedArray(where, array.shape, array.dtype.str)
            where += -(-array.nbytes // 64) * 64
        result.append(packed)
    return result
