"""A distillation run: train a student per training set on labels and teachers' outputs, and write its predictions.

    data/models/<run>/predictions/<task>.parquet    of further tasks, where the student has several

Scores of the teachers are read from the store, so that no teacher is in memory; with `teacher_outputs: online`, the
teacher's network computes them in each step.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.distill.config import DistillConfig
from pipeline.distill.dataset import DistillSet, label_targets
from pipeline.distill.setup import HEAD, RunContext, build_job, load_distill_set, load_run
from pipeline.distill.sources import Paths
from pipeline.distill.tasks import output_names, teacher_records
from pipeline.errors import counted
from pipeline.files import sha256_file
from pipeline.model_record import ExtraTask, NetworkFit
from pipeline.predictions import Predictions
from pipeline.runtime import SILENT, Reporter, repeatable_kernels
from pipeline.training import outputs
from pipeline.training.data import PixelSamples
from pipeline.training.job import TrainingJob
from pipeline.training.loop import make_fabric, steps_per_epoch
from pipeline.training.lr_finder import choose_rate
from pipeline.training.run import RunResult, train_sets


@repeatable_kernels()
def distill(config: DistillConfig, paths: Paths, *, datasets: Sequence[str], reporter: Reporter = SILENT) -> NetworkFit:
    """Train, predict and write everything; return the record of the best student.

    `datasets` have the samples of all tasks. Before training, a message per training set gives its number of samples
    and its teachers. Raises TrainingError, BackboneError, ConfigError, StoreError or DataError if tasks, student,
    teachers and settings do not match, or if training fails.
    """
    run = load_run(config, paths, datasets=datasets)
    distill_sets = [load_distill_set(run, training) for training in run.trainings]
    for distill_set in distill_sets:
        reporter.message(_describe(run, distill_set))
    rows = [outputs.evaluation_rows(task.task, where=task.path) for task in run.tasks]
    fabric = make_fabric(config)
    largest = max(distill_sets, key=lambda distill_set: len(distill_set.keys))
    run = replace(
        run,
        config=choose_rate(
            config,
            lambda config: build_job(replace(run, config=config), largest, fabric),
            cache=paths.cache,
            reporter=reporter,
        ),
    )
    steps = [config.epochs * steps_per_epoch(len(distill_set.keys), config) for distill_set in distill_sets]
    jobs = (build_job(run, distill_set, fabric) for distill_set in distill_sets)
    result = RunResult()
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(outputs.prediction_writer(path, task.task, head=HEAD))
            for path, task in zip(_prediction_paths(run, paths), run.tasks, strict=True)
        ]
        for job, trained in train_sets(jobs, steps=steps, paths=paths, reporter=reporter):
            predictions = [_predict(run, job, number, rows[number]) for number in range(len(run.tasks))]
            for writer, own in zip(writers, predictions, strict=True):
                writer.add(own)
            further = zip(run.tasks[1:], predictions[1:], strict=True)
            result.add(trained, extra_tasks={task.name: _validation_record(own) for task, own in further})
    if fabric.is_global_zero:
        _write(run, result, paths)
        outputs.prune_training_cache(paths.cache)
    return result.best.record


def _describe(run: RunContext, distill_set: DistillSet) -> str:
    """Return a line about the samples and teachers of a training set."""
    teachers = ", ".join(teacher.name for task in run.tasks for teacher in task.teachers)
    left_out = distill_set.left_out
    out = f"; {left_out:,} left out, which are validation or test rows of a task" if left_out else ""
    samples = f"{counted(len(distill_set.keys), 'sample')} per epoch, {distill_set.labelled:,} with labels{out}"
    return f"{distill_set.training}: {samples}; teachers: {teachers or 'none'}"


def _prediction_paths(run: RunContext, paths: Paths) -> list[Path]:
    """Return the predictions file of each task, the run's task first."""
    folder = paths.model / "predictions"
    return [paths.predictions, *(folder / f"{task.name}.parquet" for task in run.tasks[1:])]


def _predict(run: RunContext, job: TrainingJob, number: int, rows: np.ndarray) -> Predictions:
    """Predict the validation and test rows of a task."""
    task = run.tasks[number]
    samples = PixelSamples(run.pixels, label_targets(run.tasks, number, rows), task.keys[rows], seed=0)
    return outputs.predict(job, samples, task.task, rows, outputs=slice(task.branch.start, task.branch.stop))


def _validation_record(predictions: Predictions) -> dict[str, Any]:
    """Return what model.json records of a further task, from validation rows only: test rows must choose nothing."""
    validation = predictions.splits == "validation"
    right = predictions.predicted[validation] == predictions.targets[validation]
    right = right.all(axis=1) if right.ndim == 2 else right
    return {
        "validation_rows": int(validation.sum()),
        "validation_accuracy": float(right.mean()) if len(right) else None,
    }


def _write(run: RunContext, result: RunResult, paths: Paths) -> None:
    """Write the best student and model.json."""
    first, *further = run.tasks
    outputs.write(
        paths.model,
        result,
        head=HEAD,
        settings=run.config.model_dump(mode="json"),
        task=first.task,
        task_path=first.path,
        inputs=run.source.spec.input,
        classes=output_names(run.tasks),
        source="distilled",
        began_with=run.source.spec.weights_digest,
        features={},
        more={
            "student": run.config.student,
            "teachers": teacher_records(first),
            "losses": run.config.losses.model_dump(mode="json"),
            "extra_tasks": [
                ExtraTask(
                    name=task.name,
                    sha256=sha256_file(task.path),
                    kind=task.task.kind,
                    classes=tuple(task.classes),
                    teachers=teacher_records(task),
                )
                for task in further
            ],
        },
    )
