"""Starts for scikit-learn's logistic regression near the optima of a sweep over C.

scikit-learn optimises in the original coordinates. In coordinates along the axes of the rows, scaled by curvature
(`pipeline.streaming.lbfgs`), the optima take a fraction of the passes; at small C, most of scikit-learn's steps are
within the rounding error of float32. scikit-learn still checks the result: it continues from the start unless its own
gradient is within `tol`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.streaming.lbfgs import extrapolate, minimise, newton_step
from pipeline.streaming.logistic_loss import Loss, Point
from pipeline.streaming.targets import encode_labels, sample_weights, unique_classes

Start = tuple[np.ndarray, np.ndarray]
"""Coefficients (classes, width), or (1, width) for two classes, and intercepts, as in LogisticRegression."""

MAX_AXES = 2048  # matrices of 200 MB, whose decomposition takes some seconds


def warm_starts(head: Any, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Start] | None:
    """Return an iterator over the starts for each C, in their order; None if they do not apply.

    They apply to the plain L2-regularised loss with ascending, valid values of C, and to at least as many rows as
    columns: otherwise the axes cost more than they save.
    """
    plain = head.solver == "lbfgs" and head.penalty in ("deprecated", "l2") and not head.l1_ratio and y.ndim == 1
    numbers = [value for value in values if isinstance(value, int | float) and 0 < value < np.inf]
    if not plain or len(numbers) < len(values) or numbers != sorted(numbers):
        return None
    if not isinstance(X, np.ndarray) or not X.shape[1] <= min(len(X), MAX_AXES) or len(np.unique(y)) < 2:
        return None
    return _starts_along_axes(head, numbers, X, y)


def _starts_along_axes(head: Any, values: Sequence[float], X: np.ndarray, y: np.ndarray) -> Iterator[Start]:
    classes = unique_classes(y)
    codes, weights = encode_labels(y, classes), sample_weights(head.class_weight, y)
    loss = Loss(X, codes, weights, classes=len(classes), intercept=head.fit_intercept, standardize=False)
    path: list[Point] = []
    for value in values:
        penalty = 1 / (value * loss.total)
        start = extrapolate(loss, penalty, path, tol=head.tol)
        point = minimise(loss, penalty, tol=head.tol, max_iter=head.max_iter, start=start).point
        path = [*path[-2:], point]
        first = point.coef, point.intercept
        if point.max_grad(penalty) > head.tol:  # the possible gain is below the rounding of the loss
            first = newton_step(loss, point, penalty)
        coef = first[0].T
        yield coef.copy(), first[1] - coef @ loss.center
