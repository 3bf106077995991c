"""Prepare a data set, a network and a task, and fine-tune; benchmarks/finetune.py describes the measurements.

digits     handwritten digits; the network is trained here on printed characters
cifar10    4,000 lossless images of CIFAR-10 in $ICECORE_ASSETS, at 96 px; of ResNet-20 and ResNet-56 at their 32 px
and those of benchmarks/pictures.py, several of which are pooled where they are joined by +
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cifar_resnet
import numpy as np
import pictures
import pyarrow as pa
import torch

from pipeline import manifest
from pipeline.backbones.hooks import collect
from pipeline.backbones.spec import TapSpec
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import sha256_file
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.inputs import FromFeatures, FromPixels
from pipeline.finetune.setup import Paths, RunContext, build_job, load_run
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit as fit_heads
from pipeline.freeze.config import Module, Torchvision
from pipeline.freeze.run import freeze
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.pretrain.config import PretrainConfig
from pipeline.pretrain.run import pretrain
from pipeline.runtime import Reporter
from pipeline.sample.config import SampleConfig
from pipeline.sample.run import sample
from pipeline.task import Task, training_sets
from pipeline.training.config import BACKBONE, FROM_BACKBONE
from pipeline.training.data import Samples
from pipeline.training.job import TrainingJob
from pipeline.training.loop import evaluate, make_fabric, train

SIDE = 96  # to which images of CIFAR-10 are resized for networks of larger ones, px
FOLDERS = {"cifar10": "lossless"}  # what pictures.py calls them, where that is another name


@dataclass
class Fit:
    """A finished training run: its result, and the end times of its steps."""

    run: RunContext
    one: TrainingJob
    ends: list[float]
    accuracy: float

    def epoch(self, epochs: int) -> float:
        """Return the seconds of the fastest epoch, extrapolated from the time between its first and its last step."""
        return fastest(self.ends, epochs)


@dataclass(frozen=True)
class Place:
    """Folders of a data set and a network."""

    root: Path

    @property
    def paths(self) -> Paths:
        """Return the paths of a run."""
        root = self.root
        return Paths(
            task=root / "task.parquet",
            backbone=root / "backbone",
            manifests=root / "manifests",
            features=root / "features",
            start=None,
            model=root / "model",
            predictions=root / "predictions.parquet",
            curves=root / "curves",
            cache=root / "cache",
        )

    def extract(self, nodes: Iterable[str], *, views: Mapping[str, Any] | None = None) -> float:
        """Store unpooled rows of some nodes, float32; return the seconds."""
        taps = {named(node): TapSpec(node=node, dtype="float32") for node in nodes}
        config = ExtractConfig(datasets=("data",), taps=taps, engine="torch", views=views)
        where = {"backbone": self.paths.backbone, "manifests": self.paths.manifests, "out": self.paths.features}
        start = time.perf_counter()
        extract(config, **where, cache_root=self.root / "feature-cache")
        return time.perf_counter() - start

    def probe(self, name: str, tap: str, **params: Any) -> None:
        """Fit a logistic head on a tap, from which other runs may start."""
        fit_heads(
            FitConfig(task="task", backbone="net", inputs=(tap,), params=params, refit=False),
            task=self.paths.task,
            features=self.paths.features,
            models=self.root / "models" / name,
            predictions=self.root / "models" / f"{name}.parquet",
        )

    def begin(self, *, start: str = "backbone", **settings: Any) -> tuple[RunContext, TrainingJob]:
        """Set up a training run; `start`: also the name of a `probe`; by default a new classifier is random."""
        settings = {"classifier": {"init": "random"}} | settings if start == BACKBONE else settings
        config = FinetuneConfig(**{"task": "task", "backbone": "net", "start": start, "input": "pixels", **settings})
        paths = self.paths if start in FROM_BACKBONE else replace(self.paths, start=self.root / "models" / start)
        run = load_run(config, paths, datasets=("data",))
        (training,) = training_sets(run.task, (), draws=1, where="task")
        return run, build_job(run, training, make_fabric(config))

    def fit(
        self, *, begun: tuple[RunContext, TrainingJob] | None = None, samples: Samples | None = None, **settings: Any
    ) -> Fit:
        """Train; the accuracy is that on test rows. `begun`, `samples`: what is trained, and on what, instead."""
        run, one = begun or self.begin(**settings)
        ends = timed(one, self.root / "runs" / f"{time.monotonic_ns()}", samples=samples)
        test = run.task.rows("test")
        held = run.inputs.samples(test, one.targets.of(test), training=False, seed=0)
        accuracy = evaluate(one.module, held, one.context)["validation_accuracy"] if len(test) else float("nan")
        return Fit(run, one, ends, float(accuracy))


def timed(one: TrainingJob, folder: Path, *, samples: Samples | None = None) -> list[float]:
    """Train, on `samples` if given; return the end times of the steps."""
    ends: list[float] = []
    train(
        one.module,
        samples or one.samples,
        one.validation,
        one.context,
        one.trainable,
        folder=folder,
        reporter=Reporter(progress=lambda *_: ends.append(time.perf_counter())),
    )
    return ends


def fastest(ends: Sequence[float], epochs: int) -> float:
    """Return the seconds of the fastest epoch, from the end times of the steps, without the time between epochs."""
    steps = len(ends) // epochs
    parts = np.array(ends[: steps * epochs]).reshape(epochs, steps)
    return float((parts[:, -1] - parts[:, 0]).min()) * steps / max(1, steps - 1)


def named(node: str) -> str:
    """Return the name of the tap of a node."""
    return node.replace(".", "-")


def prefix_seconds(fit: Fit, node: str, *, epoch: int) -> float:
    """Time an epoch of reading pixels and running the frozen part of a network up to a node."""
    run, one = fit.run, fit.one
    assert isinstance(run.inputs, FromPixels), "pixels are read"
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in one.samples.batches(run.config.batch_size, epoch=epoch):
            images = one.context.enter(batch.inputs)
            collect(one.network, images, {"rows": TapSpec(node=node)}, run.source.spec.taps)
    return time.perf_counter() - start


def reading_seconds(fit: Fit, *, epoch: int) -> float:
    """Time an epoch of reading stored rows."""
    assert isinstance(fit.run.inputs, FromFeatures), "rows are read"
    start = time.perf_counter()
    for _ in fit.one.samples.batches(fit.run.config.batch_size, epoch=epoch):
        pass
    return time.perf_counter() - start


def placed(
    root: Path, data: str, model: str, *, images: int, sizes: Mapping[str, int], steps: int, size: int | None
) -> Place:
    """Prepare images, a network, and a task with a number of rows per class in each split, in the order of their keys.

    `steps`: of the network that is trained here; `size`: of images on their way into a model of torchvision, px.
    """
    place = Place(root)
    listed(place, data, images=images, sizes=sizes)
    if data == "digits":
        _pretrain(root, place.paths.backbone, steps)
    elif model in cifar_resnet.WEIGHTS:
        frozen_cifar(model, place.paths.backbone)
    else:
        file = pictures.weights_of(model, root)
        given = {"resize": size, "crop": (size, size)} if size else {}
        settings = {"source": "torchvision", "model": model, "weights": "IMAGENET1K_V1", "input": given}
        freeze(Torchvision(**settings, file=file, sha256=sha256_file(file)), place.paths.backbone, pretrained=root)
    return place


def listed(place: Place, data: str, *, images: int, sizes: Mapping[str, int]) -> None:
    """Unpack images, list them, and make the task."""
    root = place.root
    if data == "digits":
        sample(SampleConfig(source="digits"), root / "images")
        folders = [root / "images"]
    else:
        folders = [pictures.unpack(name, root, images) for name in FOLDERS.get(data, data).split("+")]
    if len(folders) == 1:
        for folder in folders[0].iterdir():  # what no split would take need not be extracted
            for path in sorted(folder.iterdir())[sum(sizes.values()) :]:
                path.unlink()
        config = PrepareConfig(root=folders[0])
    else:
        config = PrepareConfig(root=root, folders=[one.name for one in folders])
    prepare(config, ManifestPaths(place.paths.manifests, "data"))
    write_task(place.paths, sizes)


def frozen_cifar(model: str, folder: Path) -> None:
    """Freeze a ResNet for images of 32 × 32 px, with real weights if there are assets, otherwise with random ones."""
    given: dict[str, Any] = {"source": "module", "factory": f"cifar_resnet:{model}", "input": cifar_resnet.INPUT}
    own = pictures.assets()
    if own is None:
        freeze(Module(**given, seed=0), folder, pretrained=folder)
        return
    file = own / cifar_resnet.WEIGHTS[model]
    from_file = {"file": file, "sha256": sha256_file(file), "strip_prefix": cifar_resnet.PREFIX}
    freeze(Module(**given, **from_file), folder, pretrained=folder)


def _pretrain(root: Path, backbone: Path, steps: int) -> None:
    sample(SampleConfig(source="glyphs"), root / "glyphs")
    prepare(PrepareConfig(root=root / "glyphs"), ManifestPaths(root / "manifests", "glyphs"))
    pretrain(PretrainConfig(dataset="glyphs", steps=steps), backbone, manifests=root / "manifests")


def write_task(paths: Paths, sizes: Mapping[str, int]) -> None:
    """Write a task: assign the rows of each class to the splits in the order of their keys; leave out the rest."""
    table = manifest.read(paths.manifests, "data", ["key", "label"])
    keys, labels = (np.array(table[name].to_pylist()) for name in ("key", "label"))
    order: Sequence[int] = np.argsort(keys).tolist()
    taken: dict[str, int] = {}
    rows = []
    marks = [name for name, count in sizes.items() for _ in range(count)]
    for row in order:
        label = str(labels[row])
        place = taken.get(label, 0)
        taken[label] = place + 1
        if place < len(marks):
            rows.append({"key": str(keys[row]), "target": label, "split": marks[place]})
    Task(pa.Table.from_pylist(rows)).write(paths.task)
