"""Metrics that a search optimises on held-out rows: those of scikit-learn, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import HeadError, unknown
from pipeline.heads.outputs import kind_of_scores, predict_with_scores
from pipeline.metrics import codes, row_log_losses
from pipeline.predictions import Scores
from pipeline.task import Kind

CRITERIA: Mapping[Kind, Mapping[str, bool]] = {
    "classification": {"accuracy": True, "balanced_accuracy": True, "macro_f1": True, "log_loss": False},
    "multilabel": {"map": True, "macro_f1": True, "micro_f1": True, "log_loss": False},
    "regression": {"r2": True, "mae": False, "rmse": False},
}
"""The metrics of each kind of task, and whether larger is better; the first decides for heads without probabilities."""


LOG_TEMPERATURES = (-6.0, 6.0)
"""Bounds of the natural logarithm of the temperature in `uncertainty`."""


@dataclass(frozen=True)
class HeldOutAnswers:
    """A head's predictions and scores on held-out rows.

    targets, predicted: in the form of a task's targets. scores: (rows, classes) float32, NaN if `given` is none. given:
    the kind of scores.
    """

    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    given: Scores

    @classmethod
    def of(
        cls, head: Any, X: Any, y: np.ndarray, *, kind: Kind, classes: Sequence[str], given: Scores
    ) -> "HeldOutAnswers":
        """Apply a head to rows X with targets y; raises ValueError as `predict_with_scores` does."""
        predicted, scores = predict_with_scores(head, X, kind=kind, scores=given, classes=classes)
        return cls(np.asarray(y, dtype=bool) if kind == "multilabel" else y, predicted, scores, given)


def join_held_out(parts: Sequence[HeldOutAnswers]) -> HeldOutAnswers:
    """Concatenate the answers on several sets of rows."""
    columns = ([getattr(answers, name) for answers in parts] for name in ("targets", "predicted", "scores"))
    targets, predicted, scores = map(np.concatenate, columns)
    return HeldOutAnswers(targets, predicted, scores, parts[0].given)


def choose_metric(name: str | None, kind: Kind, given: Scores) -> str:
    """Return the metric to use: `name`, or log loss for heads with probabilities, else the first metric of the kind.

    Raises HeadError for a metric that the kind of task does not have.
    """
    if name is not None and name not in CRITERIA[kind]:
        raise HeadError(f"search: a {kind}: {unknown('metric', name, CRITERIA[kind])}")
    if name is None and given == "probability":
        return "log_loss"
    return name or next(iter(CRITERIA[kind]))


def sign(metric: str) -> int:
    """Return 1 for a metric that is maximised, -1 for a loss."""
    return next(1 if table[metric] else -1 for table in CRITERIA.values() if metric in table)


def check(name: str, head: Any, *, kind: Kind) -> None:
    """Raise HeadError if a metric needs scores that a head does not have."""
    scores = kind_of_scores(head, kind)
    if (name == "log_loss" and scores != "probability") or (name == "map" and scores == "none"):
        wanted = "probabilities" if name == "log_loss" else "scores"
        raise HeadError(
            f"search: expected a head with {wanted} for {name}, but {type(head[-1]).__name__} has none. "
            f"Search with another metric: {', '.join(other for other in CRITERIA[kind] if other != name)}."
        )


def compute_metric(name: str, held: HeldOutAnswers, *, kind: Kind, classes: Sequence[str]) -> float:
    """Compute a metric of held-out answers; means over classes skip classes without held-out rows."""
    from sklearn import metrics

    if name == "log_loss":
        return float(row_log_losses(kind, held.targets, held.scores, classes).mean())
    if name == "map":
        present = held.targets.any(axis=0)
        if not present.any():
            return float("nan")
        return float(
            metrics.average_precision_score(held.targets[:, present], held.scores[:, present], average="macro")
        )
    by_name = {
        "accuracy": metrics.accuracy_score,
        "r2": metrics.r2_score,
        "mae": metrics.mean_absolute_error,
        "rmse": metrics.root_mean_squared_error,
    }
    if name in ("balanced_accuracy", "macro_f1"):
        known = np.flatnonzero(held.targets.any(axis=0)) if kind == "multilabel" else np.unique(held.targets)
        mean = metrics.recall_score if name == "balanced_accuracy" else metrics.f1_score
        return float(mean(held.targets, held.predicted, labels=known, average="macro", zero_division=0.0))
    if name == "micro_f1":
        return float(metrics.f1_score(held.targets, held.predicted, average="micro", zero_division=0.0))
    return float(by_name[name](held.targets, held.predicted))


def row_scores(name: str, held: HeldOutAnswers, *, kind: Kind, classes: Sequence[str]) -> np.ndarray | None:
    """Return a value per row whose mean is the metric; None if the metric is not a mean over rows."""
    if name == "log_loss":
        return row_log_losses(kind, held.targets, held.scores, classes)
    if name == "mae":
        return np.asarray(np.abs(held.targets - held.predicted))
    if name == "r2":
        spread = held.targets.var()
        return None if spread == 0 else np.asarray(1 - (held.targets - held.predicted) ** 2 / spread)
    if name in ("accuracy", "balanced_accuracy"):
        right = np.asarray(held.targets == held.predicted, dtype=np.float64)
        if name == "accuracy":
            return right
        _, places, counts = np.unique(held.targets.astype(str), return_inverse=True, return_counts=True)
        return np.asarray(right * len(right) / (len(counts) * counts[places]))
    return None


def uncertainty(held: HeldOutAnswers, *, kind: Kind, classes: Sequence[str]) -> float | None:
    """Return the log loss; for decision values, at their best temperature; None without scores."""
    if kind == "regression" or held.given == "none":
        return None
    if held.given == "probability":
        return float(row_log_losses(kind, held.targets, held.scores, classes).mean())
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    scores = held.scores.astype(np.float64)
    places = None if kind == "multilabel" else codes(held.targets, classes)

    def loss(log: float) -> float:
        warm = scores * np.exp(-log)
        if places is None:
            return float(np.logaddexp(0, np.where(held.targets, -warm, warm)).mean())
        return float((logsumexp(warm, axis=1) - warm[np.arange(len(warm)), places]).mean())

    return float(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 0.01}).fun)
