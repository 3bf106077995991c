"""Where a method errs: its classes, its groups of rows, the levels of a hierarchy, its confidence. Test rows only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import DataError
from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Methods, part
from pipeline.predictions import Predictions
from pipeline.task import LEVEL, Task

MOST_POINTS = 500  # of a regression that are drawn
MOST_GROUPS = 50  # of a column that are measured: those with the most rows


@dataclass(frozen=True)
class Resampling:
    """The metric that intervals are of, their level, and the resamples behind them."""

    metric: str
    level: float
    resamples: int
    seed: int

    def interval(self, fits: Sequence[Predictions], classes: Sequence[str]) -> tuple[float, float] | None:
        """The interval of the metric's mean over some fits of equal rows."""
        found = bootstrap.resampled(self.metric, [fits], classes, resamples=self.resamples, seed=self.seed)
        rows = bootstrap.rows_behind(self.metric, fits[0], classes)
        return bootstrap.interval(found[0], self.level, rows=rows)


def of(methods: Methods, fits: list[Predictions], resampling: Resampling) -> dict[str, Any]:
    """Every table of the fits of one method, which hold test rows alone; None where there is no such table."""
    file = methods.file
    given = file.scores.get(fits[0].head, "none")
    pooled = _pooled(fits)
    return {
        "confusion": _confusion(pooled, file.classes) if file.kind == "classification" else None,
        "per_class": _per_class(pooled, file.classes, len(fits), scored=given != "none"),
        "scatter": _scatter(fits[0]) if file.kind == "regression" else None,
        "groups": [
            found
            for column in methods.task.table.column_names
            if column in ("domain", "group") or column.startswith(LEVEL)
            for found in _groups(methods, fits, column, resampling)
        ],
        "levels": levels(methods, fits, resampling),
        "reliability": (
            metrics.reliability(pooled.targets == pooled.predicted, pooled.scores.max(axis=1))
            if given == "probability" and file.kind == "classification"
            else None
        ),
    }


def levels(methods: Methods, fits: Sequence[Predictions], resampling: Resampling) -> list[dict[str, Any]]:
    """Accuracy at every level of a hierarchical task: whether the predicted class stands under the target's parent."""
    found = []
    for column in methods.task.table.column_names if methods.file.kind == "classification" else ():
        if not column.startswith(LEVEL):
            continue
        parent = parents(methods.task, column)
        raised = [
            replace(one, targets=_raise(one.targets, parent), predicted=_raise(one.predicted, parent)) for one in fits
        ]
        names = sorted(set(parent.values()))
        ends = replace(resampling, metric="accuracy").interval(raised, names)
        value = float(np.mean([(one.targets == one.predicted).mean() for one in raised]))
        low, high = ends if ends is not None else (None, None)
        found.append(
            {
                "level": column.removeprefix(LEVEL),
                "classes": len(names),
                "accuracy": value,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return found


def _raise(names: np.ndarray, parent: Mapping[str, str]) -> np.ndarray:
    """The class above each class, object (n,)."""
    return np.array([parent[name] for name in names], dtype=object)


def parents(task: Task, column: str) -> dict[str, str]:
    """The class of a level that each class stands under, from all rows of the task.

    Raises DataError for a class that stands under two.
    """
    pairs = task.table.select(["target", column]).group_by(["target", column]).aggregate([]).to_pylist()
    found: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda pair: (pair["target"], str(pair[column]))):
        name, above = pair["target"], str(pair[column])
        if found.setdefault(name, above) != above:
            raise DataError(
                f"task, level {column.removeprefix(LEVEL)!r}: expected one class above {name!r}, got {found[name]!r} "
                f"and {above!r}. Mend the table of labels, or leave the level out."
            )
    return found


def _groups(methods: Methods, fits: list[Predictions], column: str, resampling: Resampling) -> list[dict[str, Any]]:
    """The metric of the rows of each value of a column of the task; the values with the most rows, at most 50.

    A list of one table, or of none where all rows have the same value.
    """
    values = np.array(
        [str(value) for value in methods.task.table[column].take(methods.tested).to_pylist()], dtype=object
    )
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_GROUPS]
    rows = []
    for name, count in zip(names[order], counts[order], strict=True):
        of_group = [part(one, values == name) for one in fits]
        each = [bootstrap.value(resampling.metric, one, methods.file.classes) for one in of_group]
        known = [value for value in each if value is not None]
        ends = resampling.interval(of_group, methods.file.classes) if len(known) == len(each) else None
        row = {"value": str(name), "rows": int(count), "measured": float(np.mean(known)) if ends else None}
        rows.append(row | {"low": ends[0] if ends else None, "high": ends[1] if ends else None})
    ordered = sorted(rows, key=lambda row: str(row["value"]))
    return [{"column": column.removeprefix(LEVEL), "values": len(names), "rows": ordered}] if len(names) > 1 else []


def _pooled(fits: Sequence[Predictions]) -> Predictions:
    """All draws together."""
    names = ("keys", "splits", "targets", "predicted", "scores")
    first = fits[0]
    columns = {name: np.concatenate([getattr(one, name) for one in fits]) for name in names}
    return Predictions(first.head, first.input, first.labels, None, **columns)


def _confusion(one: Predictions, classes: Sequence[str]) -> list[list[int]]:
    from sklearn.metrics import confusion_matrix

    labels = np.arange(len(classes))
    target, guess = metrics.codes(one.targets, classes), metrics.codes(one.predicted, classes)
    found: list[list[int]] = confusion_matrix(target, guess, labels=labels).tolist()
    return found


def _scatter(one: Predictions) -> list[list[float]]:
    """Target and prediction of some rows of a fit: keys are digests, so the first of them are as good as any."""
    rows = np.argsort(one.keys)[:MOST_POINTS]
    return [[float(target), float(guess)] for target, guess in zip(one.targets[rows], one.predicted[rows], strict=True)]


def _per_class(one: Predictions, classes: Sequence[str], draws: int, *, scored: bool) -> list[dict[str, Any]] | None:
    """Return precision, recall, F1, average precision and test rows of each class; None of a regression.

    A class without test rows is not measured.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    if not classes:
        return None
    target, guess = bootstrap.members(one, classes)
    columns = precision_recall_fscore_support(target, guess, labels=range(len(classes)), zero_division=0.0)
    found = []
    for place, (name, p, r, f, n) in enumerate(zip(classes, *columns, strict=True)):
        ranked = scored and n > 0
        ap = float(average_precision_score(target[:, place], one.scores[:, place])) if ranked else None
        found.append(
            {
                "class": name,
                **{key: float(v) if n else None for key, v in (("precision", p), ("recall", r), ("f1", f))},
                "average_precision": ap,
                "rows": int(n) // draws,
            }
        )
    return found
