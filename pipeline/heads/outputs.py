"""Predictions and scores of a fitted head as arrays of a common form, whatever its class.

scikit-learn returns the decision values of two classes as a single column, and the probabilities of multilabel heads as
a list of arrays or an array. Here each class has a column, in a given order.

For streaming, nearest-neighbour and calibrated heads, predictions are computed from the scores, so that both take a
single pass over the rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.predictions import Scores
from pipeline.task import Kind


def kind_of_scores(head: Any, kind: Kind) -> Scores:
    """Return the kind of a head's scores: probabilities if it has them, else decision values, else none."""
    if kind == "regression":
        return "none"
    if hasattr(head, "predict_proba"):
        return "probability"
    return "decision" if hasattr(head, "decision_function") else "none"


def scores_of(head: Any, X: Any, *, kind: Kind, scores: Scores, classes: Sequence[str]) -> np.ndarray:
    """Compute scores (rows, classes) float32 in the order of `classes`; NaN if `scores` is none.

    Raises ValueError for scores that are not finite.
    """
    if scores == "none":
        return np.full((len(X), len(classes)), np.nan, dtype=np.float32)
    return _order_classes(_raw_scores(head, X, scores), head, kind=kind, classes=classes)


def predictions_of(head: Any, X: Any, *, kind: Kind) -> np.ndarray:
    """Return predictions in the form of targets: strings (rows,), bool (rows, classes) or float64 (rows,)."""
    return _as_targets(head.predict(X), kind)


def predict_with_scores(
    head: Any, X: Any, *, kind: Kind, scores: Scores, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and scores, in a single pass if the head predicts by its scores.

    The prediction may then differ from `predict` if two scores differ only by rounding, less than 1e-15.
    """
    if scores == "none" or not _predicts_by_scores(head):
        predicted = predictions_of(head, X, kind=kind)
        return predicted, scores_of(head, X, kind=kind, scores=scores, classes=classes)
    raw = _raw_scores(head, X, scores)
    above = 0.5 if scores == "probability" else 0.0
    if kind == "multilabel":
        predicted = raw > above
    elif raw.ndim == 1:
        predicted = head.classes_[(raw > above).astype(int)]
    else:
        predicted = head.classes_[raw.argmax(axis=1)]
    return _as_targets(predicted, kind), _order_classes(raw, head, kind=kind, classes=classes)


def _predicts_by_scores(head: Any) -> bool:
    """Return whether `predict` returns the first class of the largest score, or the labels above the threshold."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

    if isinstance(head, CalibratedClassifierCV):
        return True
    if isinstance(head, Pipeline):
        return _predicts_by_scores(head[-1])
    if isinstance(head, OneVsRestClassifier):
        return _predicts_by_scores(head.estimator)
    if isinstance(head, KNeighborsClassifier):
        return bool(head.weights == "uniform")
    return type(head).__module__.startswith("pipeline.streaming.")


def _raw_scores(head: Any, X: Any, scores: Scores) -> np.ndarray:
    """Return the scores in the order of the head's classes, with a column per label for multilabel heads."""
    raw = head.predict_proba(X) if scores == "probability" else head.decision_function(X)
    if isinstance(raw, list):  # several labels per row: one array per label, with columns (absent, present)
        raw = np.stack([column[:, 1] for column in raw], axis=1)
    return np.asarray(raw)


def _order_classes(raw: np.ndarray, head: Any, *, kind: Kind, classes: Sequence[str]) -> np.ndarray:
    if raw.ndim == 1:  # two classes: one column, positive for the second
        raw = np.stack([-raw, raw], axis=1)
    if kind == "classification":
        order = list(head.classes_)
        raw = raw[:, [order.index(name) for name in classes]]
    raw = raw.astype(np.float32)
    if not np.isfinite(raw).all():
        raise ValueError("its scores are not finite; are the features constant?")
    return np.asarray(raw)


def _as_targets(predicted: Any, kind: Kind) -> np.ndarray:
    return np.asarray(predicted, dtype={"multilabel": bool, "regression": np.float64}.get(kind))
