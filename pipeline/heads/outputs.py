"""What a fitted head says of rows: predictions and scores as arrays of one form, whatever its class.

scikit-learn gives the decision values of two classes as one column, and the probabilities of several labels as a list
of arrays or as one array. Here each class has a column, in an order that is told.

Of our own heads, of nearest neighbours and of calibrated heads the prediction follows from the scores, so that both
take one pass over the rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.predictions import Scores
from pipeline.task import Kind


def kind_of_scores(head: Any, kind: Kind) -> Scores:
    """Return what the scores of a head are: probabilities where it has them, else decision values, else none."""
    if kind == "regression":
        return "none"
    if hasattr(head, "predict_proba"):
        return "probability"
    return "decision" if hasattr(head, "decision_function") else "none"


def scores_of(head: Any, X: Any, *, kind: Kind, scores: Scores, classes: Sequence[str]) -> np.ndarray:
    """Compute scores (rows, classes) float32 in the order of `classes`; NaN where `scores` is none.

    Raises ValueError where they are no finite numbers.
    """
    if scores == "none":
        return np.full((len(X), len(classes)), np.nan, dtype=np.float32)
    return _by_class(_raw(head, X, scores), head, kind=kind, classes=classes)


def predictions_of(head: Any, X: Any, *, kind: Kind) -> np.ndarray:
    """Predict as a task has targets: text (rows,), bool (rows, classes) or float64 (rows,)."""
    return _as_targets(head.predict(X), kind)


def predict_with_scores(
    head: Any, X: Any, *, kind: Kind, scores: Scores, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and scores, from one pass where predictions follow from scores.

    A prediction may then be another than that of `predict` where two scores differ by rounding alone, less than 1e-15.
    """
    if scores == "none" or not _follow(head):
        predicted = predictions_of(head, X, kind=kind)
        return predicted, scores_of(head, X, kind=kind, scores=scores, classes=classes)
    raw = _raw(head, X, scores)
    above = 0.5 if scores == "probability" else 0.0
    if kind == "multilabel":
        predicted = raw > above
    elif raw.ndim == 1:
        predicted = head.classes_[(raw > above).astype(int)]
    else:
        predicted = head.classes_[raw.argmax(axis=1)]
    return _as_targets(predicted, kind), _by_class(raw, head, kind=kind, classes=classes)


def _follow(head: Any) -> bool:
    """Return whether `predict` gives the first class with the largest score, or labels above the middle."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

    if isinstance(head, CalibratedClassifierCV):
        return True
    if isinstance(head, Pipeline):
        return _follow(head[-1])
    if isinstance(head, OneVsRestClassifier):
        return _follow(head.estimator)
    if isinstance(head, KNeighborsClassifier):
        return bool(head.weights == "uniform")
    return type(head).__module__.startswith("pipeline.streaming.")


def _raw(head: Any, X: Any, scores: Scores) -> np.ndarray:
    """Return the scores in the order of the head's classes; several labels have one column each."""
    raw = head.predict_proba(X) if scores == "probability" else head.decision_function(X)
    if isinstance(raw, list):  # several labels per row: one array per label, with columns (absent, present)
        raw = np.stack([column[:, 1] for column in raw], axis=1)
    return np.asarray(raw)


def _by_class(raw: np.ndarray, head: Any, *, kind: Kind, classes: Sequence[str]) -> np.ndarray:
    if raw.ndim == 1:  # two classes: one column, positive for the second
        raw = np.stack([-raw, raw], axis=1)
    if kind == "classification":
        order = list(head.classes_)
        raw = raw[:, [order.index(name) for name in classes]]
    raw = raw.astype(np.float32)
    if not np.isfinite(raw).all():
        raise ValueError("it gives scores that are no finite numbers; are the features constant?")
    return np.asarray(raw)


def _as_targets(predicted: Any, kind: Kind) -> np.ndarray:
    return np.asarray(predicted, dtype={"multilabel": bool, "regression": np.float64}.get(kind))
