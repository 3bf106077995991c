"""A small teacher, a smaller student, and samples with what the teacher says of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.hooks import collect
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.distill.feature_pairs import pairs_of
from pipeline.distill.loss import DistillationLoss, OutputSlice
from pipeline.distill.losses_config import LossesConfig
from pipeline.distill.online_teacher import OnlineTeacher
from pipeline.distill.student import Output, Student
from pipeline.distill.targets import DistillTargets
from pipeline.store import key_arrays
from pipeline.training.data import Batch, Samples
from pipeline.training.loop import TrainContext
from support import small_training

NODES = {"block2": "block2", "last": "penultimate"}
"""The teacher's hints by name."""

EVERYTHING: dict[str, Any] = {
    "labels": [0.5, 0.1],
    "soft": {"weight": 0.9, "temperature": 4.0},
    "decoupled": {"weight": 0.2, "temperature": 2.0},
    "hints": [
        {"weight": 0.5, "student": "block3", "teacher": "block2"},
        {"weight": 0.1, "student": "penultimate", "teacher": "last"},
    ],
    "attention": [{"weight": 1.0, "student": "block2", "teacher": "block2"}],
    "relational": {"distance": 1.0, "angle": 2.0, "teacher": "last"},
}


@dataclass
class TaughtSamples:
    """Samples with signals: those of a teacher's network, computed once, or none."""

    inner: Samples
    signals: DistillTargets
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.inner.shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Each batch with the signals of its keys."""
        for batch in self.inner.batches(size, epoch=epoch, start=start):
            yield replace(batch, targets=self.signals[torch.from_numpy(key_arrays.find(self.keys, batch.keys))])


class RecordedLoss(DistillationLoss):
    """Distillation that notes the mean loss of each batch."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.curve: list[float] = []

    def __call__(self, output: Output, targets: DistillTargets) -> Tensor:
        """As it is."""
        found = super().__call__(output, targets)
        self.curve.append(found.mean().item())
        return found


@dataclass
class StudentTraining:
    """All that a training of a student needs."""

    backbone: Backbone
    student: Student
    context: TrainContext
    objective: RecordedLoss
    samples: TaughtSamples
    validation: TaughtSamples
    trainable: Any


def teacher(folder: Path) -> Backbone:
    """A network of other widths and weights than the student."""
    found = small_training.backbone(folder, widths=(6, 5, 8), seed=3)
    torch.manual_seed(4)
    for part in found.module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.bias, -0.5, 0.5)
    return found


def taught_samples(count: int, source: Backbone | None, *, seed: int = 0) -> TaughtSamples:
    """Every third row has no label; each has what the teacher says, if there is one."""
    inner = small_training.samples(count, seed=seed)
    labels = inner.targets.clone()[:, None]
    if seed == 0:
        labels[::3] = -1
    logits, hints = torch.zeros(count, 0), {}
    if source is not None:
        (batch,) = inner.batches(count)
        specs = {name: TapSpec(node=node) for name, node in (NODES | {"logits": "logits"}).items()}
        source.module.eval()
        with torch.no_grad():
            hints = collect(source.module, small_training.enter(batch.inputs), specs, source.spec.taps)
        logits = hints.pop("logits")
    known = torch.full((count, 1), source is not None)
    return TaughtSamples(inner, DistillTargets(labels, logits, known, hints), inner.keys)


def student_training(
    folder: Path, *, rows: int = 24, live: bool = False, losses: Any = None, batch_norm: str = "train", **settings: Any
) -> StudentTraining:
    """A fresh student of widths (4, 4, 4); `folder` gets the backbones."""
    source, found = teacher(folder / "teacher"), small_training.backbone(folder / "student")
    config = LossesConfig.model_validate(losses or EVERYTHING)
    hints = {name: source.spec.taps[node] for name, node in NODES.items()}
    pairs = pairs_of(config, found.spec, hints)
    running = OnlineTeacher(source, found.spec.input, hints=NODES) if live else None
    branch = OutputSlice("bright", "classification", 0, small_training.CLASSES)
    plain = small_training.setting(**settings)
    objective = RecordedLoss([branch], config, pairs)
    return StudentTraining(
        found,
        Student(found.module, found.spec, pairs, online=running, seed=7),
        TrainContext(plain.config, objective, plain.fabric, small_training.enter),
        objective,
        taught_samples(rows, None if live else source),
        taught_samples(12, None, seed=1),
        small_training.all_of(found, batch_norm=batch_norm),
    )
