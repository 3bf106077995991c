"""Ridge regression and ridge classification, exact, from one pass over rows that need not fit into memory.

The penalty is `alpha`, or of several `alphas` the best by generalised cross-validation, solved from the same sums.
With fewer rows than features, it is solved in the space of the rows, without a features x features matrix.
The problem is that of scikit-learn's Ridge and RidgeClassifier: to minimise Σ (y - w x - b)² + α |w|².
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from pipeline.errors import HeadError
from pipeline.streaming.accumulate import compute_moments
from pipeline.streaming.moments import Moments
from pipeline.streaming.predict import apply_blocks
from pipeline.streaming.ridge_path import factorise
from pipeline.streaming.row_space import compute_row_space, deviations, is_smaller, load_rows
from pipeline.streaming.rows import validate_rows
from pipeline.streaming.targets import sample_weights, validate_labels, validate_targets


class _Ridge(BaseEstimator):  # type: ignore[misc]
    """Base of regression and classification: the solution for targets, and the choice of a penalty.

    Fitted: `coef_` and `intercept_` at the penalty `alpha_`; `gcv_values_` (alphas,); and with `keep_path` those of
    every penalty, `coef_path_` (alphas, targets, width) and `intercept_path_` (alphas, targets). With
    `standardize` the penalty is on the coefficients of features divided by their standard deviation.
    """

    alphas: Sequence[float] | None
    alpha: float
    standardize: bool
    keep_path: bool

    def _solve(
        self, moments: Moments, *, pivot: np.ndarray, sums: np.ndarray, squares: np.ndarray, cross: np.ndarray
    ) -> None:
        """Fit to sums of the targets less a pivot, of their squares, and of rows times them (width, targets)."""
        alphas = np.array((self.alpha,) if self.alphas is None else self.alphas, dtype=np.float64)
        if alphas.ndim != 1 or not alphas.size or not (np.isfinite(alphas) & (alphas > 0)).all():
            if self.alphas is None:
                raise HeadError(f"ridge, `alpha`: expected a number above 0, got {self.alpha}. Start with 1.")
            raise HeadError(f"ridge, `alphas`: expected at least one number above 0, got {self.alphas}. List some.")
        mean = sums / moments.weight
        scale = moments.scale if self.standardize else np.ones(moments.width)
        scatter = moments.scatter()
        scatter /= scale
        scatter /= scale[:, None]
        centred = cross - np.outer(moments.sums.sum(axis=0), mean)
        factors = factorise(scatter, centred / scale[:, None])
        about = squares - moments.weight * mean**2
        scores = [factors.gcv(alpha, about, rows=moments.rows, rounding=moments.rounding) for alpha in alphas.tolist()]
        best = int(np.argmin(scores))
        self.n_features_in_ = moments.width
        self.gcv_values_ = np.array(scores)
        self.path_alphas_ = alphas if self.keep_path else alphas[best : best + 1]
        self.coef_path_ = np.stack([(factors.coefficients(a) / scale[:, None]).T for a in self.path_alphas_.tolist()])
        self.intercept_path_ = pivot + mean - self.coef_path_ @ moments.mean
        self._choose(float(alphas[best]))

    def _solve_targets(self, moments: Moments) -> None:
        self._solve(
            moments,
            pivot=moments.target_pivot,
            sums=moments.target_sums,
            squares=moments.target_squares,
            cross=moments.cross,
        )

    def _fit_in_row_space(self, X: Any, weights: np.ndarray | None, fit: Callable[[Self, np.ndarray], Self]) -> Self:
        """Fit to fewer rows than features, in rows x rows: `fit` takes a copy of this head and the coordinates."""
        rows = load_rows(X)
        scale = deviations(rows, weights) if self.standardize else np.ones(rows.shape[1])
        space = compute_row_space(rows, centre=rows.mean(axis=0), scale=scale)
        inner = fit(clone(self).set_params(standardize=False), space.coordinates)
        for name in vars(inner).keys() - self.get_params().keys():
            setattr(self, name, getattr(inner, name))
        self.n_features_in_ = rows.shape[1]
        self.coef_path_ = np.stack([space.coefficients(along) for along in inner.coef_path_])
        self.intercept_path_ = inner.intercept_path_ - self.coef_path_ @ space.centre
        self._choose(inner.alpha_)
        return self

    def _choose(self, alpha: float) -> None:
        number = int(np.flatnonzero(self.path_alphas_ == alpha)[0])
        self.alpha_, self.coef_, self.intercept_ = alpha, self.coef_path_[number], self.intercept_path_[number]

    def at(self, alpha: float) -> Self:
        """Return this head at another of its penalties, without the rest of the path. No row is read.

        Raises HeadError if the penalty is not in `alphas`, or its path was not kept.
        """
        if alpha not in self.path_alphas_:
            raise HeadError(
                f"ridge at α = {alpha:g}: expected one of {', '.join(f'{known:g}' for known in self.path_alphas_)}. "
                "Add the penalty to `alphas`, and set `keep_path` before fitting to keep all of them."
            )
        other = type(self)(**self.get_params())
        for name, value in vars(self).items():
            setattr(other, name, value)
        position = self.path_alphas_ == alpha
        other.path_alphas_, other.coef_path_ = self.path_alphas_[position], self.coef_path_[position]
        other.intercept_path_ = self.intercept_path_[position]
        other._choose(alpha)
        return other

    def _values(self, X: Any) -> np.ndarray:
        """Return values (rows, targets)."""
        check_is_fitted(self)
        coef, intercept = np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_)
        return apply_blocks(self, X, lambda block: block @ coef.T + intercept)


class StreamingRidge(MultiOutputMixin, RegressorMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression for one target or several, which share the penalty; X is an array or a row source."""

    def __init__(
        self,
        alphas: Sequence[float] | None = None,
        *,
        alpha: float = 1.0,
        standardize: bool = False,
        keep_path: bool = False,
    ) -> None:
        self.alphas = alphas
        self.alpha = alpha
        self.standardize = standardize
        self.keep_path = keep_path

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X and targets y, (rows,) or (rows, targets)."""
        X = validate_rows(self, X, fitting=True)
        targets = validate_targets(self, X, y)
        if is_smaller(X):
            return self._fit_in_row_space(X, None, lambda head, rows: head.fit_moments(compute_moments(rows, targets)))
        return self.fit_moments(compute_moments(X, targets))

    def fit_moments(self, moments: Moments) -> Self:
        """Fit to the sums of rows and targets; raises HeadError where they are of classes."""
        if moments.classes is not None or not len(moments.target_pivot):
            raise HeadError("ridge regression: expected moments of targets, got none. Call compute_moments(X, y).")
        self._solve_targets(moments)
        return self

    def _choose(self, alpha: float) -> None:
        super()._choose(alpha)
        if len(self.coef_) == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])

    def predict(self, X: Any) -> np.ndarray:
        """Predict (rows,) for one target, (rows, targets) for several."""
        values = self._values(X)
        return values[:, 0] if self.coef_.ndim == 1 else values


class StreamingRidgeClassifier(ClassifierMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression of targets that are 1 for a class and -1 otherwise; the class with the largest value wins.

    y may also be an indicator matrix (rows, labels): each label is then predicted independently. `class_weight` is
    None, "balanced" or a weight per class, as of scikit-learn's RidgeClassifier.
    """

    def __init__(
        self,
        alphas: Sequence[float] | None = None,
        *,
        alpha: float = 1.0,
        standardize: bool = False,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        keep_path: bool = False,
    ) -> None:
        self.alphas = alphas
        self.alpha = alpha
        self.standardize = standardize
        self.class_weight = class_weight
        self.keep_path = keep_path

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X and classes y (rows,), or labels (rows, labels) of 0 and 1."""
        X = validate_rows(self, X, fitting=True)
        if np.asarray(y).ndim == 2 and type_of_target(y) == "multilabel-indicator":
            given, classes = validate_targets(self, X, y), None
            targets = 2 * given - 1
        else:
            given, classes = validate_labels(self, X, y)
            targets = given
        weights = sample_weights(self.class_weight, given)

        def fit(head: Self, rows: Any) -> Self:
            return head.fit_moments(compute_moments(rows, targets, classes=classes, weights=weights))

        return self._fit_in_row_space(X, weights, fit) if is_smaller(X) else fit(self, X)

    def fit_moments(self, moments: Moments) -> Self:
        """Fit to the sums of rows with classes (weighted already), or with targets of 1 and -1, a label each."""
        if moments.classes is None:
            if not len(moments.target_pivot):
                raise HeadError(
                    "ridge classification: expected moments of classes or labels, got none. Pass y to compute_moments."
                )
            self.multilabel_, self.classes_ = True, np.arange(len(moments.target_pivot))
            self._solve_targets(moments)
            return self
        self.multilabel_, self.classes_ = False, moments.classes
        positive = slice(1, None) if len(self.classes_) == 2 else slice(None)
        weights, sums = moments.weights[positive], moments.sums[positive]
        # Sums over all rows, y being 1 for those of a class and -1 for the others.
        self._solve(
            moments,
            pivot=np.zeros(len(weights)),
            sums=2 * weights - moments.weight,
            squares=np.full(len(weights), moments.weight),
            cross=(2 * sums - moments.sums.sum(axis=0)).T,
        )
        return self

    @property
    def _binary(self) -> bool:
        return len(self.classes_) == 2 and not self.multilabel_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return decision values (rows, classes); of two classes (rows,), above 0 for the second."""
        values = self._values(X)
        return values[:, 0] if self._binary else values

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each row, (rows,), or its labels (rows, labels) of 0 and 1."""
        values = self._values(X)
        if self._binary:
            return np.asarray(self.classes_[(values[:, 0] > 0).astype(int)])
        if self.multilabel_:
            return (values > 0).astype(int)
        return np.asarray(self.classes_[values.argmax(axis=1)])
