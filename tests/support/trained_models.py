"""Trained models of every kind in the folders of a project: heads, fine-tuned networks and a student of two tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.distill.config import DistillConfig
from pipeline.distill.run import distill
from pipeline.distill.setup import Paths
from pipeline.manifest import read
from pipeline.task import KIND, Kind, Task
from support import small_training
from support.teachers import TAPS, World

HEADS: dict[str, dict[str, Any]] = {"logistic": {}, "streaming_knn": {}, "ridge": {}}


class Models(World):
    """A project whose folder `data` is `root`; each run is fitted when it is first asked for."""

    def __init__(self, root: Path, **more: Any) -> None:
        taps = TAPS | {"early": {"node": "block1", "dtype": "float32"}}
        super().__init__(root, views=None, **({"taps": taps} | more))
        (root / "features" / "net").symlink_to(root / "features")
        for name in ("backbones", "tasks", "predictions"):
            (root / name).symlink_to(root)
        table = read(root / "manifests", "photos").sort_by("key")
        self.files = dict(zip(table["key"].to_pylist(), table["path"].to_pylist(), strict=True))

    def task(self, kind: Kind = "classification", targets: list[Any] | None = None) -> Path:
        """Write a task with the path of each sample."""
        path = super().task(kind, targets)
        table = Task.read(path).table.append_column("path", pa.array([self.files[key] for key in self.keys]))
        Task(table).write(path)
        return path

    def run(self, name: str) -> Path:
        """Return the folder of a run, which is made if need be."""
        folder = self.root / "models" / name
        if not folder.is_dir():
            getattr(self, f"_{name}")()
        return folder

    @property
    def marks(self) -> list[list[str]]:
        """Labels for several of them per sample."""
        return [sorted({label, "even" if row % 2 else "grey"}) for row, label in enumerate(self.labels)]

    @property
    def numbers(self) -> list[float]:
        """Numbers, larger for brighter pictures."""
        return [5.0 * len(label) + row / 10 for row, label in enumerate(self.labels)]

    def _heads(self) -> None:
        asked = {"pca": 3, "calibrate": "temperature", "search": "none", "validation": "split"}
        self.fit("heads", head=HEADS, inputs=[["late", "last"], "last"], **asked)

    def _marks(self) -> None:
        self.fit("marks", kind="multilabel", targets=self.marks, search="none")

    def _wide(self) -> None:
        self.fit("wide", inputs=["early"], search="none")

    def _numbers(self) -> None:
        self.fit("numbers", kind="regression", targets=self.numbers, head="ridge")

    def _drawn(self) -> None:
        self.fit("drawn", head="ridge", labels_per_class=[2, 4])

    def _tuned(self) -> None:
        self.finetune("tuned", epochs=2, learning_rate=0.01)

    def _tuned_marks(self) -> None:
        self.finetune("tuned_marks", kind="multilabel", targets=self.marks)

    def _tuned_numbers(self) -> None:
        self.finetune("tuned_numbers", kind="regression", targets=self.numbers, epochs=2, learning_rate=0.01)

    def _student(self) -> None:
        """A student of two tasks, of which one has a teacher."""
        self.run("tuned")
        self.taught("tuned", self.root / "teachers" / "tuned")
        table = Task.read(self.task()).table
        dark = pa.array(["dark" if label == "dark" else "light" for label in table["target"].to_pylist()])
        second = table.set_column(table.column_names.index("target"), "target", dark)
        Task(second.replace_schema_metadata({KIND: "classification"})).write(self.root / "brightness.parquet")
        small_training.backbone(self.root / "small", widths=(3, 4, 4), seed=5)
        paths = Paths(
            tasks=self.root,
            student=self.root / "small",
            manifests=self.root / "manifests",
            teachers=self.root / "teachers",
            models=self.root / "models",
            backbones=self.root,
            features=self.root / "features",
            model=self.root / "models" / "student",
            predictions=self.root / "student.parquet",
            curves=self.root / "curves" / "student",
            cache=self.root / "cache",
        )
        config = {"task": "task", "student": "small", "start": "scratch", "teacher": "tuned", "epochs": 1}
        config |= {"batch_size": 8, "device": "cpu", "learning_rate": 0.01, "extra_tasks": {"brightness": "none"}}
        config |= {"losses": {"labels": 0.1, "soft": {"weight": 0.9, "temperature": 2.0}}}
        distill(DistillConfig.model_validate(config), paths, datasets=["photos"])


def same(predicted: np.ndarray, expected: np.ndarray) -> bool:
    """Whether predictions are those expected: equal, or numbers that are close."""
    if expected.dtype == np.float64:
        return bool(np.allclose(predicted, expected, rtol=1e-5, atol=1e-5))
    return bool(np.array_equal(predicted, expected))
