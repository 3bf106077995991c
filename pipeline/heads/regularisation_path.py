"""Fit a head with many values of a parameter; work that the values share is done once.

Fits of logistic regression start near their optima, computed along the axes of the rows, or at an extrapolation of the
earlier optima. Ridge heads need a single decomposition for all penalties. Streaming heads have their own method. Other
heads are fitted once per value.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.heads import gpu
from pipeline.heads.failures import cause_of_failure
from pipeline.streaming.targets import sample_weights

if TYPE_CHECKING:
    from pipeline.heads.warm_start import Start

Candidate = tuple[Any | None, str | None]
"""A fitted head, or None for a failed fit; and the reason why it must not be chosen, or None."""

BLOCK = 4096  # rows per float64 block


def fit_path(head: Any, parameter: str, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Yield the head fitted with each value, in their order; X may be a tensor, the fitted heads hold arrays."""
    kind = type(head).__name__
    if kind == "LogisticRegression" and parameter == "C" and head.solver in ("lbfgs", "newton-cg", "sag", "saga"):
        return _fit_warm_started(head, values, X, y)
    if all(map(_is_penalty, values)):  # other values are refused by the class, value by value
        if kind in ("Ridge", "RidgeClassifier") and parameter == "alpha" and _has_path(head, X, y):
            return _solve_ridge(head, values, X, y)
        if parameter == "C" and hasattr(head, "fit_path"):
            return _fit_streaming_logistic(head, values, X, y)
        if parameter == "alpha" and hasattr(head, "at"):
            return _fit_streaming_ridge(head, values, X, y)
    return fit_each(head, parameter, values, X, y)


