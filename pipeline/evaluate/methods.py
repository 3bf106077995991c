"""The methods of a run: its fits by head, input and number of labels, checked against the task that they answer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError, bullets
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.task import Task


class Method(NamedTuple):
    """What was fitted once for each draw."""

    head: str
    input: str
    labels: int | None


@dataclass(frozen=True)
class Methods:
    """The predictions of a run, and the rows of its task that were tested."""

    file: PredictionsFile
    task: Task
    fits: dict[Method, list[Predictions]]
    tested: np.ndarray
    """Row numbers in the task of the test rows, in the order of the predictions."""

    def test(self, method: Method) -> list[Predictions]:
        """The fits of a method, a draw each, with their test rows alone."""
        return [part(one, one.splits == "test") for one in self.fits[method]]


def read(predictions: Path, task: Path) -> Methods:
    """Read the predictions of a run, and check them against the task.

    Raises DataError where they are of another kind, name classes or samples that the task has not, have other targets
    than it, no test rows, or other test rows in one fit than in another.
    """
    file, told = PredictionsFile.open(predictions), Task.read(task)
    again = f"Run {predictions.stem!r} again, as `dvc repro` does."
    if file.kind != told.kind:
        raise DataError(f"{predictions}: expected predictions of a {told.kind} task, got {file.kind}. {again}")
    foreign = sorted(set(file.classes) - set(told.classes))
    if foreign:
        raise DataError(f"{predictions}: expected classes of {task}, got {', '.join(foreign[:12])}. {again}")
    # Runs are compared column by column, so that equal columns must be equal classes, however a file orders its own.
    file = replace(file, classes=sorted(file.classes, key=told.classes.index))
    order = [told.classes.index(name) for name in file.classes]
    targets = told.targets[:, order] if told.kind == "multilabel" else told.targets
    fits: dict[Method, list[Predictions]] = {}
    problems, tested, all_keys = [], np.empty(0, dtype=np.int64), told.keys
    keys, rows = np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
    for one in file:
        method = Method(one.head, one.input, one.labels)
        fits.setdefault(method, []).append(one)
        if not np.array_equal(keys, one.keys):  # nearly always those of the fit before
            keys, rows = one.keys, np.searchsorted(all_keys, one.keys)
        found = _problem(one, file, rows, all_keys, targets)
        test = rows[one.splits == "test"]
        where = " ".join(str(word) for word in (*method, one.draw) if word is not None)
        if not found and not len(test):
            raise DataError(f"{predictions}: the task has no test rows. Give its `sizes` a test share.")
        if not found and len(tested) and not np.array_equal(tested, test):
            common = len(np.intersect1d(tested, test))
            found = (
                f"expected the {len(tested)} test rows of the first fit, got {len(test)}, of which {common} are those"
            )
        if found:
            problems.append(f"{where}: {found}")
        elif not len(tested):
            tested = test
    if problems:
        raise DataError(bullets(f"{predictions}: predictions that do not fit {task}. {again}", problems[:12]))
    return Methods(file, told, fits, tested)


def part(one: Predictions, rows: np.ndarray) -> Predictions:
    """Some rows of the predictions of a fit; `rows` are numbers or bools."""
    names = ("keys", "splits", "targets", "predicted", "scores")
    return replace(one, **{name: getattr(one, name)[rows] for name in names})


def _problem(one: Predictions, file: PredictionsFile, rows: np.ndarray, keys: np.ndarray, targets: np.ndarray) -> str:
    """What is wrong with a fit whose samples are those rows of the task, if anything."""
    known = keys[np.minimum(rows, len(keys) - 1)] == one.keys
    if not known.all():
        return f"{(~known).sum()} of {len(known)} samples are not in the task"
    if file.kind == "classification" and (foreign := sorted(set(one.predicted) - set(file.classes))):
        return f"predicted classes that the task has not: {', '.join(foreign[:12])}"
    same = targets[rows] == one.targets
    other = (~(same.all(axis=1) if same.ndim == 2 else same)).sum()
    return f"{other} of {len(rows)} targets are not those of the task" if other else ""
