"""The rows of a task that heads are fitted to, and the refusal of tasks that no head can learn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.task import Task


@dataclass(frozen=True)
class Training:
    """One training set of a run: its rows in the task, and how they were drawn."""

    rows: np.ndarray
    labels: int | None
    draw: int | None

    def __str__(self) -> str:
        return "all" if self.labels is None else f"n{self.labels}-draw{self.draw}"


def check_targets(task: Task, *, where: str) -> None:
    """Raises DataError for targets that are missing or no finite numbers, and for a task with nothing to tell apart."""
    column = task.table["target"]
    bad = np.flatnonzero(np.asarray(column.is_null()))
    if not len(bad) and task.kind == "regression":
        bad = np.flatnonzero(~np.isfinite(task.targets))
    if len(bad):
        wanted = "a finite number" if task.kind == "regression" else "a class"
        raise DataError(
            f"{where}: expected {wanted} as the target of every row, got none in {len(bad):,}, the first is "
            f"{task.keys[bad[0]]}. Mend the column, or leave these rows out of the task."
        )
    if task.kind != "regression" and len(task.classes) < 2:
        got = ", ".join(task.classes) or "none"
        raise DataError(f"{where}: expected two classes or more to tell apart, got {got}. Choose another target.")


def training_sets(task: Task, labels_per_class: Sequence[int], *, where: str) -> Iterator[Training]:
    """The training sets that a run asks for; raises DataError where the task has none of that kind."""
    if not labels_per_class:
        rows = task.rows("train")
        _check_classes(task, rows, where)
        yield Training(rows, None, None)
        return
    if task.kind != "classification":
        raise DataError(f"{where}: `labels_per_class` needs classes, and the task is a {task.kind}. Leave it out.")
    if not task.draws:
        raise DataError(f"{where}: `labels_per_class` needs few-shot draws. Give the task `few_shot` settings.")
    for labels in labels_per_class:
        for draw in range(task.draws):
            rows = task.few(draw, labels)
            if len(rows) < labels * len(task.classes):
                raise DataError(
                    f"{where}: expected {labels} training rows of each of {len(task.classes)} classes, got "
                    f"{len(rows)} in all. Raise `few_shot.labels_per_class` of the task, or ask for fewer."
                )
            yield Training(rows, labels, draw)


def _check_classes(task: Task, rows: np.ndarray, where: str) -> None:
    """Every class must be seen in training: what a head never saw it cannot predict."""
    if not len(rows):
        raise DataError(f"{where}: expected training rows, got none. Change the task's `sizes`.")
    if task.kind == "regression":
        return
    targets = task.targets[rows]
    if task.kind == "multilabel":
        everywhere = [name for name, share in zip(task.classes, targets.mean(axis=0), strict=True) if share == 1]
        if everywhere:
            raise DataError(
                f"{where}: expected training rows without each class, got none without {', '.join(everywhere[:12])}. "
                "Leave out what every row has."
            )
        missing = [name for name, seen in zip(task.classes, targets.any(axis=0), strict=True) if not seen]
    else:
        missing = sorted(set(task.classes) - set(targets))
    if missing:
        raise DataError(f"{where}: expected training rows of every class, got none of {', '.join(missing[:12])}.")
