"""How the scores of a head become logits, and in which words that is said.

probability   classification: the log of each, clipped at the smallest normal number of float32, after the head's own
              calibration; multilabel: the log odds
decision      as they are: one-vs-rest margins; of two classes with one value d, (-d/2, d/2), whose softmax is the
              sigmoid of d

Decision values are no log odds: how sharp their softmax is, is nobody's measure. `calibrate: temperature` makes
probabilities of them.
"""

from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.heads.outputs import scores_of
from pipeline.heads.saved import Model

TINY = float(np.finfo(np.float32).tiny)
SAID = {
    ("probability", "classification"): "log of the probabilities",
    ("probability", "multilabel"): "log odds of the probabilities",
    ("decision", "classification"): "decision values as they are",
    ("decision", "multilabel"): "decision values as they are",
}


def describe_logits(model: Model) -> str:
    """Return how a head's scores become logits; raises HeadError for one without scores or of a regression."""
    if model.kind == "regression":
        raise HeadError(f"{model.path}: expected a head that knows classes as a teacher, got one of a regression.")
    if model.scores_are == "none":
        raise HeadError(
            f"{model.path}: expected a head with probabilities or decision values as a teacher, got one with neither. "
            "Fit another, such as logistic."
        )
    return SAID[model.scores_are, model.kind]


def logits_of(model: Model, X: np.ndarray) -> np.ndarray:
    """Compute logits float32 (rows, classes) in the order of the head's classes.

    Raises HeadError where its scores are no finite numbers.
    """
    try:
        scores = scores_of(model.head, X, kind=model.kind, scores=model.scores_are, classes=model.classes)
    except ValueError as error:
        raise HeadError(f"{model.path}: expected finite scores, got: {error} Take another head.") from None
    if model.scores_are == "decision":
        return scores / 2 if _one_value(model, X) else scores
    if model.kind == "multilabel":
        yes, no = np.maximum(scores, TINY), np.maximum(1 - scores, TINY)
        odds: np.ndarray = np.log(yes) - np.log(no)
        return odds
    logs: np.ndarray = np.log(np.maximum(scores, TINY))
    return logs


def _one_value(model: Model, X: Any) -> bool:
    """Return whether a head of two classes gives one decision value per row: then its scores are that value, twice."""
    two = model.kind == "classification" and len(model.classes) == 2
    return two and np.ndim(model.head.decision_function(X[:1])) == 1
