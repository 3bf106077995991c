"""A distillation run: of each training set a student, trained on labels and on what teachers say, and its predictions.

    data/models/<run>/predictions/<task>.parquet    of further tasks, where the student has several

The teachers' scores come from the store, so that no teacher is in memory, or with `live` from its network in each step.
What was trained before, with the same settings, data, teachers, weights and code, comes from the cache.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones import artefact
from pipeline.backbones.artefact import Backbone
from pipeline.backbones.headed import new_parts
from pipeline.backbones.spec import Tap
from pipeline.errors import TrainingError
from pipeline.extract import samples as extracted
from pipeline.files import digest, sha256_bytes, sha256_file
from pipeline.predictions import Predictions, Writer
from pipeline.readers.augment import Views
from pipeline.runtime import Progress, silent, versions
from pipeline.store import keys as key_arrays
from pipeline.teach import BACKBONE
from pipeline.teach.teacher import Teacher
from pipeline.training import DistillConfig, LoopConfig, freezing, pixels, record
from pipeline.training.distillation import Distillation
from pipeline.training.inputs import normalised, stored
from pipeline.training.lesson import NO_LABEL, Lesson, LessonSamples, answers, lesson
from pipeline.training.live import Live
from pipeline.training.loop import Log, Setting, make_fabric, outputs, quiet
from pipeline.training.losses import class_weights
from pipeline.training.pairs import pairs_of
from pipeline.training.pixels import Pixels
from pipeline.training.ready import Prepared, code
from pipeline.training.record import Trained
from pipeline.training.samples import PixelSamples
from pipeline.training.start import begun
from pipeline.training.student import Student
from pipeline.training.subjects import Subject, check_pixels, output_names, subjects, told
from pipeline.training.targets import targets_of
from pipeline.training_sets import Training, training_sets

HEAD, INPUT = "distill", "pixels"  # what predictions call them


@dataclass(frozen=True)
class Paths:
    """Where a run reads and writes. `tasks`, `models`, `backbones`, `teachers`: folders with one of each name."""

    tasks: Path
    student: Path
    manifests: Path
    teachers: Path
    models: Path
    backbones: Path
    model: Path
    predictions: Path
    curves: Path
    cache: Path


@dataclass(frozen=True)
class Run:
    """What all training sets of a run share. `extra`: keys of further samples; `hints`: the nodes of the teacher."""

    config: DistillConfig
    subjects: Sequence[Subject]
    source: Backbone
    pixels: Pixels
    views: Views | None
    extra: np.ndarray
    hints: dict[str, Tap]
    live: Live | None


def distill(
    config: DistillConfig,
    paths: Paths,
    *,
    datasets: Sequence[str],
    progress: Progress = silent,
    log: Log = quiet,
    say: Log = quiet,
) -> dict[str, Any]:
    """Train, predict and write everything; return the record of the student that was kept.

    `datasets` have the samples of all tasks. `say` is told before anything is trained what is learned from. Raises
    TrainingError, BackboneError, ConfigError, StoreError or DataError where tasks, student, teachers and settings do
    not go together, and where training fails.
    """
    run = opened(config, paths, datasets=datasets)
    first = run.subjects[0]
    trainings = list(training_sets(first.task, config.labels_per_class, draws=config.draws, where=str(first.path)))
    lessons = [_lesson(run, training) for training in trainings]
    for training, found in zip(trainings, lessons, strict=True):
        say(_foreseen(run, training, found))
    fabric = make_fabric(config)
    steps = [config.epochs * math.ceil(math.ceil(len(one.keys) / config.batch_size) / config.accumulate)
             for one in lessons]  # fmt: skip
    rows = [record.measured(one.task, where=one.path) for one in run.subjects]
    best: Trained | None = None
    records = []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_writer(run, number, paths)) for number in range(len(run.subjects))]
        for number, (training, found) in enumerate(zip(trainings, lessons, strict=True)):
            one = prepared(run, training, found, fabric)
            trained = record.trained(
                one,
                training,
                head=HEAD,
                inputs=INPUT,
                folder=paths.cache / "training" / digest(one.made_from)[:32],
                curves=paths.curves / str(training),
                progress=partial(record.moved, progress, sum(steps[:number]), sum(steps)),
                log=partial(record.named, log, str(training)),
            )
            made = [_predictions(run, place, training, one, rows[place]) for place in range(len(run.subjects))]
            for writer, predictions in zip(writers, made, strict=True):
                writer.add(predictions)
            trained.record.update(
                samples=len(found.keys),
                labelled=found.labelled,
                left_out=found.left_out,
                also={one.name: _validated(some) for one, some in zip(run.subjects[1:], made[1:], strict=True)},
            )
            records.append(trained.record)
            best = trained if best is None or trained.order > best.order else best
    assert best is not None, "there is a training set"
    if fabric.is_global_zero:
        _write(run, best, records, paths)
        record.tidy(paths.cache)
    return best.record


def opened(config: DistillConfig, paths: Paths, *, datasets: Sequence[str]) -> Run:
    """Read tasks, teachers and student, see that they go together, and decode the samples; raises what `distill` does."""
    found = subjects(config, tasks=paths.tasks, teachers=paths.teachers)
    source = artefact.read(paths.student)
    views = check_pixels(config, found, source.spec.input)
    first = found[0].teachers[0] if found[0].teachers else None
    hints: dict[str, Tap] = {}
    live = None
    if first is not None and (config.live or config.losses.hint_names):
        network = _network(first, paths)
        nodes = {name: network.spec.node(name) for name in config.losses.hint_names}
        if config.live:
            columns = found[0].columns[0].tolist()
            live = Live(network, source.spec.input, columns=columns, hints=nodes)
        else:
            for name in nodes:
                first.hint_shape(name)
        hints = {name: network.spec.taps[node] for name, node in nodes.items()}
    extra = np.empty(0, key_arrays.DTYPE)
    if config.datasets:
        extra = extracted.read_samples(paths.manifests, config.datasets).keys
    keys = np.unique(np.concatenate([*(one.keys for one in found), extra]))
    every = tuple(dict.fromkeys([*datasets, *config.datasets]))
    samples = stored(paths.manifests, every, keys)
    decoded = pixels.decoded(source.spec.input, samples, folder=paths.cache / "pixels")
    return Run(config, found, source, decoded, views, extra, hints, live)


def prepared(run: Run, training: Training, found: Lesson, fabric: Any) -> Prepared:
    """The student of a training set, its samples, and how it is trained."""
    config, spec, first = run.config, run.source.spec, run.subjects[0]
    branches = [one.branch for one in run.subjects]
    network, architecture = begun(config, run.source, classes=branches[-1].stop)
    frozen = freezing.prepare(network, spec, "full", batch_norm=config.batch_norm, new=new_parts(architecture))
    pairs = pairs_of(config.losses, spec, run.hints)
    objective = Distillation(
        branches,
        config.losses,
        pairs,
        label_smoothing=config.label_smoothing,
        weights={one.name: _weights(run, number, found) for number, one in enumerate(run.subjects)},
    )
    chosen = first.task.rows("validation")
    told = answers(run.subjects, 0, chosen)
    validation = PixelSamples(run.pixels, told, first.keys[chosen], seed=0) if len(chosen) else None
    return Prepared(
        network,
        Student(network, spec, pairs, live=run.live, seed=config.seed),
        architecture,
        frozen,
        Setting(config, objective, fabric, partial(_entered, run)),
        targets_of(first.task, training.rows),
        LessonSamples(
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
            "code": code("teach"),
            "versions": versions("torch", "torchvision", "lightning-fabric"),
        },
    )


def _lesson(run: Run, training: Training) -> Lesson:
    found = lesson(
        run.subjects,
        training,
        unlabelled=run.config.unlabelled,
        extra=run.extra,
        labels=run.config.losses.reads_labels,
    )
    if not len(found.keys):
        raise TrainingError(
            f"{run.subjects[0].path}, {training}: expected samples to learn from, got none: {found.left_out:,} are "
            "validation or test rows of a task. Let the tasks share their splits."
        )
    return found


def _foreseen(run: Run, training: Training, found: Lesson) -> str:
    """What is learned from, in one line."""
    names = ", ".join(one.name for subject in run.subjects for one in subject.teachers)
    out = f"; {found.left_out:,} left out, which are validation or test rows of a task" if found.left_out else ""
    return f"{training}: {len(found.keys):,} samples an epoch, {found.labelled:,} with labels; teachers: {names or 'none'}{out}"


def _network(teacher: Teacher, paths: Paths) -> Backbone:
    """The network of a teacher, with the weights whose scores are stored."""
    name, run = teacher.record["settings"]["backbone"], teacher.record["run"]
    if teacher.identity["source"] != "network":
        raise TrainingError(
            f"{teacher.folder}: expected a network as the teacher, to run in each step or to have nodes, got a head on "
            "stored features. Leave `live`, `hints`, `attention` and `relational` out, or take a run of finetune."
        )
    folder = paths.backbones / name if run == BACKBONE else paths.models / run / "backbone"
    found = artefact.read(folder)
    if found.spec.weights_digest != teacher.identity["weights"]:
        raise TrainingError(
            f"{folder}: expected the weights {teacher.identity['weights'][:16]}…, whose scores {teacher.folder} has, got "
            f"{found.spec.weights_digest[:16]}…. Run `dvc repro teach@{teacher.name}`."
        )
    return found


def _weights(run: Run, number: int, found: Lesson) -> Tensor | None:
    """The weights of the classes of a task, balanced over the samples that have a label."""
    one, labels = run.subjects[number], found.labels[:, number]
    known = labels != NO_LABEL
    if run.config.class_weights == "none" or not known.any():
        return None
    targets = labels[known]
    if one.task.kind == "multilabel":
        assert found.truth is not None, "there is such a task"
        targets = found.truth[known, one.branch.start : one.branch.stop]
    return class_weights(run.config.class_weights, targets, one.task.kind, one.classes)


def _entered(run: Run, batch: Tensor) -> Tensor:
    return normalised(batch, run.source.spec.input)


def _writer(run: Run, number: int, paths: Paths) -> Writer:
    one = run.subjects[number]
    path = paths.predictions if number == 0 else paths.model / "predictions" / f"{one.name}.parquet"
    return Writer(path, one.task.kind, one.classes, {HEAD: record.scores_of(one.task)})


def _predictions(run: Run, number: int, training: Training, one: Prepared, rows: np.ndarray) -> Predictions:
    """Those of one of the tasks."""
    subject = run.subjects[number]
    samples = PixelSamples(run.pixels, answers(run.subjects, number, rows), subject.keys[rows], seed=0)
    logits = torch.cat([found.cpu() for found, _ in outputs(one.module, samples, one.setting)])
    own = logits[:, subject.branch.start : subject.branch.stop]
    return record.predictions(subject.task, rows, own, one.targets, training, head=HEAD, inputs=INPUT)


def _validated(found: Predictions) -> dict[str, Any]:
    """What model.json says of a further task: its validation rows alone, for the others are for nobody to choose by."""
    chosen = found.splits == "validation"
    right = found.predicted[chosen] == found.targets[chosen]
    right = right.all(axis=1) if right.ndim == 2 else right
    return {"validation_rows": int(chosen.sum()), "validation_accuracy": float(right.mean()) if len(right) else None}


def _digest(*arrays: np.ndarray | None) -> str:
    return sha256_bytes(b"".join(one.tobytes() for one in arrays if one is not None))


def _write(run: Run, best: Trained, records: list[dict[str, Any]], paths: Paths) -> None:
    first, *others = run.subjects
    config = run.config
    record.write(
        paths.model,
        best,
        records,
        head=HEAD,
        settings=config.model_dump(mode="json"),
        task=first.task,
        task_path=first.path,
        inputs=run.source.spec.input,
        classes=output_names(run.subjects),
        source="distilled",
        made_from=run.source.spec.weights_digest,
        features={},
        more={
            "student": config.student,
            "teachers": [line for subject in run.subjects for line in told(subject)],
            "losses": config.losses.model_dump(mode="json"),
            "also": [
                {"name": one.name, "sha256": sha256_file(one.path), "kind": one.task.kind, "classes": one.classes}
                for one in others
            ],
        },
    )
