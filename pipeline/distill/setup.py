"""Load the tasks, teachers and student of a run, and build the job of each training set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import files
from pipeline.backbones import serialization
from pipeline.backbones.classifier import last_layer, new_parts, start_from
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import Tap
from pipeline.backbones.user_code import digest_of_icecore
from pipeline.distill.config import DistillConfig
from pipeline.distill.dataset import NO_LABEL, DistillSamples, DistillSet, build_distill_set, label_targets
from pipeline.distill.feature_pairs import pairs_of
from pipeline.distill.loss import DistillationLoss, OutputSlice
from pipeline.distill.online_teacher import OnlineTeacher
from pipeline.distill.student import Student
from pipeline.distill.tasks import StudentTask, check_same_preprocessing, output_names
from pipeline.distill.tasks import student_tasks as subjects
from pipeline.errors import TrainingError
from pipeline.files import sha256_bytes
from pipeline.loading import image_cache as pixels
from pipeline.loading import samples as extracted
from pipeline.loading.image_cache import Pixels
from pipeline.loading.samples import Samples, stored
from pipeline.readers.augment import Views
from pipeline.settings.check import refuse
from pipeline.store import keys as key_arrays
from pipeline.task import Training
from pipeline.teach import verify
from pipeline.teach.config import BACKBONE
from pipeline.teach.teacher import Teacher
from pipeline.training import freezing
from pipeline.training.classifier_init import MOST_ROWS, Probe, fit_probe
from pipeline.training.config import LoopConfig
from pipeline.training.data import PixelSamples, normalise
from pipeline.training.initial import build_network
from pipeline.training.job import TrainingJob, packages
from pipeline.training.loop import TrainContext
from pipeline.training.losses import class_weights
from pipeline.training.targets import targets_of


@dataclass(frozen=True)
class Paths(files.Paths):
    """Where a run reads and writes. `tasks`, `teachers`, `models`, `backbones`, `features`: of all names."""

    tasks: Path
    student: Path
    manifests: Path
    teachers: Path
    models: Path
    backbones: Path
    features: Path
    model: Path
    predictions: Path
    curves: Path
    cache: Path


@dataclass(frozen=True)
class RunContext:
    """What all training sets of a run share.

    `extra`: keys of further samples. `hints`: the nodes of the teacher. `probes`: the heads that were fitted for each
    task, by training set.
    """

    config: DistillConfig
    subjects: Sequence[StudentTask]
    source: Backbone
    pixels: Pixels
    views: Views | None
    extra: np.ndarray
    hints: dict[str, Tap]
    live: OnlineTeacher | None
    probes: dict[str, list[Probe]] = field(default_factory=dict)


def load_run(config: DistillConfig, paths: Paths, *, datasets: Sequence[str]) -> RunContext:
    """Read tasks, teachers and student, see that they go together, and decode the samples.

    Of each teacher a handful of scores is computed again. Raises what `distill.distill` does.
    """
    found = subjects(config, tasks=paths.tasks, teachers=paths.teachers)
    refuse(config.unsuited(found[0].task.kind, validation=len(found[0].task.rows("validation")) > 0))
    source = serialization.read(paths.student)
    views = check_same_preprocessing(config, found, source.spec.input)
    every = tuple(dict.fromkeys([*datasets, *config.datasets]))
    extra = np.empty(0, key_arrays.DTYPE)
    if config.datasets:
        extra = extracted.read_samples(paths.manifests, config.datasets).keys
    keys = np.unique(np.concatenate([*(one.keys for one in found), extra]))
    samples = stored(paths.manifests, every, keys)
    for teacher in {one.name: one for subject in found for one in subject.teachers}.values():
        _verify(teacher, paths, samples, seed=config.seed)
    hints: dict[str, Tap] = {}
    live = None
    if config.online or config.losses.hint_names:
        teacher = found[0].teachers[0]
        folder = _network(teacher, paths)
        spec = serialization.read_spec(folder)
        nodes = {name: spec.node(name) for name in config.losses.hint_names}
        if config.online:
            columns = found[0].columns[0].tolist()
            live = OnlineTeacher(serialization.read(folder), source.spec.input, columns=columns, hints=nodes)
        else:
            for name in nodes:
                teacher.hint_shape(name)
        hints = {name: spec.taps[node] for name, node in nodes.items()}
    transforms = config.augment if views is None else views.augment
    decoded = pixels.decoded(source.spec.input, samples, folder=paths.cache / "pixels", transforms=transforms)
    return RunContext(config, found, source, decoded, views, extra, hints, live)


def build_job(run: RunContext, training: Training, found: DistillSet, fabric: Any) -> TrainingJob:
    """The student of a training set, its samples, and how it is trained."""
    config, spec, first = run.config, run.source.spec, run.subjects[0]
    branches = [one.branch for one in run.subjects]
    network, architecture = build_network(
        run.source,
        start=config.start,
        classifier=config.classifier,
        seed=config.seed,
        classes=branches[-1].stop,
    )
    frozen = freezing.prepare(network, spec, "full", batch_norm=config.batch_norm, new=new_parts(architecture))
    pairs = pairs_of(config.losses, spec, run.hints)
    objective = DistillationLoss(
        branches,
        config.losses,
        pairs,
        label_smoothing=config.label_smoothing,
        weights={one.name: _weights(run, number, found) for number, one in enumerate(run.subjects)},
    )
    chosen = first.task.rows("validation")
    told = label_targets(run.subjects, 0, chosen)
    validation = PixelSamples(run.pixels, told, first.keys[chosen], seed=0) if len(chosen) else None
    module = Student(network, spec, pairs, live=run.live, seed=config.seed)
    setting = TrainContext(config, objective, fabric, partial(_entered, run))
    probes: list[Probe] = []
    if config.classifier.is_fitted(config.start):
        last = last_layer(network, architecture)
        if str(training) not in run.probes:
            run.probes[str(training)] = [
                _probe(run, number, training, found, last, module, setting) for number in range(len(branches))
            ]
        probes = run.probes[str(training)]
        start_from(network, architecture, _joined(last, [*zip(branches, (one.linear for one in probes), strict=True)]))
        setting = replace(setting, fitted=probes[0].linear is not None)
    architectures = [spec.architecture, *([] if run.live is None else [run.live.architecture])]
    return TrainingJob(
        network,
        module,
        architecture,
        frozen,
        setting,
        targets_of(first.task, training.rows),
        DistillSamples(
            run.pixels,
            found,
            run.subjects,
            seed=config.seed,
            hints=config.losses.hint_names,
            transforms=config.augment,
            views=run.views,
            live=run.live is not None,
        ),
        validation,
        {
            "settings": config.model_dump(mode="json", exclude=set(LoopConfig.model_fields)),
            "loop": config.model_dump(mode="json", include=set(LoopConfig.model_fields)),
            "architecture": architecture,
            "weights": spec.weights_digest,
            "input": spec.input.model_dump(mode="json"),
            "teachers": [[one.addresses, dict(one.identity)] for subject in run.subjects for one in subject.teachers],
            "classes": output_names(run.subjects),
            "rows": {
                "train": _digest(found.keys, found.labels, found.known, found.truth),
                "validation": _digest(first.keys[chosen], told.labels.numpy()),
            },
            "code": digest_of_icecore("pipeline.distill.run"),
            "versions": packages(*architectures, from_pixels=True, probe=bool(probes)),
        },
        probes,
    )


def _probe(
    run: RunContext,
    number: int,
    training: Training,
    found: DistillSet,
    last: nn.Module,
    student: Student,
    setting: TrainContext,
) -> Probe:
    """Fit the head of one of the tasks to what the student is shown: to labels, and where there is none to teachers."""
    subject = run.subjects[number]
    labelled = found.labels[:, number] != NO_LABEL if run.config.reads_labels else np.zeros(len(found.keys), bool)
    rows = key_arrays.find(subject.keys, found.keys)
    own = np.unique(rows[labelled & (rows >= 0)])
    others = np.setdiff1d(rows[found.known[:, number] & (rows >= 0)], own)
    others = np.sort(np.random.default_rng(0).permutation(others)[:MOST_ROWS])
    targets = subject.task.targets.copy()
    if len(others):
        logits = subject.logits(subject.keys[others], None)
        several = subject.task.kind == "multilabel"
        targets[others] = logits > 0 if several else np.asarray(subject.classes, object)[logits.argmax(axis=1)]

    def clean(rows: np.ndarray) -> PixelSamples:
        return PixelSamples(run.pixels, label_targets(run.subjects, number, rows), subject.keys[rows], seed=0)

    shown = replace(training, rows=np.union1d(own, others))
    return fit_probe(subject.task, shown, last, student, clean, setting, targets=targets)


def _joined(last: nn.Module, parts: Sequence[tuple[OutputSlice, nn.Linear | None]]) -> nn.Linear:
    """Return the heads of all tasks as one layer; a task without a head has the outputs of the layer `last`."""
    weight, bias = last.get_parameter("weight").flatten(1), last.get_parameter("bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.load_state_dict({"weight": weight, "bias": bias})
        for branch, linear in parts:
            if linear is not None:
                layer.weight[branch.start : branch.stop] = linear.weight
                layer.bias[branch.start : branch.stop] = linear.bias
    return layer


def load_distill_set(run: RunContext, training: Training) -> DistillSet:
    """Return what is learned from in a training set.

    Raises TrainingError where that is nothing, and what `build_distill_set` does.
    """
    found = build_distill_set(
        run.subjects,
        training,
        unlabelled=run.config.unlabelled,
        extra=run.extra,
        labels=run.config.reads_labels,
    )
    if not len(found.keys):
        raise TrainingError(
            f"{run.subjects[0].path}, {training}: expected samples to learn from, got none: {found.left_out:,} are "
            "validation or test rows of a task. Let the tasks share their splits."
        )
    return found


def _verify(teacher: Teacher, paths: Paths, samples: Samples, *, seed: int) -> None:
    """Compute a handful of a teacher's scores again, of samples that it has."""
    rows = np.flatnonzero(teacher.has(samples.keys))
    rows = np.sort(np.random.default_rng(seed).choice(rows, min(verify.ROWS, len(rows)), replace=False))
    sources = sources_of(teacher, paths)
    inputs = serialization.read_spec(sources.network).input
    transforms = () if teacher.views is None else teacher.views.augment
    some = pixels.decoded(inputs, samples.take(rows), folder=paths.cache / "pixels", transforms=transforms)
    verify.recompute(teacher, sources, some, seed=seed)


