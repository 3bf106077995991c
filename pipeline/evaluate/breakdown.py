"""Tables that show where a method errs on test rows: by class, group of rows, level of a hierarchy, confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import DataError
from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Methods, subset
from pipeline.predictions import Predictions
from pipeline.task import LEVEL, Task

MOST_POINTS = 500  # points of a scatter plot
MOST_GROUPS = 50  # groups per column, those with the most rows


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: the metric, the confidence level, the number of resamples and the seed."""

    metric: str
    level: float
    resamples: int
    seed: int

    def interval(self, fits: Sequence[Predictions], classes: Sequence[str]) -> tuple[float, float] | None:
        """Return the interval of the metric's mean over fits of equal rows; None where the metric is undefined."""
        values = bootstrap.resample_metric(self.metric, [fits], classes, resamples=self.resamples, seed=self.seed)
        rows = bootstrap.rows_behind(self.metric, fits[0], classes)
        return bootstrap.interval(values[0], self.level, rows=rows)


def tables(methods: Methods, fits: list[Predictions], resampling: Resampling) -> dict[str, Any]:
    """Return the tables of a method, given the test rows of its fits; None for a table that does not apply."""
    file = methods.file
    given = file.scores.get(fits[0].head, "none")
    pooled = _pooled(fits)
    return {
        "confusion": _confusion(pooled, file.classes) if file.kind == "classification" else None,
        "per_class": _per_class(pooled, file.classes, len(fits), scored=given != "none"),
        "scatter": _scatter(fits[0]) if file.kind == "regression" else None,
        "groups": [
            group
            for column in methods.task.table.column_names
            if column in ("domain", "group") or column.startswith(LEVEL)
            for group in _groups(methods, fits, column, resampling)
        ],
        "levels": levels(methods, fits, resampling),
        "reliability": (
            metrics.reliability(pooled.targets == pooled.predicted, pooled.scores.max(axis=1))
            if given == "probability" and file.kind == "classification"
            else None
        ),
    }


def levels(methods: Methods, fits: Sequence[Predictions], resampling: Resampling) -> list[dict[str, Any]]:
    """Measure accuracy at every level of a hierarchical task: how often prediction and target have the same parent."""
    rows = []
    for column in methods.task.table.column_names if methods.file.kind == "classification" else ():
        if not column.startswith(LEVEL):
            continue
        parent = parents(methods.task, column)
        raised = [
            replace(fit, targets=_raise(fit.targets, parent), predicted=_raise(fit.predicted, parent)) for fit in fits
        ]
        names = sorted(set(parent.values()))
        ends = replace(resampling, metric="accuracy").interval(raised, names)
        value = float(np.mean([(fit.targets == fit.predicted).mean() for fit in raised]))
        low, high = ends if ends is not None else (None, None)
        rows.append(
            {
                "level": column.removeprefix(LEVEL),
                "classes": len(names),
                "accuracy": value,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return rows


def _raise(names: np.ndarray, parent: Mapping[str, str]) -> np.ndarray:
    """Return the parent of each class, object (n,)."""
    return np.array([parent[name] for name in names], dtype=object)


def parents(task: Task, column: str) -> dict[str, str]:
    """Return the parent of each class at a level, from all rows of the task.

    Raises DataError for a class with two parents.
    """
    pairs = task.table.select(["target", column]).group_by(["target", column]).aggregate([]).to_pylist()
    parent: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda pair: (pair["target"], str(pair[column]))):
        name, above = pair["target"], str(pair[column])
        if parent.setdefault(name, above) != above:
            raise DataError(
                f"task, level {column.removeprefix(LEVEL)!r}: expected one class above {name!r}, got {parent[name]!r} "
                f"and {above!r}. Correct the table of labels, or leave the level out."
            )
    return parent


def _groups(methods: Methods, fits: list[Predictions], column: str, resampling: Resampling) -> list[dict[str, Any]]:
    """Measure the rows of each value of a column of the task; at most the 50 values with the most rows.

    Returns a list of one table; an empty list where all rows have the same value.
    """
    values = np.array(
        [str(value) for value in methods.task.table[column].take(methods.tested).to_pylist()], dtype=object
    )
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_GROUPS]
    rows = []
    for name, count in zip(names[order], counts[order], strict=True):
        of_group = [subset(fit, values == name) for fit in fits]
        measured = [bootstrap.metric_value(resampling.metric, fit, methods.file.classes) for fit in of_group]
        known = [value for value in measured if value is not None]
        ends = resampling.interval(of_group, methods.file.classes) if len(known) == len(measured) else None
        row = {"value": str(name), "rows": int(count), "measured": float(np.mean(known)) if ends else None}
        rows.append(row | {"low": ends[0] if ends else None, "high": ends[1] if ends else None})
    ordered = sorted(rows, key=lambda row: str(row["value"]))
    return [{"column": column.removeprefix(LEVEL), "values": len(names), "rows": ordered}] if len(names) > 1 else []


def _pooled(fits: Sequence[Predictions]) -> Predictions:
    """Return the rows of all draws as one fit."""
    names = ("keys", "splits", "targets", "predicted", "scores")
    first = fits[0]
    columns = {name: np.concatenate([getattr(fit, name) for fit in fits]) for name in names}
    return Predictions(first.head, first.input, first.labels, None, **columns)


def _confusion(fit: Predictions, classes: Sequence[str]) -> list[list[int]]:
    from sklearn.metrics import confusion_matrix

    labels = np.arange(len(classes))
    target, guess = metrics.codes(fit.targets, classes), metrics.codes(fit.predicted, classes)
    counts: list[list[int]] = confusion_matrix(target, guess, labels=labels).tolist()
    return counts


def _scatter(fit: Predictions) -> list[list[float]]:
    """Return target and prediction of some rows of a fit: the first by key, since keys are digests."""
    rows = np.argsort(fit.keys)[:MOST_POINTS]
    return [[float(target), float(guess)] for target, guess in zip(fit.targets[rows], fit.predicted[rows], strict=True)]


def _per_class(fit: Predictions, classes: Sequence[str], draws: int, *, scored: bool) -> list[dict[str, Any]] | None:
    """Return precision, recall, F1, average precision and test rows of each class; None for a regression.

    The values of a class without test rows are None.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    if not classes:
        return None
    target, guess = bootstrap.class_membership(fit, classes)
    columns = precision_recall_fscore_support(target, guess, labels=range(len(classes)), zero_division=0.0)
    rows = []
    for column, (name, p, r, f, n) in enumerate(zip(classes, *columns, strict=True)):
        ranked = scored and n > 0
        ap = float(average_precision_score(target[:, column], fit.scores[:, column])) if ranked else None
        rows.append(
            {
                "class": name,
                **{key: float(v) if n else None for key, v in (("precision", p), ("recall", r), ("f1", f))},
                "average_precision": ap,
                "rows": int(n) // draws,
            }
        )
    return rows
