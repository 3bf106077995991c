"""Locate the files that a run's teachers were computed from, to verify their logits and to open their networks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.spec import InputSpec, Tap, read_spec
from pipeline.distill.config import DistillConfig
from pipeline.distill.online_teacher import OnlineTeacher
from pipeline.distill.tasks import StudentTask
from pipeline.errors import TrainingError
from pipeline.loading import image_cache
from pipeline.loading.samples import Samples
from pipeline.teach import verify
from pipeline.teach.config import BACKBONE
from pipeline.teach.teacher import Teacher
from pipeline.training.job import RunPaths


@dataclass(frozen=True)
class Paths(RunPaths):
    """The paths of a run. `tasks`, `teachers`, `models`, `backbones`, `features`: the folders of all of their kind."""

    tasks: Path
    student: Path
    teachers: Path
    models: Path
    backbones: Path
    features: Path


def verify_teacher(teacher: Teacher, paths: Paths, samples: Samples, *, seed: int) -> None:
    """Recompute a teacher's logits of a few samples and compare them; raises what `verify.recompute` raises."""
    rows = np.flatnonzero(teacher.has(samples.keys))
    rows = np.sort(np.random.default_rng(seed).choice(rows, min(verify.ROWS, len(rows)), replace=False))
    sources = sources_of(teacher, paths)
    inputs = read_spec(sources.network).input
    transforms = () if teacher.views is None else teacher.views.augment
    pixels = image_cache.load_pixels(inputs, samples.take(rows), folder=paths.cache / "pixels", transforms=transforms)
    verify.recompute(teacher, sources, pixels, seed=seed)


def sources_of(teacher: Teacher, paths: Paths) -> verify.Sources:
    """Return the folders that a teacher was computed from."""
    run, backbone = teacher.record["run"], teacher.record["settings"]["backbone"]
    if run == BACKBONE:
        return verify.Sources(paths.backbones / backbone)
    if teacher.identity["source"] == "network":
        return verify.Sources(paths.models / run / "backbone")
    return verify.Sources(paths.backbones / backbone, paths.models / run, paths.features / backbone)


def open_network(
    config: DistillConfig, task: StudentTask, paths: Paths, inputs: InputSpec
) -> tuple[OnlineTeacher | None, dict[str, Tap]]:
    """Return the online teacher, None for stored logits, and the tap of each hint by its node.

    inputs: the student's input. Raises TrainingError for a teacher that is a head, and for hints that are not stored.
    """
    if not (config.online or config.losses.hint_names):
        return None, {}
    teacher = task.teachers[0]
    if teacher.identity["source"] != "network":
        raise TrainingError(
            f"{teacher.folder}: expected a network as the teacher, to run in each step or to have nodes, got a head on "
            "stored features. Leave `teacher_outputs: online`, `hints`, `attention` and `relational` out, or take a "
            "run of finetune."
        )
    folder = sources_of(teacher, paths).network
    spec = read_spec(folder)
    nodes = {name: spec.node(name) for name in config.losses.hint_names}
    hints = {name: spec.taps[node] for name, node in nodes.items()}
    if config.online:
        columns = task.columns[0].tolist()
        return OnlineTeacher(serialization.read(folder), inputs, columns=columns, hints=nodes), hints
    for name in nodes:
        teacher.hint_shape(name)
    return None, hints
