"""The task: which sample has which target and stands in which split.

`data/tasks/<task>.parquet`, a row a sample, sorted by key:

    key      32 hex digits
    target   the class, as text
    split    train | validation | test
    domain   where the manifest has one
    group    where the task is split by groups
    draw_0 … where the task has few-shot draws: the row's rank within its class among the training rows, in the
             order of draw 0 …; the training set with n labels a class of that draw is the rows with a rank below n.
             A larger n contains the smaller ones.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import atomic

SPLITS = ("train", "validation", "test")


class Task:
    """A task in memory: columns of equal length, sorted by key."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def read(cls, path: Path) -> "Task":
        """Read a task file; raises DataError if it does not exist."""
        if not path.is_file():
            raise DataError(f"{path}: no such task. Run `dvc repro split@{path.stem}`.")
        return cls(pq.read_table(path))

    def write(self, path: Path) -> None:
        """Write the task in one piece."""
        with atomic(path) as temporary:
            pq.write_table(self.table, temporary)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> np.ndarray:
        """The keys, as text of 32 hex digits."""
        return np.asarray(self.table["key"])

    @property
    def targets(self) -> np.ndarray:
        """The class of each row, as text."""
        return np.asarray(self.table["target"])

    @property
    def classes(self) -> list[str]:
        """The classes, sorted; numbers in the order of their values."""
        names = pc.unique(self.table["target"]).to_pylist()
        return sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))

    @property
    def draws(self) -> int:
        """How many few-shot draws the task has."""
        return sum(name.startswith("draw_") for name in self.table.column_names)

    def rows(self, split: str) -> np.ndarray:
        """The row numbers of a split."""
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def keys_of(self, split: str) -> list[str]:
        """The keys of a split, in their order: `features.subset(task.keys_of("train"))` is its view of a tap."""
        keys: list[str] = self.table["key"].take(pa.array(self.rows(split))).to_pylist()
        return keys

    def few(self, draw: int, labels_per_class: int) -> np.ndarray:
        """The row numbers of the training set of one draw with so many labels a class."""
        rank = self.table[f"draw_{draw}"].to_numpy(zero_copy_only=False)
        return np.flatnonzero((rank >= 0) & (rank < labels_per_class))
