"""The table of a run: a row per method, and the row that held-out rows choose."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import DataError, counted
from pipeline.evaluate import bootstrap, choice, undecided
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.methods import Method, Methods, subset
from pipeline.predictions import Predictions

MARKS = ("validation_log_loss", "validation_rows", "decided_by", "close")
"""Fields that `undecided.mark` adds to a row."""


def table(methods: Methods, metric: str, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Return one row per method: means over its draws on test rows, and the interval of the deciding metric."""
    rows = [_row(methods, metric, method) for method in methods.fits]
    measured = [row for row in rows if row[metric] is not None]
    tested = [methods.test(Method(row["head"], row["input"], row["labels"])) for row in measured]
    if tested:
        values = bootstrap.resample_metric(
            metric, tested, methods.file.classes, resamples=config.resamples, seed=config.seed
        )
        for row, fits, resamples in zip(measured, tested, values, strict=True):
            behind = bootstrap.rows_behind(metric, fits[0], methods.file.classes)
            ends = bootstrap.interval(resamples, config.confidence_level, rows=behind)
            row[f"{metric}_low"], row[f"{metric}_high"] = ends if ends is not None else (None, None)
    for labels in dict.fromkeys(row["labels"] for row in measured):
        undecided.mark([row for row in measured if row["labels"] == labels], methods, metric, seed=config.seed)
    return rows


def select(rows: Sequence[dict[str, Any]], *, metric: str = "accuracy") -> dict[str, Any]:
    """Choose a row by held-out rows among the methods with the most labels, and return it; ties go to the first.

    A method without a value of the metric is ignored if another method has a value. Raises DataError for several
    methods without validation rows to choose by.
    """
    most = max((row["labels"] for row in rows if row["labels"] is not None), default=None)
    largest = [row for row in rows if row["labels"] == most]
    measured = [row for row in largest if metric not in row.get("degraded", {})]
    candidates = measured or largest[:1]
    best = choice.best_by_validation(candidates, metric, higher=metric not in metrics.LOWER_IS_BETTER)
    if best is None:
        raise DataError(
            f"{counted(len(candidates), 'method')} to choose from, but the task has no validation rows to measure "
            f"{metric} on, and the test rows must not choose. Give the task's `sizes` a validation share, or the "
            "run one input and head."
        )
    return best


def _row(methods: Methods, metric: str, method: Method) -> dict[str, Any]:
    fits = methods.fits[method]
    tested = [_measure(methods, subset(fit, fit.splits == "test")) for fit in fits]
    held_out = [subset(fit, fit.splits == "validation") for fit in fits]
    validated = [bootstrap.metric_value(metric, fit, methods.file.classes) for fit in held_out]
    known = [value for value in (draw.values[metric] for draw in tested) if value is not None]
    degraded = {name: why for draw in tested for name, why in draw.degraded.items()}
    return {
        **method._asdict(),
        "draws": len(fits),
        "test_rows": len(methods.tested),
        **{name: _mean([draw.values[name] for draw in tested]) for name in tested[0].values},
        f"{metric}_low": None,
        f"{metric}_high": None,
        f"{metric}_spread": float(np.std(known, ddof=1)) if len(known) == len(fits) > 1 else None,
        f"validation_{metric}": _mean(validated),
        **({"degraded": degraded} if degraded else {}),
    }


def _measure(methods: Methods, fit: Predictions) -> metrics.Measured:
    return metrics.measure(
        methods.file.kind,
        fit.targets,
        fit.predicted,
        fit.scores,
        methods.file.classes,
        given=methods.file.scores.get(fit.head, "none"),
        head=fit.head,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
