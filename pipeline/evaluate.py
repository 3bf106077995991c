"""Evaluate a run from its predictions: choose on validation rows, report on test rows.

For each input and each number of labels: the mean of each metric over the draws, on the test rows, with a bootstrap
interval for accuracy. The input with the best mean validation accuracy at the largest number of labels is `selected`;
only for it are the confusion matrix, the table of classes and the reliability curve made.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pipeline import metrics
from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.predictions import Predictions, PredictionsFile

Fits = dict[tuple[str, int | None], list[Predictions]]


class EvaluateConfig(Settings):
    """How runs are measured."""

    interval: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 2000
    calibration_bins: Annotated[int, Field(ge=2)] = 15
    seed: int = 0


def evaluate(config: EvaluateConfig, *, predictions: Path, model: Path, numbers: Path, tables: Path) -> dict[str, Any]:
    """Write the numbers for DVC and the tables behind the report; return the numbers."""
    file = PredictionsFile.open(predictions)
    fits: Fits = defaultdict(list)
    for one in file:
        fits[one.input, one.labels].append(one)
    rows = [_row(file, config, *group) for group in fits.items()]
    best = select(rows)
    chosen = fits[best["input"], best["labels"]]
    write_json(
        tables,
        {
            "run": predictions.stem,
            "made_from": read_json(model / "model.json"),
            "classes": file.classes,
            "interval": config.interval,
            "table": rows,
            "selected": best,
            **_details(file, config, chosen),
        },
    )
    found = {name: best[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "ece")}
    found |= {name: best[name] for name in ("input", "labels", "draws", "test_rows")}
    write_json(numbers, {name: value for name, value in found.items() if value is not None})
    return found


def select(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the best validation accuracy among those with the most labels; the first of equals.

    Raises DataError if there is something to choose and no validation row to choose with.
    """
    most = max((row["labels"] for row in rows if row["labels"] is not None), default=None)
    largest = [row for row in rows if row["labels"] == most]
    if len(largest) == 1:
        return largest[0]
    if any(row["validation_accuracy"] is None for row in largest):
        raise DataError(
            f"{len(largest)} inputs to choose from, but the task has no validation rows, and the test rows must not "
            "choose. Give the task's `sizes` a validation share, or the run a single input."
        )
    return max(largest, key=lambda row: row["validation_accuracy"])


def _row(
    file: PredictionsFile, config: EvaluateConfig, group: tuple[str, int | None], fits: list[Predictions]
) -> dict[str, Any]:
    """One line of the table: an input and a number of labels, over all draws."""
    measured = [_measure(file, one, "test", config) for one in fits]
    if any(found is None for found in measured):
        raise DataError(f"{file.path}: the task has no test rows. Give its `sizes` a test share.")
    tested = [found for found in measured if found is not None]
    validated = [_measure(file, one, "validation", config) for one in fits]
    correct = np.stack([(one.predicted == one.targets)[one.splits == "test"] for one in fits])
    low, high = metrics.bootstrap_interval(correct, level=config.interval, resamples=config.resamples, seed=config.seed)
    return {
        "input": group[0],
        "labels": group[1],
        "draws": len(fits),
        "test_rows": correct.shape[1],
        **{name: _mean([found[name] for found in tested]) for name in tested[0]},
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_spread": float(np.std(correct.mean(axis=1), ddof=1)) if len(fits) > 1 else None,
        "validation_accuracy": _mean([found["accuracy"] if found else None for found in validated]),
    }


def _measure(
    file: PredictionsFile, one: Predictions, split: str, config: EvaluateConfig
) -> dict[str, float | None] | None:
    rows = one.splits == split
    if not rows.any():
        return None
    probabilities = one.scores[rows] if file.scores[one.head] == "probability" else None
    return metrics.classification(
        one.targets[rows], one.predicted[rows], probabilities, file.classes, bins=config.calibration_bins
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _details(file: PredictionsFile, config: EvaluateConfig, fits: list[Predictions]) -> dict[str, Any]:
    """Confusion matrix, table of classes and reliability curve of the selected fits, all draws together, test rows."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    tested = [one.splits == "test" for one in fits]
    targets = np.concatenate([one.targets[rows] for one, rows in zip(fits, tested, strict=True)])
    predicted = np.concatenate([one.predicted[rows] for one, rows in zip(fits, tested, strict=True)])
    labels = file.classes
    columns = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0.0)
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n) // len(fits)}
        for name, p, r, f, n in zip(labels, *columns, strict=True)
    ]
    curve = None
    if file.scores[fits[0].head] == "probability":
        confidence = np.concatenate([one.scores[rows].max(axis=1) for one, rows in zip(fits, tested, strict=True)])
        curve = metrics.reliability(targets == predicted, confidence, bins=config.calibration_bins)
    return {
        "confusion": confusion_matrix(targets, predicted, labels=labels).tolist(),
        "per_class": per_class,
        "reliability": curve,
    }
