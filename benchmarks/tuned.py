"""A data set, a network and a task, prepared, and a fine-tuning run on them: benchmarks/finetune.py says what is timed.

digits     handwritten digits; the network is trained here on printed characters
cifar10    4,000 lossless images of CIFAR-10 in $ICECORE_ASSETS, at 96 px
and those of benchmarks/pictures.py
"""

import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import torch

from pipeline import manifest
from pipeline.backbones.spec import TapSpec
from pipeline.backbones.taps import collect
from pipeline.extract import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import sha256_file
from pipeline.freeze import Torchvision
from pipeline.freeze.run import freeze
from pipeline.manifest import ManifestPaths
from pipeline.prepare import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.pretrain import PretrainConfig
from pipeline.pretrain.train import pretrain
from pipeline.sample import SampleConfig, sample
from pipeline.task import Task
from pipeline.training import FinetuneConfig
from pipeline.training.inputs import FromFeatures, FromPixels
from pipeline.training.loop import make_fabric, measure, train
from pipeline.training.ready import Paths, Prepared, Run, opened, prepared
from pipeline.training.samples import Samples
from pipeline.training_sets import training_sets

CIFAR = ("images/cifar10-png-train4000.tar", "cifar10-png-train4000/train/")
SIDE = 96  # to which images of CIFAR-10 are resized, px


@dataclass
class Fit:
    """A training that was run: what it trained, and when each of its steps ended."""

    run: Run
    one: Prepared
    ends: list[float]
    accuracy: float

    def epoch(self, epochs: int) -> float:
        """Seconds of the fastest epoch, from the end of its first step to that of its last, for all of its steps."""
        steps = len(self.ends) // epochs
        parts = np.array(self.ends[: steps * epochs]).reshape(epochs, steps)
        return float((parts[:, -1] - parts[:, 0]).min()) * steps / max(1, steps - 1)


@dataclass(frozen=True)
class Place:
    """Folders of a data set and a network."""

    root: Path

    @property
    def paths(self) -> Paths:
        """What a run is told."""
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
        """Store whole rows of some nodes, float32; seconds it took."""
        taps = {named(node): TapSpec(node=node, dtype="float32") for node in nodes}
        config = ExtractConfig(datasets=("data",), taps=taps, engine="torch", views=views)
        where = {"backbone": self.paths.backbone, "manifests": self.paths.manifests, "out": self.paths.features}
        start = time.perf_counter()
        extract(config, **where, cache_root=self.root / "feature-cache")
        return time.perf_counter() - start

    def begin(self, **settings: Any) -> tuple[Run, Prepared]:
        """A run that is ready to be trained."""
        config = FinetuneConfig(task="task", backbone="net", start="backbone", **settings)
        run = opened(config, self.paths, datasets=("data",))
        (training,) = training_sets(run.task, (), draws=1, where="task")
        return run, prepared(run, training, make_fabric(config))

    def fit(self, *, begun: tuple[Run, Prepared] | None = None, samples: Samples | None = None, **settings: Any) -> Fit:
        """Train; the accuracy is that on test rows. `begun`, `samples`: what is trained, and on what, instead."""
        run, one = begun or self.begin(**settings)
        ends: list[float] = []
        folder = self.root / "runs" / f"{time.monotonic_ns()}"
        train(
            one.module,
            samples or one.samples,
            one.validation,
            one.setting,
            one.frozen,
            folder=folder,
            progress=lambda *_: ends.append(time.perf_counter()),
        )
        test = run.task.rows("test")
        held = run.inputs.samples(test, one.targets.of(test), training=False, seed=0)
        accuracy = measure(one.module, held, one.setting)["validation_accuracy"] if len(test) else float("nan")
        return Fit(run, one, ends, float(accuracy))


def named(node: str) -> str:
    """The tap of a node."""
    return node.replace(".", "-")


def prefix_seconds(fit: Fit, node: str, *, epoch: int) -> float:
    """An epoch of reading pixels and running the frozen part of a network up to a node, and nothing else."""
    run, one = fit.run, fit.one
    assert isinstance(run.inputs, FromPixels), "pixels are read"
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in one.samples.batches(run.config.batch_size, epoch=epoch):
            images = one.setting.enter(batch.inputs)
            collect(one.network, images, {"rows": TapSpec(node=node)}, run.source.spec.taps)
    return time.perf_counter() - start


def reading_seconds(fit: Fit, *, epoch: int) -> float:
    """An epoch of reading stored rows, and nothing else."""
    assert isinstance(fit.run.inputs, FromFeatures), "rows are read"
    start = time.perf_counter()
    for _ in fit.one.samples.batches(fit.run.config.batch_size, epoch=epoch):
        pass
    return time.perf_counter() - start


def placed(
    root: Path, data: str, model: str, *, images: int, sizes: Mapping[str, int], steps: int, size: int | None
) -> Place:
    """Unpack images, list them, make the network and a task with so many rows of each class in each split.

    `steps`: of the network that is trained here; `size`: of images on their way into a model of torchvision, px.
    """
    place = Place(root)
    if data == "digits":
        sample(SampleConfig(source="digits"), root / "images")
        _pretrain(root, place.paths.backbone, steps)
    else:
        _unpack(data, root, images)
        file = pictures.weights_of(model, root)
        given = {"resize": size, "crop": (size, size)} if size else {}
        settings = {"source": "torchvision", "model": model, "weights": "IMAGENET1K_V1", "input": given}
        freeze(Torchvision(**settings, file=file, sha256=sha256_file(file)), place.paths.backbone, pretrained=root)
    where = {"digits": "images", "cifar10": "lossless"}.get(data, data)
    for folder in (root / where).iterdir():  # what no split would take need not be extracted
        for path in sorted(folder.iterdir())[sum(sizes.values()) :]:
            path.unlink()
    prepare(PrepareConfig(root=root / where), ManifestPaths(place.paths.manifests, "data"))
    _write_task(place.paths, sizes)
    return place


def _pretrain(root: Path, backbone: Path, steps: int) -> None:
    sample(SampleConfig(source="glyphs"), root / "glyphs")
    prepare(PrepareConfig(root=root / "glyphs"), ManifestPaths(root / "manifests", "glyphs"))
    pretrain(PretrainConfig(dataset="glyphs", steps=steps), backbone, manifests=root / "manifests")
    torch.use_deterministic_algorithms(False)


def _unpack(data: str, root: Path, images: int) -> None:
    own = pictures.assets()
    if data != "cifar10" or own is None:
        pictures.unpack(data, root, images)
        return
    archive, inside = CIFAR
    with tarfile.open(own / archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                tar.extract(member, root / "lossless", filter="data")


def _write_task(paths: Paths, sizes: Mapping[str, int]) -> None:
    """Rows of each class go to the splits in turn, in the order of their keys; those that are left over nowhere."""
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
