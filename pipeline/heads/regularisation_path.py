"""Fit one head with many values of a parameter, with the work that the values share done once.

Logistic regression starts each value at its optimum, found along the axes of the rows, or else where the optima of
those before point to. Ridge heads need one decomposition for all penalties. A streaming head has a method of its own
for this. Any other head is fitted to each value.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.heads import gpu
from pipeline.heads.failures import cause_of_failure
from pipeline.streaming.targets import weights_of

if TYPE_CHECKING:
    from pipeline.heads.warm_start import Start

Candidate = tuple[Any | None, str | None]
"""A fitted head, or None where the fit failed with the value; and what is against choosing it, if anything is."""

BLOCK = 4096  # rows that are in float64 at a time


def fit_path(head: Any, parameter: str, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a head with each value, in their order; X may be a tensor, the heads hold arrays."""
    kind = type(head).__name__
    if kind == "LogisticRegression" and parameter == "C" and head.solver in ("lbfgs", "newton-cg", "sag", "saga"):
        return _warm(head, values, X, y)
    if all(map(_is_penalty, values)):  # the class says what is wrong with others, value by value
        if kind in ("Ridge", "RidgeClassifier") and parameter == "alpha" and _has_path(head, X, y):
            return _ridge(head, values, X, y)
        if parameter == "C" and hasattr(head, "fit_path"):
            return _path(head, values, X, y)
        if parameter == "alpha" and hasattr(head, "at"):
            return _at(head, values, X, y)
    return fit_each(head, parameter, values, X, y)


def fit_each(head: Any, parameter: str, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a copy of the head with each value by itself."""
    return (try_fit(copy_with(head, **{parameter: value}), X, y) for value in values)


def _is_penalty(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf


def copy_with(head: Any, **params: Any) -> Any:
    """Return an unfitted copy of a head with some parameters replaced."""
    from sklearn.base import clone

    return clone(head).set_params(**params)


def try_fit(head: Any, X: Any, y: np.ndarray) -> Candidate:
    """Fit a head in place; that the fit fails or does not converge is returned, not raised."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            head.fit(X, y)
        except Exception as error:  # noqa: BLE001 - classes by import path raise nearly anything
            return None, cause_of_failure(error)
    return gpu.to_arrays(head), _problem(caught)


def _problem(caught: Sequence[warnings.WarningMessage]) -> str | None:
    """Return the warning that a fit did not converge; any other warning is given once more."""
    from sklearn.exceptions import ConvergenceWarning

    problem = None
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            problem = f"did not converge: {str(warning.message).splitlines()[0]}"
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return problem


def _warm(head: Any, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit each value from near its optimum (`warm_starts`), or from where the path of optima so far points to.

    The problem is convex: the start decides how many iterations are needed, and the optimum is the same within `tol`.
    """
    from pipeline.heads.warm_start import warm_starts  # loads the store, which settings of a search do not need

    moving = copy_with(head, warm_start=True)
    path: list[np.ndarray] = []
    near = warm_starts(head, values, X, y)
    for value in values:
        start = None if near is None else _start_near(near)
        if start is not None:
            moving.coef_, moving.intercept_ = start
        elif len(path) > 1:
            point = _ahead(path)
            moving.coef_, moving.intercept_ = point[:, :-1], point[:, -1]
        fitted_head, problem = try_fit(moving.set_params(C=value), X, y)
        if fitted_head is None:
            path.clear()
            yield None, problem
            continue
        path = [
            *path[-2:],
            np.column_stack([fitted_head.coef_, np.broadcast_to(fitted_head.intercept_, len(fitted_head.coef_))]),
        ]
        # A fit puts new arrays into the head, so that a shallow copy keeps those of this value.
        yield copy.copy(fitted_head).set_params(warm_start=head.warm_start), problem


def _start_near(near: "Iterator[Start]") -> "Start | None":
    """Return the next start; None where the axes of these rows cannot be had, for squares beyond floating point."""
    try:
        return next(near, None)
    except (HeadError, ValueError, ArithmeticError):
        return None


def _ahead(path: Sequence[np.ndarray]) -> np.ndarray:
    """Extrapolate a path: a step in the direction of the last, as much longer as that was than the one before."""
    step = path[-1] - path[-2]
    if len(path) == 2:
        return np.asarray(path[-1] + step)
    before = path[-2] - path[-3]
    longer = float(np.vdot(step, before)) / max(float(np.vdot(before, before)), np.finfo(np.float64).tiny)
    return np.asarray(path[-1] + min(max(longer, 0.0), 2.0) * step)


def _has_path(head: Any, X: Any, y: np.ndarray) -> bool:
    weighted = getattr(head, "class_weight", None) is not None
    return isinstance(X, np.ndarray) and not head.positive and not (y.ndim > 1 and weighted)


def _ridge(head: Any, values: Sequence[float], X: np.ndarray, y: np.ndarray) -> Iterator[Candidate]:
    """Solve every penalty from one eigendecomposition of the smaller Gram matrix, in float64.

    With X centred and X'X = V diag(e) V', the coefficients are V diag(1 / (e + alpha)) V'X'y (Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning, equation 3.47); with fewer rows than columns the same of XX'.
    """
    first, problem = try_fit(copy_with(head, alpha=max(values)), X, y)
    if first is None:  # scikit-learn says what is wrong, value by value
        yield from fit_each(head, "alpha", values, X, y)
        return
    targets, weights = _encoded(head, y)
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


def _encoded(head: Any, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return targets (rows, columns) as scikit-learn's ridge heads see them, and the weight of each row."""
    from sklearn.preprocessing import LabelBinarizer

    if type(head).__name__ == "Ridge":
        return y.reshape(len(y), -1).astype(np.float64), None
    targets = LabelBinarizer(pos_label=1, neg_label=-1).fit_transform(y).astype(np.float64)
    return targets, weights_of(head.class_weight, y)


def _at(head: Any, values: Sequence[float], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a streaming ridge head in one pass; return a copy per penalty."""
    whole, problem = try_fit(copy_with(head, alphas=tuple(values), keep_path=True), X, y)
    for value in values:
        yield (
            (None if whole is None else whole.at(value).set_params(alpha=value, alphas=None, keep_path=False)),
            problem,
        )


def _path(head: Any, values: Sequence[float], X: Any, y: np.ndarray) -> Iterator[Candidate]:
    """Fit a streaming logistic head: passes go on from one value to the next, and start anew after a failure."""
    from sklearn.exceptions import ConvergenceWarning

    going = head.fit_path(X, y, values)
    for number in range(len(values)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            try:
                fitted_head = next(going)
            except Exception as error:  # noqa: BLE001 - as of any other head
                problem, going = cause_of_failure(error), head.fit_path(X, y, values[number + 1 :])
                fitted_head = None
        yield fitted_head, problem if fitted_head is None else _problem(caught)
