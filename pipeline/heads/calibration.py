"""Temperature scaling: a number that divides a head's scores, so that its probabilities are calibrated.

The temperature minimises the log loss on held-out rows (Guo et al. 2017, On Calibration of Modern Neural Networks,
section 4.2). Log loss and calibration error of these rows are therefore slightly optimistic; test rows give unbiased
values. Predictions do not change, since the order of the classes does not; a head without probabilities, such as a
ridge classifier, gets them.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.predictions import Scores
from pipeline.task import Kind

TEMPERATURES = (0.25, 4.0)
"""Bounds of the search: few rows may suggest any temperature, and worse scores are not repaired by a number."""

MAX_PROBABILITIES = 2**20
"""Probabilities that the search uses; of more rows, evenly spaced rows are taken."""

FOLDS = 2  # required by scikit-learn; without effect, since a frozen estimator is not fitted


def best_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the best temperature for held-out rows, within `TEMPERATURES`.

    probabilities: (rows, classes). targets: as in `doubted_losses`. The result is the number closest to 1 between the
    minimiser of the log loss and that of the doubted log loss. If all predictions are right, these are near 0 and above
    1: the rows give no information, and the result is 1.
    """
    from scipy.optimize import minimize_scalar

    rows = slice(None, None, max(1, -(-probabilities.size // MAX_PROBABILITIES)))
    logs, columns = _log_scores(probabilities[rows], targets.ndim == 2), targets[rows].astype(np.int64).ravel()

    def best(doubt: float) -> float:
        def loss(log: float) -> float:
            return float(_losses(logs * np.exp(-log), columns, doubt).mean())

        bounds = tuple(np.log(TEMPERATURES))
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))

    return float(np.median([best(0.0), 1.0, best(_doubt(targets))]))


def doubted_losses(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the log loss per row (rows,) with smoothed targets: each of n rows has its class with (n + 1) / (n + 2).

    This is Laplace's rule of succession: after n right rows, the next is not certain to be right. The other classes
    share the remaining probability. `probabilities`: (rows, classes); `targets`: the column of each row's class, int
    (rows,), or which labels a row has, bool (rows, classes); n is then the number of labels of all rows.
    """
    multilabel = targets.ndim == 2
    columns = targets.astype(np.int64).ravel()
    losses = _losses(_log_scores(probabilities, multilabel), columns, _doubt(targets))
    return losses.reshape(targets.shape).mean(axis=1) if multilabel else losses


def _doubt(targets: np.ndarray) -> float:
    return 1 / (targets.size + 2)


def _losses(logs: np.ndarray, columns: np.ndarray, doubt: float) -> np.ndarray:
    from scipy.special import log_softmax

    scaled = log_softmax(logs, axis=1)
    own = scaled[np.arange(len(logs)), columns]
    others = (scaled.sum(axis=1) - own) / max(1, logs.shape[1] - 1)
    return np.asarray(-(1 - doubt) * own - doubt * others)


def apply_temperature(probabilities: np.ndarray, temperature: float, *, multilabel: bool = False) -> np.ndarray:
    """Return the probabilities (rows, classes) float32 after dividing the decision values by a temperature.

    multilabel: each class has an independent probability.
    """
    from scipy.special import softmax

    scaled = np.asarray(softmax(_log_scores(probabilities, multilabel) / temperature, axis=1), dtype=np.float32)
    return scaled[:, 1].reshape(probabilities.shape) if multilabel else scaled


def _log_scores(probabilities: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return decision values up to a constant per row; for multilabel, a row (absent, present) per label."""
    values = probabilities.astype(np.float64)
    if multilabel:
        values = np.stack([1 - values.ravel(), values.ravel()], axis=1)
    return np.asarray(np.log(np.maximum(values, np.finfo(np.float32).tiny)))


def divide_scores(pipeline: Any, temperature: float) -> None:
    """Divide the decision values of a fitted linear classifier by a temperature: its coefficients and intercepts.

    For one-vs-rest, of each classifier; a label that all or no training rows have is a constant, and skipped.
    """
    for estimator in getattr(pipeline[-1], "estimators_", [pipeline[-1]]):
        if hasattr(estimator, "coef_"):
            estimator.coef_, estimator.intercept_ = estimator.coef_ / temperature, estimator.intercept_ / temperature


def check(head: str, scores: Scores, *, kind: Kind) -> None:
    """Raise HeadError if a head has no scores to divide by a temperature."""
    if kind != "classification":
        raise HeadError(f"calibrate: expected a classification, the task is a {kind}. Leave `calibrate` out.")
    if scores == "none":
        raise HeadError(
            f"calibrate: expected a head with probabilities or decision values, but {head} has no usable scores. "
            "Leave `calibrate` out, or use another head."
        )


def fit_temperature(parts: Sequence[tuple[Any, Any, np.ndarray]]) -> Any:
    """Fit a temperature to held-out rows; return a calibrated head, into which `with_head` puts a fitted head.

    parts: fitted heads of the same classes, each with held-out rows X (rows, width) and their classes, strings (rows,).
    A class may have no held-out rows.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection import KFold

    from pipeline.heads.stored_answers import Decisions, Probabilities

    classes = parts[0][0].classes_
    decides = hasattr(parts[0][0], "decision_function")
    values = np.concatenate([head.decision_function(X) if decides else head.predict_proba(X) for head, X, _ in parts])
    y = np.concatenate([y for *_, y in parts])
    # scikit-learn requires a row of each class in each fold: rows of weight 0 are added for missing classes.
    padding = [name for name in classes for _ in range(FOLDS - int((y == name).sum()))]
    rows = np.concatenate([np.arange(len(y)), np.zeros(len(padding), dtype=np.int64)])[:, None]
    weights = np.repeat([1.0, 0.0], [len(y), len(padding)]) if padding else None
    targets = np.concatenate([y, np.array(padding, dtype=y.dtype)])
    stored = (Decisions if decides else Probabilities)(classes, values)
    calibrated = CalibratedClassifierCV(FrozenEstimator(stored), method="temperature", cv=KFold(FOLDS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Since FrozenEstimator does not appear", UserWarning)  # weights calibrate
        calibrated.fit(rows, targets, sample_weight=weights)
    return calibrated.set_params(cv=None)


def temperature_of(calibrated: Any) -> float:
    """Return the temperature of a calibrated head."""
    return 1.0 / float(calibrated.calibrated_classifiers_[0].calibrators[0].beta_)


def with_head(calibrated: Any, head: Any) -> Any:
    """Return a copy of a calibrated head with another fitted head of the same classes."""
    from sklearn.frozen import FrozenEstimator

    other = copy.deepcopy(calibrated)
    other.estimator = other.calibrated_classifiers_[0].estimator = FrozenEstimator(head)
    return other
