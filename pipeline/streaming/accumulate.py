"""Moments of rows in one pass; ridge, discriminants, class means and principal components are solved from them.

A row counts once, whoever adds it: spans of rows may be summed by other threads, processes or machines, and merged.
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
from pipeline.streaming.targets import numbered

BYTES = BLOCK_BYTES // 2  # of a block; three of that size are held: one centred, one read and one read ahead
PIVOT_ROWS = 1024  # with 256 the mean is met less well, and products' errors add up to several times as much


class CachedMoments(WrappedSource):
    """A row source that keeps the last moments of its rows, so that heads fitted to it share one pass.

    They are given again to who asks for the same groups of rows, targets and weights: O(width²) of memory.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.shape, self.dtype = source, source.shape, source.dtype
        self._kept: tuple[tuple[Any, ...], Moments] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self.source[rows])

    def part(self, rows: slice) -> Any:
        """Return some rows of the source."""
        return take_rows(self.source, rows)

    def moments(self, asked: tuple[Any, ...], make: Callable[[Any], Moments]) -> Moments:
        """Return the moments of the source as `make` sums them, from the last call if the arguments are the same."""
        if self._kept is None or not all(itertools.starmap(np.array_equal, zip(self._kept[0], asked, strict=True))):
            self._kept = asked, make(self.source)
        return self._kept[1]


def compute_moments(X: Any, y: Any = None, *, classes: Any = None, weights: np.ndarray | None = None) -> Moments:
    """Compute the moments of rows X, an array or a row source, in one pass.

    y (rows,) names the class of each row where `classes` are given, and otherwise holds targets (rows,) or (rows,
    targets); None: neither. A source of `pieces` is summed piece by piece, by whoever works on these, and the sums are
    merged in their order: what is added to what depends on the cut alone. Of a `CachedMoments` source that was
    asked before, no row is read.

    Raises HeadError where y has other rows than X or names an unknown class, where a class has no row, and where
    a row of a source is not finite; ValueError, as scikit-learn does, where one of an array is not.
    """
    rows = X.shape[0]
    groups, targets = np.broadcast_to(np.int32(0), rows), np.zeros((rows, 0))
    if y is not None and len(y) != rows:
        raise HeadError(f"training rows: expected {rows:,} targets, one a row, got {len(y):,}. Give them in one order.")
    if classes is not None:
        classes = np.sort(classes)
        groups = numbered(np.asarray(y), classes)
    elif y is not None:
        targets = np.array(y, dtype=np.float64).reshape(rows, -1)
    given = np.broadcast_to(np.float64(1), rows) if weights is None else np.array(weights, dtype=np.float64)

    def summed(source: Any) -> Moments:
        pivots = _pivot(source), targets.sum(axis=0) / max(1, rows)
        parts: Iterator[Moments] = map_chunks(source, _sum, (groups, targets, given), (classes, *pivots))
        return functools.reduce(Moments.merge, parts).check()

    if not isinstance(X, CachedMoments):
        return summed(X)
    number = None if classes is None else len(classes)
    return replace(X.moments((number, groups, targets, given), summed), classes=classes)


def _sum(work: tuple[Any, ...]) -> Moments:
    """Compute the moments of one piece."""
    X, groups, targets, weights, classes, pivot, target_pivot = work
    total = Moments.empty(pivot, classes=classes, target_pivot=target_pivot)
    room = None
    try:
        for rows, block in blocks(X, size=max(1, BYTES // (4 * max(1, total.width)))):
            room = room or total.room(block.dtype)
            total.add(block, groups[rows], targets[rows], weights[rows], room=room)
    except HeadError as error:
        if isinstance(X, Span) and X.start:
            error.add_note(f"Its rows are counted from row {X.start:,}.")
        raise
    return total


def _pivot(X: Any) -> np.ndarray:
    """Return the mean of the first rows, in their precision, so that rows less it are exact to their own rounding."""
    if not X.shape[0]:
        return np.zeros(X.shape[1])
    most = min(PIVOT_ROWS, X.shape[0])
    _, first = next(blocks(Span(X, 0, most) if is_source(X) else X[:most]))
    return np.asarray(first.mean(axis=0, dtype=np.float64).astype(first.dtype))
