"""Write the files of a run: predictions, a record per training set, and the best network.

data/models/<run>/model.json    inputs and settings of the run, and a record per training set
data/models/<run>/backbone/     the network with the best validation among those with the most labels
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.backbones import serialization
from pipeline.backbones.spec import InputSpec
from pipeline.errors import DataError
from pipeline.files import sha256_file
from pipeline.model_record import FORMAT, FeaturesRecord, KeptNetwork, NetworkRecord, TaskRecord, write_record
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.task import Task
from pipeline.training.data import Samples
from pipeline.training.job import TrainingJob, packages
from pipeline.training.loop import predict_logits
from pipeline.training.run import RunResult
from pipeline.training.targets import answers

KEPT_DAYS = 30  # days that a training stays in the cache after its last use


def evaluation_rows(task: Task, *, where: Path) -> np.ndarray:
    """Return the validation and test rows, which a run predicts; raises DataError if there are none."""
    rows = np.concatenate([task.rows("validation"), task.rows("test")])
    if not len(rows):
        raise DataError(f"{where}: expected validation or test rows to predict, got none. Change its `sizes`.")
    return rows


def scores_of(task: Task) -> Scores:
    """Return the kind of scores in a network's predictions."""
    return "none" if task.kind == "regression" else "probability"


def predict(
    job: TrainingJob, samples: Samples, task: Task, rows: np.ndarray, *, outputs: slice = slice(None)
) -> Predictions:
    """Predict rows of a task with a trained network.

    samples: the samples of `rows`, without augmentation. outputs: the network's outputs for this task.
    """
    logits = torch.cat([logits.cpu() for logits, _ in predict_logits(job.module, samples, job.context)])
    predicted, scores = answers(task, logits[:, outputs], job.targets)
    return Predictions(
        head=job.head,
        input=job.input,
        labels=job.training.labels,
        draw=job.training.draw,
        keys=task.keys[rows],
        splits=task.table["split"].to_numpy()[rows],
        targets=task.targets[rows],
        predicted=predicted,
        scores=scores,
    )


def prediction_writer(path: Path, task: Task, *, head: str) -> Writer:
    """Open the file of a network's predictions of a task."""
    return Writer(path, task.kind, task.classes, {head: scores_of(task)}, paths_of=task.paths_of)


def write(
    folder: Path,
    result: RunResult,
    *,
    head: str,
    settings: Mapping[str, Any],
    task: Task,
    task_path: Path,
    inputs: InputSpec,
    classes: Sequence[str],
    source: str,
    began_with: str,
    features: Mapping[str, FeaturesRecord],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the network in the backbone format, then model.json.

    source: origin in backbone.json. began_with: digest of the weights at the start, or of those that new weights
    replace. more: further fields of the record.
    """
    best = result.best
    written = serialization.write(
        folder / "backbone",
        best.network.cpu(),
        architecture=best.architecture,
        origin={"source": source, "from": began_with, **settings},
        inputs=inputs,
        classes=classes,
    )
    settings = {**settings, "head": head}
    record = NetworkRecord(
        format=FORMAT,
        settings=settings,
        task=TaskRecord(
            name=settings["task"], sha256=sha256_file(task_path), kind=task.kind, classes=tuple(task.classes)
        ),
        features=dict(features),
        scores={head: scores_of(task)},
        backbone=KeptNetwork(
            **{"from": began_with},
            weights=written.weights_digest,
            labels=best.record.labels,
            draw=best.record.draw,
        ),
        fits=tuple(result.records),
        versions=packages(best.architecture, from_pixels=not features, probe=any(fit.probes for fit in result.records)),
        **(more or {}),
    )
    write_record(folder, record)


def prune_training_cache(cache: Path) -> None:
    """Remove results of training from the cache that were not used for `KEPT_DAYS`."""
    for path in (*(cache / "training").glob("*"), *(cache / "pixels").glob("pixels-*")):
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
