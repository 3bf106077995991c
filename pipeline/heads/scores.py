"""What a fitted head says of rows: predictions and scores as arrays of one form, whatever its class.

scikit-learn gives the decision values of two classes as one column, and the probabilities of several labels as a list
of arrays or as one array. Here each class has a column, in an order that is told.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.predictions import Scores
from pipeline.task import Kind


def kind_of_scores(head: Any, kind: Kind) -> Scores:
    """What the scores of a head are: probabilities where it has them, else decision values, else none."""
    if kind == "regression":
        return "none"
    if hasattr(head, "predict_proba"):
        return "probability"
    return "decision" if hasattr(head, "decision_function") else "none"


def scores_of(head: Any, X: Any, *, kind: Kind, scores: Scores, classes: Sequence[str]) -> np.ndarray:
    """Scores (rows, classes) float32 in the order of `classes`; NaN where `scores` is none.

    Raises ValueError where they are no finite numbers.
    """
    if scores == "none":
        return np.full((len(X), len(classes)), np.nan, dtype=np.float32)
    found = head.predict_proba(X) if scores == "probability" else head.decision_function(X)
    if isinstance(found, list):  # several labels a row: an array a class, with a column for absent and one for present
        found = np.stack([one[:, 1] for one in found], axis=1)
    if found.ndim == 1:  # two classes: one column, positive for the second
        found = np.stack([-found, found], axis=1)
    if kind == "classification":
        order = list(head.classes_)
        found = found[:, [order.index(name) for name in classes]]
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("it gives scores that are no finite numbers; are the features constant?")
    return np.asarray(found)


def predictions_of(head: Any, X: Any, *, kind: Kind) -> np.ndarray:
    """Predictions as a task has targets: text (rows,), bool (rows, classes) or float64 (rows,)."""
    found = head.predict(X)
    return np.asarray(found, dtype={"multilabel": bool, "regression": np.float64}.get(kind))
