"""Sums over rows, and the moments computed from them: means, variances, scatter about the mean or class means.

Rows are shifted by a pivot, the mean of the first of them, so that no variance is the difference of two large numbers
(Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"): the second moment of a feature with mean
m, variance v and pivot p has an error of about `rounding` x (v + (m - p)²).

Products of float64 rows are formed in float64. Those of float16 and float32 rows are formed in float32, which is
faster, for at most `ROWS` rows at once, and are added in float64: the error does not grow with the number of rows.
`rounding` is 128 units in the last place. Sums whose errors have random signs have √ROWS, 45 (Higham and Mary 2019, "A
new approach to probabilistic rounding error analysis"). Other orders or cuts of the rows change sums within it; the
same cut gives the same bytes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import HeadError

ROWS = 2048  # of one product
UNITS = 128  # in the last place
MAX_NAMED = 12  # classes in a message


@dataclass(eq=False)
class Moments:
    """Weighted float64 sums over rows x minus a pivot, by class, or with targets y minus their pivot."""

    pivot: np.ndarray  # (width,)
    target_pivot: np.ndarray  # (targets,); none where there are classes
    classes: np.ndarray | None  # (classes,) sorted; None: all rows are one group
    weights: np.ndarray  # (groups,): number of rows, or sum of their weights
    sums: np.ndarray  # (groups, width) of x
    gram: np.ndarray  # (width, width) of x x', its lower triangle; `scatter` and `within` are whole
    cross: np.ndarray  # (width, targets) of x y'
    target_sums: np.ndarray  # (targets,) of y
    target_squares: np.ndarray  # (targets,) of y²
    rows: int = 0
    rounding: float = 0.0  # of the products, relative

    @classmethod
    def empty(
        cls, pivot: np.ndarray, *, classes: np.ndarray | None = None, target_pivot: np.ndarray | None = None
    ) -> "Moments":
        """Return the sums of no rows."""
        width, groups = len(pivot), 1 if classes is None else len(classes)
        shift = np.zeros(0) if target_pivot is None else target_pivot.astype(np.float64)
        return cls(
            pivot=pivot.astype(np.float64),
            target_pivot=shift,
            classes=classes,
            weights=np.zeros(groups),
            sums=np.zeros((groups, width)),
            gram=np.zeros((width, width), order="F"),
            cross=np.zeros((width, len(shift))),
            target_sums=np.zeros(len(shift)),
            target_squares=np.zeros(len(shift)),
        )

    # Adding ----------------------------------------------------------------------------------------------------------

    def buffers(self, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return buffers for repeated calls of `add`: for centred rows and for their product."""
        return np.empty((ROWS, self.width), dtype), np.zeros((self.width, self.width), np.float32, order="F")

    def add(
        self,
        block: np.ndarray,
        groups: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        *,
        buffers: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Add rows (n, width), float32 or float64, with the numbers of their classes, their targets and weights."""
        from scipy.linalg import blas
        from scipy.sparse import csr_array

        centred, product = buffers or self.buffers(block.dtype)
        for start in range(0, len(block), ROWS):
            part = slice(start, start + ROWS)
            w, y = weights[part], targets[part] - self.target_pivot
            x = np.subtract(block[part], self.pivot.astype(block.dtype), out=centred[: len(w)])
            if (w != 1).any():
                x *= np.sqrt(w)[:, None].astype(x.dtype)
            # BLAS is column-major, so x is passed as its transpose. syrk computes the symmetric product in half the
            # operations.
            if x.dtype == np.float32:
                self.gram += blas.ssyrk(1.0, x.T, lower=1, c=product, overwrite_c=1)
            else:
                self.gram = blas.dsyrk(1.0, x.T, lower=1, beta=1.0, c=self.gram, overwrite_c=1)
            root = np.sqrt(w).astype(x.dtype)
            member = csr_array((root, groups[part], np.arange(len(x) + 1)), shape=(len(x), len(self.sums)))
            self.sums += member.T @ x
            self.weights += np.bincount(groups[part], w, minlength=len(self.sums))
            self.cross += x.T @ (root[:, None] * y).astype(x.dtype)
            self.target_sums += w @ y
            self.target_squares += w @ y**2
        self.rows += len(block)
        self.rounding = max(self.rounding, UNITS * float(np.finfo(block.dtype).eps) / 2)

    def merge(self, other: "Moments") -> "Moments":
        """Return the sums over the rows of both, which may have different pivots.

        Raises HeadError if they differ in width, classes or number of targets.
        """
        kinds = [
            (moments.cross.shape, None if moments.classes is None else moments.classes.tolist())
            for moments in (self, other)
        ]
        if kinds[0] != kinds[1]:
            raise HeadError(
                f"moments: expected moments of the same features, classes and targets, got {_describe(self)} and "
                f"{_describe(other)}. Name the same classes for each part of the rows."
            )
        moved = other._moved(self.pivot, self.target_pivot)
        total = {
            name: getattr(self, name) + getattr(moved, name)
            for name in ("weights", "sums", "gram", "cross", "target_sums", "target_squares", "rows")
        }
        return replace(self, rounding=max(self.rounding, other.rounding), **total)

    def _moved(self, pivot: np.ndarray, target_pivot: np.ndarray) -> "Moments":
        """Move the sums to other pivots: (x + δ)(x + δ)' = x x' + x δ' + δ x' + δ δ', and so on."""
        shift, target_shift = self.pivot - pivot, self.target_pivot - target_pivot
        if not shift.any() and not target_shift.any():
            return self
        total, weight = self.sums.sum(axis=0), self.weights.sum()
        half = np.outer(total + weight / 2 * shift, shift)
        return replace(
            self,
            pivot=pivot,
            target_pivot=target_pivot,
            sums=self.sums + self.weights[:, None] * shift,
            gram=self.gram + np.tril(half + half.T),
            cross=self.cross + np.outer(shift, self.target_sums) + np.outer(total + weight * shift, target_shift),
            target_sums=self.target_sums + weight * target_shift,
            target_squares=self.target_squares + 2 * target_shift * self.target_sums + weight * target_shift**2,
        )

    # What follows from the sums --------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Return the number of features of a row."""
        return len(self.pivot)

    @property
    def weight(self) -> float:
        """Return the number of rows, or the sum of their weights."""
        return float(self.weights.sum())

    @property
    def mean(self) -> np.ndarray:
        """Return the mean (width,)."""
        return np.asarray(self.pivot + self.sums.sum(axis=0) / self.weight)

    @property
    def class_means(self) -> np.ndarray:
        """Return the means of the classes (groups, width)."""
        return np.asarray(self.pivot + self.sums / self.weights[:, None])

    @property
    def variance(self) -> np.ndarray:
        """Return the variance (width,), divided by the weight; 0 for features that are constant within rounding."""
        shift = self.sums.sum(axis=0) / self.weight
        variance = np.diag(self.gram) / self.weight - shift**2
        noise = np.maximum(4 * self.rounding * shift**2, (10 * np.finfo(np.float64).eps * self.mean) ** 2)
        return np.where(variance > noise, variance, 0.0)

    @property
    def scale(self) -> np.ndarray:
        """Return standard deviations (width,), and 1 for constant features, as scikit-learn's StandardScaler."""
        deviations = np.sqrt(self.variance)
        return np.where(deviations > 0, deviations, 1.0)

    def scatter(self) -> np.ndarray:
        """Return a new array (width, width): the sum of (x - mean)(x - mean)'."""
        return self._less(self.sums.sum(axis=0, keepdims=True), np.array([self.weight]))

    def within(self) -> np.ndarray:
        """Return a new array (width, width): the sum of (x - m)(x - m)', m the mean of the row's class."""
        return self._less(self.sums, self.weights)

    def _less(self, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
        from scipy.linalg import blas

        means = np.asfortranarray((sums / np.sqrt(weights)[:, None]).T)
        lower = blas.dsyrk(-1.0, means, lower=1, beta=1.0, c=self.gram)
        lower += np.tril(lower, -1).T
        return np.asarray(lower)

    def check(self) -> "Moments":
        """Return the moments; raises HeadError for a class without rows, no rows, or sums beyond floating point."""
        if self.classes is not None and (none := np.flatnonzero(self.weights == 0)).size:
            names = ", ".join(map(str, self.classes[none[:MAX_NAMED]]))
            raise HeadError(
                f"training rows: expected rows of every class, got none for {len(none):,} of them: {names}. Leave the "
                "class out of the task, or label more samples."
            )
        if not self.weight > 0:
            raise HeadError("training rows: expected at least one row, got none. Check the splits of the task.")
        if not np.isfinite(np.diag(self.gram)).all():
            column = int(np.flatnonzero(~np.isfinite(np.diag(self.gram)))[0])
            raise HeadError(
                f"training rows, column {column:,}: expected values whose squares can be added, got a sum beyond "
                "floating point. Scale the features first."
            )
        return self


def _describe(moments: Moments) -> str:
    """Return a description of the moments for messages."""
    classes = "none" if moments.classes is None else f"{len(moments.classes):,}"
    return f"{moments.width:,} features, {classes} classes and {len(moments.target_pivot):,} targets"
