"""The code that runs in a decoding process. It writes arrays to memory shared with the main process."""

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
    """An array in shared memory: its offset in bytes, shape and dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


Packed = Mapping[str, SharedArray | np.ndarray]


_own: dict[str, Any] = {}


def init_process(reader: Reader, memory: str) -> None:
    """Set up a decoding process. `memory`: path of the memory shared with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    end_with_parent()
    with open(memory, "r+b") as file:
        _own.update(reader=reader, memory=mmap.mmap(file.fileno(), 0))


def ping() -> None:
    """Return at once, to show that the process runs."""


def decode(items: list[Item], offset: int | None, size: int) -> list[Packed | Reject]:
    """Decode items. Arrays go to the `size` bytes of shared memory from `offset` on; the rest is returned by value."""
    end = None if offset is None else offset + size
    result: list[Packed | Reject] = []
    for sample in (read_sample(_own["reader"], item) for item in items):
        if isinstance(sample, Reject) or offset is None or end is None:
            result.append(sample)
            continue
        packed: dict[str, SharedArray | np.ndarray] = {}
        for name, array in sample.items():
            if offset + array.nbytes > end:
                packed[name] = array
                continue
            _own["memory"][offset : offset + array.nbytes] = np.ascontiguousarray(array).data.cast("B")
            packed[name] = SharedArray(offset, array.shape, array.dtype.str)
            offset += -(-array.nbytes // 64) * 64
        result.append(packed)
    return result
