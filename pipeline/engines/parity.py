"""Parity metrics: how close an engine's rows are to torch float32, for each tap, with their limits.

relative   largest difference, relative to the largest value of the tap
cosine     cosine of the two versions of a row: minimum for float32, median for reduced precision
overlap    shared fraction of a row's 10 nearest neighbours in the two versions, mean over rows
top1       share of rows with the same position of the largest value: agreement of predictions if the tap is logits
"""

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from pipeline.settings.check import Settings
from pipeline.text import table

NEIGHBOURS = 10
NEIGHBOUR_BYTES = 2**28  # of a version; wide maps are compared on fewer rows


MAX_RELATIVE = 1e-3
"""float32: largest difference relative to the largest value of a tap. Correct engines are below 1e-4."""

MIN_COSINE = 0.9999
"""float32: smallest cosine of any row."""

MIN_MEDIAN_COSINE = 0.98
"""Reduced precision: smallest median cosine over the rows of a tap; with rounding errors only, it is above 0.99."""

MIN_OVERLAP = 0.9
"""Reduced precision: smallest overlap of nearest neighbours."""


class Parity(Settings):
    """The parity metrics of a tap; `overlap` is None for too few rows."""

    rows: int
    relative: float = Field(allow_inf_nan=True)
    cosine: float
    median_cosine: float
    top1: float
    overlap: float | None = None

    def problems(self, *, reduced: bool) -> list[str]:
        """Return the violated limits, each with the value."""
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
    """Compare two versions of rows (n, ...)."""
    a, b = (rows.reshape(len(rows), -1).astype(np.float32, copy=False) for rows in (expected, got))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Parity(rows=len(a), relative=np.inf, cosine=-1, median_cosine=-1, top1=0)
    largest = float(np.abs(a).max(initial=0))
    difference = float(np.abs(a - b).max(initial=0))
    cosine = cosines(a, b)
    return Parity(
        rows=len(a),
        relative=difference / largest if largest else (0.0 if difference == 0 else np.inf),
        cosine=float(cosine.min()),
        median_cosine=float(np.median(cosine)),
        top1=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        overlap=overlap(a, b) if neighbours else None,
    )


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, float64 (n,); 1 if both rows are zero, 0 if only one is."""
    dots, left, right = (np.einsum("ij,ij->i", x, y, dtype=np.float64) for x, y in ((a, b), (a, a), (b, b)))
    norms = np.sqrt(left * right)
    zero = np.where((left == 0) & (right == 0), 1.0, 0.0)
    cosine: np.ndarray = np.divide(dots, norms, out=zero, where=norms > 0)
    return cosine


def overlap(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the mean share of nearest neighbours (Euclidean) that a row has in both versions; None for few rows."""
    rows = min(len(a), max(1, NEIGHBOUR_BYTES // (4 * a.shape[1])))
    if rows < 4 * NEIGHBOURS:
        return None
    neighbours = [_nearest_rows(version[:rows]) for version in (a, b)]
    return float(np.mean([len(np.intersect1d(x, y)) / NEIGHBOURS for x, y in zip(*neighbours, strict=True)]))


def _nearest_rows(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)  # the same distances with smaller rounding errors
    squares = np.einsum("ij,ij->i", centred, centred)
    distances = squares[:, None] + squares[None, :] - 2 * centred @ centred.T
    np.fill_diagonal(distances, np.inf)
    nearest: np.ndarray = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return nearest


def describe_parity(parities: Mapping[str, Parity]) -> str:
    """Return the metrics of all taps as a table."""
    rows = [
        (
            tap,
            f"{parity.relative:.1e}",
            f"{parity.cosine:.6f}",
            f"{parity.median_cosine:.6f}",
            f"{parity.top1:.3f}",
            "-" if parity.overlap is None else f"{parity.overlap:.3f}",
        )
        for tap, parity in parities.items()
    ]
    return table(("tap", "relative", "cosine", "median", "top-1", "neighbours"), rows, inset=True)
