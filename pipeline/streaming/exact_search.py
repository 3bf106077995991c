"""Exact nearest-neighbour search over row sources that need not fit into memory.

Most of the work is float32 matrix products of some hundred queries with two thousand rows, which stay in a core's
cache. A row is compared in float64 only if its product is close enough to the distance of the k-th neighbour so far.
The bound on a product's rounding error defines "close enough", so that no neighbour is lost to rounding.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import numpy as np

from pipeline.errors import HeadError, unknown
from pipeline.runtime import cores
from pipeline.streaming.rows import blocks

Metric = Literal["cosine", "euclidean"]

QUERIES_BYTES = 2**26  # of float32 queries that one pass over the database serves
TILE = (256, 2048)  # queries and rows of a product: 2 MiB in float32
PAIRS_BYTES = 2**24  # of float64 rows that are compared at once
FLOAT32 = np.finfo(np.float32)
LONGEST = 1e18  # of a row: the square still is a float32


def nearest(
    queries: Any, database: Any, k: int, *, metric: Metric = "cosine", exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest rows of each query; return distances float32 (queries, k) ascending, and numbers, int64.

    Both are arrays or row sources of equal width. The cosine distance is 1 - cos, and 1 for rows of zeros. Distances
    are computed in float64 and rounded; of rows at equal distance, the lowest number comes first. With `exclude_self`,
    the queries are the database, and no row is its own neighbour. Memory does not grow with the database. Raises
    HeadError for an unknown metric, different widths, fewer than `k` rows and rows longer than 1e18, and the errors of
    `blocks`.
    """
    count, width = _validate(queries, database, k, metric, exclude_self)
    distances, numbers = np.empty((count, k), dtype=np.float32), np.empty((count, k), dtype=np.int64)
    for served, rows in blocks(queries, size=max(1, QUERIES_BYTES // (4 * width))):
        tiles = [_Tile(own, metric, k, first) for first, own in _tiles(rows, served.start)]
        _search_tiles(tiles, database, metric, exclude_self=exclude_self)
        distances[served] = np.concatenate([tile.distances for tile in tiles])
        numbers[served] = np.concatenate([tile.numbers for tile in tiles])
    return distances, numbers


def _validate(queries: Any, database: Any, k: int, metric: str, exclude_self: bool) -> tuple[int, int]:
    """Return the number of queries and the width of rows; raises HeadError for arguments that do not match."""
    if metric not in ("cosine", "euclidean"):
        raise HeadError(unknown("metric", metric, ("cosine", "euclidean")))
    (count, width), (rows, other) = np.shape(queries), np.shape(database)
    if width != other:
        raise HeadError(f"neighbours: expected queries and rows of equal width, got {width:,} and {other:,}.")
    if exclude_self and count != rows:
        raise HeadError(f"neighbours: expected the database as queries, got {count:,} queries and {rows:,} rows.")
    if not 1 <= k <= rows - exclude_self:
        raise HeadError(f"neighbours: expected k from 1 to {rows - exclude_self:,}, got {k}. Ask for fewer neighbours.")
    return count, width


def _tiles(rows: np.ndarray, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Split queries into tiles for all cores: yield the number of the first query, and the rows."""
    size = max(1, min(TILE[0], -(-len(rows) // cores())))
    for first in range(0, len(rows), size):
        yield start + first, rows[first : first + size]


def _search_tiles(tiles: list["_Tile"], database: Any, metric: Metric, *, exclude_self: bool) -> None:
    """Search the database in one pass for all tiles, with a thread per core and a single BLAS thread."""
    from threadpoolctl import threadpool_limits

    center: np.ndarray | None = None
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(cores(), len(tiles))) as pool:
        for part, rows in blocks(database):
            if center is None:  # centring keeps distances, and products lose fewer digits
                center = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            block = _Block(rows, metric, center, part.start)
            list(pool.map(partial(_Tile.update, block=block, exclude_self=exclude_self), tiles))


class _Block:
    """A block of the database: its rows, and the right operand of the products."""

    def __init__(self, rows: np.ndarray, metric: Metric, center: np.ndarray, start: int) -> None:
        self.rows, self.start, self.center = rows, start, center
        self.norms = _norms(rows)
        self.longest = 1.0
        if metric == "cosine":
            self.right = _directions(rows, self.norms, dtype=np.float32)
            return
        # |q - x|² = |q|² - 2 (qx - |x|² / 2): the last term is a column of its own, and 1 in the queries.
        self.right = np.empty((len(rows), rows.shape[1] + 1), dtype=np.float32)
        np.subtract(rows, center, out=self.right[:, :-1], casting="same_kind")
        squares = np.einsum("ij,ij->i", self.right[:, :-1], self.right[:, :-1], dtype=np.float64)
        self.right[:, -1] = squares / -2
        self.longest = float(np.sqrt(squares.max()))


class _Tile:
    """A tile of queries, and their nearest rows so far: number -1 at infinite distance if there are none."""

    def __init__(self, rows: np.ndarray, metric: Metric, k: int, start: int) -> None:
        self.rows, self.metric, self.k, self.start = rows, metric, k, start
        self.norms = _norms(rows)
        self.distances = np.full((len(rows), k), np.inf, dtype=np.float32)
        self.numbers = np.full((len(rows), k), -1, dtype=np.int64)
        self.left: np.ndarray | None = None

    def update(self, block: _Block, *, exclude_self: bool) -> None:
        """Update the neighbours with the rows of a block."""
        if self.left is None:
            self._prepare(block.center)
        assert self.left is not None
        for first in range(0, len(block.rows), TILE[1]):
            products = self.left @ block.right[first : first + TILE[1]].T
            if exclude_self:
                own = self.start + np.arange(len(self.rows)) - block.start - first
                here = (own >= 0) & (own < products.shape[1])
                products[np.flatnonzero(here), own[here]] = -np.inf
            near = np.flatnonzero(products >= self._least(products, block.longest)[:, None])
            if len(near):
                queries, rows = np.divmod(near, products.shape[1])
                self._compare(queries, rows + first, block)

    def _prepare(self, center: np.ndarray) -> None:
        if self.metric == "cosine":
            self.left, self.lengths = _directions(self.rows, self.norms, dtype=np.float32), np.ones(len(self.rows))
            return
        self.left = np.ones((len(self.rows), self.rows.shape[1] + 1), dtype=np.float32)
        np.subtract(self.rows, center, out=self.left[:, :-1], casting="same_kind")
        self.lengths = np.sqrt(np.einsum("ij,ij->i", self.left[:, :-1], self.left[:, :-1], dtype=np.float64))

    def _least(self, products: np.ndarray, longest: float) -> np.ndarray:
        """Return the product that a row needs to be nearer than the k-th neighbour so far, minus the rounding error.

        A product of d terms is off by at most d u / (1 - d u) of |q| |x|, u = 2^-24, in whatever order it is summed
        (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Added are 32 u for the rounding
        of both operands and of the compared distance, and the underflow of float32.
        """
        units = (self.rows.shape[1] + 32) * 2.0**-24
        reach = (self.lengths + longest) ** 2 / 2 if self.metric == "euclidean" else 1.0
        slack = (units / (1 - units) if units < 0.5 else np.inf) * reach + units * 2.0**-102
        if np.isinf(self.distances[:, -1]).any():  # the first products: the k largest of them set the measure
            if products.shape[1] < self.k:
                return np.full(len(self.rows), FLOAT32.min)
            least = np.partition(products, -self.k, axis=1)[:, -self.k] - 2 * slack
        else:
            distances = self.distances[:, -1].astype(np.float64)
            at = 1 - distances if self.metric == "cosine" else (self.lengths**2 - distances**2) / 2
            least = at - slack
        rounded: np.ndarray = np.nextafter(np.maximum(least, FLOAT32.min).astype(np.float32), FLOAT32.min)
        return rounded

    def _compare(self, queries: np.ndarray, rows: np.ndarray, block: _Block) -> None:
        """Insert pairs of a query and a row of the block among the neighbours, by their distances in float64."""
        step = max(1, PAIRS_BYTES // (8 * self.rows.shape[1]))
        parts = [slice(start, start + step) for start in range(0, len(queries), step)]
        distances = np.concatenate([self._distances(queries[part], rows[part], block) for part in parts])
        nearer = distances < self.distances[queries, -1]  # at equal distance, the earlier row has the lower number
        if not nearer.any():
            return
        queries = queries[nearer]
        touched, counts = np.unique(queries, return_counts=True)
        owners = np.concatenate([np.repeat(touched, self.k), queries])
        every = np.concatenate([self.distances[touched].ravel(), distances[nearer]])
        numbers = np.concatenate([self.numbers[touched].ravel(), rows[nearer] + block.start])
        order = np.lexsort((numbers, every, owners))
        ends = np.cumsum(counts + self.k)
        rank = np.arange(len(order)) - np.repeat(ends - counts - self.k, counts + self.k)
        order = order[rank < self.k]
        self.distances[touched] = every[order].reshape(-1, self.k)
        self.numbers[touched] = numbers[order].reshape(-1, self.k)

    def _distances(self, queries: np.ndarray, rows: np.ndarray, block: _Block) -> np.ndarray:
        """Compute the distances of pairs, float32, from differences, which keep their digits near zero."""
        if self.metric == "euclidean":
            difference = self.rows[queries].astype(np.float64) - block.rows[rows]
            distance: np.ndarray = np.sqrt(np.einsum("ij,ij->i", difference, difference))
            return distance.astype(np.float32)
        difference = _directions(self.rows[queries], self.norms[queries], dtype=np.float64)
        difference -= _directions(block.rows[rows], block.norms[rows], dtype=np.float64)
        # |a - b|² / 2 = (|a|² + |b|²) / 2 - ab, where |a|² is 1, or 0 without a direction.
        without = (self.norms[queries] == 0) / 2 + (block.norms[rows] == 0) / 2
        distance = np.einsum("ij,ij->i", difference, difference) / 2 + without
        return distance.astype(np.float32)


def _norms(rows: np.ndarray) -> np.ndarray:
    """Return the length of each row, float64; raises HeadError for lengths whose square overflows float32."""
    norms: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if len(norms) and not norms.max() < LONGEST:
        raise HeadError(f"neighbours: expected rows shorter than {LONGEST:.0e}, got {norms.max():.3g}. Scale them.")
    return norms


def _directions(rows: np.ndarray, norms: np.ndarray, *, dtype: Any) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    directions: np.ndarray = np.empty(rows.shape, dtype=dtype)
    np.divide(rows, np.where(norms > 0, norms, 1)[:, None], out=directions, dtype=np.float64, casting="same_kind")
    return directions
