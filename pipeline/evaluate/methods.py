"""The methods of a run: its fits by head, input and number of labels, checked against the task."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError, bullets
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.task import Task


class Method(NamedTuple):
    """A head on an input with a number of labels per class, fitted once per draw; `labels` is None for all labels."""

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
        """Return the fits of a method, one per draw, with only their test rows."""
        return [subset(fit, fit.splits == "test") for fit in self.fits[method]]


def read(predictions: Path, task: Path) -> Methods:
    """Read the predictions of a run, check them against the task, and return them by method.

    Raises DataError for predictions of another kind of task, classes or samples that the task lacks, targets that
    differ from the task, missing test rows, and fits with different test rows.
    """
    file, truth = PredictionsFile.open(predictions), Task.read(task)
    again = f"Run {predictions.stem!r} again, as `icecore repro` does."
    if file.kind != truth.kind:
        raise DataError(f"{predictions}: expected predictions of a {truth.kind} task, got {file.kind}. {again}")
    foreign = sorted(set(file.classes) - set(truth.classes))
    if foreign:
        raise DataError(f"{predictions}: expected classes of {task}, got {', '.join(foreign[:12])}. {again}")
    # Runs are compared column by column: equal columns must be equal classes, whatever order a file has.
    file = replace(file, classes=sorted(file.classes, key=truth.classes.index))
    order = [truth.classes.index(name) for name in file.classes]
    targets = truth.targets[:, order] if truth.kind == "multilabel" else truth.targets
    fits: dict[Method, list[Predictions]] = {}
    problems, tested, all_keys = [], np.empty(0, dtype=np.int64), truth.keys
    keys, rows = np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
    for fit in file:
        method = Method(fit.head, fit.input, fit.labels)
        fits.setdefault(method, []).append(fit)
        if not np.array_equal(keys, fit.keys):  # the keys of consecutive fits are nearly always equal
            keys, rows = fit.keys, np.searchsorted(all_keys, fit.keys)
        problem = _problem(fit, file, rows, all_keys, targets)
        test = rows[fit.splits == "test"]
        where = " ".join(str(word) for word in (*method, fit.draw) if word is not None)
        if not problem and not len(test):
            raise DataError(f"{predictions}: the task has no test rows. Give its `sizes` a test share.")
        if not problem and len(tested) and not np.array_equal(tested, test):
            common = len(np.intersect1d(tested, test))
            problem = f"expected the {len(tested)} test rows of the first fit, got {len(test)}; {common} are in both"
        if problem:
            problems.append(f"{where}: {problem}")
        elif not len(tested):
            tested = test
    if problems:
        raise DataError(bullets(f"{predictions}: predictions that do not fit {task}. {again}", problems[:12]))
    return Methods(file, truth, fits, tested)


def subset(fit: Predictions, rows: np.ndarray) -> Predictions:
    """Return some rows of the predictions of a fit; `rows` are numbers or bools."""
    names = ("keys", "splits", "targets", "predicted", "scores")
    return replace(fit, **{name: getattr(fit, name)[rows] for name in names})


def _problem(fit: Predictions, file: PredictionsFile, rows: np.ndarray, keys: np.ndarray, targets: np.ndarray) -> str:
    """Return the error in a fit whose samples are `rows` of the task, or an empty string."""
    known = keys[np.minimum(rows, len(keys) - 1)] == fit.keys
    if not known.all():
        return f"{(~known).sum()} of {len(known)} samples are not in the task"
    if file.kind == "classification" and (foreign := sorted(set(fit.predicted) - set(file.classes))):
        return f"predicted classes that the task does not have: {', '.join(foreign[:12])}"
    same = targets[rows] == fit.targets
    other = (~(same.all(axis=1) if same.ndim == 2 else same)).sum()
    return f"{other} of {len(rows)} targets differ from the task" if other else ""
