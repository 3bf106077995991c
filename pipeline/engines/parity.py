"""Parity: how far an engine's rows are from torch float32, tap by tap, and whether that is near enough. Numbers only.

relative   the largest difference, as a share of the largest value of the tap
cosine     between the two versions of a row: the least for float32, the median for reduced precision
overlap    of a row's 10 nearest neighbours in the two versions, mean over the rows
top1       share of rows whose largest value stands in the same place: agreement of predictions, where the tap is logits
"""

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from pipeline.settings.check import Settings
from pipeline.text import table

NEIGHBOURS = 10
NEIGHBOUR_BYTES = 2**28  # of one version: wide maps are compared on fewer rows


MAX_RELATIVE = 1e-3
"""float32: the largest difference over the largest value of a tap. Engines that work are below 1e-4."""

MIN_COSINE = 0.9999
"""float32: of every row."""

MIN_MEDIAN_COSINE = 0.98
"""Reduced precision: of the rows of a tap; rounding alone leaves 0.99 and more."""

MIN_OVERLAP = 0.9
"""Reduced precision: of the nearest neighbours."""


class Parity(Settings):
    """How one tap of one engine compares; `overlap` is None where there are too few rows to tell."""

    rows: int
    relative: float = Field(allow_inf_nan=True)
    cosine: float
    median_cosine: float
    top1: float
    overlap: float | None = None

    def problems(self, *, reduced: bool) -> list[str]:
        """Return the limits that are exceeded, each with the value."""
        if not np.isfinite(self.relative):
            return ["values that are not finite"]
        if not reduced:
            result = [f"relative error {self.relative:.2g}, limit {MAX_RELATIVE:g}"] * (self.relative > MAX_RELATIVE)
            return result + [f"cosine {self.cosine:.6f}, limit {MIN_COSINE:g}"] * (self.cosine < MIN_COSINE)
        low = self.median_cosine < MIN_MEDIAN_COSINE
        result = [f"median cosine {self.median_cosine:.4f}, limit {MIN_MEDIAN_COSINE:g}"] * low
        if self.overlap is not None and self.overlap < MIN_OVERLAP:
            result.append(f"overlap of neighbours {self.overlap:.3f}, limit {MIN_OVERLAP:g}")
        return result


def compare(expected: np.ndarray, got: np.ndarray, *, neighbours: bool = False) -> Parity:
    """Compare two versions of some rows (n, ...)."""
    one, two = (rows.reshape(len(rows), -1).astype(np.float32, copy=False) for rows in (expected, got))
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return Parity(rows=len(one), relative=np.inf, cosine=-1, median_cosine=-1, top1=0)
    largest = float(np.abs(one).max(initial=0))
    difference = float(np.abs(one - two).max(initial=0))
    found = cosines(one, two)
    return Parity(
        rows=len(one),
        relative=difference / largest if largest else (0.0 if difference == 0 else np.inf),
        cosine=float(found.min()),
        median_cosine=float(np.median(found)),
        top1=float((one.argmax(axis=1) == two.argmax(axis=1)).mean()),
        overlap=overlap(one, two) if neighbours else None,
    )


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, float64 (n,); 1 where both rows are zero, 0 where one is."""
    dots, left, right = (np.einsum("ij,ij->i", a, b, dtype=np.float64) for a, b in ((one, two), (one, one), (two, two)))
    norms = np.sqrt(left * right)
    zero = np.where((left == 0) & (right == 0), 1.0, 0.0)
    cosine: np.ndarray = np.divide(dots, norms, out=zero, where=norms > 0)
    return cosine


def overlap(one: np.ndarray, two: np.ndarray) -> float | None:
    """Return the mean share of each row's nearest neighbours (Euclidean) that both versions agree on; None for few
    rows.
    """
    rows = min(len(one), max(1, NEIGHBOUR_BYTES // (4 * one.shape[1])))
    if rows < 4 * NEIGHBOURS:
        return None
    near = [_nearest(version[:rows]) for version in (one, two)]
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(*near, strict=True)]))


def _nearest(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)  # distances are the same, and rounding matters less
    squares = np.einsum("ij,ij->i", centred, centred)
    distances = squares[:, None] + squares[None, :] - 2 * centred @ centred.T
    np.fill_diagonal(distances, np.inf)
    nearest: np.ndarray = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return nearest


def report(found: Mapping[str, Parity]) -> str:
    """Return the numbers of all taps as a table."""
    rows = [
        (
            tap,
            f"{parity.relative:.1e}",
            f"{parity.cosine:.6f}",
            f"{parity.median_cosine:.6f}",
            f"{parity.top1:.3f}",
            "-" if parity.overlap is None else f"{parity.overlap:.3f}",
        )
        for tap, parity in found.items()
    ]
    return table(("tap", "relative", "cosine", "median", "top-1", "neighbours"), rows, inset=True)
