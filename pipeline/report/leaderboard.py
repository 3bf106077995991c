"""The leaderboard: the selected method of every run, the best first within a task."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.model_record import record_of
from pipeline.text import table

Run = dict[str, Any]
"""The tables that `evaluate` wrote for a run."""

NAMES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "top5": "top-5",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "brier": "Brier",
    "ece": "ECE",
    "map": "mAP",
    "subset_accuracy": "subset accuracy",
    "hamming_loss": "Hamming loss",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "spearman": "Spearman",
}
"""The display name of each metric."""

TERMINAL_METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "log_loss", "ece"),
    "multilabel": ("map", "micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("r2", "mae", "rmse", "spearman"),
}
"""Metrics shown in the terminal, by kind of task."""

PAGE_METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": (
        *("accuracy", "balanced_accuracy", "macro_f1", "top5", "auroc", "average_precision"),
        *("log_loss", "brier", "ece"),
    ),
    "multilabel": ("map", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "auroc"),
    "regression": ("r2", "mae", "rmse", "spearman"),
}
"""Metrics shown on the page, by kind of task."""


def read(tables: Path, names: Sequence[str]) -> list[Run]:
    """Read the named runs that could be measured; return them by task, the best first. `unmeasured` has the others.

    Raises DataError for a run that was not evaluated.
    """
    missing = [name for name in names if not (tables / f"{name}.json").is_file()]
    if missing:
        raise DataError(f"{tables}: no evaluation of {', '.join(missing)}. Run `icecore repro`.")
    runs: list[Run] = [read_json(tables / f"{name}.json") for name in names]
    measured = [run for run in runs if "unavailable" not in run]
    return sorted(measured, key=lambda run: (task_of(run), _rank(run), run["run"]))


def unmeasured(tables: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the runs whose deciding metric could not be measured, each with the reason."""
    runs: list[Run] = [read_json(tables / f"{name}.json") for name in names]
    return {run["run"]: run["unavailable"] for run in runs if "unavailable" in run}


def _rank(run: Run) -> float:
    value: float = run["selected"][run["metric"]]
    return -value if run["higher_is_better"] else value


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs in the order of `read` by task."""
    return {task: list(group) for task, group in groupby(runs, key=task_of)}


def task_of(run: Run) -> str:
    """Return the name of a run's task."""
    return record_of(run).task.name


def training(labels: int | None) -> str:
    """Return a number of labels per class as text; `all` for None."""
    return "all" if labels is None else str(labels)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


EXACT = "all test rows are right, or all wrong: all resamples are equal, so the interval is that of Clopper and Pearson"
"""The meaning of `*` after an interval."""


def is_exact(row: Mapping[str, Any], metric: str) -> bool:
    """Return whether a row has the exact interval: its metric is 0 or 1, so that all resamples are equal."""
    return metric not in ("r2", "mae") and row[metric] in (0, 1) and row[f"{metric}_low"] is not None


def interval(row: Mapping[str, Any], metric: str) -> str:
    """Return the interval of a metric as text, with `*` where it is exact; a dash where there is none."""
    ends = [row[f"{metric}_{end}"] for end in ("low", "high")]
    return "–" if None in ends else f"{ends[0]:.3f}–{ends[1]:.3f}{'*' if is_exact(row, metric) else ''}"


def others(run: Run, metrics: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the run's metrics for a table, without the deciding metric.

    metrics: the metrics of the table by kind of task.
    """
    return [name for name in metrics[run["kind"]] if name != run["metric"] and name in run["selected"]]


def text(runs: Sequence[Run]) -> str:
    """Return the leaderboard for the terminal: one table per deciding metric."""
    start = ["task", "run", "head", "input", "labels per class"]
    if not runs:
        return table(start, [])
    tables = []
    for metric in dict.fromkeys(run["metric"] for run in runs):
        same = [run for run in runs if run["metric"] == metric]
        more = others(same[0], TERMINAL_METRICS)
        head = [*start, NAMES[metric], f"{100 * same[0]['interval']:g} % interval", *(NAMES[name] for name in more)]
        lines = []
        for run in same:
            best = run["selected"]
            measured = [number(best[metric]), interval(best, metric), *(number(best.get(name)) for name in more)]
            lines.append([task_of(run), run["run"], best["head"], best["input"], training(best["labels"]), *measured])
        note = f"\n* {EXACT}" if any(is_exact(run["selected"], metric) for run in same) else ""
        tables.append(table(head, lines) + note)
    return "\n\n".join(tables)
