"""Who decodes: threads of this process, or processes of their own.

Threads share the memory but queue for the interpreter between the calls into the image library: on two cores they reach
the bound of benchmarks/extract.py. That processes do better on many cores, or beside a GPU, is expected and was not
measured. They hand their pixels over through shared memory that no file system holds (memfd): a kill
leaves nothing behind. One that is killed is replaced, and what it worked on is read again.
"""

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from typing import Literal, Protocol

import numpy as np

from pipeline.errors import ClusterError
from pipeline.loading.decoder_process import Packed, SharedArray, begin, decode, ping
from pipeline.loading.samples import Item, Reject, read_sample
from pipeline.readers import Reader, Sample
from pipeline.runtime import can_start_processes, cores

Kind = Literal["auto", "threads", "processes"]
Answer = Callable[[], list[Sample | Reject]]
"""Waits for what was asked for: a sample or its reject for each item."""

MANY_CORES = 4  # from which on processes are taken
PARTS = 4  # for each thread, in which what is submitted is cut
CHUNK = 8  # items that one process decodes at a time
REGIONS = 32  # of shared memory for each process; one that is never used takes no memory
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
    """Return decoders on all cores; `sample_bytes`: about the size of a decoded sample.

    `auto` takes processes beside a GPU and on many cores, where the system has shared memory without files and this
    process may start others.

    Raises ClusterError where processes are asked for and this one may start none.
    """
    many = beside_gpu or cores() > MANY_CORES
    daemon = current_process().daemon
    if daemon and kind == "processes":
        raise ClusterError(
            "decode: expected a worker that may start processes, got a daemon, which is what Dask makes of workers. "
            "Start them with DASK_DISTRIBUTED__WORKER__DAEMON=False, or set `run: {decode: threads}`."
        )
    if kind == "processes" and not can_start_processes():
        raise ClusterError(
            "decode: expected a script that may start processes, got one without `if __name__ == '__main__'`, which "
            "each process would run again. Put its calls under that line, or set `run: {decode: threads}`."
        )
    wanted = kind == "processes" or (kind == "auto" and many and can_start_processes())
    if hasattr(os, "memfd_create") and not daemon and wanted:
        return Processes(reader, cores(), sample_bytes=sample_bytes)
    return Threads(reader, cores())


class Threads:
    """Decoders in this process."""

    def __init__(self, reader: Reader, count: int) -> None:
        self._reader, self._parts = reader, PARTS * count
        self._pool = ThreadPoolExecutor(count)

    def submit(self, items: Sequence[Item]) -> Answer:
        """Begin with some items, some parts for each thread."""
        size = max(1, -(-len(items) // self._parts))
        futures = [self._pool.submit(self._read, items[start : start + size]) for start in range(0, len(items), size)]
        return lambda: [one for future in futures for one in future.result()]

    def _read(self, items: Sequence[Item]) -> list[Sample | Reject]:
        return [read_sample(self._reader, item) for item in items]

    def close(self) -> None:
        """Drop what was not begun."""
        self._pool.shutdown(cancel_futures=True)


@dataclass
class _Chunk:
    """Items that one process decodes, and where their arrays go. `pool`: the one they were given to."""

    items: Sequence[Item]
    where: int | None = None
    pool: ProcessPoolExecutor | None = None
    future: "Future[list[Packed | Reject]] | None" = None


class Processes:
    """Decoders in processes of their own.

    Raises ClusterError where no process can be started.
    """

    def __init__(self, reader: Reader, count: int, *, sample_bytes: int) -> None:
        self._reader, self._count = reader, count
        self._region = CHUNK * (sample_bytes + mmap.PAGESIZE)
        self._free = [number * self._region for number in range(REGIONS * count)]
        self._waiting: deque[_Chunk] = deque()
        self._file = os.memfd_create("icecore")
        os.ftruncate(self._file, len(self._free) * self._region)
        self._memory = mmap.mmap(self._file, 0)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        memory = f"/proc/{os.getpid()}/fd/{self._file}"
        with _starting():
            return ProcessPoolExecutor(
                self._count, mp_context=get_context("spawn"), initializer=begin, initargs=(self._reader, memory)
            )

    def submit(self, items: Sequence[Item]) -> Answer:
        """Begin with some items, in chunks; those that find no free region of memory wait for one."""
        chunks = [_Chunk(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
        self._waiting += chunks
        self._begin_waiting()
        return lambda: [one for chunk in chunks for one in self._collect(chunk)]

    def _begin_waiting(self) -> None:
        while self._waiting and self._free:
            chunk = self._waiting.popleft()
            chunk.where = self._free.pop()
            self._begin(chunk)

    def _begin(self, chunk: _Chunk) -> None:
        for _ in range(ATTEMPTS):
            chunk.pool = self._pool
            try:
                with _starting():
                    chunk.future = self._pool.submit(decode, list(chunk.items), chunk.where, self._region)
                return
            except BrokenProcessPool:  # a process was ended while it had nothing to do
                self._replace(chunk.pool)
        raise _none_starts("one that ends at once")

    def _collect(self, chunk: _Chunk) -> list[Sample | Reject]:
        if chunk.future is None:  # asked for before others that wait: its arrays come through the pipe
            self._waiting.remove(chunk)
            self._begin(chunk)
        try:
            return self._answers(chunk) or [self._decode_apart(item, chunk.where) for item in chunk.items]
        finally:
            if chunk.where is not None:
                self._free.append(chunk.where)
            self._begin_waiting()

    def _answers(self, chunk: _Chunk) -> list[Sample | Reject] | None:
        """Return what became of some items; None if a process of their pool was ended, and the pool with it."""
        assert chunk.pool is not None
        assert chunk.future is not None
        try:
            answers = chunk.future.result()
        except BrokenProcessPool:
            self._replace(chunk.pool)
            return None
        return [one if isinstance(one, Reject) else self._unpack(one) for one in answers]

    def _decode_apart(self, item: Item, where: int | None) -> Sample | Reject:
        """Return one item by itself: if its process is ended again and again, the item is what ends it."""
        for _ in range(ATTEMPTS):
            chunk = _Chunk([item], where)
            self._begin(chunk)
            answers = self._answers(chunk)
            if answers is not None:
                return answers[0]
        reason = f"the process that decoded it was ended {ATTEMPTS} times; look at the file, and at the memory"
        return Reject(item.key, item.place.path, reason, lasting=False)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        """Start other processes, unless that was done: what was given to the new ones must not be dropped."""
        if self._pool is not broken:
            return
        for _ in range(ATTEMPTS):
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._start()
            with contextlib.suppress(BrokenProcessPool), _starting():
                self._pool.submit(ping).result()
                return
        raise _none_starts("one that ends at once")

    def _unpack(self, packed: Packed) -> Sample:
        return {name: self._array(one) if isinstance(one, SharedArray) else one for name, one in packed.items()}

    def _array(self, there: SharedArray) -> np.ndarray:
        count = int(np.prod(there.shape))
        flat = np.frombuffer(self._memory, there.dtype, count=count, offset=there.offset)
        return flat.reshape(there.shape).copy()

    def close(self) -> None:
        """Drop what was not begun, and end the processes."""
        self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)
        self._memory.close()
        os.close(self._file)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Let a process be started in this block."""
    try:
        yield
    except OSError as error:
        raise _none_starts(error) from None


def _none_starts(got: object) -> ClusterError:
    return ClusterError(
        f"decode: expected a process that decodes, got {got}. What it says of itself stands above. Look at the memory, "
        "or set `run: {decode: threads}`."
    )
