"""The loss of logistic regression over rows that need not fit into memory: value and gradient from one pass.

With rows x of weight s, their sum n, and λ = 1 / (C n), what is minimised over W and b is scikit-learn's objective over
C n,

    f(W, b) = 1/n sum s [log sum exp(xW + b) - (xW + b) of the row's class] + λ/2 |W|²,

and with two classes log(1 + exp(xw + b)) - y (xw + b), one column. Products are formed in the rows' precision, float32
or float64, a block at a time; everything else is in float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.streaming.accumulate import compute_moments
from pipeline.streaming.moments import UNITS, Moments
from pipeline.streaming.row_space import compute_row_space, deviations, is_smaller, load_rows
from pipeline.streaming.rows import BLOCK_BYTES, blocks


@dataclass(frozen=True)
class Point:
    """A point of the loss and the results of a pass there. Columns are classes; two classes have a single column."""

    coef: np.ndarray  # (width, columns), of centred and scaled rows
    intercept: np.ndarray  # (columns,)
    loss: float  # the mean, without the penalty
    slope: np.ndarray  # (width, columns): its gradient by coef
    intercept_grad: np.ndarray  # (columns,): its gradient by intercept
    curvature: float  # mean of p (1 - p) per independent column: 1/c for c equally likely classes

    def value(self, penalty: float) -> float:
        """Return f, for λ = penalty."""
        return self.loss + penalty / 2 * float(np.vdot(self.coef, self.coef))

    def gradient(self, penalty: float) -> np.ndarray:
        """Return the gradient of f by coef."""
        return self.slope + penalty * self.coef

    def max_grad(self, penalty: float) -> float:
        """Return the largest component of the gradient of f, which scikit-learn compares with `tol`."""
        return float(max(np.abs(self.gradient(penalty)).max(), np.abs(self.intercept_grad).max(initial=0)))


class Loss:
    """The loss over rows and their classes; counts its passes.

    X: validated array or row source. codes (rows,): the number of each row's class. weights (rows,), or None for equal
    weights. Rows are centred if there is an intercept, which does not change the optimum, and divided by their standard
    deviations with `standardize`.
    """

    def __init__(
        self, X: Any, codes: np.ndarray, weights: np.ndarray | None, *, classes: int, intercept: bool, standardize: bool
    ) -> None:
        self.X, self.codes, self.classes, self.with_intercept = X, codes, classes, intercept
        self.weights = np.broadcast_to(np.float64(1), len(codes)) if weights is None else weights
        self.columns = 1 if classes == 2 else classes
        self.total = float(self.weights.sum())
        self.passes, self.rounding = 1, 0.0
        moments = self._measure(X, weights, standardize=standardize)
        own = moments.weights / self.total
        self.shares = own[1:] if classes == 2 else own

    def _measure(self, X: Any, weights: np.ndarray | None, *, standardize: bool) -> Moments:
        """Make the first pass: center and scale of rows, sums by class, and the axes along which rows vary."""
        if is_smaller(X):
            return self._measure_in_row_space(X, weights, standardize=standardize)
        moments = compute_moments(X, self.codes, classes=np.arange(self.classes), weights=weights)
        centred = self.with_intercept or standardize
        self.center = moments.mean if centred else np.zeros(moments.width)
        self.scale = moments.scale if standardize else np.ones(moments.width)
        second = moments.scatter() / self.total
        if not centred:
            second += np.outer(moments.mean, moments.mean)
        second /= np.outer(self.scale, self.scale)
        means = (moments.class_means - self.center) / self.scale * (moments.weights / self.total)[:, None]
        self.class_sums = means[1:].T if self.classes == 2 else means.T
        variances, self.axes = np.linalg.eigh(second)
        # Variances below the rounding error of products are unknown.
        self.variances = np.maximum(variances, moments.rounding * variances[-1])
        return moments

    def _measure_in_row_space(self, X: Any, weights: np.ndarray | None, *, standardize: bool) -> Moments:
        """Measure fewer rows than features, in rows x rows: `axes` (width, rows) span the rows and all optima."""
        rows = load_rows(X)
        centred = self.with_intercept or standardize
        self.center = np.average(rows, axis=0, weights=weights) if centred else np.zeros(rows.shape[1])
        self.scale = deviations(rows, weights) if standardize else np.ones(rows.shape[1])
        space = compute_row_space(rows, centre=self.center, scale=self.scale)
        moments = compute_moments(space.coordinates, self.codes, classes=np.arange(self.classes), weights=weights)
        means = moments.class_means * (moments.weights / self.total)[:, None] @ space.basis.T
        self.class_sums = means[1:].T if self.classes == 2 else means.T
        variances, vectors = np.linalg.eigh(moments.scatter() / self.total + np.outer(moments.mean, moments.mean))
        self.axes = space.basis @ vectors
        self.variances = np.maximum(variances, UNITS * _precision(X) / 2 * variances[-1])
        return moments

    def project(self, coef: np.ndarray) -> np.ndarray:
        """Project coefficients (width, columns) on the axes: other parts have no effect on rows."""
        return np.asarray(self.axes @ (self.axes.T @ coef))

    def at(self, coef: np.ndarray, intercept: np.ndarray) -> Point:
        """Compute the loss and its gradient at a point, in a pass over the rows."""
        self.passes += 1
        loss, curvature = 0.0, 0.0
        slope, intercept_grad = np.zeros(coef.shape), np.zeros(intercept.shape)
        unscaled = coef / self.scale[:, None]
        size = max(1, BLOCK_BYTES // max(4 * self.X.shape[1], 8 * self.columns))
        for rows, block in blocks(self.X, size=size, check=False):
            centred = block - self.center.astype(block.dtype)
            scores = (centred @ unscaled.astype(block.dtype)).astype(np.float64) + intercept
            residuals, losses, curvatures = self._residuals(scores, self.codes[rows])
            weights = self.weights[rows] / self.total
            loss += float(weights @ losses)
            curvature += float(weights @ curvatures)
            residuals *= weights[:, None]
            slope += centred.T @ residuals.astype(block.dtype)
            intercept_grad += residuals.sum(axis=0)
            self.rounding = max(self.rounding, float(np.finfo(block.dtype).eps))
        if not self.with_intercept:
            intercept_grad[:] = 0
        return Point(coef, intercept, loss, slope / self.scale[:, None], intercept_grad, curvature)

    def _residuals(self, scores: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return per row: probabilities minus the truth (rows, columns), the loss, and the mean of p (1 - p)."""
        from scipy.special import expit

        if self.columns == 1:
            likely, truth = expit(scores), codes[:, None]
            return likely - truth, (np.logaddexp(0, scores) - truth * scores)[:, 0], (likely * (1 - likely))[:, 0]
        numbers = np.arange(len(scores))
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[numbers, codes]
        likely = np.exp(scores, out=scores)
        total = likely.sum(axis=1)
        likely /= total[:, None]
        curvature = (1 - np.einsum("ij,ij->i", likely, likely)) / (self.columns - 1)
        likely[numbers, codes] -= 1
        return likely, np.log(total) - own, curvature

    def gap(self, point: Point, penalty: float) -> float:
        """Bound f at a point less its minimum from above, without another pass, by the gap to a value of the dual.

        f is the sum of convex functions of the rows' scores z and λ/2 |W|². By Fenchel's duality (Yu, Huang and Lin
        2011, "Dual coordinate descent methods for logistic regression and maximum entropy models", section 2), for any
        probabilities q of the rows whose weighted mean is that of the truth y,

            min f >= 1/n sum s H(q) - |1/n sum s x (q - y)'|² / 2λ,    H the entropy.

        The p of a point have that mean only where the gradient g by the intercepts is 0; elsewhere q = (1 - ε) p + ε r
        does, with one r = p̄ - g/ε for all rows, which is a distribution for ε = max g / p̄. As H is concave, H(q) >=
        (1 - ε) H(p) + ε H(r), and the mean of H(p) is that of the loss less (p - y)z, which is <W, slope> + <b, g>. If
        g is 0, this is what strong convexity gives, |gradient|² / 2λ (Boyd and Vandenberghe, Convex Optimization,
        9.1.2). It holds within the rounding of a pass.
        """
        intercept_grad, shares, coef = point.intercept_grad, self.shares, point.coef
        entropy = point.loss - float(np.vdot(coef, point.slope)) - float(point.intercept @ intercept_grad)
        if not self.with_intercept or not intercept_grad.any():
            mixed, slope = entropy, point.slope
        else:
            every, lost = (
                _per_class(shares + intercept_grad, self.columns),
                _per_class(intercept_grad, self.columns, total=0.0),
            )
            part = min(1.0, float((np.maximum(lost, 0) / np.maximum(every, np.finfo(float).tiny)).max()))
            part = max(part, np.finfo(float).eps)
            spread = np.clip(every - lost / part, 0, 1)
            mixed = (1 - part) * entropy - part * float(spread @ np.log(np.where(spread > 0, spread, 1)))
            slope = (1 - part) * point.slope - part * self.class_sums
        return max(0.0, point.value(penalty) - mixed + float(np.vdot(slope, slope)) / (2 * penalty))


def _precision(X: Any) -> float:
    """Return the unit in the last place of products of rows: `blocks` gives float32, or float64 of wider types."""
    return float(np.finfo(np.float32 if X.dtype in (np.float16, np.float32) else np.float64).eps)


def _per_class(column: np.ndarray, columns: int, *, total: float = 1.0) -> np.ndarray:
    """Return a column per class, from a single column for two classes."""
    return np.array([total - column[0], column[0]]) if columns == 1 else column
