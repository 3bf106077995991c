"""Ridge regression for any number of penalties, and its generalised cross-validation, from sums and one factorisation.

    w(α) = (S + α I)⁻¹ C    S (width, width) the scatter of the rows, C (width, targets) that of rows and targets

With S = V diag(λ) V' each penalty costs O(width x targets): Hastie, Tibshirani and Friedman, The Elements of
Statistical Learning, equation 3.47.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Factors:
    """The factorisation S = V diag(λ) V', and V' C."""

    vectors: np.ndarray  # (width, width) V
    eigenvalues: np.ndarray  # (width,)
    rotated: np.ndarray  # (width, targets) V' C

    def coefficients(self, alpha: float) -> np.ndarray:
        """Return w(α), (width, targets)."""
        return np.asarray(self.vectors @ self.solution(alpha))

    def solution(self, alpha: float) -> np.ndarray:
        """Return V' w(α), (width, targets)."""
        return np.asarray(self.rotated / (self.eigenvalues + alpha)[:, None])

    def gcv(self, alpha: float, squares: np.ndarray, *, rows: int, rounding: float) -> float:
        """Return the generalised cross-validation score of a penalty, summed over the targets; the smallest is the
        best.

            V(α) = n RSS(α) / (n - tr H(α))²,    tr H(α) = 1 + Σ λ / (λ + α)

        Golub, Heath and Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter",
        equation 1.4; the 1 is the intercept. `squares` (targets,) are the targets' sums of squares about their means.
        RSS is a difference of sums, known only within `rounding`, its lower bound here: a penalty must not be chosen
        for fitting rounding errors.
        """
        z = self.solution(alpha)
        left = squares.sum() - (self.rotated * z).sum() - alpha * (z**2).sum()
        free = rows - 1 - (self.eigenvalues / (self.eigenvalues + alpha)).sum()
        return float(rows * max(left, rounding * squares.sum()) / free**2) if free > 0 else float("inf")


def factorise(scatter: np.ndarray, cross: np.ndarray) -> Factors:
    """Return the factors of S (width, width) and C (width, targets)."""
    eigenvalues, vectors = np.linalg.eigh(scatter)
    # S has no negative eigenvalue, but rounding may leave one. Raising all by it changes S by less than its rounding.
    lift = max(0.0, -float(eigenvalues.min()))
    return Factors(vectors, eigenvalues + lift, vectors.T @ cross)
