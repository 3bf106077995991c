"""Rows cut into pieces, each worked on by itself: by threads of this process, or by workers on this or other machines.

What follows from the pieces is merged in their order. The cut depends on the rows alone, and BLAS gets one thread for a
piece whoever works on it, so that results have the same bytes with any number of workers; where rows are so wide that
one piece is worked on at a time, BLAS has its own threads, and results are the same where it has as many.
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
PIECE_ROWS = 2**17  # at most: places, classes and weights of the rows are sent to workers, tens of bytes per row
ROOM = 2**30  # of memory for pieces that threads of this process work on

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""What `map` does: a function over items, results in their order."""


@dataclass(frozen=True)
class ChunkedSource:
    """A row source that says how its rows are cut, and who works on a piece."""

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
    """A row source that is made of another, and cut as that is."""

    source: Any

    @property
    def cuts(self) -> Any:
        """Return the cuts of the source, where it has pieces."""
        return getattr(self.source, "cuts", None)

    @property
    def apply(self) -> Any:
        """Return the function that has pieces of the source worked on."""
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
    """Return some rows of an array or a source; of a source, one that goes to a worker without the other rows."""
    if hasattr(X, "part"):
        return X.part(rows)
    return Span(X, rows.start, rows.stop) if is_source(X) else X[rows]


def cut_chunks(rows: Rows) -> list[slice]:
    """Cut rows into pieces of about `PIECE_BYTES`, at the ends of shards where there are any near.

    A worker then reads, and checks, few shards that others read as well.
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
    return [slice(*both) for both in itertools.pairwise([0, *inner, count])]


def map_chunks(
    X: Any, function: Callable[[Any], Any], arrays: Sequence[np.ndarray], args: Sequence[Any] = ()
) -> Iterator[Any]:
    """Yield `function((rows, *their part of the arrays, *args))` of each piece of X, or of X without pieces."""
    cuts = getattr(X, "cuts", None) or [slice(0, X.shape[0])]
    if len(cuts) == 1:
        yield function((X, *arrays, *args))
        return
    yield from X.apply(function, ((take_rows(X, own), *(array[own] for array in arrays), *args) for own in cuts))


def by_threads(width: int) -> Apply:
    """Return a function that works on pieces in threads: as many as there are cores, and as fit into `ROOM`."""

    def apply(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        from threadpoolctl import threadpool_limits

        if not _narrow(width):
            yield from map(function, items)
            return
        with threadpool_limits(1, user_api="blas"):
            yield from parallel_map(function, list(items), threads=min(cores(), ROOM // _bytes(width)))

    return apply


_one = threading.Lock()


def run_in_worker(function: Callable[[Any], Any], width: int, work: Any) -> Any:
    """Work on one piece in a worker's process, which has one number of BLAS threads."""
    from threadpoolctl import threadpool_limits

    with _one, threadpool_limits(1 if _narrow(width) else None, user_api="blas"):
        return function(work)


def _narrow(width: int) -> bool:
    """Return whether sums of rows leave room for two pieces at once."""
    return 2 * _bytes(width) <= ROOM


def _bytes(width: int) -> int:
    """Return the bytes for a piece: blocks, products in float32, sums in float64, and two sums to be merged."""
    return 28 * width**2 + 2 * BLOCK_BYTES
