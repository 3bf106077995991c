"""Find near duplicates across splits, and labels that neighbours contradict: exactly, block by block.

Rows are compared by their cosine after the mean of all rows is subtracted. Activations after a ReLU are positive and
dominated by their mean, so that without this step different images would look like duplicates. Degenerate rows, which
are zero, constant or not finite, are left out and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.streaming.exact_search import nearest
from pipeline.streaming.rows import blocks

BLOCK_ROWS = 4096
BLOCK_BYTES = 2**25  # bytes of a block of rows; the products of two blocks take at most 64 MiB
TINY = 1e-5  # a distance from the mean below this fraction of the row's length is rounding error


@dataclass(frozen=True)
class Centre:
    """The mean of the usable rows, and which rows are usable, that is not degenerate."""

    mean: np.ndarray
    usable: np.ndarray


class CentredRows:
    """A row source with the mean subtracted from each row and, with `unit`, each row scaled to length 1."""

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
    """Two rows of different splits, by their row numbers in the splits."""

    similarity: float
    splits: tuple[str, str]
    rows: tuple[int, int]


def centre(rows: Any) -> Centre:
    """Compute the mean of the usable rows, float32 (width,), and which rows are usable, bool (rows,), in two passes."""
    usable = np.zeros(rows.shape[0], dtype=bool)
    total, lengths = np.zeros(rows.shape[1]), np.zeros(rows.shape[0])
    for where, block in blocks(rows, check=False):
        finite = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0)
        varied = np.ptp(finite, axis=1) > 0 if finite.shape[1] > 1 else finite[:, 0] != 0
        usable[where] = varied
        total += finite[varied].sum(axis=0, dtype=np.float64)
        lengths[where] = np.linalg.norm(finite, axis=1)
    mean = (total / max(1, int(usable.sum()))).astype(np.float32)
    for where, block in blocks(rows, check=False):
        distances = np.linalg.norm(np.where(usable[where][:, None], block, mean) - mean, axis=1)
        usable[where] &= distances > TINY * lengths[where]
    return Centre(mean, usable)


def near_duplicates(parts: Mapping[str, Any], *, near: float, most: int) -> tuple[int, list[Pair]]:
    """Return how many pairs of rows of different splits have a cosine of at least `near`, and the `most` nearest pairs.

    parts: a row source per split, with rows of length 1. Pairs are counted in float32; the similarities of the returned
    pairs are recomputed in float64.
    """
    names, count, pairs = list(parts), 0, []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            new, best = _near_pairs(parts[first], parts[second], near=near, most=most)
            count += new
            pairs += [Pair(_cosine(parts[first], parts[second], a, b), (first, second), (a, b)) for a, b in best]
    return count, sorted(pairs, key=lambda pair: (-pair.similarity, pair.splits, pair.rows))[:most]


def neighbour_votes(rows: Any, targets: np.ndarray, *, neighbours: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's majority class among its nearest neighbours, the majority's share, and whether it was judged.

    Shapes: text (rows,), float64 (rows,), bool (rows,). A row is not its own neighbour. A row whose class has at most
    `neighbours` rows is not judged: other classes would outnumber its own wherever the row lies.
    """
    classes, codes, sizes = np.unique(targets.astype(str), return_inverse=True, return_counts=True)
    judged = sizes[codes] > neighbours
    majority, share = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
    if judged.any():
        _, indices = nearest(rows, rows, neighbours, metric="cosine", exclude_self=True)
        for start in range(0, len(rows), BLOCK_ROWS):
            here = slice(start, start + BLOCK_ROWS)
            nearby = np.sort(codes[indices[here]], axis=1)
            votes = np.stack([(nearby == nearby[:, [column]]).sum(axis=1) for column in range(neighbours)], axis=1)
            majority[here] = nearby[np.arange(len(nearby)), votes.argmax(axis=1)]
            share[here] = votes.max(axis=1) / neighbours
    return classes[majority], share, judged


def multiply_adds(sizes: Sequence[int], width: int, *, neighbours: bool) -> int:
    """Return the multiply-adds of an audit: cosines across splits and, with `neighbours`, of all pairs of rows.

    sizes: rows per split. width: values per row.
    """
    rows = sum(sizes)
    across = (rows**2 - sum(size**2 for size in sizes)) // 2
    return width * (across + (rows**2 if neighbours else 0))


def _near_pairs(first: Any, second: Any, *, near: float, most: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of near pairs, and the nearest of them as row numbers in both sources, ties in row order."""
    if len(first) > len(second):  # the second source is read once per block of the first: the first is the smaller
        count, swapped = _near_pairs(second, first, near=near, most=most)
        return count, [(a, b) for b, a in swapped]
    count, similarity, pairs = 0, np.empty(0, np.float32), np.empty((0, 2), np.int64)
    for left, rows in _blocks(first):
        for right, columns in _blocks(second):
            products = rows @ columns.T
            close = products >= near
            new = int(close.sum())
            count += new
            if not new:
                continue
            if new > most:  # a poor tap can have millions of near pairs: keep only the nearest
                cut = np.partition(products[close], -most)[-most]
                close = products >= cut
            a, b = np.nonzero(close)
            similarity = np.concatenate([similarity, products[a, b]])
            pairs = np.concatenate([pairs, np.stack([a + left.start, b + right.start], axis=1)])
            best = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))[:most]
            similarity, pairs = similarity[best], pairs[best]
    return count, [(int(a), int(b)) for a, b in pairs]


def _blocks(rows: Any) -> Iterator[tuple[slice, np.ndarray]]:
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * rows.shape[1])))
    return blocks(rows, size=size, check=False)


def _cosine(first: Any, second: Any, a: int, b: int) -> float:
    x, y = first[a : a + 1][0].astype(np.float64), second[b : b + 1][0].astype(np.float64)
    return round(float(x @ y / np.sqrt((x @ x) * (y @ y))), 6)
