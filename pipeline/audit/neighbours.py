"""Near duplicates across splits, and labels that neighbours contradict: exact, and a block of rows at a time.

Rows are compared by the cosine of what is left of them when the mean of all rows is taken off. Activations after a
ReLU are positive and have most of their length in common, so that different images would be called duplicates. Rows
that say nothing, since they are zero, constant or not finite, are left out and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.streaming.exact_search import nearest
from pipeline.streaming.rows import blocks

BLOCK_ROWS = 4096
BLOCK_BYTES = 2**25  # of a block of rows; the products of two blocks take at most 64 MiB
TINY = 1e-5  # of a row's length, below which its distance from the mean is rounding


@dataclass(frozen=True)
class Centre:
    """The mean of the rows that say something, and which these are."""

    mean: np.ndarray
    telling: np.ndarray


class Centred:
    """A row source with the mean taken off its rows and, if asked for, every row of length 1."""

    dtype = np.dtype(np.float32)

    def __init__(self, rows: Any, mean: np.ndarray, *, unit: bool = False) -> None:
        self.rows, self.mean, self.unit, self.shape = rows, mean, unit, rows.shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, wanted: slice) -> np.ndarray:
        result: np.ndarray = np.asarray(self.rows[wanted], dtype=np.float32) - self.mean
        if self.unit:
            result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return result


@dataclass(frozen=True)
class Pair:
    """Two rows of two splits, by their numbers there."""

    similarity: float
    splits: tuple[str, str]
    rows: tuple[int, int]


def centre(rows: Any) -> Centre:
    """Return the mean, float32 (width,), summed in float64, and which rows are not constant, bool (rows,): one pass."""
    telling = np.zeros(rows.shape[0], dtype=bool)
    total, lengths = np.zeros(rows.shape[1]), np.zeros(rows.shape[0])
    for where, block in blocks(rows, check=False):
        finite = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0)
        good = np.ptp(finite, axis=1) > 0 if finite.shape[1] > 1 else finite[:, 0] != 0
        telling[where] = good
        total += finite[good].sum(axis=0, dtype=np.float64)
        lengths[where] = np.linalg.norm(finite, axis=1)
    mean = (total / max(1, int(telling.sum()))).astype(np.float32)
    for where, block in blocks(rows, check=False):
        apart = np.linalg.norm(np.where(telling[where][:, None], block, mean) - mean, axis=1)
        telling[where] &= apart > TINY * lengths[where]
    return Centre(mean, telling)


def near_duplicates(parts: Mapping[str, Any], *, near: float, most: int) -> tuple[int, list[Pair]]:
    """Return how many pairs of rows of two splits have a cosine of `near` or more, and the nearest of them, nearest
    first.

    `parts` are row sources with rows of length 1, a split each. The count is of float32 products; the cosines of the
    pairs that are returned are worked out once more in float64.
    """
    names, count, kept = list(parts), 0, []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            found, best = _between(parts[first], parts[second], near=near, most=most)
            count += found
            kept += [Pair(_cosine(parts[first], parts[second], a, b), (first, second), (a, b)) for a, b in best]
    return count, sorted(kept, key=lambda pair: (-pair.similarity, pair.splits, pair.rows))[:most]


def contradicted(rows: Any, targets: np.ndarray, *, neighbours: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each row the class that most of its nearest rows have, their share, and whether the row was judged.

    Text (rows,), float64 (rows,), bool (rows,). A row is not its own neighbour. Rows of a class that has fewer others
    than `neighbours` are not judged: most of what is near them is of another class wherever they lie.
    """
    classes, codes, sizes = np.unique(targets.astype(str), return_inverse=True, return_counts=True)
    judged = sizes[codes] > neighbours
    majority, share = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
    if judged.any():
        _, found = nearest(rows, rows, neighbours, metric="cosine", exclude_self=True)
        for start in range(0, len(rows), BLOCK_ROWS):
            here = slice(start, start + BLOCK_ROWS)
            named = np.sort(codes[found[here]], axis=1)
            votes = np.stack([(named == named[:, [place]]).sum(axis=1) for place in range(neighbours)], axis=1)
            place = votes.argmax(axis=1)
            majority[here] = named[np.arange(len(named)), place]
            share[here] = votes.max(axis=1) / neighbours
    return classes[majority], share, judged


def multiply_adds(sizes: Sequence[int], width: int, *, neighbours: bool) -> int:
    """Return the cost of an audit of so many rows per split: products of rows of two splits, and of all rows."""
    rows = sum(sizes)
    across = (rows**2 - sum(size**2 for size in sizes)) // 2
    return width * (across + (rows**2 if neighbours else 0))


def _between(first: Any, second: Any, *, near: float, most: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of near pairs, and the nearest of them as numbers of rows in both; ties in the order of
    rows.
    """
    if len(first) > len(second):  # the larger one is read once for each block of the smaller one
        count, turned = _between(second, first, near=near, most=most)
        return count, [(a, b) for b, a in turned]
    count, similarity, pairs = 0, np.empty(0, np.float32), np.empty((0, 2), np.int64)
    for left, rows in _blocks(first):
        for right, columns in _blocks(second):
            products = rows @ columns.T
            close = products >= near
            found = int(close.sum())
            count += found
            if not found:
                continue
            if found > most:  # a tap that says little can have millions of them: only the nearest of these are kept
                cut = np.partition(products[close], -most)[-most]
                close = products >= cut
            a, b = np.nonzero(close)
            similarity = np.concatenate([similarity, products[a, b]])
            pairs = np.concatenate([pairs, np.stack([a + left.start, b + right.start], axis=1)])
            best = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))[:most]
            similarity, pairs = similarity[best], pairs[best]
    return count, [(int(a), int(b)) for a, b in pairs]


def _blocks(rows: Any) -> Iterator[tuple[slice, np.ndarray]]:
    fitting = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * rows.shape[1])))
    return blocks(rows, size=fitting, check=False)


def _cosine(first: Any, second: Any, a: int, b: int) -> float:
    x, y = first[a : a + 1][0].astype(np.float64), second[b : b + 1][0].astype(np.float64)
    return round(float(x @ y / np.sqrt((x @ x) * (y @ y))), 6)
