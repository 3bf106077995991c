"""L-BFGS over passes: the minimum of a logistic loss, along axes in which it curves alike."""

from dataclasses import dataclass

import numpy as np

from pipeline.heads.logistic_loss import Loss, Point

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
        self.axes, self.shape = loss.axes, (len(loss.axes), loss.columns)
        self.across = np.sqrt(curvature * loss.variances + penalty)[:, None]
        self.upright = np.sqrt(curvature)

    def of(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """A point as one vector."""
        return np.concatenate([(self.axes.T @ coef * self.across).ravel(), intercept * self.upright])

    def back(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coefficients and intercepts of a vector."""
        size = self.shape[0] * self.shape[1]
        return self.axes @ (vector[:size].reshape(self.shape) / self.across), vector[size:] / self.upright

    def gradient(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """A gradient by coefficients and intercepts as one by the vector."""
        return np.concatenate([(self.axes.T @ coef / self.across).ravel(), intercept / self.upright])


def minimise(
    loss: Loss, penalty: float, *, tol: float, max_iter: int, start: tuple[np.ndarray, np.ndarray] | None = None
) -> Descent:
    """The minimum of f for λ = penalty from a start, coefficients (width, columns) and intercepts, or from zero.

    It ends where no part of the gradient exceeds `tol`, as scikit-learn's search does.
    """
    from scipy.optimize import minimize

    if start is None:
        start = np.zeros((loss.X.shape[1], loss.columns)), np.zeros(loss.columns)
    first = loss.at(*start)
    if first.steepest(penalty) <= tol:
        return Descent(first, 0, True)
    units = _Units(loss, penalty, max(first.curvature, LEAST_CURVATURE / loss.classes))
    origin = units.of(*start)
    last = [(origin, first)]

    def value(vector: np.ndarray) -> tuple[float, np.ndarray]:
        point = first if np.array_equal(vector, origin) else loss.at(*units.back(vector))
        last[0] = (vector.copy(), point)
        return point.value(penalty), units.gradient(point.gradient(penalty), point.drift)

    def enough(_: np.ndarray) -> None:
        if last[0][1].steepest(penalty) <= tol:
            raise StopIteration

    # The search ends by `enough`; else where steps gain no more than scikit-learn's own lets them.
    options = {"maxiter": max_iter, "maxls": 50, "gtol": 0.0, "ftol": 64 * np.finfo(float).eps}
    found = minimize(value, origin, jac=True, method="L-BFGS-B", callback=enough, options=options)
    vector, point = last[0]
    if not np.array_equal(vector, found.x):
        point = loss.at(*units.back(found.x))
    return Descent(point, int(found.nit), point.steepest(penalty) <= tol)
