"""L-BFGS over passes: the minimum of a logistic loss, along axes in which it curves alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.streaming.logistic_loss import Loss, Point

LEAST_CURVATURE = (
    0.02  # of that of equally likely classes: rows that are told apart well bend the loss less, to a degree
)


@dataclass(frozen=True)
class Descent:
    """Where a search for the minimum ended, after how many steps, and whether the gradient is small enough there."""

    point: Point
    steps: int
    converged: bool


class _Units:
    """Coordinates in which the loss curves about alike in all directions: axes of the rows, each divided by its bend.

    The second derivative where all classes are equally likely is 1/c times the rows' second moments, times I - 11'/c
    over the classes, plus λ; Böhning (1992, "Multinomial logistic regression algorithm") bounds it everywhere by 1/2
    in the place of 1/c. What is taken is the mean curvature at the start.
    """

    def __init__(self, loss: Loss, penalty: float, curvature: float) -> None:
        self.axes, self.shape = loss.axes, (loss.axes.shape[1], loss.columns)
        self.across = np.sqrt(curvature * loss.variances + penalty)[:, None]
        self.upright = np.sqrt(curvature)

    @classmethod
    def at(cls, loss: Loss, point: Point, penalty: float) -> "_Units":
        """Return the coefficients and intercepts of a point."""
        return cls(loss, penalty, max(point.curvature, LEAST_CURVATURE / loss.classes))

    def of(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Return a point as one vector."""
        return np.concatenate([(self.axes.T @ coef * self.across).ravel(), intercept * self.upright])

    def back(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients and intercepts of a vector."""
        size = self.shape[0] * self.shape[1]
        return self.axes @ (vector[:size].reshape(self.shape) / self.across), vector[size:] / self.upright

    def gradient(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Return a gradient by coefficients and intercepts as one by the vector."""
        return np.concatenate([(self.axes.T @ coef / self.across).ravel(), intercept / self.upright])


def minimise(loss: Loss, penalty: float, *, tol: float, max_iter: int, start: Point | None = None) -> Descent:
    """Minimise f for λ = penalty from a start, or from zero; at a start no pass is made.

    It ends where no part of the gradient exceeds `tol`, as scikit-learn's search does, or where what there is left to
    gain, about half the square of the gradient in these units, is lost in the rounding of the loss.
    """
    from scipy.optimize import minimize

    if start is None:
        start = loss.at(np.zeros((loss.X.shape[1], loss.columns)), np.zeros(loss.columns))
    units = _Units.at(loss, start, penalty)

    def slope(point: Point) -> np.ndarray:
        return units.gradient(point.gradient(penalty), point.drift)

    def enough(point: Point) -> bool:
        left = slope(point)
        lost = float(left @ left) / 2 <= loss.rounding * point.value(penalty)
        return lost or point.steepest(penalty) <= tol

    if enough(start):
        return Descent(start, 0, True)
    # The search's first step has length 1: made to be that which the units call for, a step of the gradient's length.
    step = float(np.linalg.norm(slope(start)))
    origin = units.of(start.coef, start.intercept) / step
    last = [(origin, start)]

    def value(vector: np.ndarray) -> tuple[float, np.ndarray]:
        if not np.array_equal(vector, last[0][0]):
            last[0] = vector.copy(), loss.at(*units.back(vector * step))
        point = last[0][1]
        return point.value(penalty), slope(point) * step

    def stop(_: np.ndarray) -> None:
        if enough(last[0][1]):
            raise StopIteration

    # The search ends by `stop`, and else as scikit-learn's, where a step gains nothing.
    options = {"maxiter": max_iter, "maxls": 50, "gtol": 0.0, "ftol": 64 * np.finfo(float).eps}
    result = minimize(value, origin, jac=True, method="L-BFGS-B", callback=stop, options=options)
    value(result.x)  # a pass only where the search went back to an earlier point
    return Descent(last[0][1], int(result.nit), enough(last[0][1]))


def newton_step(loss: Loss, point: Point, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients and intercepts a Newton step further: for gains that no pass could see."""
    units = _Units.at(loss, point, penalty)
    slope = units.gradient(point.gradient(penalty), point.drift)
    return units.back(units.of(point.coef, point.intercept) - slope)


def extrapolate(loss: Loss, penalty: float, path: Sequence[Point], *, tol: float) -> Point | None:
    """Return where to start for the next of a path of minima: at its end, or where its last steps point to.

    That is a step in the direction of the last, as much longer as that was than the one before along it. The end is
    given where it is good enough already, or lower.
    """
    if len(path) < 3 or path[-1].steepest(penalty) <= tol:
        return path[-1] if path else None
    step, before = path[-1].coef - path[-2].coef, path[-2].coef - path[-3].coef
    longer = float(np.vdot(step, before)) / max(float(np.vdot(before, before)), np.finfo(np.float64).tiny)
    if longer <= 0:
        return path[-1]
    by = min(longer, 2.0)
    estimate = loss.at(path[-1].coef + by * step, path[-1].intercept + by * (path[-1].intercept - path[-2].intercept))
    return min(estimate, path[-1], key=lambda point: point.value(penalty))
