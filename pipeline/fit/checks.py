"""Refuse tasks that no head can learn."""

import numpy as np

from pipeline.errors import DataError
from pipeline.task import Task


def check_targets(task: Task, *, where: str) -> None:
    """Raise DataError for missing or non-finite targets, and for a classification with fewer than two classes."""
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


def check_classes(task: Task, rows: np.ndarray, *, where: str) -> None:
    """Raise DataError for a class without training rows, and for a label that all training rows have."""
    if task.kind == "regression":
        return
    targets = task.targets[rows]
    if task.kind == "multilabel":
        constant = [name for name, share in zip(task.classes, targets.mean(axis=0), strict=True) if share == 1]
        if constant:
            raise DataError(
                f"{where}: expected training rows without each class, got none without {', '.join(constant[:12])}. "
                "Leave out what every row has."
            )
        missing = [name for name, has_rows in zip(task.classes, targets.any(axis=0), strict=True) if not has_rows]
    else:
        missing = sorted(set(task.classes) - set(targets))
    if missing:
        raise DataError(
            f"{where}: expected training rows of every class, got none of {', '.join(missing[:12])}: a head never "
            "predicts, and nearest neighbours never find, what was not there. Label some, or leave these rows out."
        )
