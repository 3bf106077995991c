"""A small task with stored features, and a run over them: what the tests of fitting share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.fit.config import FitConfig
from pipeline.fit.run import Summary, fit
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.readers.sample_key import content_key
from pipeline.store import index, key_arrays
from pipeline.store.identity import address
from pipeline.store.shard_format import Layout
from pipeline.task import KIND, Kind, Task
from support import shards

TRAIN, VALIDATION, TEST = 6, 2, 3
DRAWS = 2
PLAIN: Mapping[str, Any] = {"search": "none", "validation": "split", "refit": False}
"""Settings of one fit to the training split: what most tests look at."""
DEFAULTS: Mapping[str, Any] = {"search": "auto", "validation": "auto", "refit": True}
"""What these settings are where none is given."""


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes."""

    root: Path

    @property
    def task(self) -> Path:
        return self.root / "tasks" / "pets.parquet"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions" / "run.parquet"

    def fit(self, *, inputs: Sequence[Any] = ("easy",), **settings: Any) -> list[Predictions]:
        """Fit, and read back what was predicted; with `PLAIN` settings, unless others are given."""
        config = FitConfig(task="pets", backbone="tiny", inputs=tuple(inputs), **{**PLAIN, **settings})
        done = self.run(config)
        found = list(PredictionsFile.open(self.predictions))
        assert len(found) == done.fits == len(self.model()["fits"])
        return found

    def run(self, config: FitConfig) -> Summary:
        """Fit."""
        return fit(config, task=self.task, features=self.features, models=self.models, predictions=self.predictions)

    def model(self) -> Any:
        return json.loads((self.models / "model.json").read_text())


def write_task(path: Path, classes: Sequence[str], *, splits: Mapping[str, int], draws: int = DRAWS) -> Task:
    """A task with so many rows of each class in each split; in draw d the training rows rank from the d-th on."""
    rows = []
    for target in classes:
        for split, count in splits.items():
            for number in range(count):
                key = content_key(f"{target}-{split}-{number}".encode())
                ranks = {f"draw_{d}": (number - d) % count if split == "train" else -1 for d in range(draws)}
                rows.append({"key": key, "target": target, "split": split, **ranks})
    task = Task(pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"])))
    task.write(path)
    return task


def write_features(folder: Path, keys: Sequence[str], values: np.ndarray, *, weights: str = "0" * 64) -> None:
    """A features folder of two shards, its rows stored in the order of the keys."""
    order = np.argsort(key_arrays.from_hex(keys))
    held, values = key_arrays.from_hex(keys)[order], values[order].astype(np.float16)
    identity = {"node": folder.name, "pool": "none", "dtype": "float16", "weights": weights}
    layout = Layout(address(identity), "float16", values.shape[1:])
    records = [
        shards.write(folder, held[part], values[part], layout) for part in np.array_split(np.arange(len(held)), 2)
    ]
    index.commit(
        folder,
        identity=identity,
        layout=layout,
        shards=records,
        keys=np.array_split(held, 2),
        wanted=held,
        rejected={},
    )


def make(
    root: Path,
    classes: Sequence[str] = ("ape", "bee", "cat"),
    *,
    splits: Mapping[str, int] | None = None,
    draws: int = 2,
) -> Place:
    """A task, and three taps: `easy` tells the classes apart, `hard` hardly does, `flat` never."""
    place = Place(root)
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": TEST} if splits is None else splits
    task = write_task(place.task, classes, splits=sizes, draws=draws)
    random = np.random.default_rng(0)
    numbers = np.array([list(classes).index(target) for target in task.targets])
    easy = 8 * np.eye(len(classes))[numbers] + random.normal(size=(len(task), len(classes)))
    write_features(place.features / "easy", list(task.keys), easy)
    # Maps of 2×2: a head sees them flattened.
    hard = 0.8 * numbers[:, None, None] + random.normal(size=(len(task), 2, 2))
    write_features(place.features / "hard", list(task.keys), hard)
    write_features(place.features / "flat", list(task.keys), np.ones((len(task), 2)))
    return place


def retarget(place: Place, column: pa.Array, kind: Kind = "classification") -> Task:
    """Write the task with other targets, a value per row, of some kind."""
    table = Task.read(place.task).table
    number = table.column_names.index("target")
    task = Task(table.set_column(number, "target", column).replace_schema_metadata({KIND: kind}))
    task.write(place.task)
    return task
