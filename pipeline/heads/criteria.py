"""What a search makes as good as it can on validation rows: scikit-learn's metrics, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import HeadError, unknown
from pipeline.heads.scores import kind_of_scores, predictions_of, scores_of
from pipeline.task import Kind

CRITERIA: Mapping[Kind, Mapping[str, bool]] = {
    "classification": {"accuracy": True, "balanced_accuracy": True, "macro_f1": True, "log_loss": False},
    "multilabel": {"map": True, "macro_f1": True, "micro_f1": True, "log_loss": False},
    "regression": {"r2": True, "mae": False, "rmse": False},
}
"""The metrics of each kind of task, the first one the default, and whether larger is better."""


def criterion(name: str | None, kind: Kind) -> str:
    """The metric by its name, or the default of the kind; raises HeadError for one that the kind does not have."""
    if name is not None and name not in CRITERIA[kind]:
        raise HeadError(f"search: a {kind}: {unknown('metric', name, CRITERIA[kind])}")
    return name or next(iter(CRITERIA[kind]))


def sign(metric: str) -> int:
    """1 of a metric that is better when larger, -1 of a loss."""
    return next(1 if found[metric] else -1 for found in CRITERIA.values() if metric in found)


def check(name: str, head: Any, *, kind: Kind) -> None:
    """Raises HeadError where a metric needs scores that a head, or its class, does not give."""
    scores = kind_of_scores(head, kind)
    if (name == "log_loss" and scores != "probability") or (name == "map" and scores == "none"):
        wanted = "probabilities" if name == "log_loss" else "scores"
        raise HeadError(
            f"search: expected a head with {wanted} for {name}, {type(head[-1]).__name__} gives none. "
            f"Search with another metric: {', '.join(other for other in CRITERIA[kind] if other != name)}."
        )


def measure(name: str, head: Any, X: Any, y: np.ndarray, *, kind: Kind, classes: Sequence[str]) -> float:
    """A metric of a fitted head on rows X with targets y as a task has them.

    Means over classes are over those that have rows among y.
    """
    from sklearn import metrics

    if name in ("log_loss", "map"):
        found = scores_of(head, X, kind=kind, scores=kind_of_scores(head, kind), classes=classes)
        if name == "map":
            ranked = np.flatnonzero(y.any(axis=0))
            return float(metrics.average_precision_score(y[:, ranked], found[:, ranked], average="macro"))
        if kind == "multilabel":
            pairs = [np.stack([1 - one, one], axis=1) for one in found.T.astype(np.float64)]
            return float(np.mean([metrics.log_loss(y[:, i], pair, labels=[0, 1]) for i, pair in enumerate(pairs)]))
        order = np.argsort(classes)  # as scikit-learn has the labels
        given = found[:, order].astype(np.float64)
        return float(metrics.log_loss(y, given / given.sum(axis=1, keepdims=True), labels=np.asarray(classes)[order]))
    predicted = predictions_of(head, X, kind=kind)
    by_name = {
        "accuracy": metrics.accuracy_score,
        "r2": metrics.r2_score,
        "mae": metrics.mean_absolute_error,
        "rmse": metrics.root_mean_squared_error,
    }
    there = np.flatnonzero(y.any(axis=0)) if kind == "multilabel" else np.unique(y)
    if name == "balanced_accuracy":
        return float(metrics.recall_score(y, predicted, labels=there, average="macro", zero_division=0.0))
    if name == "macro_f1":
        return float(metrics.f1_score(y, predicted, labels=there, average="macro", zero_division=0.0))
    if name == "micro_f1":
        return float(metrics.f1_score(y, predicted, average="micro", zero_division=0.0))
    return float(by_name[name](y, predicted))
