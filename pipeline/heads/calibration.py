"""Calibration by temperature: one number that divides a head's scores, so that its probabilities can be believed.

The temperature is the one with the least log loss on validation rows (Guo et al. 2017, On Calibration of Modern Neural
Networks, section 4.2). These rows have then chosen it: their own log loss and calibration error are a little too good,
and test rows report. No prediction changes, since the order of the classes does not; a head without probabilities, such
as a ridge classifier, gets them.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.predictions import Scores
from pipeline.task import Kind


def check(head: str, scores: Scores, *, kind: Kind) -> None:
    """Raises HeadError where there is nothing that a temperature could divide."""
    if kind != "classification":
        raise HeadError(f"calibrate: expected a classification, the task is a {kind}. Leave `calibrate` out.")
    if scores == "none":
        raise HeadError(
            f"calibrate: expected a head with probabilities or decision values, {head} has none that can be used. "
            "Leave `calibrate` out, or use another head."
        )


def by_temperature(head: Any, X: np.ndarray, y: np.ndarray, *, classes: Sequence[str]) -> Any:
    """A fitted head with a temperature learnt from validation rows X (rows, width) and their classes y, text (rows,).

    Raises HeadError where a class has no validation row: the temperature would be of other classes.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection import KFold

    if missing := sorted(set(classes) - set(y)):
        raise HeadError(
            f"calibrate: expected validation rows of every class, got none of {', '.join(missing[:12])}. "
            "Give the task's `sizes` a larger validation share."
        )
    # The folds mean nothing, since a frozen head learns from none; by default each class would need five rows.
    found = CalibratedClassifierCV(FrozenEstimator(head), method="temperature", cv=KFold(2)).fit(X, y)
    return found.set_params(cv=None)


def temperature_of(calibrated: Any) -> float:
    """The number that divides the scores."""
    return 1.0 / float(calibrated.calibrated_classifiers_[0].calibrators[0].beta_)


def with_head(calibrated: Any, head: Any) -> Any:
    """The same temperature on another fitted head with the same classes: one that was refitted on more rows."""
    from sklearn.frozen import FrozenEstimator

    other = copy.deepcopy(calibrated)
    other.estimator = other.calibrated_classifiers_[0].estimator = FrozenEstimator(head)
    return other
