"""L-BFGS with a pass over the rows per evaluation: minimise a logistic loss in preconditioned coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.streaming.logistic_loss import Loss, Point

MIN_CURVATURE = 0.02  # relative to equally likely classes: well separated rows have less, down to this bound


@dataclass(frozen=True)
class Optimum:
    """The end of a minimisation: its point, the number of steps, and whether the gradient is small enough."""

    point: Point
    steps: int
    converged: bool


class _Scaling:
    """Preconditioned coordinates, with about equal curvature in all directions: scaled principal axes of the rows.

    The second derivative where all classes are equally likely is 1/c times the rows' second moments, times I - 11'/c
    over the classes, plus λ; Böhning (1992, "Multinomial logistic regression algorithm") bounds it everywhere by 1/2
    in the place of 1/c. The mean curvature at the start is used.
    """

    def __init__(self, loss: Loss, penalty: float, curvature: float) -> None:
        self.axes, self.shape = loss.axes, (loss.axes.shape[1], loss.columns)
        self.across = np.sqrt(curvature * loss.variances + penalty)[:, None]
        self.upright = np.sqrt(curvature)

    @classmethod
    def at(cls, loss: Loss, point: Point, penalty: float) -> "_Scaling":
        """Return the scaling for the curvature at a point."""
        return cls(loss, penalty, max(point.curvature, MIN_CURVATURE / loss.classes))

    def of(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Return coefficients and intercepts as a vector."""
        return np.concatenate([(self.axes.T @ coef * self.across).ravel(), intercept * self.upright])

    def back(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients and intercepts of a vector."""
        size = self.shape[0] * self.shape[1]
        return self.axes @ (vector[:size].reshape(self.shape) / self.across), vector[size:] / self.upright

    def gradient(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Convert a gradient by coefficients and intercepts to the gradient by the vector."""
        return np.concatenate([(self.axes.T @ coef / self.across).ravel(), intercept / self.upright])


def minimise(loss: Loss, penalty: float, *, tol: float, max_iter: int, start: Point | None = None) -> Optimum:
    """Minimise f for λ = penalty from a start, or from zero; a given start needs no pass of its own.

    It ends when no component of the gradient exceeds `tol`, as in scikit-learn, or when the possible gain, about half
    the square of the gradient in these coordinates, is below the rounding error of the loss.
    """
    from scipy.optimize import minimize

    if start is None:
        start = loss.at(np.zeros((loss.X.shape[1], loss.columns)), np.zeros(loss.columns))
    units = _Scaling.at(loss, start, penalty)

    def slope(point: Point) -> np.ndarray:
        return units.gradient(point.gradient(penalty), point.intercept_grad)

    def has_converged(point: Point) -> bool:
        gradient = slope(point)
        is_rounding = float(gradient @ gradient) / 2 <= loss.rounding * point.value(penalty)
        return is_rounding or point.max_grad(penalty) <= tol

    if has_converged(start):
        return Optimum(start, 0, True)
    # L-BFGS-B's first step has length 1: rescaled, so that it has the length of the gradient.
    step = float(np.linalg.norm(slope(start)))
    origin = units.of(start.coef, start.intercept) / step
    last = [(origin, start)]

    def value(vector: np.ndarray) -> tuple[float, np.ndarray]:
        if not np.array_equal(vector, last[0][0]):
            last[0] = vector.copy(), loss.at(*units.back(vector * step))
        point = last[0][1]
        return point.value(penalty), slope(point) * step

    def stop(_: np.ndarray) -> None:
        if has_converged(last[0][1]):
            raise StopIteration

    # The search ends by `stop`, or like scikit-learn's when a step gains nothing.
    options = {"maxiter": max_iter, "maxls": 50, "gtol": 0.0, "ftol": 64 * np.finfo(float).eps}
    result = minimize(value, origin, jac=True, method="L-BFGS-B", callback=stop, options=options)
    value(result.x)  # needs a pass only if the search returned to an earlier point
    return Optimum(last[0][1], int(result.nit), has_converged(last[0][1]))


def newton_step(loss: Loss, point: Point, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients and intercepts after a Newton step: for gains below the rounding of a pass."""
    units = _Scaling.at(loss, point, penalty)
    slope = units.gradient(point.gradient(penalty), point.intercept_grad)
    return units.back(units.of(point.coef, point.intercept) - slope)


def extrapolate(loss: Loss, penalty: float, path: Sequence[Point], *, tol: float) -> Point | None:
    """Return a start for the next minimum of a path: its last point, or an extrapolation of its last steps.

    The extrapolation repeats the last step, scaled by the ratio of the last two steps. The last point is returned if it
    has converged already, or has a lower loss.
    """
    if len(path) < 3 or path[-1].max_grad(penalty) <= tol:
        return path[-1] if path else None
    step, before = path[-1].coef - path[-2].coef, path[-2].coef - path[-3].coef
    longer = float(np.vdot(step, before)) / max(float(np.vdot(before, before)), np.finfo(np.float64).tiny)
    if longer <= 0:
        return path[-1]
    by = min(longer, 2.0)
    estimate = loss.at(path[-1].coef + by * step, path[-1].intercept + by * (path[-1].intercept - path[-2].intercept))
    return min(estimate, path[-1], key=lambda point: point.value(penalty))
