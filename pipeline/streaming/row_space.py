"""The space spanned by few rows of many features, in which heads are solved without features x features matrices.

n rows of p > n features, less any centre, are T V' with T (n, n) and orthonormal columns V (p, n). What a penalty of
coefficients or a multiple of the identity does to features, it does to T: a solution on T, times V', is the solution on
the rows, and matrices are n x n instead of p x p.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.streaming.rows import blocks


@dataclass(frozen=True)
class RowSpace:
    """Rows about a centre and over a scale (width,), as `coordinates` (rows, rank) along `basis` (width, rank)."""

    centre: np.ndarray
    scale: np.ndarray
    coordinates: np.ndarray
    basis: np.ndarray

    def coefficients(self, along: np.ndarray) -> np.ndarray:
        """Return coefficients of the features (targets, width) from those of the coordinates (targets, rank)."""
        return np.asarray(along @ self.basis.T / self.scale)


def is_smaller(X: Any) -> bool:
    """Return whether rows have more features than there are rows."""
    return int(X.shape[0]) < int(X.shape[1])


def load_rows(X: Any) -> np.ndarray:
    """Load all rows into memory, float64 (rows, width); raises the errors of `blocks`."""
    return np.concatenate([block.astype(np.float64) for _, block in blocks(X)])


def deviations(rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return standard deviations (width,), and 1 for features that are constant within rounding."""
    mean = np.average(rows, axis=0, weights=weights)
    deviations = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights))
    return np.where(deviations > 10 * np.finfo(np.float64).eps * np.abs(mean), deviations, 1.0)


def compute_row_space(rows: np.ndarray, *, centre: np.ndarray, scale: np.ndarray) -> RowSpace:
    """Return the space of rows, float64 (rows, width)."""
    from scipy.linalg import svd

    left, singular, right = svd((rows - centre) / scale, full_matrices=False, overwrite_a=True, check_finite=False)
    return RowSpace(centre, scale, left * singular, right.T)
