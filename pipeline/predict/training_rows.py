"""The training rows of a run, and which of them are the nearest to others, by the run's features.

The similarity is the cosine of two feature rows less the mean of the training rows, as in an audit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.neighbours import Centred, centre
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.streaming.exact_search import nearest
from pipeline.streaming.rows import Rows
from pipeline.task import Kind, Task


@dataclass(frozen=True)
class TrainingRows:
    """Training samples with features: `numbers` are rows of the task, `mean` is the mean of their features `rows`."""

    task: Task
    numbers: np.ndarray
    rows: Rows
    mean: np.ndarray

    @classmethod
    def read(cls, task: Task, numbers: np.ndarray, taps: Sequence[Features]) -> "TrainingRows | None":
        """Read those rows of a task that all taps have; None where there are none, or no taps."""
        if not taps:
            return None
        keys = key_arrays.from_hex(task.keys[numbers])
        numbers = numbers[np.logical_and.reduce([np.isin(keys, tap.key_array) for tap in taps])]
        if not len(numbers):
            return None
        rows = Rows(taps, task.keys[numbers].tolist())
        return cls(task, numbers, rows, centre(rows).mean)

    def nearest(self, queries: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` nearest training rows of each query, nearest first, fewer where there are fewer.

        queries: an array or a row source of the width of the rows. Rows of the task int64 (queries, count), and the
        cosine of each, float64.
        """
        known = Centred(self.rows, self.mean)
        distances, numbers = nearest(Centred(queries, self.mean), known, min(count, len(self.numbers)))
        return self.numbers[numbers], 1 - distances.astype(np.float64)

    def keys(self, numbers: np.ndarray) -> list[str]:
        """Return the key of each row of the task, 32 hex digits."""
        return [str(key) for key in self._keys[numbers]]

    def paths(self, numbers: np.ndarray) -> list[str]:
        """Return the path of each row of the task, or its key in a task that was written without paths."""
        keys = self._keys[numbers]
        return [path or key for path, key in zip(self.task.paths_of(keys).to_pylist(), keys, strict=True)]

    def labels(self, numbers: np.ndarray) -> list[str]:
        """Return the target of each row of the task, as a person reads it."""
        return [text_of(self._targets[row], self.task.kind, self._classes) for row in numbers]

    @cached_property
    def _keys(self) -> np.ndarray:
        return self.task.keys

    @cached_property
    def _targets(self) -> np.ndarray:
        return self.task.targets

    @cached_property
    def _classes(self) -> list[str]:
        return self.task.classes


def learned_rows(task: Task, labels: int | None, draw: int | None) -> np.ndarray:
    """Return the rows of a task that a fit could learn from: of its draw, or all of the training split."""
    return task.rows("train") if labels is None or draw is None else task.few(draw, labels)


def taps_of(folder: Path, name: str, task: Task) -> list[Features]:
    """Open the features that an input stands for: its taps, or the narrowest tap of `folder` that has the whole task.

    `folder` holds the features of a backbone. A network that was trained has no stored features of its own, so that
    those of the backbone which it began with are taken; none where there are no such features.
    """
    own = [folder / tap for tap in name.split("+")]
    if all((path / "index.json").is_file() for path in own):
        return [Features.open(path) for path in own]
    opened = [Features.open(path.parent) for path in sorted(folder.glob("*/index.json"))]
    wanted = key_arrays.from_hex(task.keys)
    whole = [tap for tap in opened if np.isin(wanted, tap.key_array).all()]
    return sorted(whole, key=lambda tap: int(np.prod(tap.shape)))[:1]


def text_of(target: Any, kind: Kind, classes: Sequence[str]) -> str:
    """Return a target as a person reads it."""
    if kind == "regression":
        return f"{target:.4g}"
    if kind == "multilabel":
        return "; ".join(name for name, given in zip(classes, target, strict=False) if given) or "none"
    return str(target)