def fit_each(head: Any, parameter: str, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Yield a copy of the head fitted with each value."""
    return (try_fit(copy_with(head, **{parameter: value}), X, y) for value in values)


def _is_penalty(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf


def copy_with(head: Any, **params: Any) -> Any:
    """Return an unfitted copy of a head with some parameters replaced."""
    from sklearn.base import clone

    return clone(head).set_params(**params)


def try_fit(head: Any, X: Any, y: np.ndarray) -> Candidate:
    """Fit a head in place; a failure or missing convergence is returned, not raised."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            head.fit(X, y)
        except Exception as error:  # noqa: BLE001 - classes by import path may raise anything
            return None, cause_of_failure(error)
    return gpu.to_arrays(head), _problem(caught)


def _problem(caught: Sequence[warnings.WarningMessage]) -> str | None:
    """Return the warning that a fit did not converge; other warnings are issued again."""
    from sklearn.exceptions import ConvergenceWarning

    problem = None
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            problem = f"did not converge: {str(warning.message).splitlines()[0]}"
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return problem


def _fit_warm_started(head: Any, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit each value from a start near its optimum (`warm_starts`), or from an extrapolation of the earlier optima.

    The problem is convex: the start changes the number of iterations, but not the optimum, within `tol`.
    """
    from pipeline.heads.warm_start import warm_starts  # imports the store, which the settings do not need

    estimator = copy_with(head, warm_start=True)
    path: list[np.ndarray] = []
    starts = warm_starts(head, values, X, y)
    for value in values:
        start = None if starts is None else _next_start(starts)
        if start is not None:
            estimator.coef_, estimator.intercept_ = start
        elif len(path) > 1:
            point = _extrapolate(path)
            estimator.coef_, estimator.intercept_ = point[:, :-1], point[:, -1]
        fitted_head, problem = try_fit(estimator.set_params(C=value), X, y)
        if fitted_head is None:
            path.clear()
            yield None, problem
            continue
        path = [
            *path[-2:],
            np.column_stack([fitted_head.coef_, np.broadcast_to(fitted_head.intercept_, len(fitted_head.coef_))]),
        ]
        # Each fit creates new arrays, so that a shallow copy keeps those of this value.
        yield copy.copy(fitted_head).set_params(warm_start=head.warm_start), problem


def _next_start(starts: "Iterator[Start]") -> "Start | None":
    """Return the next start; None if the axes of the rows cannot be computed, because squares overflow."""
    try:
        return next(starts, None)
    except (HeadError, ValueError, ArithmeticError):
        return None


def _extrapolate(path: Sequence[np.ndarray]) -> np.ndarray:
    """Extrapolate a path: repeat the last step, scaled by the ratio of the last two steps."""
    step = path[-1] - path[-2]
    if len(path) == 2:
        return np.asarray(path[-1] + step)
    before = path[-2] - path[-3]
    longer = float(np.vdot(step, before)) / max(float(np.vdot(before, before)), np.finfo(np.float64).tiny)
    return np.asarray(path[-1] + min(max(longer, 0.0), 2.0) * step)


def _has_path(head: Any, X: Any, y: np.ndarray) -> bool:
    weighted = getattr(head, "class_weight", None) is not None
    return isinstance(X, np.ndarray) and not head.positive and not (y.ndim > 1 and weighted)


def _solve_ridge(head: Any, values: Sequence[float], X: np.ndarray, y: np.ndarray) -> Iterator[Candidate]:
    """Solve every penalty from one eigendecomposition of the smaller Gram matrix, in float64.

    With X centred and X'X = V diag(e) V', the coefficients are V diag(1 / (e + alpha)) V'X'y (Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning, equation 3.47); with fewer rows than columns, XX' is decomposed
    instead.
    """
    first, problem = try_fit(copy_with(head, alpha=max(values)), X, y)
    if first is None:  # scikit-learn reports the problem, value by value
        yield from fit_each(head, "alpha", values, X, y)
        return
    targets, weights = _encode_targets(head, y)
    offset = np.average(X, axis=0, weights=weights, keepdims=True).astype(np.float64)
    level = np.average(targets, axis=0, weights=weights, keepdims=True)
    if not head.fit_intercept:
        offset, level = np.zeros_like(offset), np.zeros_like(level)
    root = np.ones((len(X), 1)) if weights is None else np.sqrt(weights)[:, None]
    Y = (targets - level) * root
    if len(X) < X.shape[1]:
        Z = (X - offset) * root
        eigen, vectors = np.linalg.eigh(Z @ Z.T)
        basis, right = Z.T @ vectors, vectors.T @ Y
    else:
        gram, product = np.zeros((X.shape[1],) * 2), np.zeros((X.shape[1], Y.shape[1]))
        for start in range(0, len(X), BLOCK):
            part = (X[start : start + BLOCK] - offset) * root[start : start + BLOCK]
            gram += part.T @ part
            product += part.T @ Y[start : start + BLOCK]
        eigen, basis = np.linalg.eigh(gram)
        right = basis.T @ product
    for value in values:
        coefficients = basis @ (right / (np.maximum(eigen, 0) + value)[:, None])
        intercept = level - offset @ coefficients
        copied = copy.copy(first).set_params(alpha=value)
        copied.coef_ = coefficients.T.reshape(np.shape(first.coef_)).astype(first.coef_.dtype)
        if head.fit_intercept:
            copied.intercept_ = intercept.reshape(np.shape(first.intercept_)).astype(np.asarray(first.intercept_).dtype)
        yield copied, problem


def _encode_targets(head: Any, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return targets (rows, columns) in the encoding of scikit-learn's ridge heads, and the weight of each row."""
    from sklearn.preprocessing import LabelBinarizer

    if type(head).__name__ == "Ridge":
        return y.reshape(len(y), -1).astype(np.float64), None
    targets = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(y).astype(np.float64)
    return targets, sample_weights(head.class_weight, y)


def _fit_streaming_ridge(head: Any, values: Sequence[float], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a streaming ridge head in one pass; yield a copy per penalty."""
    path, problem = try_fit(copy_with(head, alphas=tuple(values), keep_path=True), X, y)
    for value in values:
        yield (
            (None if path is None else path.at(value).set_params(alpha=value, alphas=None, keep_path=False)),
            problem,
        )


def _fit_streaming_logistic(head: Any, values: Sequence[float], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a streaming logistic head: each value continues from the last, and starts from zero after a failure."""
    from sklearn.exceptions import ConvergenceWarning

    fits = head.fit_path(X, y, values)
    for number in range(len(values)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            try:
                fitted_head = next(fits)
            except Exception as error:  # noqa: BLE001 - as for other heads
                problem, fits = cause_of_failure(error), head.fit_path(X, y, values[number + 1 :])
                fitted_head = None
        yield fitted_head, problem if fitted_head is None else _problem(caught)
