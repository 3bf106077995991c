"""Chunks of rows, each processed separately: by threads of this process, or by workers on this or other machines.

Results of chunks are merged in their order. The cuts depend only on the rows, and BLAS has a single thread per chunk,
so that results have the same bytes with any number of workers. If rows are so wide that only one chunk is processed at
a time, BLAS uses its own threads, and results are the same for the same number of BLAS threads.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.runtime import cores, parallel_map
from pipeline.streaming.rows import BLOCK_BYTES, Rows, is_source

PIECE_BYTES = 2**28  # of rows as float32: a shard of 128 MB in float16
PIECE_ROWS = 2**17  # maximum: positions, classes and weights are sent to workers, tens of bytes per row
ROOM = 2**30  # bytes for chunks that threads of this process work on at once

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""A function like `map`: applies a function to items, results in their order."""


@dataclass(frozen=True)
class ChunkedSource:
    """A row source with the cuts of its chunks, and the function that maps over them."""

    source: Any
    cuts: Sequence[slice]
    apply: Apply = map

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, width)."""
        return int(self.source.shape[0]), int(self.source.shape[1])

    @property
    def dtype(self) -> Any:
        """Return the dtype of the source."""
        return self.source.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self.source[rows])

    def part(self, rows: slice) -> Any:
        """Return some rows as a source of their own."""
        return take_rows(self.source, rows)


class WrappedSource:
    """A row source computed from another, with the same chunks."""

    source: Any

    @property
    def cuts(self) -> Any:
        """Return the cuts of the source; None if it is not chunked."""
        return getattr(self.source, "cuts", None)

    @property
    def apply(self) -> Any:
        """Return the function that maps over the chunks of the source."""
        return self.source.apply


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a source, as a source."""

    source: Any
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, width)."""
        return self.stop - self.start, self.source.shape[1]

    @property
    def dtype(self) -> Any:
        """Return the dtype of the source."""
        return self.source.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.stop - self.start)
        return np.asarray(self.source[self.start + start : self.start + max(start, stop)])


def take_rows(X: Any, rows: slice) -> Any:
    """Return rows of an array or a source; a part of a source is pickled without the other rows."""
    if hasattr(X, "part"):
        return X.part(rows)
    return Span(X, rows.start, rows.stop) if is_source(X) else X[rows]


def cut_chunks(rows: Rows) -> list[slice]:
    """Split rows into chunks of about `PIECE_BYTES`, at nearby ends of shards if possible.

    Few shards are then read and checked by more than one worker.
    """
    count, width = rows.shape
    size = max(1, min(PIECE_ROWS, PIECE_BYTES // (4 * max(1, width))))
    pieces = max(1, -(-count // size))
    wanted = np.linspace(0, count, pieces + 1).round().astype(int)[1:-1]
    ends = np.flatnonzero(np.diff(rows.shards)) + 1
    if len(ends):
        nearest = ends[np.abs(ends - wanted[:, None]).argmin(axis=1)]
        wanted = np.where(np.abs(nearest - wanted) <= count / pieces / 4, nearest, wanted)
    inner = np.unique(wanted).tolist()
    return [slice(*bounds) for bounds in itertools.pairwise([0, *inner, count])]


def map_chunks(
    X: Any, function: Callable[[Any], Any], arrays: Sequence[np.ndarray], args: Sequence[Any] = ()
) -> Iterator[Any]:
    """Yield `function((rows, *arrays of these rows, *args))` for each chunk of X, or for X if it is not chunked."""
    cuts = getattr(X, "cuts", None) or [slice(0, X.shape[0])]
    if len(cuts) == 1:
        yield function((X, *arrays, *args))
        return
    yield from X.apply(function, ((take_rows(X, own), *(array[own] for array in arrays), *args) for own in cuts))


def by_threads(width: int) -> Apply:
    """Return a function that maps over chunks in threads: at most one per core, and as many as fit into `ROOM`."""

    def apply(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        from threadpoolctl import threadpool_limits

        if not _fits_twice(width):
            yield from map(function, items)
            return
        with threadpool_limits(1, user_api="blas"):
            yield from parallel_map(function, list(items), threads=min(cores(), ROOM // _chunk_memory(width)))

    return apply


_worker_lock = threading.Lock()


def run_in_worker(function: Callable[[Any], Any], width: int, work: Any) -> Any:
    """Process a chunk in a worker process, one at a time, since the number of BLAS threads is global."""
    from threadpoolctl import threadpool_limits

    with _worker_lock, threadpool_limits(1 if _fits_twice(width) else None, user_api="blas"):
        return function(work)


def _fits_twice(width: int) -> bool:
    """Return whether two chunks fit into `ROOM` at once."""
    return 2 * _chunk_memory(width) <= ROOM


def _chunk_memory(width: int) -> int:
    """Return the bytes per chunk: blocks, products in float32, sums in float64, and two sums to merge."""
    return 28 * width**2 + 2 * BLOCK_BYTES
