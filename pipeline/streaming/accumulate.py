"""Compute moments of rows in one pass; ridge, LDA, class means and principal components are solved from them.

Spans of rows may be summed by other threads, processes or machines, and merged.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.streaming.chunks import Span, WrappedSource, map_chunks, take_rows
from pipeline.streaming.moments import Moments
from pipeline.streaming.rows import BLOCK_BYTES, blocks, is_source
from pipeline.streaming.targets import encode_labels

BYTES = BLOCK_BYTES // 2  # per block; three blocks are in memory: centred, read, and read ahead
PIVOT_ROWS = 1024  # 256 rows estimate the mean less well, and errors of products become several times larger


class CachedMoments(WrappedSource):
    """A row source that caches the last moments of its rows, so that heads fitted to it share a pass.

    The cache is used for equal groups of rows, targets and weights. It takes O(width²) of memory.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.shape, self.dtype = source, source.shape, source.dtype
        self._cached: tuple[tuple[Any, ...], Moments] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self.source[rows])

    def part(self, rows: slice) -> Any:
        """Return some rows of the source."""
        return take_rows(self.source, rows)

    def moments(self, key: tuple[Any, ...], compute: Callable[[Any], Moments]) -> Moments:
        """Return `compute(source)`, from the last call if its `key` had equal arrays."""
        if self._cached is None or not all(itertools.starmap(np.array_equal, zip(self._cached[0], key, strict=True))):
            self._cached = key, compute(self.source)
        return self._cached[1]


def compute_moments(X: Any, y: Any = None, *, classes: Any = None, weights: np.ndarray | None = None) -> Moments:
    """Compute the moments of rows X, an array or a row source, in one pass.

    With `classes`, y (rows,) has the class of each row; otherwise it has targets (rows,) or (rows, targets), or is
    None. The chunks of a chunked source are summed separately, possibly by workers, and merged in their order, so that
    the result depends only on the cuts. For a `CachedMoments` source with a cached result, no row is read.

    Raises HeadError if y has another number of rows than X or an unknown class, if a class has no row, and if a row of
    a source is not finite; ValueError, as scikit-learn does, if a row of an array is not.
    """
    rows = X.shape[0]
    groups, targets = np.broadcast_to(np.int32(0), rows), np.zeros((rows, 0))
    if y is not None and len(y) != rows:
        raise HeadError(
            f"training rows: expected {rows:,} targets, one per row, got {len(y):,}. Give them in the order of the "
            "rows."
        )
    if classes is not None:
        classes = np.sort(classes)
        groups = encode_labels(np.asarray(y), classes)
    elif y is not None:
        targets = np.array(y, dtype=np.float64).reshape(rows, -1)
    given = np.broadcast_to(np.float64(1), rows) if weights is None else np.array(weights, dtype=np.float64)

    def compute(source: Any) -> Moments:
        pivots = _pivot(source), targets.sum(axis=0) / max(1, rows)
        parts: Iterator[Moments] = map_chunks(source, _sum, (groups, targets, given), (classes, *pivots))
        return functools.reduce(Moments.merge, parts).check()

    if not isinstance(X, CachedMoments):
        return compute(X)
    number = None if classes is None else len(classes)
    return replace(X.moments((number, groups, targets, given), compute), classes=classes)


def _sum(work: tuple[Any, ...]) -> Moments:
    """Compute the moments of a chunk."""
    X, groups, targets, weights, classes, pivot, target_pivot = work
    total = Moments.empty(pivot, classes=classes, target_pivot=target_pivot)
    buffers = None
    try:
        for rows, block in blocks(X, size=max(1, BYTES // (4 * max(1, total.width)))):
            buffers = buffers or total.buffers(block.dtype)
            total.add(block, groups[rows], targets[rows], weights[rows], buffers=buffers)
    except HeadError as error:
        if isinstance(X, Span) and X.start:
            error.add_note(f"Its rows are counted from row {X.start:,}.")
        raise
    return total


def _pivot(X: Any) -> np.ndarray:
    """Return the mean of the first rows, in their precision, so that subtracting it from rows loses no precision."""
    if not X.shape[0]:
        return np.zeros(X.shape[1])
    most = min(PIVOT_ROWS, X.shape[0])
    _, first = next(blocks(Span(X, 0, most) if is_source(X) else X[:most]))
    return np.asarray(first.mean(axis=0, dtype=np.float64).astype(first.dtype))
