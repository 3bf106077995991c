"""The task: the target and the split of each sample.

`data/tasks/<task>.parquet` has one row per sample, sorted by key. The schema's metadata has the `kind`, under `rare`
the classes without training or test rows (`pipeline/split/rare.py`), and under `given` how the data fix the split:

    key      32 hex digits
    path     as in the manifest; the first path if several files have the same content
    target   the class, as text; in a multilabel task a list of classes, may be empty; in a regression float64
    split    train | validation | test
    domain   if the manifest has one
    group    if the task is split by groups
    level:<name>   if the task has levels: the coarser class of the row's class, as text
    draw_0 … if the task has few-shot draws: the row's rank within its class among the training rows, in the order of
             the draw. The training set with n labels per class has the rows with a rank below n, so that a larger
             training set contains the smaller ones.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.files import AnyPath, as_path, atomic, check_readable

SPLITS = ("train", "validation", "test")
Kind = Literal["classification", "multilabel", "regression"]
LEVEL = "level:"  # prefix of a level's name: a column
KIND = "kind"  # in the metadata of the schema, also of predictions
RARE = "rare"  # in the metadata of the schema
GIVEN = "given"  # in the metadata of the schema
OTHER = "other"  # the class that `rare: merge` makes
SHOWN = 8  # classes listed in a sentence
TYPES: dict[Kind, pa.DataType] = {
    "classification": pa.string(),
    "multilabel": pa.list_(pa.string()),
    "regression": pa.float64(),
}


class Task:
    """A task in memory: columns of equal length, sorted by key.

    >>> task = Task.read("data/tasks/photos.parquet")
    >>> task.kind, task.classes, len(task.keys_of("train"))
    ('classification', ['cat', 'dog'], 4)
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def read(cls, path: AnyPath) -> "Task":
        """Read a task file; raises DataError if it does not exist."""
        path = as_path(path, "Task.read: path")
        if not path.is_file():
            raise DataError(f"{path}: no such task. Run `icecore repro split@{path.stem}`.")
        check_readable(path)
        from pyarrow import parquet  # not at the top: settings need only the kinds of tasks

        return cls(parquet.read_table(path))

    def write(self, path: Path) -> None:
        """Write the task atomically."""
        from pyarrow import parquet

        with atomic(path) as temporary:
            parquet.write_table(self.table, temporary)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> np.ndarray:
        """Return the keys, as strings of 32 hex digits."""
        return np.asarray(self.table["key"])

    def paths_of(self, keys: np.ndarray) -> pa.Array:
        """Return the path of each key of the task; null in a task that was written without paths."""
        if "path" not in self.table.column_names:
            return pa.nulls(len(keys), pa.string())
        return self.table["path"].combine_chunks().take(pa.array(np.searchsorted(self.keys, keys)))

    @property
    def kind(self) -> Kind:
        """Return the kind of the task."""
        return cast(Kind, (self.table.schema.metadata or {}).get(KIND.encode(), b"classification").decode())

    @property
    def rare(self) -> dict[str, dict[str, int]]:
        """Return the classes that lack rows, each with its number of rows in the task, by what the split did with them.

        `merged`: merged to one class. `unlearnt`: left out, without training rows (in a multilabel task also labels of
        all training rows). `dropped`: left out, without test rows. `unmeasured`: without test rows, but learnt, with
        the number of training rows.
        """
        result: dict[str, dict[str, int]] = json.loads((self.table.schema.metadata or {}).get(RARE.encode(), b"{}"))
        return result

    @property
    def given(self) -> list[str]:
        """Return a sentence for each way in which the data, or `use`, fix the split; empty if only `sizes` does."""
        result: list[str] = json.loads((self.table.schema.metadata or {}).get(GIVEN.encode(), b"[]"))
        return result

    @property
    def targets(self) -> np.ndarray:
        """Return the target of each row: text (n,), bool (n, classes) if multilabel, float64 (n,) if a regression."""
        return array_of(self.table["target"], self.kind, self.classes)

    @property
    def classes(self) -> list[str]:
        """Return the classes, sorted; numbers are sorted by value. Empty for a regression."""
        if self.kind == "regression":
            return []
        column = self.table["target"].combine_chunks()
        names = (column.flatten() if self.kind == "multilabel" else column).unique().to_pylist()
        return sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))

    @property
    def draws(self) -> int:
        """Return the number of few-shot draws of the task."""
        return sum(name.startswith("draw_") for name in self.table.column_names)

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of a split."""
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def keys_of(self, split: str) -> list[str]:
        """Return the sorted keys of a split, such as for `features.subset(task.keys_of("train"))`."""
        keys: list[str] = self.table["key"].take(pa.array(self.rows(split))).to_pylist()
        return keys

    def few(self, draw: int, labels_per_class: int) -> np.ndarray:
        """Return the row numbers of the training set of a draw with `labels_per_class` labels."""
        rank = self.table[f"draw_{draw}"].to_numpy(zero_copy_only=False)
        return np.flatnonzero((rank >= 0) & (rank < labels_per_class))


def describe_rare(rare: Mapping[str, Mapping[str, int]], kind: Kind) -> list[str]:
    """Return a sentence for each way in which the split treated classes that lack rows; `rare` as in `Task.rare`."""
    what, leave = ("labels", "") if kind == "multilabel" else ("classes", ", with their rows")
    all_rows = " or all of them" if kind == "multilabel" else ""
    sentences = {
        "merged": f"lack training or test rows and are one, {OTHER!r}",
        "unlearnt": f"have no training row{all_rows} and are left out{leave}",
        "dropped": f"have no test row and are left out{leave}",
        "unmeasured": "have no test row: they are learnt and not measured",
    }
    rows = {"unmeasured": "training rows"}
    return [
        f"{_singular(f'1 {what} {sentence}') if len(rare[key]) == 1 else f'{len(rare[key]):,} {what} {sentence}'} "
        f"({rows.get(key, 'rows')}: {name_some(rare[key])})."
        for key, sentence in sentences.items()
        if key in rare
    ]


def _singular(sentence: str) -> str:
    """Convert a sentence about several classes or labels to the singular."""
    words = {"classes": "class", "labels": "label", "lack": "lacks", "have": "has", "are": "is", "they": "it"}
    words |= {"their": "its"}
    return " ".join(words.get(word, word) for word in sentence.split())


def name_some(rows: Mapping[str, int]) -> str:
    """Return the first classes with their rows, and the number of the others: `cat 3, dog 1, and 7 more`."""
    names = [f"{name} {count:,}" for name, count in list(rows.items())[:SHOWN]]
    return ", ".join(names) + (f", and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else "")


def array_of(column: pa.ChunkedArray, kind: Kind, classes: Sequence[str]) -> np.ndarray:
    """Convert a column of targets to an array: text (n,), bool (n, classes) or float64 (n,)."""
    if kind == "regression":
        return np.asarray(column, dtype=np.float64)
    if kind == "classification":
        return np.asarray(column)
    place = {name: number for number, name in enumerate(classes)}
    result = np.zeros((len(column), len(classes)), dtype=bool)
    for row, names in enumerate(column.to_pylist()):
        result[row, [place[name] for name in names]] = True
    return result


def column_of(targets: np.ndarray, kind: Kind, classes: Sequence[str]) -> pa.Array:
    """Convert an array of targets to a column: the inverse of `array_of`."""
    if kind == "multilabel":
        names = np.asarray(classes, dtype=object)
        return pa.array([names[row].tolist() for row in targets], TYPES[kind])
    return pa.array(targets, TYPES[kind])


@dataclass(frozen=True)
class Training:
    """A training set of a run: its row numbers in the task, labels per class and few-shot draw; None: all labels."""

    rows: np.ndarray
    labels: int | None
    draw: int | None

    def __str__(self) -> str:
        return "all" if self.labels is None else f"n{self.labels}-draw{self.draw}"


def training_sets(
    task: Task, labels_per_class: Sequence[int], *, where: str, draws: int | None = None
) -> Iterator[Training]:
    """Yield the training sets of a run: for each number of labels `draws` sets, or one per draw of the task.

    A class with fewer training rows than `labels_per_class` contributes all of them. Raises DataError if the task has
    no few-shot draws, and if no class has enough rows.
    """
    if not labels_per_class:
        rows = task.rows("train")
        if not len(rows):
            raise DataError(f"{where}: expected training rows, got none. Change the task's `sizes`.")
        yield Training(rows, None, None)
        return
    if task.kind != "classification":
        raise DataError(f"{where}: `labels_per_class` needs classes, and the task is a {task.kind}. Leave it out.")
    if not task.draws:
        raise DataError(f"{where}: `labels_per_class` needs few-shot draws. Give the task `few_shot` settings.")
    if draws is not None and task.draws < draws:
        raise DataError(
            f"{where}: expected {draws} few-shot draws, got {task.draws}. Give the task `few_shot` with as many."
        )
    all_rows = Counter(task.targets[task.rows("train")])
    for labels in labels_per_class:
        for draw in range(task.draws if draws is None else draws):
            rows = task.few(draw, labels)
            if labels > max(all_rows.values()) or len(rows) < sum(min(labels, own) for own in all_rows.values()):
                raise DataError(
                    f"{where}: expected {labels} training rows of each of {len(task.classes)} classes, got "
                    f"{len(rows)} in all. Raise `few_shot.labels_per_class` of the task, or use fewer labels."
                )
            yield Training(rows, labels, draw)
