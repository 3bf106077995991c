"""Where the optima of a sweep of C lie, so that scikit-learn's logistic regression starts there.

scikit-learn's search goes along the columns as they are. Along the axes of the rows, each divided by its bend
(`pipeline.streaming.lbfgs`), the same optima take a fraction of the passes; and at small C its search is mostly a walk
in the rounding of the loss of float32 rows. It still judges: it goes on from here where its own gradient is not within
`tol`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.streaming.lbfgs import extrapolate, minimise, newton_step
from pipeline.streaming.logistic_loss import Loss, Point
from pipeline.streaming.targets import classes_of, numbered, weights_of

Start = tuple[np.ndarray, np.ndarray]
"""Coefficients (classes, width), of two (1, width), and intercepts, as a LogisticRegression has them."""

MOST_AXES = 2048  # their matrices take 200 MB, and their decomposition some seconds


def warm_starts(head: Any, values: Sequence[Any], X: Any, y: np.ndarray) -> Iterator[Start] | None:
    """Return where to start for each C, in their order; None for other heads, values or rows than these axes'.

    That is where the loss is not the plain one, the values do not grow, scikit-learn will refuse what it is given, or
    there are fewer rows than columns, of which the axes cost more than they save.
    """
    plain = head.solver == "lbfgs" and head.penalty in ("deprecated", "l2") and not head.l1_ratio and y.ndim == 1
    numbers = [value for value in values if isinstance(value, int | float) and 0 < value < np.inf]
    if not plain or len(numbers) < len(values) or numbers != sorted(numbers):
        return None
    if not isinstance(X, np.ndarray) or not X.shape[1] <= min(len(X), MOST_AXES) or len(np.unique(y)) < 2:
        return None
    return _along(head, numbers, X, y)


def _along(head: Any, values: Sequence[float], X: np.ndarray, y: np.ndarray) -> Iterator[Start]:
    classes = classes_of(y)
    codes, weights = numbered(y, classes), weights_of(head.class_weight, y)
    loss = Loss(X, codes, weights, classes=len(classes), intercept=head.fit_intercept, standardize=False)
    path: list[Point] = []
    for value in values:
        penalty = 1 / (value * loss.total)
        start = extrapolate(loss, penalty, path, tol=head.tol)
        point = minimise(loss, penalty, tol=head.tol, max_iter=head.max_iter, start=start).point
        path = [*path[-2:], point]
        first = point.coef, point.intercept
        if point.steepest(penalty) > head.tol:  # what is left to gain is lost in the rounding of the loss
            first = newton_step(loss, point, penalty)
        coef = first[0].T
        yield coef.copy(), first[1] - coef @ loss.center
