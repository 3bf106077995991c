"""Decoding in threads of this process, or in processes of their own.

Threads share memory, but wait for the interpreter lock between calls into the image library: on two cores they reach
the bound of benchmarks/extract.py. Processes are expected to be faster on many cores or with a GPU; this was not
measured. They pass pixels through anonymous shared memory (memfd), so that a kill leaves no file behind. A killed
process is replaced, and its items are decoded again.
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
from pipeline.loading.decoder_process import Packed, SharedArray, decode, init_process, ping
from pipeline.loading.samples import Item, Reject, read_sample
from pipeline.readers import Reader, Sample
from pipeline.runtime import can_start_processes, cores

Kind = Literal["auto", "threads", "processes"]
Answer = Callable[[], list[Sample | Reject]]
"""Waits for the result of `submit`: a sample or a reject for each item."""

MANY_CORES = 4  # with more cores than this, `auto` uses processes
PARTS = 4  # tasks per thread into which the submitted items are divided
CHUNK = 8  # items that a process decodes at a time
REGIONS = 32  # regions of shared memory per process; an unused region takes no memory
ATTEMPTS = 3  # at decoding an item whose process dies


class Decoders(Protocol):
    """Reads and decodes items in the background."""

    def submit(self, items: Sequence[Item]) -> Answer:
        """Start to decode items; the result is waited for by calling the answer."""
        ...

    def close(self) -> None:
        """Drop items that were not started, and end the threads or processes."""
        ...


def start_decoders(reader: Reader, kind: Kind, *, sample_bytes: int, with_gpu: bool = False) -> Decoders:
    """Start decoders on all cores. `sample_bytes`: approximate size of a decoded sample.

    `auto` uses processes with a GPU or on many cores, if the system has anonymous shared memory and this process may
    start others.

    Raises ClusterError if `kind` is "processes" and this process may not start any.
    """
    many = with_gpu or cores() > MANY_CORES
    daemon = current_process().daemon
    if daemon and kind == "processes":
        raise ClusterError(
            "decode: expected a worker that may start processes, got a daemon, which Dask workers are by default. "
            "Start the workers with DASK_DISTRIBUTED__WORKER__DAEMON=False, or set `run: {decode: threads}`."
        )
    if kind == "processes" and not can_start_processes():
        raise ClusterError(
            "decode: expected a script that may start processes, got one without `if __name__ == '__main__':`, or on "
            "standard input, which each process would run again. Put the script's calls under that line of a file, or "
            "set `run: {decode: threads}`."
        )
    use_processes = kind == "processes" or (kind == "auto" and many and can_start_processes())
    if hasattr(os, "memfd_create") and not daemon and use_processes:
        return Processes(reader, cores(), sample_bytes=sample_bytes)
    return Threads(reader, cores())


class Threads:
    """Decodes in threads of this process."""

    def __init__(self, reader: Reader, count: int) -> None:
        self._reader, self._parts = reader, PARTS * count
        self._pool = ThreadPoolExecutor(count)

    def submit(self, items: Sequence[Item]) -> Answer:
        """Start to decode items, divided into PARTS tasks per thread."""
        size = max(1, -(-len(items) // self._parts))
        futures = [self._pool.submit(self._read, items[start : start + size]) for start in range(0, len(items), size)]
        return lambda: [sample for future in futures for sample in future.result()]

    def _read(self, items: Sequence[Item]) -> list[Sample | Reject]:
        return [read_sample(self._reader, item) for item in items]

    def close(self) -> None:
        """Drop items that were not started."""
        self._pool.shutdown(cancel_futures=True)


@dataclass
class _Chunk:
    """Items that a process decodes. region: offset of their shared memory. pool: where they were submitted."""

    items: Sequence[Item]
    region: int | None = None
    pool: ProcessPoolExecutor | None = None
    future: "Future[list[Packed | Reject]] | None" = None


class Processes:
    """Decodes in processes of their own.

    Raises ClusterError if no process can be started.
    """

    def __init__(self, reader: Reader, count: int, *, sample_bytes: int) -> None:
        self._reader, self._count = reader, count
        self._region_size = CHUNK * (sample_bytes + mmap.PAGESIZE)
        self._free = [number * self._region_size for number in range(REGIONS * count)]
        self._waiting: deque[_Chunk] = deque()
        self._file = os.memfd_create("icecore")
        os.ftruncate(self._file, len(self._free) * self._region_size)
        self._memory = mmap.mmap(self._file, 0)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        memory = f"/proc/{os.getpid()}/fd/{self._file}"
        with _start_errors():
            return ProcessPoolExecutor(
                self._count, mp_context=get_context("spawn"), initializer=init_process, initargs=(self._reader, memory)
            )

    def submit(self, items: Sequence[Item]) -> Answer:
        """Start to decode items in chunks; chunks without a free region of memory wait for one."""
        chunks = [_Chunk(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
        self._waiting += chunks
        self._start_waiting()
        return lambda: [sample for chunk in chunks for sample in self._collect(chunk)]

    def _start_waiting(self) -> None:
        while self._waiting and self._free:
            chunk = self._waiting.popleft()
            chunk.region = self._free.pop()
            self._start_chunk(chunk)

    def _start_chunk(self, chunk: _Chunk) -> None:
        for _ in range(ATTEMPTS):
            chunk.pool = self._pool
            try:
                with _start_errors():
                    chunk.future = self._pool.submit(decode, list(chunk.items), chunk.region, self._region_size)
                return
            except BrokenProcessPool:  # a process died while it was idle
                self._replace(chunk.pool)
        raise _start_error("a process that ends at once")

    def _collect(self, chunk: _Chunk) -> list[Sample | Reject]:
        if chunk.future is None:  # collected before its turn: its arrays come through the pipe
            self._waiting.remove(chunk)
            self._start_chunk(chunk)
        try:
            return self._results(chunk) or [self._decode_item(item, chunk.region) for item in chunk.items]
        finally:
            if chunk.region is not None:
                self._free.append(chunk.region)
            self._start_waiting()

    def _results(self, chunk: _Chunk) -> list[Sample | Reject] | None:
        """Return the results of a chunk; None if a process of its pool died, which breaks the pool."""
        assert chunk.pool is not None
        assert chunk.future is not None
        try:
            results = chunk.future.result()
        except BrokenProcessPool:
            self._replace(chunk.pool)
            return None
        return [result if isinstance(result, Reject) else self._unpack(result) for result in results]

    def _decode_item(self, item: Item, region: int | None) -> Sample | Reject:
        """Decode an item in a chunk of its own: if its process dies ATTEMPTS times, the item is the cause."""
        for _ in range(ATTEMPTS):
            chunk = _Chunk([item], region)
            self._start_chunk(chunk)
            results = self._results(chunk)
            if results is not None:
                return results[0]
        reason = f"the process that decodes it died {ATTEMPTS} times; check the file and the free memory"
        return Reject(item.key, item.place.path, reason, permanent=False)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        """Start new processes, unless `broken` was replaced already: items of the new pool must not be lost."""
        if self._pool is not broken:
            return
        for _ in range(ATTEMPTS):
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._start()
            with contextlib.suppress(BrokenProcessPool), _start_errors():
                self._pool.submit(ping).result()
                return
        raise _start_error("a process that ends at once")

    def _unpack(self, packed: Packed) -> Sample:
        return {name: self._copy(array) if isinstance(array, SharedArray) else array for name, array in packed.items()}

    def _copy(self, array: SharedArray) -> np.ndarray:
        count = int(np.prod(array.shape))
        flat = np.frombuffer(self._memory, array.dtype, count=count, offset=array.offset)
        return flat.reshape(array.shape).copy()

    def close(self) -> None:
        """Drop items that were not started, and end the processes."""
        self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)
        self._memory.close()
        os.close(self._file)


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    """Turn an OSError in this block, in which a process is started, into a ClusterError."""
    try:
        yield
    except OSError as error:
        raise _start_error(error) from None


def _start_error(got: object) -> ClusterError:
    return ClusterError(
        f"decode: expected a process that decodes, got {got}. Its traceback is above. Check the free memory, or set "
        "`run: {decode: threads}`."
    )
