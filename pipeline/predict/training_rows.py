"""The training rows of a run, and the nearest training rows of new images, by the run's features.

The similarity is the cosine of two feature rows after the mean of the training rows is subtracted, as in an audit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.neighbours import CentredRows, centre
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.streaming.exact_search import nearest
from pipeline.streaming.rows import Rows
from pipeline.task import Kind, Task


@dataclass(frozen=True)
class TrainingRows:
    """Training samples with features.

    numbers: their row numbers in the task. rows: their features. mean: the mean of the features.
    """

    task: Task
    numbers: np.ndarray
    rows: Rows
    mean: np.ndarray

    @classmethod
    def read(cls, task: Task, numbers: np.ndarray, taps: Sequence[Features]) -> "TrainingRows | None":
        """Read the rows of a task for which all taps have features; None if there are none, or no taps."""
        if not taps:
            return None
        keys = key_arrays.from_hex(task.keys[numbers])
        numbers = numbers[np.logical_and.reduce([np.isin(keys, tap.key_array) for tap in taps])]
        if not len(numbers):
            return None
        rows = Rows(taps, task.keys[numbers].tolist())
        return cls(task, numbers, rows, centre(rows).mean)

    def nearest(self, queries: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` nearest training rows of each query, nearest first; fewer if there are fewer rows.

        queries: an array or a row source, as wide as `rows`. Returns row numbers of the task, int64 (queries, count),
        and their cosines, float64.
        """
        known = CentredRows(self.rows, self.mean)
        distances, numbers = nearest(CentredRows(queries, self.mean), known, min(count, len(self.numbers)))
        return self.numbers[numbers], 1 - distances.astype(np.float64)

    def keys(self, numbers: np.ndarray) -> list[str]:
        """Return the key of each row of the task, 32 hex digits."""
        return [str(key) for key in self._keys[numbers]]

    def paths(self, numbers: np.ndarray) -> list[str]:
        """Return the path of each row of the task, or its key if the task has no paths."""
        keys = self._keys[numbers]
        return [path or key for path, key in zip(self.task.paths_of(keys).to_pylist(), keys, strict=True)]

    def labels(self, numbers: np.ndarray) -> list[str]:
        """Return the target of each row of the task as text."""
        return [describe_target(self._targets[row], self.task.kind, self._classes) for row in numbers]

    @cached_property
    def _keys(self) -> np.ndarray:
        return self.task.keys

    @cached_property
    def _targets(self) -> np.ndarray:
        return self.task.targets

    @cached_property
    def _classes(self) -> list[str]:
        return self.task.classes


def fitted_rows(task: Task, labels: int | None, draw: int | None) -> np.ndarray:
    """Return the rows of a task that a fit used for training: those of its draw, or the whole training split."""
    return task.rows("train") if labels is None or draw is None else task.few(draw, labels)


def open_taps(folder: Path, name: str, task: Task) -> list[Features]:
    """Open the taps of an input; for a trained network, the narrowest tap of its backbone that has the whole task.

    folder: the features of a backbone. name: the input of a fit, such as `block2+block3`. A trained network has no
    stored features, so that those of the backbone it started from are used. The list is empty if these are missing.
    """
    own = [folder / tap for tap in name.split("+")]
    if all((path / "index.json").is_file() for path in own):
        return [Features.open(path) for path in own]
    taps = [Features.open(path.parent) for path in sorted(folder.glob("*/index.json"))]
    wanted = key_arrays.from_hex(task.keys)
    complete = [tap for tap in taps if np.isin(wanted, tap.key_array).all()]
    return sorted(complete, key=lambda tap: int(np.prod(tap.shape)))[:1]


def describe_target(target: Any, kind: Kind, classes: Sequence[str]) -> str:
    """Return a target as text."""
    if kind == "regression":
        return f"{target:.4g}"
    if kind == "multilabel":
        return "; ".join(name for name, is_set in zip(classes, target, strict=False) if is_set) or "none"
    return str(target)