def sources_of(teacher: Teacher, paths: Paths) -> verify.Sources:
    """What a teacher was made from, as it lies there now."""
    run, backbone = teacher.record["run"], teacher.record["settings"]["backbone"]
    if run == BACKBONE:
        return verify.Sources(paths.backbones / backbone)
    if teacher.identity["source"] == "network":
        return verify.Sources(paths.models / run / "backbone")
    return verify.Sources(paths.backbones / backbone, paths.models / run, paths.features / backbone)


def _network(teacher: Teacher, paths: Paths) -> Path:
    """The folder of the network of a teacher; raises TrainingError for a teacher that is a head."""
    if teacher.identity["source"] != "network":
        raise TrainingError(
            f"{teacher.folder}: expected a network as the teacher, to run in each step or to have nodes, got a head on "
            "stored features. Leave `teacher_outputs: online`, `hints`, `attention` and `relational` out, "
            "or take a run of finetune."
        )
    return sources_of(teacher, paths).network


def _weights(run: RunContext, number: int, found: DistillSet) -> Tensor | None:
    """The weights of the classes of a task, balanced over the samples that have a label."""
    one, labels = run.subjects[number], found.labels[:, number]
    known = labels != NO_LABEL
    own = number == 0 or run.config.class_weights == "balanced"  # weights by name are those of the run's task
    if run.config.class_weights == "none" or not own or not known.any():
        return None
    targets = labels[known]
    if one.task.kind == "multilabel":
        assert found.truth is not None, "there is such a task"
        targets = found.truth[known, one.branch.start : one.branch.stop]
    return class_weights(run.config.class_weights, targets, one.task.kind, one.classes)


def _entered(run: RunContext, batch: Tensor) -> Tensor:
    return normalise(batch, run.source.spec.input)


def _digest(*arrays: np.ndarray | None) -> str:
    return sha256_bytes(b"".join(one.tobytes() for one in arrays if one is not None))
