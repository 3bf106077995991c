"""Pictures, a backbone with its features and views, runs of fit and of finetune: what teachers are made of."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.finetune import setup as training
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.manifest import ManifestPaths, read
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.task import KIND, TYPES, Kind, Task
from pipeline.teach.config import TeachConfig
from pipeline.teach.outputs import Paths, TeachSummary
from pipeline.teach.run import teach
from pipeline.teach.teacher import Teacher
from pipeline.teach.verify import Sources
from support import small_training

CLASSES, EACH = ("dark", "grey", "white"), 12
TAPS = {"late": {"node": "block2", "pool": "mean"}, "last": {"node": "penultimate", "dtype": "float32"}}
AUGMENT = [{"name": "horizontal_flip"}, {"name": "rotation", "degrees": 20}]
VIEWS = {"count": 2, "augment": AUGMENT}


def write_photos(folder: Path, *, each: int = EACH, seed: int = 0) -> None:
    """Noise of three brightnesses, a folder each."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for sample in range(each):
            pixels = np.clip(random.normal(60 + 60 * number, 40, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{sample:02d}.png")


class World:
    """A project's folders, without the project."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.root = root
        self.add("photos")
        small_training.backbone(root / "net", widths=(4, 6, 8))
        self.extract(("photos",), **more)
        rows = read(root / "manifests", "photos").sort_by("key")
        self.keys, self.labels = rows["key"].to_pylist(), rows["label"].to_pylist()

    def add(self, name: str, **more: Any) -> None:
        """A data set."""
        write_photos(self.root / name, **more)
        prepare(PrepareConfig(root=self.root / name), ManifestPaths(self.root / "manifests", name))

    def extract(self, datasets: tuple[str, ...], **more: Any) -> None:
        """The features of the backbone."""
        asked = {"datasets": datasets, "taps": TAPS, "views": VIEWS, "engine": "torch", "batch_size": 16, **more}
        extract(
            ExtractConfig.model_validate(asked),
            backbone=self.root / "net",
            manifests=self.root / "manifests",
            out=self.root / "features",
            cache_root=self.root / "cache",
        )

    def task(self, kind: Kind = "classification", targets: list[Any] | None = None) -> Path:
        """Write a task: of each class 8 rows to train, 2 to validate and 2 to test."""
        place = [self.labels[:row].count(label) for row, label in enumerate(self.labels)]
        columns = {
            "key": pa.array(self.keys),
            "target": pa.array(self.labels if targets is None else targets, TYPES[kind]),
            "split": pa.array(["train" if one < 8 else "validation" if one < 10 else "test" for one in place]),
            "draw_0": pa.array([one if one < 8 else -1 for one in place]),
        }
        path = self.root / "task.parquet"
        Task(pa.table(columns).replace_schema_metadata({KIND: kind})).write(path)
        return path

    def fit(self, run: str, *, kind: Kind = "classification", targets: list[Any] | None = None, **asked: Any) -> Path:
        """A run of fit, with the parameters that heads have where none are searched."""
        config = {"task": "task", "backbone": "net", "inputs": ["last"], "head": "logistic", "search": "none", **asked}
        fit(
            FitConfig.model_validate(config),
            task=self.task(kind, targets),
            features=self.root / "features",
            models=self.root / "models" / run,
            predictions=self.root / f"{run}.parquet",
        )
        return self.root / "models" / run

    def finetune(
        self, run: str, *, kind: Kind = "classification", targets: list[Any] | None = None, **asked: Any
    ) -> Path:
        """A run of finetune, whose new classifier starts at random values: fitting one takes longer than the run."""
        config = {"task": "task", "backbone": "net", "start": "backbone", "input": "pixels"}
        config |= {"epochs": 1, "batch_size": 8, "device": "cpu"}
        config |= {"learning_rate": 0.001, "classifier": {"init": "random"}}
        paths = training.Paths(
            task=self.task(kind, targets),
            backbone=self.root / "net",
            manifests=self.root / "manifests",
            features=self.root / "features",
            start=None,
            model=self.root / "models" / run,
            predictions=self.root / f"{run}.parquet",
            curves=self.root / "curves" / run,
            cache=self.root / "cache",
        )
        finetune(FinetuneConfig.model_validate(config | asked), paths, datasets=["photos"])
        return self.root / "models" / run

    def paths(self, run: str, out: Path) -> Paths:
        """Those of a teacher."""
        return Paths(
            run=None if run == "backbone" else self.root / "models" / run,
            backbone=self.root / "net",
            features=self.root / "features",
            manifests=self.root / "manifests",
            out=out,
            cache=self.root / "cache",
        )

    def taught(self, run: str, out: Path, **asked: Any) -> TeachSummary:
        """Teach into a folder."""
        return teach(config(run, **asked), self.paths(run, out))

    def teacher(self, run: str, out: Path, **asked: Any) -> Teacher:
        """Teach, and open what came of it."""
        self.taught(run, out, **asked)
        return Teacher.open(out)

    def sources(self, run: str) -> Sources:
        """What the teacher of a run came from."""
        network = self.root / "models" / run / "backbone"
        if run == "backbone" or not network.is_dir():
            network = self.root / "net"
        return Sources(network, self.root / "models" / run, self.root / "features")


def config(run: str, **asked: Any) -> TeachConfig:
    """Settings of a teacher."""
    small = {"run": run, "backbone": "net", "datasets": ["photos"]}
    network = {} if "input" in asked or "head" in asked else {"engine": "torch", "batch_size": 16}
    return TeachConfig.model_validate(small | network | asked)


def copied(world: World, root: Path) -> World:
    """The same in another folder, to be changed; it shares the feature cache by its files."""
    shutil.copytree(world.root, root)
    other = object.__new__(World)
    other.root, other.keys, other.labels = root, world.keys, world.labels
    return other
