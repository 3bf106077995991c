"""The leaderboard: the selected input of every run, best first within a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.text import table

Run = dict[str, Any]
"""What `evaluate` wrote of a run."""


def read(tables: Path, names: Sequence[str]) -> list[Run]:
    """The runs of those names, sorted by task, then by accuracy; raises DataError for one that was not evaluated."""
    missing = [name for name in names if not (tables / f"{name}.json").is_file()]
    if missing:
        raise DataError(f"{tables}: no evaluation of {', '.join(missing)}. Run `dvc repro`.")
    runs: list[Run] = [read_json(tables / f"{name}.json") for name in names]
    return sorted(runs, key=lambda run: (task_of(run), -run["selected"]["accuracy"], run["run"]))


def settings_of(run: Run) -> Mapping[str, Any]:
    """The settings that a run was fitted with."""
    settings: Mapping[str, Any] = run["made_from"]["settings"]
    return settings


def task_of(run: Run) -> str:
    """The task of a run."""
    return str(settings_of(run)["task"])


def training(labels: int | None) -> str:
    """How a number of labels reads in a table."""
    return "all" if labels is None else str(labels)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def text(runs: Sequence[Run]) -> str:
    """The leaderboard as a table for the terminal."""
    head = ["task", "run", "input", "labels a class", "accuracy", "95 % interval", "macro-F1", "log loss", "ECE"]
    if runs:
        head[5] = f"{100 * runs[0]['interval']:g} % interval"
    lines = []
    for run in runs:
        best = run["selected"]
        interval = f"{best['accuracy_low']:.3f}–{best['accuracy_high']:.3f}"
        measured = [number(best[name]) for name in ("macro_f1", "log_loss", "ece")]
        labels = training(best["labels"])
        lines.append([task_of(run), run["run"], best["input"], labels, number(best["accuracy"]), interval, *measured])
    return table(head, lines)
