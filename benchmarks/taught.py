"""Prepare teachers and a student on a data set, and run the student: benchmarks/distill.py says what is measured.

A `School` is a folder with a task, manifests, networks below `backbones/`, runs below `models/` and teachers below
`teachers/`, as a project has them; the student is the backbone `student`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cifar_resnet
import numpy as np
import safetensors.torch
import torch
import tuned
from torch import Tensor, nn
from tuned import Place

from pipeline.backbones import glyphs, serialization
from pipeline.distill.config import DistillConfig
from pipeline.distill.dataset import label_targets
from pipeline.distill.setup import RunContext, build_job, load_distill_set, load_run
from pipeline.distill.sources import Paths
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.freeze.config import Module
from pipeline.freeze.run import freeze
from pipeline.task import Task, training_sets
from pipeline.teach.config import BACKBONE, TeachConfig
from pipeline.teach.outputs import Paths as TeachPaths
from pipeline.teach.run import teach
from pipeline.training import checkpoint
from pipeline.training.data import PixelSamples
from pipeline.training.job import TrainingJob
from pipeline.training.loop import make_fabric, predict_logits

TEACHER, STUDENT = "teacher", "student"
SOFT = {"labels": 0.1, "soft": {"weight": 0.9, "temperature": 4.0}}
LABELS = {"labels": 1.0}
SMALL = (12, 24, 48)  # channels of the student of digits, of 32, 64 and 128
FACTORIES = {
    "resnet20": ("cifar_resnet:resnet20", "classes"),
    "resnet56": ("cifar_resnet:resnet56", "classes"),
    "resnet50": ("torchvision.models:resnet50", "num_classes"),
    "mobilenet_v2": ("torchvision.models:mobilenet_v2", "num_classes"),
}
"""Networks by name: their factories, and the argument that is the number of classes."""


@dataclass
class Learned:
    """A trained student: the end times of its steps, and its predictions of test rows with the weights of two epochs.

    last, best, truth: numbers of classes, int64 (rows,).
    """

    one: TrainingJob
    ends: list[float]
    last: np.ndarray
    best: np.ndarray
    truth: np.ndarray

    def accuracy(self, predicted: np.ndarray) -> float:
        """Return the accuracy of predictions of test rows."""
        return float(np.mean(predicted == self.truth))


@dataclass(frozen=True)
class School:
    """Folders of a task, its teachers and a student. `run`: whose network or head teaches, or backbone: by itself."""

    root: Path
    datasets: tuple[str, ...] = ("data",)
    run: str = BACKBONE

    @property
    def place(self) -> Place:
        """Return the folders of a fine-tuning run."""
        return Place(self.root)

    @property
    def paths(self) -> Paths:
        """Return the paths of a student's run."""
        root = self.root
        return Paths(
            tasks=root,
            student=root / "backbones" / STUDENT,
            manifests=root / "manifests",
            teachers=root / "teachers",
            models=root / "models",
            backbones=root / "backbones",
            features=root / "features",
            model=root / "models" / "learned",
            predictions=root / "models" / "learned.parquet",
            curves=root / "curves",
            cache=root / "cache",
        )

    def teach(self, **settings: Any) -> float:
        """Store a teacher's logits of all samples; return the seconds."""
        config = TeachConfig(run=self.run, backbone=TEACHER, datasets=self.datasets, engine="torch", **settings)
        paths = TeachPaths(
            run=None if self.run == BACKBONE else self.paths.models / self.run,
            backbone=self.paths.backbones / TEACHER,
            features=self.paths.features / TEACHER,
            manifests=self.paths.manifests,
            out=self.paths.teachers / TEACHER,
            cache=self.root / "feature-cache",
        )
        start = time.perf_counter()
        teach(config, paths)
        return time.perf_counter() - start

    def begin(
        self, *, teacher: str = TEACHER, datasets: Sequence[str] = (), **settings: Any
    ) -> tuple[RunContext, TrainingJob]:
        """Set up the training of a student; `datasets`: data sets to learn from without labels."""
        losses = SOFT if teacher == TEACHER else LABELS
        given = {"start": "scratch", "losses": losses, "datasets": tuple(datasets), **settings}
        if given["start"] != "scratch":
            given.setdefault("classifier", {"init": "random"})
        config = DistillConfig(task="task", student=STUDENT, teacher=teacher, **given)
        run = load_run(config, self.paths, datasets=self.datasets)
        (training,) = training_sets(run.tasks[0].task, (), draws=1, where="task")
        return run, build_job(run, load_distill_set(run, training), make_fabric(config))

    def learn(self, *, begun: tuple[RunContext, TrainingJob] | None = None, **settings: Any) -> Learned:
        """Train a student, or that which is begun; the last weights, and those of the best validation."""
        run, one = begun or self.begin(**{"weights": "last", **settings})
        folder = self.root / "runs" / f"{time.monotonic_ns()}"
        ends = tuned.timed(one, folder)
        task = run.tasks[0].task
        truth = np.searchsorted(task.classes, task.targets[task.rows("test")])
        last = predicted(one.module, run, one)
        best = last
        if (folder / checkpoint.BEST).is_file():
            one.module.load_state_dict(safetensors.torch.load_file(folder / checkpoint.BEST))
            best = predicted(one.module, run, one)
        return Learned(one, ends, last, best, truth)


