"""Ridge regression for any number of penalties, and its generalised cross-validation, from sums and one factorisation.

    w(α) = (S + α I)⁻¹ C    S (width, width) the scatter of the rows, C (width, targets) that of rows and targets

S = Q T Q' with T tridiagonal is a small part of the work of an eigendecomposition, and with T each penalty costs
O(width x targets): Eldén 1977, "Algorithms for the regularization of ill-conditioned least squares problems".
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Factors:
    """S = Q T Q' and what a penalty needs of it."""

    reflectors: np.ndarray  # (width, width) Q, as LAPACK's dsytrd leaves it
    factors: np.ndarray  # (width - 1,)
    diagonal: np.ndarray  # (width,) of T
    below: np.ndarray  # (width - 1,) of T
    eigenvalues: np.ndarray  # (width,)
    rotated: np.ndarray  # (width, targets) Q' C

    def coefficients(self, alpha: float) -> np.ndarray:
        """w(α), (width, targets)."""
        return _rotate(self.reflectors, self.factors, self.solution(alpha), "N")

    def solution(self, alpha: float) -> np.ndarray:
        """Q' w(α), (width, targets)."""
        from scipy.linalg import solveh_banded

        if len(self.diagonal) == 1:
            return self.rotated / (self.diagonal + alpha)
        bands = np.stack([self.diagonal + alpha, np.append(self.below, 0.0)])
        return np.asarray(solveh_banded(bands, self.rotated, lower=True, check_finite=False))

    def gcv(self, alpha: float, squares: np.ndarray, *, rows: int, rounding: float) -> float:
        """The generalised cross-validation score of a penalty, summed over the targets; the smallest is the best.

            V(α) = n RSS(α) / (n - tr H(α))²,    tr H(α) = 1 + Σ λ / (λ + α)

        Golub, Heath and Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter",
        equation 1.4; the 1 is the intercept. `squares` (targets,) are the targets' sums of squares about their means.
        RSS is a difference of sums, known within `rounding` of them and not less: a penalty is not chosen for the
        errors of rounding that it fits.
        """
        z = self.solution(alpha)
        left = squares.sum() - (self.rotated * z).sum() - alpha * (z**2).sum()
        free = rows - 1 - (self.eigenvalues / (self.eigenvalues + alpha)).sum()
        return float(rows * max(left, rounding * squares.sum()) / free**2) if free > 0 else float("inf")


def factorise(scatter: np.ndarray, cross: np.ndarray) -> Factors:
    """Factors of S (width, width), which is overwritten, and C (width, targets)."""
    from scipy.linalg import eigvalsh_tridiagonal, lapack

    if len(scatter) == 1:  # which LAPACK's wrappers refuse
        reflectors, diagonal, below, factors = scatter, scatter[0], np.zeros(0), np.zeros(0)
        eigenvalues = diagonal
    else:
        work, _ = lapack.dsytrd_lwork(len(scatter), lower=1)
        reflectors, diagonal, below, factors, _ = lapack.dsytrd(scatter, lower=1, lwork=int(work), overwrite_a=1)
        eigenvalues = eigvalsh_tridiagonal(diagonal, below, lapack_driver="sterf", check_finite=False)
    # S has no negative eigenvalue, but rounding may leave one. Raising all by it changes S by less than its rounding.
    lift = max(0.0, -float(eigenvalues.min()))
    return Factors(
        reflectors, factors, diagonal + lift, below, eigenvalues + lift, _rotate(reflectors, factors, cross, "T")
    )


def _rotate(reflectors: np.ndarray, factors: np.ndarray, matrix: np.ndarray, side: str) -> np.ndarray:
    """Q times a matrix, or with "T" its transpose times it."""
    from scipy.linalg import lapack

    found = np.array(matrix, dtype=np.float64, order="F")
    if len(found) > 1 and found.shape[1]:
        # Q leaves the first row alone; its reflectors lie below the first subdiagonal.
        own, rest = reflectors[1:, :-1], np.asfortranarray(found[1:])
        _, work, _ = lapack.dormqr("L", side, own, factors, rest, -1)
        found[1:] = lapack.dormqr("L", side, own, factors, rest, int(work[0]), overwrite_c=1)[0]
    return found
