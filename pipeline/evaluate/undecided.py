"""Mark the methods of a run that held-out rows cannot tell from the best method.

A method is close to the best if the difference is at most one standard error. The bootstrap estimates the standard
error of the difference on the same rows.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline import metrics
from pipeline.evaluate import bootstrap
from pipeline.evaluate.choice import LOG_LOSS, Row, loss
from pipeline.evaluate.methods import Method, Methods, subset
from pipeline.predictions import Predictions
from pipeline.task import Kind

USUAL: Mapping[Kind, str] = {"classification": "accuracy", "multilabel": "map"}
"""The metrics that log loss replaces for the choice."""
RESAMPLES = 200


def mark(rows: Sequence[Row], methods: Methods, metric: str, *, seed: int) -> None:
    """Add the marks that `choice.best_of` reads to the rows of methods with equal numbers of labels.

    `validation_log_loss`: mean over the draws, None without probabilities; `validation_rows`; `decided_by`: log_loss or
    the metric; `close`: whether the method is within one standard error of the best.
    """
    held_out = [_held_out(methods, row) for row in rows]
    for row, fits in zip(rows, held_out, strict=True):
        row["validation_rows"] = len(np.unique(np.concatenate([fit.keys for fit in fits])))
        row["validation_log_loss"] = _log_loss(fits, methods, row["head"])
        row["decided_by"], row["close"] = metric, False
    compared = [number for number, row in enumerate(rows) if row[f"validation_{metric}"] is not None]
    if not compared:
        return
    have_log_loss = all(rows[number]["validation_log_loss"] is not None for number in compared)
    decides = LOG_LOSS if have_log_loss and metric == USUAL.get(methods.file.kind) else metric
    higher = decides not in metrics.LOWER_IS_BETTER

    def loss_of(row: Row) -> float:
        return loss(row, decides, higher=higher)

    first = min(compared, key=lambda number: loss_of(rows[number]))
    for number in compared:
        rows[number]["decided_by"] = decides
        behind = loss_of(rows[number]) - loss_of(rows[first])
        error = 0.0 if number == first else _error(held_out[number], held_out[first], decides, methods, seed=seed)
        rows[number]["close"] = bool(behind <= error)


def _held_out(methods: Methods, row: Row) -> list[Predictions]:
    fits = methods.fits[Method(row["head"], row["input"], row["labels"])]
    return [subset(fit, fit.splits == "validation") for fit in fits]


def _log_loss(fits: Sequence[Predictions], methods: Methods, head: str) -> float | None:
    if methods.file.kind == "regression" or methods.file.scores.get(head) != "probability":
        return None
    if not all(len(fit.keys) for fit in fits):
        return None
    return float(np.mean([_row_losses(fit, methods).mean() for fit in fits]))


def _row_losses(fit: Predictions, methods: Methods) -> np.ndarray:
    return metrics.row_log_losses(methods.file.kind, fit.targets, fit.scores, methods.file.classes)


def _error(
    first: Sequence[Predictions], other: Sequence[Predictions], metric: str, methods: Methods, *, seed: int
) -> float:
    """Return the standard error of the mean difference over the draws, on the common rows, by the bootstrap."""
    differences = []
    for draw in range(max(len(first), len(other))):
        fit_a, fit_b = first[draw % len(first)], other[draw % len(other)]
        _, a, b = np.intersect1d(fit_a.keys, fit_b.keys, return_indices=True)
        if not len(a):
            return 0.0
        random = np.random.default_rng([seed, draw])
        counts = random.multinomial(len(a), np.full(len(a), 1 / len(a)), size=RESAMPLES).astype(np.float64)
        values = [_statistic(subset(fit, rows), metric, methods)(counts) for fit, rows in ((fit_a, a), (fit_b, b))]
        differences.append(values[0] - values[1])
    mean = np.mean(differences, axis=0)
    finite = mean[np.isfinite(mean)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0


def _statistic(fit: Predictions, metric: str, methods: Methods) -> Callable[[np.ndarray], np.ndarray]:
    if metric != LOG_LOSS:
        return bootstrap.statistic(metric, fit, methods.file.classes)
    losses = _row_losses(fit, methods)
    return lambda counts: np.asarray(counts @ losses / counts.sum(axis=1))
