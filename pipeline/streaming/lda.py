"""Linear discriminant analysis, exact, from one pass over rows that need not fit into memory.

Rows are compared with class means by the covariance within classes, pooled over the classes: Hastie,
Tibshirani and Friedman 2009, "The Elements of Statistical Learning", section 4.3. Shrinkage "auto" takes a second pass.
With fewer rows than features, it is solved in the space of the rows, without a features x features matrix.
"""

from typing import Any, Literal, Self

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import shrunk_covariance

from pipeline.errors import HeadError
from pipeline.streaming.accumulate import compute_moments
from pipeline.streaming.chunks import map_chunks
from pipeline.streaming.moments import Moments
from pipeline.streaming.predict import apply_blocks, small_blocks
from pipeline.streaming.row_space import compute_row_space, deviations, is_smaller, load_rows
from pipeline.streaming.rows import validate_rows
from pipeline.streaming.targets import encode_labels, validate_labels


class StreamingLDA(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear discriminant analysis; X is an array or a row source.

    Equals scikit-learn's LinearDiscriminantAnalysis without shrinkage (decision values are those of its solver "svd";
    those of "lsqr" differ by a constant per row), and with a number as shrinkage
    where the priors are the shares of the classes.

    With `standardize` a number shrinks the covariance of features divided by their standard deviation. Without
    shrinkage, and with "auto", their units do not matter.

    Shrinkage "auto" is the Ledoit-Wolf estimate for all rows about their class means, each feature divided by its
    deviation there: one amount for all classes. scikit-learn estimates a matrix and an amount per class; this takes
    the memory of one matrix per class, and with few rows per class is nearly a diagonal.

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
        X = validate_rows(self, X, fitting=True)
        labels, classes = validate_labels(self, X, y)
        if is_smaller(X):
            return self._fit_in_row_space(load_rows(X), encode_labels(labels, classes), classes)
        moments = compute_moments(X, labels, classes=classes)
        return self.fit_moments(moments, X, labels)

    def _fit_in_row_space(self, rows: np.ndarray, groups: np.ndarray, classes: np.ndarray) -> Self:
        """Fit to fewer rows than features, in rows x rows: no feature varies outside of the space of the rows."""
        counts = np.bincount(groups).astype(np.float64)
        self.priors_ = self._priors(counts)
        self.classes_, self.n_features_in_ = classes, rows.shape[1]
        self.means_ = np.stack([rows[groups == number].mean(axis=0) for number in range(len(classes))])
        rest, mean = rows - self.means_[groups], rows.mean(axis=0)
        within = np.sqrt((rest**2).mean(axis=0))
        still = within <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        rest[:, still] = 0.0
        self._check_varies(still, rows=len(rows))
        auto = self.shrinkage == "auto"
        amount = 0.0 if auto else self._number()
        own = deviations(rows, None) if self.standardize else np.ones(len(mean))
        scale = own if amount else np.where(still, 1.0, within)
        space = compute_row_space(self.means_[groups] + rest, centre=mean, scale=scale)
        rest /= scale
        along = rest @ space.basis
        covariance = along.T @ along / len(rows)
        level = float((rest**2).sum()) / rest.size
        if auto:
            fourth = float(((rest**2).sum(axis=1) ** 2).sum())
            square = float((covariance**2).sum())
            amount = _ledoit_wolf_amount(fourth, square, level, count=len(rows), width=len(mean))
        self.shrinkage_ = amount
        covariance = (1 - amount) * covariance + amount * level * np.eye(len(covariance))
        values, vectors = eigh(covariance, driver="evd", check_finite=False)
        directions = vectors[:, values > len(mean) * np.finfo(np.float64).eps * values[-1]]
        values = values[-directions.shape[1] :]
        apart = (self.means_ - self.priors_ @ self.means_) / scale @ space.basis
        return self._keep(space.coefficients((apart @ directions) / values @ directions.T))

    def _check_varies(self, still: np.ndarray, *, rows: int) -> None:
        if still.all():
            raise HeadError(
                f"discriminant analysis: expected rows that vary about the mean of their class, got {rows:,} "
                f"rows of {len(self.classes_):,} classes that do not. Label more samples, or use nearest class means."
            )

    def _keep(self, coef: np.ndarray) -> Self:
        """Set coefficients (classes, width) and intercepts; for two classes, their difference."""
        centre = self.priors_ @ self.means_
        intercept = np.log(self.priors_) - ((self.means_ + centre) / 2 * coef).sum(axis=1)
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef, intercept
        return self

    def fit_moments(self, moments: Moments, X: Any = None, y: Any = None) -> Self:
        """Fit to moments of rows with classes; "auto" reads the rows X and their classes y again.

        Raises HeadError if the moments have no classes, no row differs from its class mean, "auto" gets no rows, or a
        parameter is out of range.
        """
        if moments.classes is None:
            raise HeadError(
                "discriminant analysis: expected moments of classes, got none. Pass `classes` to compute_moments."
            )
        self.priors_ = self._priors(moments.weights)
        self.classes_, self.means_, self.n_features_in_ = moments.classes, moments.class_means, moments.width
        covariance = moments.within() / moments.weight
        still = np.diag(covariance) <= 4 * moments.rounding * np.diag(moments.gram) / moments.weight
        covariance[still], covariance[:, still] = 0.0, 0.0
        self._check_varies(still, rows=moments.rows)
        auto = self.shrinkage == "auto"
        scale = moments.scale if self.standardize else np.ones(moments.width)
        scale = _deviations(covariance) if auto else scale
        covariance /= scale * scale[:, None]
        self.shrinkage_ = self._ledoit_wolf(X, y, scale, covariance) if auto else self._number()
        covariance = shrunk_covariance(covariance, self.shrinkage_) * (scale * scale[:, None])
        centre = self.priors_ @ self.means_
        return self._keep(_solve(covariance, (self.means_ - centre).T, rounding=moments.rounding).T)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return log(density * prior) per class up to a constant per row: (rows, classes), or (rows,) for two."""
        values = apply_blocks(self, X, lambda block: block @ self.coef_.T + self.intercept_)
        return values[:, 0] if len(self.classes_) == 2 else values

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities (rows, classes)."""
        values = self.decision_function(X)
        return np.stack([expit(-values), expit(values)], axis=1) if values.ndim == 1 else softmax(values, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each row (rows,)."""
        values = self.decision_function(X)
        return np.asarray(self.classes_[(values > 0).astype(int) if values.ndim == 1 else values.argmax(axis=1)])

    def _number(self) -> float:
        if self.shrinkage is None:
            return 0.0
        if isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1:
            raise HeadError(
                f"discriminant analysis, `shrinkage`: expected 'auto', None or a number from 0 to 1, got "
                f"{self.shrinkage!r}. 'auto' is a good first try."
            )
        return float(self.shrinkage)

    def _priors(self, weights: np.ndarray) -> np.ndarray:
        if self.priors is None:
            return np.asarray(weights / weights.sum())
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != weights.shape or not (priors > 0).all() or abs(priors.sum() - 1) > 1e-5:
            raise HeadError(
                f"discriminant analysis, `priors`: expected {len(weights)} numbers above 0, one per class, that "
                f"add up to 1, got {self.priors}. Leave them out to use the shares of the classes."
            )
        return np.asarray(priors / priors.sum())

    def _ledoit_wolf(self, X: Any, y: Any, scale: np.ndarray, covariance: np.ndarray) -> float:
        """Return the shrinkage of this covariance of rows about their class means over `scale`.

        Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", lemma 3.4; as in
        sklearn.covariance.ledoit_wolf_shrinkage. Besides the covariance it needs Σ |z|⁴ over the rows z.
        """
        if X is None:
            raise HeadError("discriminant analysis, shrinkage 'auto': expected the rows for a second pass, got none.")
        groups = encode_labels(np.asarray(y), self.classes_)
        fourth = sum(map_chunks(X, _fourth, (groups,), (self.means_, scale)))
        count, width = len(groups), len(scale)
        square, mean = float((covariance**2).sum()), float(np.trace(covariance)) / width
        return _ledoit_wolf_amount(fourth, square, mean, count=count, width=width)


def _ledoit_wolf_amount(fourth: float, square: float, mean: float, *, count: int, width: int) -> float:
    """Return the amount from Σ |z|⁴, the sum of the covariance's squares and the mean of its diagonal."""
    apart = (square - width * mean**2) / width
    noise = min((fourth / count - square) / (width * count), apart)
    return noise / apart if noise > 0 else 0.0


def _fourth(work: tuple[Any, ...]) -> float:
    """Sum |z|⁴ over the rows of a piece."""
    X, groups, means, scale = work
    total = 0.0
    for rows, block in small_blocks(X):
        z = block - means[groups[rows]].astype(block.dtype)
        z /= scale.astype(block.dtype)
        total += float((np.einsum("ij,ij->i", z, z).astype(np.float64) ** 2).sum())
    return total


def _deviations(covariance: np.ndarray) -> np.ndarray:
    """Return deviations (width,); 1 where a deviation is 0."""
    deviations = np.sqrt(np.diag(covariance))
    return np.where(deviations > 0, deviations, 1.0)


def _solve(covariance: np.ndarray, means: np.ndarray, *, rounding: float) -> np.ndarray:
    """Solve covariance⁻¹ means, (width, classes); directions in which rows hardly vary are left out.

    Features are first divided by their deviations, so that their units do not decide what is small.
    """
    scale = _deviations(covariance)
    values, vectors = eigh(covariance / (scale * scale[:, None]), driver="evd", check_finite=False)
    large = values > max(rounding, len(scale) * np.finfo(np.float64).eps) * values[-1]
    along = vectors[:, large]
    return np.asarray(along @ ((along.T @ (means / scale[:, None])) / values[large, None]) / scale[:, None])
