"""A distillation run: of each training set a student, trained on labels and on what teachers say, and its predictions.

    data/models/<run>/predictions/<task>.parquet    of further tasks, where the student has several

The scores of the teachers come from the store, so that no teacher is in memory; with `teacher_outputs: online` the
network of the teacher computes the scores in each step. A training with the same settings, data, teachers, weights and
code as an earlier one comes from the cache.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.distill.config import DistillConfig
from pipeline.distill.dataset import DistillSet, label_targets
from pipeline.distill.setup import Paths, RunContext, build_job, load_distill_set, load_run
from pipeline.distill.tasks import output_names, teacher_records
from pipeline.errors import counted
from pipeline.files import digest, sha256_file
from pipeline.predictions import Predictions, Writer
from pipeline.runtime import SILENT, Reporter, repeatable_kernels
from pipeline.task import Training, training_sets
from pipeline.training import outputs as record
from pipeline.training.data import PixelSamples
from pipeline.training.job import TrainingJob
from pipeline.training.loop import make_fabric, predict_logits, steps_per_epoch
from pipeline.training.lr_finder import with_rate
from pipeline.training.outputs import Trained

HEAD, INPUT = "distill", "pixels"  # what predictions call them


@repeatable_kernels()
def distill(
    config: DistillConfig,
    paths: Paths,
    *,
    datasets: Sequence[str],
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Train, predict and write everything; return the record of the student that was kept.

    `datasets` have the samples of all tasks. A message says before anything is trained what is learned from. Raises
    TrainingError, BackboneError, ConfigError, StoreError or DataError where tasks, student, teachers and settings do
    not go together, and where training fails.
    """
    run = load_run(config, paths, datasets=datasets)
    first = run.subjects[0]
    trainings = list(training_sets(first.task, config.labels_per_class, draws=config.draws, where=str(first.path)))
    lessons = [load_distill_set(run, training) for training in trainings]
    for training, found in zip(trainings, lessons, strict=True):
        reporter.message(_foreseen(run, training, found))
    fabric = make_fabric(config)
    most = max(range(len(lessons)), key=lambda number: len(lessons[number].keys))
    config = with_rate(
        config,
        lambda some: build_job(replace(run, config=some), trainings[most], lessons[most], fabric),
        cache=paths.cache,
        reporter=reporter,
    )
    run = replace(run, config=config)
    steps = [config.epochs * steps_per_epoch(len(one.keys), config) for one in lessons]
    rows = [record.evaluation_rows(one.task, where=one.path) for one in run.subjects]
    best: Trained | None = None
    records = []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_writer(run, number, paths)) for number in range(len(run.subjects))]
        for number, (training, found) in enumerate(zip(trainings, lessons, strict=True)):
            one = build_job(run, training, found, fabric)
            trained = record.train_or_load(
                one,
                training,
                head=HEAD,
                inputs=INPUT,
                folder=paths.cache / "training" / digest(one.made_from)[:32],
                curves=paths.curves / str(training),
                reporter=reporter.part(sum(steps[:number]), sum(steps)).named(str(training)),
            )
            made = [_predictions(run, place, training, one, rows[place]) for place in range(len(run.subjects))]
            for writer, predictions in zip(writers, made, strict=True):
                writer.add(predictions)
            trained.record.update(
                samples=len(found.keys),
                labelled=found.labelled,
                left_out=found.left_out,
                extra_tasks={one.name: _validated(some) for one, some in zip(run.subjects[1:], made[1:], strict=True)},
            )
            records.append(trained.record)
            best = trained if best is None or trained.order > best.order else best
    assert best is not None, "there is a training set"
    if fabric.is_global_zero:
        _write(run, best, records, paths)
        record.prune_training_cache(paths.cache)
    return best.record


def _foreseen(run: RunContext, training: Training, found: DistillSet) -> str:
    """What is learned from, in one line."""
    names = ", ".join(one.name for subject in run.subjects for one in subject.teachers)
    out = f"; {found.left_out:,} left out, which are validation or test rows of a task" if found.left_out else ""
    said = f"{training}: {counted(len(found.keys), 'sample')} an epoch, {found.labelled:,} with labels{out}"
    return f"{said}; teachers: {names or 'none'}"


def _writer(run: RunContext, number: int, paths: Paths) -> Writer:
    one = run.subjects[number]
    path = paths.predictions if number == 0 else paths.model / "predictions" / f"{one.name}.parquet"
    scores = {HEAD: record.scores_of(one.task)}
    return Writer(path, one.task.kind, one.classes, scores, paths_of=one.task.paths_of)


def _predictions(run: RunContext, number: int, training: Training, one: TrainingJob, rows: np.ndarray) -> Predictions:
    """Those of one of the tasks."""
    subject = run.subjects[number]
    samples = PixelSamples(run.pixels, label_targets(run.subjects, number, rows), subject.keys[rows], seed=0)
    logits = torch.cat([found.cpu() for found, _ in predict_logits(one.module, samples, one.setting)])
    own = logits[:, subject.branch.start : subject.branch.stop]
    return record.predictions(subject.task, rows, own, one.targets, training, head=HEAD, inputs=INPUT)


def _validated(found: Predictions) -> dict[str, Any]:
    """What model.json says of a further task: its validation rows alone, for the others are for nobody to choose by."""
    chosen = found.splits == "validation"
    right = found.predicted[chosen] == found.targets[chosen]
    right = right.all(axis=1) if right.ndim == 2 else right
    return {"validation_rows": int(chosen.sum()), "validation_accuracy": float(right.mean()) if len(right) else None}


def _write(run: RunContext, best: Trained, records: list[dict[str, Any]], paths: Paths) -> None:
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
            "teachers": teacher_records(first),
            "losses": config.losses.model_dump(mode="json"),
            "extra_tasks": [
                {
                    "name": one.name,
                    "sha256": sha256_file(one.path),
                    "kind": one.task.kind,
                    "classes": one.classes,
                    "teachers": teacher_records(one),
                }
                for one in others
            ],
        },
    )
