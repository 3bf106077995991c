"""Logistic regression over rows that need not fit into memory, by L-BFGS with a pass or a few per step."""

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions

from pipeline.streaming.lbfgs import extrapolate, minimise
from pipeline.streaming.logistic_loss import Loss, Point
from pipeline.streaming.predict import apply_blocks
from pipeline.streaming.rows import validate_rows
from pipeline.streaming.targets import encode_labels, sample_weights, validate_labels


class StreamingLogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn's LogisticRegression with its L2 penalty, for arrays and row sources, from passes over the rows.

    `standardize` fits to rows less their mean, divided by their standard deviation (as a StandardScaler before it; both
    are weighted where classes are), and has that in `coef_` and `intercept_`. With `warm_start` a fit goes on from the
    last one.

    The first pass takes the second moments of the rows, and the search is along their axes
    (`pipeline.streaming.lbfgs`): memory is O(width² + width x classes). Of fewer rows than features they are found in
    the space of the rows.

    Attributes: `classes_`; `coef_` float64 (classes, width), (1, width) of two; `intercept_`; `n_iter_`; `passes_` over
    the rows; `objective_`, scikit-learn's divided by C and the sum of the weights; `gap_`, an upper bound of what it is
    above its minimum.
    """

    _parameter_constraints: dict[str, Any] = {
        "C": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "fit_intercept": ["boolean"],
        "standardize": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
    }

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        fit_intercept: bool = True,
        standardize: bool = False,
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, width), an array or a row source, and the class of each.

        It ends when no component of the gradient exceeds `tol`, or when the rows' precision allows no lower objective.
        Warns with ConvergenceWarning after `max_iter` steps. Raises ValueError as scikit-learn does, and the errors of
        `blocks` and `compute_moments`.
        """
        before = (self.classes_, self.coef_, self.intercept_) if self.warm_start and hasattr(self, "coef_") else None
        loss = self._loss_of(X, y)
        start: Point | None = None
        if before is not None and np.array_equal(before[0], self.classes_) and before[1].shape[1] == X.shape[1]:
            coef = loss.project(before[1].T * loss.scale[:, None])
            start = loss.at(coef, before[2] + before[1] @ loss.center)
        self._search(loss, start, counted=0)
        return self

    def fit_path(self, X: Any, y: Any, Cs: Sequence[float]) -> Iterator[Self]:
        """Yield a fitted estimator for each C, in ascending order, with starts extrapolated from the earlier fits.

        The moments are computed once; `passes_` of the first estimator counts their pass.
        """
        loss = self._loss_of(X, y)
        path: list[Point] = []
        counted = 0
        for C in sorted(Cs):
            fitted = clone(self).set_params(C=C)
            fitted.classes_, fitted.n_features_in_ = self.classes_, self.n_features_in_
            start = extrapolate(loss, 1 / (C * loss.total), path, tol=self.tol)
            path = [*path[-2:], fitted._search(loss, start, counted=counted)]
            counted = loss.passes
            yield fitted

    def decision_function(self, X: Any) -> np.ndarray:
        """Return decision values (rows, classes), or (rows,) of two classes: above 0 for the second."""
        values = apply_blocks(self, X, lambda rows: rows @ self.coef_.T.astype(rows.dtype) + self.intercept_)
        scores: np.ndarray = values[:, 0] if values.shape[1] == 1 else values
        return scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, (rows, classes)."""
        from scipy.special import expit, softmax

        scores = self.decision_function(X)
        if scores.ndim == 1:
            likely = expit(scores)
            return np.stack([1 - likely, likely], axis=1)
        return np.asarray(softmax(scores, axis=1))

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most likely class of each row."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        predicted: np.ndarray = self.classes_[codes]
        return predicted

    def _loss_of(self, X: Any, y: Any) -> Loss:
        self._validate_params()
        X = validate_rows(self, X, fitting=True)
        y, classes = validate_labels(self, X, y)
        codes, weights = encode_labels(y, classes), sample_weights(self.class_weight, y)
        self.classes_ = classes
        return Loss(X, codes, weights, classes=len(classes), intercept=self.fit_intercept, standardize=self.standardize)

    def _search(self, loss: Loss, start: Point | None, *, counted: int) -> Point:
        """Minimise the loss and set the fitted attributes; return the minimum. `counted`: passes of earlier fits."""
        penalty = 1 / (self.C * loss.total)
        descent = minimise(loss, penalty, tol=self.tol, max_iter=self.max_iter, start=start)
        point = descent.point
        self.coef_ = (point.coef / loss.scale[:, None]).T.copy()
        self.intercept_ = point.intercept - self.coef_ @ loss.center
        self.n_iter_ = descent.steps
        self.passes_ = loss.passes - counted
        self.objective_, self.gap_ = point.value(penalty), loss.gap(point, penalty)
        if not descent.converged:
            warnings.warn(
                f"logistic regression with C={self.C:g}: after {descent.steps:,} steps the gradient is "
                f"{point.max_grad(penalty):.1e}, expected at most tol={self.tol:g}; the objective is at most "
                f"{self.gap_:.1e} above its minimum. Raise `max_iter` or `tol`, or lower C.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return point
