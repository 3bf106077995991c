"""Load the tasks, teachers and student of a run, and build the job of each training set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.backbones import serialization
from pipeline.backbones.replace_classifier import init_from_linear, last_layer, new_modules
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import Tap
from pipeline.backbones.user_code import digest_of_icecore
from pipeline.distill.config import DistillConfig
from pipeline.distill.dataset import NO_LABEL, DistillSamples, DistillSet, build_distill_set, label_targets
from pipeline.distill.feature_pairs import pairs_of
from pipeline.distill.loss import DistillationLoss
from pipeline.distill.online_teacher import OnlineTeacher
from pipeline.distill.sources import Paths, open_network, verify_teacher
from pipeline.distill.student import Student
from pipeline.distill.task_probes import fit_task_probe, join_heads
from pipeline.distill.tasks import StudentTask, check_same_preprocessing, output_names, student_tasks
from pipeline.errors import TrainingError
from pipeline.files import sha256_bytes
from pipeline.loading import image_cache
from pipeline.loading.image_cache import Pixels
from pipeline.loading.samples import locate_samples, read_samples
from pipeline.readers.augment import Views
from pipeline.settings.check import refuse
from pipeline.store import key_arrays
from pipeline.task import Training, training_sets
from pipeline.training import freezing
from pipeline.training.build_network import build_network
from pipeline.training.config import LoopConfig
from pipeline.training.data import PixelSamples, normalise
from pipeline.training.job import TrainingJob, packages
from pipeline.training.linear_probe import Probe
from pipeline.training.loop import TrainContext
from pipeline.training.losses import class_weights
from pipeline.training.targets import targets_of

HEAD, INPUT = "distill", "pixels"  # names of the network and its inputs in predictions


@dataclass(frozen=True)
class RunContext:
    """The inputs that all training sets of a run share.

    extra: keys of further samples. hints: the teacher's taps by node. online: the teacher that runs in each step, or
    None. probes: the fitted heads of each task, by training set.
    """

    config: DistillConfig
    tasks: Sequence[StudentTask]
    trainings: Sequence[Training]
    source: Backbone
    pixels: Pixels
    views: Views | None
    extra: np.ndarray
    hints: dict[str, Tap]
    online: OnlineTeacher | None
    probes: dict[str, list[Probe]] = field(default_factory=dict)


def load_run(config: DistillConfig, paths: Paths, *, datasets: Sequence[str]) -> RunContext:
    """Read tasks, teachers and student, check that they match, and decode the samples.

    A few scores of each teacher are recomputed. Raises the errors of `distill`.
    """
    tasks = student_tasks(config, tasks=paths.tasks, teachers=paths.teachers)
    first = tasks[0]
    refuse(config.unsuited(first.task.kind, validation=len(first.task.rows("validation")) > 0))
    source = serialization.read(paths.student)
    views = check_same_preprocessing(config, tasks, source.spec.input)
    extra = np.empty(0, key_arrays.DTYPE)
    if config.datasets:
        extra = read_samples(paths.manifests, config.datasets).keys
    keys = np.unique(np.concatenate([*(task.keys for task in tasks), extra]))
    samples = locate_samples(paths.manifests, tuple(dict.fromkeys([*datasets, *config.datasets])), keys)
    for teacher in {teacher.name: teacher for task in tasks for teacher in task.teachers}.values():
        verify_teacher(teacher, paths, samples, seed=config.seed)
    online, hints = open_network(config, first, paths, source.spec.input)
    transforms = config.augment if views is None else views.augment
    pixels = image_cache.load_pixels(source.spec.input, samples, folder=paths.cache / "pixels", transforms=transforms)
    trainings = list(training_sets(first.task, config.labels_per_class, draws=config.draws, where=str(first.path)))
    return RunContext(config, tasks, trainings, source, pixels, views, extra, hints, online)


def build_job(run: RunContext, distill_set: DistillSet, fabric: Any) -> TrainingJob:
    """Build the job of a training set: its student, samples, objective and settings."""
    config, spec, first = run.config, run.source.spec, run.tasks[0]
    branches = [task.branch for task in run.tasks]
    network, architecture = build_network(
        run.source,
        start=config.start,
        classifier=config.classifier,
        seed=config.seed,
        classes=branches[-1].stop,
    )
    trainable = freezing.prepare(network, spec, "full", batch_norm=config.batch_norm, new=new_modules(architecture))
    pairs = pairs_of(config.losses, spec, run.hints)
    objective = DistillationLoss(
        branches,
        config.losses,
        pairs,
        label_smoothing=config.label_smoothing,
        weights={task.name: _class_weights(run, number, distill_set) for number, task in enumerate(run.tasks)},
    )
    validation_rows = first.task.rows("validation")
    labels, validation_keys = label_targets(run.tasks, 0, validation_rows), first.keys[validation_rows]
    validation = PixelSamples(run.pixels, labels, validation_keys, seed=0) if len(validation_rows) else None
    module = Student(network, spec, pairs, online=run.online, seed=config.seed)
    context = TrainContext(config, objective, fabric, partial(normalise, inputs=spec.input))
    probes: list[Probe] = []
    if config.classifier.is_fitted(config.start):
        last = last_layer(network, architecture)
        name = str(distill_set.training)
        if name not in run.probes:
            run.probes[name] = [
                fit_task_probe(
                    run.tasks, number, distill_set, run.pixels, last, module, context, reads_labels=config.reads_labels
                )
                for number in range(len(run.tasks))
            ]
        probes = run.probes[name]
        heads = [probe.linear for probe in probes]
        init_from_linear(network, architecture, join_heads(last, list(zip(branches, heads, strict=True))))
        context = replace(context, fitted=heads[0] is not None)
    architectures = [spec.architecture, *([] if run.online is None else [run.online.architecture])]
    return TrainingJob(
        HEAD,
        INPUT,
        distill_set.training,
        network,
        module,
        architecture,
        trainable,
        context,
        targets_of(first.task, distill_set.training.rows),
        DistillSamples(
            run.pixels,
            distill_set,
            run.tasks,
            seed=config.seed,
            hints=config.losses.hint_names,
            transforms=config.augment,
            views=run.views,
            online=run.online is not None,
        ),
        validation,
        {
            "settings": config.model_dump(mode="json", exclude=set(LoopConfig.model_fields)),
            "loop": config.model_dump(mode="json", include=set(LoopConfig.model_fields)),
            "architecture": architecture,
            "weights": spec.weights_digest,
            "input": spec.input.model_dump(mode="json"),
            "teachers": [
                [teacher.addresses, dict(teacher.identity)] for task in run.tasks for teacher in task.teachers
            ],
            "classes": output_names(run.tasks),
            "rows": {
                "train": _digest(distill_set.keys, distill_set.labels, distill_set.known, distill_set.truth),
                "validation": _digest(validation_keys, labels.labels.numpy()),
            },
            "code": digest_of_icecore("pipeline.distill.run"),
            "versions": packages(*architectures, from_pixels=True, probe=bool(probes)),
        },
        probes,
        {
            "samples": len(distill_set.keys),
            "labelled": distill_set.labelled,
            "left_out": distill_set.left_out,
        },
    )


def load_distill_set(run: RunContext, training: Training) -> DistillSet:
    """Return the samples of a training set; raises TrainingError for none, and what `build_distill_set` does."""
    distill_set = build_distill_set(
        run.tasks,
        training,
        unlabelled=run.config.unlabelled,
        extra=run.extra,
        labels=run.config.reads_labels,
    )
    if not len(distill_set.keys):
        raise TrainingError(
            f"{run.tasks[0].path}, {training}: expected samples to learn from, got none: {distill_set.left_out:,} are "
            "validation or test rows of a task. Let the tasks share their splits."
        )
    return distill_set


def _class_weights(run: RunContext, number: int, distill_set: DistillSet) -> Tensor | None:
    """Return the weights of the classes of a task, balanced over the samples that have a label."""
    task, labels = run.tasks[number], distill_set.labels[:, number]
    known = labels != NO_LABEL
    own = number == 0 or run.config.class_weights == "balanced"  # weights by name are those of the run's task
    if run.config.class_weights == "none" or not own or not known.any():
        return None
    targets = labels[known]
    if task.task.kind == "multilabel":
        assert distill_set.truth is not None, "there is such a task"
        targets = distill_set.truth[known, task.branch.start : task.branch.stop]
    return class_weights(run.config.class_weights, targets, task.task.kind, task.classes)


def _digest(*arrays: np.ndarray | None) -> str:
    return sha256_bytes(b"".join(array.tobytes() for array in arrays if array is not None))
