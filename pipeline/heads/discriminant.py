"""Linear discriminant analysis, exact, from one pass over rows that need not fit into memory.

A row is compared with the class means by the covariance of rows about them, pooled over the classes: Hastie,
Tibshirani and Friedman 2009, "The Elements of Statistical Learning", section 4.3. Shrinkage "auto" takes a second pass.
"""

from typing import Any, Literal, Self

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import shrunk_covariance

from pipeline.errors import HeadError
from pipeline.heads.labels import labels_of, numbered
from pipeline.heads.moments import moments_of
from pipeline.heads.pieces import each
from pipeline.heads.rows import checked
from pipeline.heads.streamed import by_blocks, small_blocks
from pipeline.heads.sums import Moments


class StreamingLDA(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear discriminant analysis; X is an array or a row source.

    Equals scikit-learn's LinearDiscriminantAnalysis without shrinkage (decision values are those of its solver "svd";
    those of "lsqr" differ by a number that is the same for every class of a row), and with a number as shrinkage
    where the priors are the shares of the classes.

    With `standardize` a number shrinks the covariance of features divided by their standard deviation. Without
    shrinkage, and with "auto", their units do not matter.

    Shrinkage "auto" is the Ledoit-Wolf estimate for all rows about their class means, each feature divided by its
    deviation there: one amount for all classes. scikit-learn estimates a matrix and an amount a class, which takes the
    memory of a matrix a class, and of few rows a class is nearly a diagonal.

    Fitted: `coef_`, `intercept_`, `means_` (classes, width), `priors_`, and `shrinkage_`, the amount or 0.
    """

    def __init__(
        self, shrinkage: float | Literal["auto"] | None = None, *, priors: Any = None, standardize: bool = False
    ) -> None:
        self.shrinkage = shrinkage
        self.priors = priors
        self.standardize = standardize

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X and classes y (rows,)."""
        X = checked(self, X, fitting=True)
        labels, classes = labels_of(self, X, y)
        moments = moments_of(X, labels, classes=classes)
        return self.fit_moments(moments, X, labels)

    def fit_moments(self, moments: Moments, X: Any = None, y: Any = None) -> Self:
        """Fit to the sums of rows with classes; "auto" reads the rows X and their classes y again.

        Raises HeadError where the moments have no classes, no row varies about the mean of its class, "auto" has
        no rows to read, or a parameter is out of range.
        """
        if moments.classes is None:
            raise HeadError("discriminant analysis: expected moments of classes, got none. Name them in moments_of.")
        self.priors_ = self._priors(moments)
        self.classes_, self.means_, self.n_features_in_ = moments.classes, moments.class_means, moments.width
        covariance = moments.within() / moments.weight
        still = np.diag(covariance) <= 4 * moments.rounding * np.diag(moments.gram) / moments.weight
        covariance[still], covariance[:, still] = 0.0, 0.0
        if still.all():
            raise HeadError(
                f"discriminant analysis: expected rows that vary about the mean of their class, got {moments.rows:,} "
                f"rows of {len(self.classes_):,} classes that do not. Label more samples, or use nearest class means."
            )
        auto = self.shrinkage == "auto"
        scale = moments.scale if self.standardize else np.ones(moments.width)
        scale = _deviations(covariance) if auto else scale
        covariance /= scale * scale[:, None]
        self.shrinkage_ = self._ledoit_wolf(X, y, scale, covariance) if auto else self._number()
        covariance = shrunk_covariance(covariance, self.shrinkage_) * (scale * scale[:, None])
        centre = self.priors_ @ self.means_
        coef = _solve(covariance, (self.means_ - centre).T, rounding=moments.rounding).T
        intercept = np.log(self.priors_) - ((self.means_ + centre) / 2 * coef).sum(axis=1)
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef, intercept
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Log densities of the classes times their priors, less a number a row: (rows, classes), or (rows,) for two."""
        found = by_blocks(self, X, lambda block: block @ self.coef_.T + self.intercept_)
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict_proba(self, X: Any) -> np.ndarray:
        """(rows, classes)."""
        found = self.decision_function(X)
        return np.stack([expit(-found), expit(found)], axis=1) if found.ndim == 1 else softmax(found, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row (rows,)."""
        found = self.decision_function(X)
        return np.asarray(self.classes_[(found > 0).astype(int) if found.ndim == 1 else found.argmax(axis=1)])

    def _number(self) -> float:
        if self.shrinkage is None:
            return 0.0
        if isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1:
            raise HeadError(
                f"discriminant analysis, `shrinkage`: expected 'auto', nothing or a number from 0 to 1, got "
                f"{self.shrinkage!r}. 'auto' is a good first try."
            )
        return float(self.shrinkage)

    def _priors(self, moments: Moments) -> np.ndarray:
        if self.priors is None:
            return moments.weights / moments.weight
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != moments.weights.shape or not (priors > 0).all() or abs(priors.sum() - 1) > 1e-5:
            raise HeadError(
                f"discriminant analysis, `priors`: expected {len(moments.weights)} numbers above 0, one a class, that "
                f"add up to 1, got {self.priors}. Leave them out to have the shares of the classes."
            )
        return np.asarray(priors / priors.sum())

    def _ledoit_wolf(self, X: Any, y: Any, scale: np.ndarray, covariance: np.ndarray) -> float:
        """The amount of shrinkage for rows about their class means over `scale`, whose covariance this is.

        Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", lemma 3.4; as in
        sklearn.covariance.ledoit_wolf_shrinkage. Besides the covariance it needs Σ |z|⁴ over the rows z.
        """
        if X is None:
            raise HeadError("discriminant analysis, shrinkage 'auto': expected the rows for a second pass, got none.")
        groups = numbered(np.asarray(y), self.classes_)
        fourth = sum(each(X, _fourth, (groups,), (self.means_, scale)))
        count, width = len(groups), len(scale)
        square, mean = float((covariance**2).sum()), float(np.trace(covariance)) / width
        apart = (square - width * mean**2) / width
        noise = min((fourth / count - square) / (width * count), apart)
        return noise / apart if noise > 0 else 0.0


def _fourth(work: tuple[Any, ...]) -> float:
    """Σ |z|⁴ over the rows of a piece."""
    X, groups, means, scale = work
    total = 0.0
    for rows, block in small_blocks(X):
        z = block - means[groups[rows]].astype(block.dtype)
        z /= scale.astype(block.dtype)
        total += float((np.einsum("ij,ij->i", z, z).astype(np.float64) ** 2).sum())
    return total


def _deviations(covariance: np.ndarray) -> np.ndarray:
    """(width,); 1 where it is 0."""
    found = np.sqrt(np.diag(covariance))
    return np.where(found > 0, found, 1.0)


def _solve(covariance: np.ndarray, means: np.ndarray, *, rounding: float) -> np.ndarray:
    """covariance⁻¹ means, (width, classes). Directions in which rows vary by less than rounding are left out.

    Features are first divided by their deviations, so that their units do not decide what is small.
    """
    scale = _deviations(covariance)
    values, vectors = eigh(covariance / (scale * scale[:, None]), driver="evd", check_finite=False)
    kept = values > max(rounding, len(scale) * np.finfo(np.float64).eps) * values[-1]
    along = vectors[:, kept]
    return np.asarray(along @ ((along.T @ (means / scale[:, None])) / values[kept, None]) / scale[:, None])
