"""Convert the scores of a head to logits, and describe the conversion.

probability   classification: the log of each probability, clipped at the smallest normal number of float32, after the
              head's own calibration; multilabel: the log odds
decision      unchanged: one-vs-rest margins; a head of two classes with one value d gets (-d/2, d/2), whose softmax is
              the sigmoid of d

Decision values are not log odds: the sharpness of their softmax is arbitrary. `calibrate: temperature` converts them to
probabilities.
"""

from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.heads.outputs import scores_of
from pipeline.heads.saved import Model

TINY = float(np.finfo(np.float32).tiny)
DESCRIPTIONS = {
    ("probability", "classification"): "log of the probabilities",
    ("probability", "multilabel"): "log odds of the probabilities",
    ("decision", "classification"): "decision values as they are",
    ("decision", "multilabel"): "decision values as they are",
}


def describe_logits(model: Model) -> str:
    """Describe how a head's scores become logits; raises HeadError for a regression or a head without scores."""
    if model.kind == "regression":
        raise HeadError(f"{model.path}: expected a head that knows classes as a teacher, got one of a regression.")
    if model.scores_are == "none":
        raise HeadError(
            f"{model.path}: expected a head with probabilities or decision values as a teacher, got one with neither. "
            "Fit another, such as logistic."
        )
    return DESCRIPTIONS[model.scores_are, model.kind]


def logits_of(model: Model, X: np.ndarray) -> np.ndarray:
    """Compute logits float32 (rows, classes) in the order of the head's classes.

    Raises HeadError for scores that are not finite.
    """
    try:
        scores = scores_of(model.head, X, kind=model.kind, scores=model.scores_are, classes=model.classes)
    except ValueError as error:
        raise HeadError(f"{model.path}: expected finite scores, got: {error} Take another head.") from None
    if model.scores_are == "decision":
        return scores / 2 if _has_one_value(model, X) else scores
    if model.kind == "multilabel":
        yes, no = np.maximum(scores, TINY), np.maximum(1 - scores, TINY)
        odds: np.ndarray = np.log(yes) - np.log(no)
        return odds
    logs: np.ndarray = np.log(np.maximum(scores, TINY))
    return logs


def _has_one_value(model: Model, X: Any) -> bool:
    """Return whether a head of two classes has one decision value per row, which its scores then repeat."""
    two = model.kind == "classification" and len(model.classes) == 2
    return two and np.ndim(model.head.decision_function(X[:1])) == 1
