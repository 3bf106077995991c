"""Who decodes: threads of this process, or processes of their own.

Threads share the memory but queue for the interpreter between the calls into the image library, which a few cores do
not notice and many do. Processes hand their pixels over through shared memory that no file system holds (memfd): a kill
leaves nothing behind. One that is killed is replaced, and what it worked on is read again.
"""

import mmap
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.extract.samples import Item, Reject, read_all
from pipeline.readers import BatchReader, Reader, Sample
from pipeline.runtime import cores, end_with_parent

Kind = Literal["auto", "threads", "processes"]
Answer = Callable[[], list[Sample | Reject]]
"""Waits for what was asked for: a sample or its reject for each item."""

MANY_CORES = 4  # from which on processes are taken
CHUNK = 8  # items that one process decodes at a time
REGIONS = 8  # of shared memory for each process
ATTEMPTS = 3  # at one item, where its process is ended


class Decoders(Protocol):
    """Read and decode items beside the caller."""

    def submit(self, items: Sequence[Item]) -> Answer:
        """Begin with some items."""
        ...

    def close(self) -> None:
        """Drop what was not begun, and end the threads or processes."""
        ...


def decoders(reader: Reader, kind: Kind, *, sample_bytes: int, beside_gpu: bool = False) -> Decoders:
    """Decoders on all cores; `sample_bytes`: of a decoded sample, about.

    `auto` takes processes beside a GPU and on many cores, where the system has shared memory without files. A reader of
    batches decodes on a device: one thread hands it whole batches.
    """
    if isinstance(reader, BatchReader):
        return Threads(reader, 1, shares=1)
    many = beside_gpu or cores() > MANY_CORES
    if hasattr(os, "memfd_create") and (kind == "processes" or (kind == "auto" and many)):
        return Processes(reader, cores(), sample_bytes=sample_bytes)
    return Threads(reader, cores())


class Threads:
    """Decoders in this process."""

    def __init__(self, reader: Reader, count: int, *, shares: int = 4) -> None:
        """`shares`: in how many parts for each thread what is submitted is cut."""
        self._reader, self._shares = reader, shares * count
        self._pool = ThreadPoolExecutor(count)

    def submit(self, items: Sequence[Item]) -> Answer:
        """Begin with some items, a share for each thread."""
        size = max(1, -(-len(items) // self._shares))
        futures = [
            self._pool.submit(read_all, self._reader, items[start : start + size])
            for start in range(0, len(items), size)
        ]
        return lambda: [one for future in futures for one in future.result()]

    def close(self) -> None:
        """Drop what was not begun."""
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _There:
    """An array in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


Packed = Mapping[str, _There | np.ndarray]


class Processes:
    """Decoders in processes of their own."""

    def __init__(self, reader: Reader, count: int, *, sample_bytes: int) -> None:
        self._reader, self._count = reader, count
        self._region = CHUNK * (sample_bytes + mmap.PAGESIZE)
        self._free = [number * self._region for number in range(REGIONS * count)]
        self._file = os.memfd_create("icecore")
        os.ftruncate(self._file, len(self._free) * self._region)
        self._memory = mmap.mmap(self._file, 0)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        memory = f"/proc/{os.getpid()}/fd/{self._file}"
        return ProcessPoolExecutor(
            self._count, mp_context=get_context("spawn"), initializer=_begin, initargs=(self._reader, memory)
        )

    def submit(self, items: Sequence[Item]) -> Answer:
        """Begin with some items, in chunks."""
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        begun = [(chunk, *self._submit(chunk)) for chunk in chunks]
        return lambda: [one for chunk, where, future in begun for one in self._collect(chunk, where, future)]

    def _submit(self, items: Sequence[Item]) -> tuple[int | None, "Future[list[Packed | Reject]]"]:
        where = self._free.pop() if self._free else None  # without a region the arrays come through the pipe
        work = (list(items), where, self._region)
        try:
            return where, self._pool.submit(_decode, *work)
        except BrokenProcessPool:
            self._restart(self._pool)
            return where, self._pool.submit(_decode, *work)

    def _collect(
        self, items: Sequence[Item], where: int | None, future: "Future[list[Packed | Reject]]"
    ) -> list[Sample | Reject]:
        try:
            answers = future.result()
            return [one if isinstance(one, Reject) else self._unpack(one) for one in answers]
        except BrokenProcessPool:
            self._restart(self._pool)
            return [self._alone(item) for item in items]
        finally:
            if where is not None:
                self._free.append(where)

    def _alone(self, item: Item) -> Sample | Reject:
        """One item by itself: if its process is ended again and again, the item is what ends it."""
        for _ in range(ATTEMPTS):
            _, future = None, self._pool.submit(_decode, [item], None, 0)
            try:
                (answer,) = future.result()
            except BrokenProcessPool:
                self._restart(self._pool)
            else:
                return answer if isinstance(answer, Reject) else self._unpack(answer)
        reason = f"the process that decoded it was ended {ATTEMPTS} times; look at the file, and at the memory"
        return Reject(item.key, item.place.path, reason, lasting=False)

    def _restart(self, broken: ProcessPoolExecutor) -> None:
        broken.shutdown(wait=True, cancel_futures=True)
        self._pool = self._start()

    def _unpack(self, packed: Packed) -> Sample:
        return {name: self._array(one) if isinstance(one, _There) else one for name, one in packed.items()}

    def _array(self, there: _There) -> np.ndarray:
        count = int(np.prod(there.shape))
        flat = np.frombuffer(self._memory, there.dtype, count=count, offset=there.offset)
        return flat.reshape(there.shape).copy()

    def close(self) -> None:
        """Drop what was not begun, and end the processes."""
        self._pool.shutdown(cancel_futures=True)
        self._memory.close()
        os.close(self._file)


# In a decoding process -----------------------------------------------------------------------------------------------

_own: dict[str, Any] = {}


def _begin(reader: Reader, memory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    end_with_parent()
    with open(memory, "r+b") as file:
        _own.update(reader=reader, memory=mmap.mmap(file.fileno(), 0))


def _decode(items: list[Item], where: int | None, room: int) -> list[Packed | Reject]:
    """Decode items; their arrays go to shared memory from `where` on as long as there is room."""
    end = None if where is None else where + room
    found: list[Packed | Reject] = []
    for sample in read_all(_own["reader"], items):
        if isinstance(sample, Reject) or where is None or end is None:
            found.append(sample)
            continue
        packed: dict[str, _There | np.ndarray] = {}
        for name, array in sample.items():
            if where + array.nbytes > end:
                packed[name] = array
                continue
            _own["memory"][where : where + array.nbytes] = np.ascontiguousarray(array).data.cast("B")
            packed[name] = _There(where, array.shape, array.dtype.str)
            where += -(-array.nbytes // 64) * 64
        found.append(packed)
    return found
