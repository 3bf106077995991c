"""Calibration by temperature: one number that divides a head's scores, so that its probabilities can be believed.

The temperature is the one with the least log loss on held-out rows (Guo et al. 2017, On Calibration of Modern Neural
Networks, section 4.2). These rows have then chosen it: their own log loss and calibration error are a little too good,
and test rows report. No prediction changes, since the order of the classes does not; a head without probabilities, such
as a ridge classifier, gets them.
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
"""Of a search: a head whose scores are further off is not made good by a number, and few rows may ask for any."""

MOST = 2**20
"""Probabilities among which a temperature is looked for; of more rows evenly spaced ones are taken."""

FOLDS = 2  # of scikit-learn's calibration; they mean nothing, since what is frozen learns from none


def best_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature that held-out rows ask for, within `TEMPERATURES`.

    `probabilities`: (rows, classes); `targets` as in `doubted_losses`. It is the number nearest 1 between the
    temperatures with the least log loss and with the least doubted log loss. Where all rows are right these are near 0
    and above 1: rows say nothing then, and the scores stay as they are.
    """
    from scipy.optimize import minimize_scalar

    rows = slice(None, None, max(1, -(-probabilities.size // MOST)))
    logs, places = _logs(probabilities[rows], targets.ndim == 2), targets[rows].astype(np.int64).ravel()

    def best(doubt: float) -> float:
        def loss(log: float) -> float:
            return float(_losses(logs * np.exp(-log), places, doubt).mean())

        bounds = tuple(np.log(TEMPERATURES))
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))

    return float(np.median([best(0.0), 1.0, best(_doubt(targets))]))


def doubted_losses(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the log loss of each row (rows,), where each of n rows counts as its class by (n + 1) / (n + 2).

    That is Laplace's rule of succession: n rows that are all right do not make certain that the next one is, and the
    other classes share what is left. `probabilities`: (rows, classes); `targets`: the column of each row's class, int
    (rows,), or which labels a row has, bool (rows, classes); n is then the number of labels of all rows.
    """
    several = targets.ndim == 2
    places = targets.astype(np.int64).ravel()
    losses = _losses(_logs(probabilities, several), places, _doubt(targets))
    return losses.reshape(targets.shape).mean(axis=1) if several else losses


def _doubt(targets: np.ndarray) -> float:
    return 1 / (targets.size + 2)


def _losses(logs: np.ndarray, places: np.ndarray, doubt: float) -> np.ndarray:
    from scipy.special import log_softmax

    scaled = log_softmax(logs, axis=1)
    own = scaled[np.arange(len(logs)), places]
    others = (scaled.sum(axis=1) - own) / max(1, logs.shape[1] - 1)
    return np.asarray(-(1 - doubt) * own - doubt * others)


def at_temperature(probabilities: np.ndarray, temperature: float, *, several: bool = False) -> np.ndarray:
    """Return the probabilities (rows, classes) float32 of decision values that are divided by a temperature.

    `several`: a row may have several of the classes, each with a probability of its own.
    """
    from scipy.special import softmax

    scaled = np.asarray(softmax(_logs(probabilities, several) / temperature, axis=1), dtype=np.float32)
    return scaled[:, 1].reshape(probabilities.shape) if several else scaled


def _logs(probabilities: np.ndarray, several: bool) -> np.ndarray:
    """Return decision values up to a constant per row; with several labels per row (absent, present) for each label."""
    values = probabilities.astype(np.float64)
    if several:
        values = np.stack([1 - values.ravel(), values.ravel()], axis=1)
    return np.asarray(np.log(np.maximum(values, np.finfo(np.float32).tiny)))


def divide_scores(pipeline: Any, temperature: float) -> None:
    """Divide the decision values of a fitted linear classifier by a temperature: its coefficients and intercepts.

    Of one classifier per label those of each; one of a label that all training rows have, or none, is a constant.
    """
    for estimator in getattr(pipeline[-1], "estimators_", [pipeline[-1]]):
        if hasattr(estimator, "coef_"):
            estimator.coef_, estimator.intercept_ = estimator.coef_ / temperature, estimator.intercept_ / temperature


def check(head: str, scores: Scores, *, kind: Kind) -> None:
    """Raise HeadError where there is nothing that a temperature could divide."""
    if kind != "classification":
        raise HeadError(f"calibrate: expected a classification, the task is a {kind}. Leave `calibrate` out.")
    if scores == "none":
        raise HeadError(
            f"calibrate: expected a head with probabilities or decision values, {head} has none that can be used. "
            "Leave `calibrate` out, or use another head."
        )


def by_temperature(parts: Sequence[tuple[Any, Any, np.ndarray]]) -> Any:
    """Return a calibrated head, to be given a fitted one by `with_head`, with a temperature learned from held-out rows.

    `parts`: fitted heads of one class, each with rows X (rows, width) that it was not fitted to and their classes,
    text (rows,). A class of the heads without such rows counts as one that no row is of.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection import KFold

    from pipeline.heads.stored_answers import Decisions, Probabilities

    classes = parts[0][0].classes_
    decides = hasattr(parts[0][0], "decision_function")
    values = np.concatenate([head.decision_function(X) if decides else head.predict_proba(X) for head, X, _ in parts])
    y = np.concatenate([y for *_, y in parts])
    # scikit-learn wants a row of each class in each fold: rows that weigh nothing are added where there are fewer.
    lacking = [name for name in classes for _ in range(FOLDS - int((y == name).sum()))]
    rows = np.concatenate([np.arange(len(y)), np.zeros(len(lacking), dtype=np.int64)])[:, None]
    weights = np.repeat([1.0, 0.0], [len(y), len(lacking)]) if lacking else None
    targets = np.concatenate([y, np.array(lacking, dtype=y.dtype)])
    held = (Decisions if decides else Probabilities)(classes, values)
    calibrated = CalibratedClassifierCV(FrozenEstimator(held), method="temperature", cv=KFold(FOLDS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Since FrozenEstimator does not appear", UserWarning)  # weights calibrate
        calibrated.fit(rows, targets, sample_weight=weights)
    return calibrated.set_params(cv=None)


def temperature_of(calibrated: Any) -> float:
    """Return the number that divides the scores."""
    return 1.0 / float(calibrated.calibrated_classifiers_[0].calibrators[0].beta_)


def with_head(calibrated: Any, head: Any) -> Any:
    """Return the same temperature on a fitted head with the same classes."""
    from sklearn.frozen import FrozenEstimator

    other = copy.deepcopy(calibrated)
    other.estimator = other.calibrated_classifiers_[0].estimator = FrozenEstimator(head)
    return other