class Watched:
    """An objective that records the mean loss of each batch."""

    def __init__(self, goal: Any) -> None:
        self._goal = goal
        self.losses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._goal, name)

    def __call__(self, output: Any, targets: Any) -> Tensor:
        """Return the loss of each row."""
        found: Tensor = self._goal(output, targets)
        self.losses.append(float(found.detach().double().mean()))
        return found


def watched(begun: tuple[RunContext, TrainingJob]) -> tuple[tuple[RunContext, TrainingJob], Watched]:
    """Return the run with recorded losses."""
    run, one = begun
    goal = Watched(one.context.objective)
    return (run, replace(one, context=replace(one.context, objective=goal))), goal


def predicted(network: nn.Module, run: RunContext, one: TrainingJob) -> np.ndarray:
    """Return the index of the predicted class of each test row, int64 (rows,)."""
    rows = run.tasks[0].task.rows("test")
    samples = PixelSamples(run.pixels, label_targets(run.tasks, 0, rows), run.tasks[0].keys[rows], seed=0)
    found = [logits.argmax(dim=1).cpu() for logits, _ in predict_logits(network, samples, one.context)]
    return torch.cat(found).numpy() if found else np.empty(0, np.int64)


def said(run: RunContext) -> np.ndarray:
    """Return the index of the class that the teacher predicts for each test row, int64 (rows,)."""
    first = run.tasks[0]
    return first.logits(first.keys[first.task.rows("test")], None).argmax(axis=1)


def name_outputs(folder: Path, classes: Sequence[str]) -> None:
    """Give the outputs of a backbone class names, which a teacher needs."""
    found = serialization.read(folder)
    spec = found.spec
    written = {"architecture": spec.architecture, "origin": spec.origin, "inputs": spec.input}
    serialization.write(folder, found.module, **written, classes=classes)


def drawn(model: str, side: int, *, classes: int) -> Module:
    """Return the settings of a network with random weights, for images of a side in px."""
    factory, argument = FACTORIES[model]
    given = {**cifar_resnet.INPUT, "resize": [side, side]}
    return Module(source="module", factory=factory, arguments={argument: classes}, seed=0, input=given)


def of_pair(
    root: Path, data: str, teacher: str, student: str, *, images: int, sizes: Mapping[str, int], side: int, real: bool
) -> School:
    """Prepare a teacher and a student by their names; `real`: read the teacher's weights from the assets."""
    school = School(root)
    tuned.listed(school.place, data, images=images, sizes=sizes)
    classes = school_classes(school)
    folder = school.paths.backbones / TEACHER
    if real:
        tuned.frozen_cifar(teacher, folder)
    else:
        freeze(drawn(teacher, side, classes=len(classes)), folder, pretrained=root)
    name_outputs(folder, classes)
    freeze(drawn(student, side, classes=len(classes)), school.paths.student, pretrained=root)
    return school


def of_digits(root: Path, *, sizes: Mapping[str, int], steps: int, epochs: int) -> School:
    """Prepare digits, the network of printed characters fine-tuned on the training rows, and a smaller student."""
    school = School(root, run="tuned")
    tuned.placed(root, "digits", "", images=0, sizes=sizes, steps=steps, size=None)
    config = FinetuneConfig(
        task="task",
        backbone="net",
        start="backbone",
        input="pixels",
        batch_norm="train",
        epochs=epochs,
        learning_rate=0.002,
        classifier={"init": "random"},
    )
    folder = school.paths.models / school.run
    paths = replace(school.place.paths, model=folder, predictions=folder.with_suffix(".parquet"))
    finetune(config, paths, datasets=school.datasets)
    torch.manual_seed(0)
    classes = school_classes(school)
    serialization.write(
        school.paths.student,
        glyphs.GlyphNet(classes=len(classes), widths=SMALL),
        architecture={"family": "glyphs", "classes": len(classes), "widths": list(SMALL)},
        origin={"source": "random"},
        inputs=glyphs.INPUT,
    )
    return school


def school_classes(school: School) -> list[str]:
    """Those of the task."""
    return Task.read(school.root / "task.parquet").classes
