"""What a run leaves, whatever it trains for: a record of each training set, predictions, and the best network.

data/models/<run>/model.json    what it was made from, and a record of each training set
data/models/<run>/backbone/     the whole network with the best validation among those of the most labels
"""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.backbones import serialization
from pipeline.backbones.spec import InputSpec
from pipeline.errors import DataError, TrainingError
from pipeline.files import sha256_file, write_json
from pipeline.predictions import Predictions, Scores
from pipeline.runtime import Reporter
from pipeline.store.use import in_use
from pipeline.task import Task, Training
from pipeline.training.history import START, SURE
from pipeline.training.job import TrainingJob, packages
from pipeline.training.loop import train
from pipeline.training.targets import Targets, answers

KEPT_DAYS = 30  # that a training stays in the cache after it was last used


@dataclass(frozen=True)
class Trained:
    """A training set's network, and what model.json says of it."""

    network: nn.Module
    architecture: dict[str, Any]
    record: dict[str, Any]

    @property
    def order(self) -> tuple[float, float]:
        """Of several the largest is kept: most labels, then the best validation."""
        labels = self.record["labels"]
        return math.inf if labels is None else labels, -self.record["kept"].get("validation_loss", math.inf)


def train_or_load(
    one: TrainingJob,
    training: Training,
    *,
    head: str,
    inputs: str,
    folder: Path,
    curves: Path,
    reporter: Reporter,
) -> Trained:
    """Train on one training set, or take from `folder` what was trained before.

    `head` and `inputs`: what predictions call them. Raises what `loop.train` does, and TrainingError where what was
    frozen is not what it was.
    """
    config = one.setting.config
    before = one.frozen.digest()
    for probe in one.probes:
        reporter.log(str(probe))
    with in_use(folder):
        history = train(
            one.module,
            one.samples,
            one.validation,
            one.setting,
            one.frozen,
            folder=folder,
            made_from=one.made_from,
            reporter=reporter,
            curves=curves,
        )
    os.utime(folder)
    kept = history.kept(config)
    if kept["epoch"] == START:
        assert one.validation is not None, "the start was measured"
        reporter.log(
            f"kept: the network before the first epoch; none was better by more than {SURE:g} standard errors on "
            f"{len(one.validation):,} validation rows"
        )
    after = one.frozen.digest()
    if after != before:
        raise TrainingError(
            f"{training}: expected the frozen part as it was, with the digest {before[:16]}…, got {after[:16]}…. "
            "Something in the network writes to its own weights or buffers: train that part too."
        )
    record = {
        "head": head,
        "input": inputs,
        "labels": training.labels,
        "draw": training.draw,
        "file": None,
        "params": {},
        "search": None,
        "temperature": None,
        "rows": len(training.rows),
        "epochs": len(history.rows),
        "stopped": history.stopped,
        "probes": [probe.record for probe in one.probes],
        "start": history.start,
        "kept": kept,
        "frozen": {"before": before, "after": after},
    }
    return Trained(one.network, one.architecture, record)


def evaluation_rows(task: Task, *, where: Path) -> np.ndarray:
    """The rows that a run predicts, those of validation and of test; raises DataError where there are none."""
    rows = np.concatenate([task.rows("validation"), task.rows("test")])
    if not len(rows):
        raise DataError(f"{where}: expected validation or test rows to predict, got none. Change its `sizes`.")
    return rows


def scores_of(task: Task) -> Scores:
    """What the scores of a network's predictions are."""
    return "none" if task.kind == "regression" else "probability"


def predictions(
    task: Task, rows: np.ndarray, logits: Tensor, targets: Targets, training: Training, *, head: str, inputs: str
) -> Predictions:
    """What logits (n, outputs) of some rows (n,) of a task predict."""
    predicted, scores = answers(task, logits, targets)
    return Predictions(
        head=head,
        input=inputs,
        labels=training.labels,
        draw=training.draw,
        keys=task.keys[rows],
        splits=task.table["split"].to_numpy()[rows],
        targets=task.targets[rows],
        predicted=predicted,
        scores=scores,
    )


def write(
    folder: Path,
    best: Trained,
    records: Sequence[Mapping[str, Any]],
    *,
    head: str,
    settings: Mapping[str, Any],
    task: Task,
    task_path: Path,
    inputs: InputSpec,
    classes: Sequence[str],
    source: str,
    made_from: str,
    features: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the network in the backbone format, then model.json.

    source: what backbone.json says of its origin. made_from: the digest of the weights that it began with, or in the
    place of which it has new ones. more: what model.json says besides.
    """
    written = serialization.write(
        folder / "backbone",
        best.network.cpu(),
        architecture=best.architecture,
        origin={"source": source, "from": made_from, **settings},
        inputs=inputs,
        classes=classes,
    )
    write_json(
        folder / "model.json",
        {
            "format": 2,
            "settings": {**settings, "head": head},
            "task": {
                "name": settings["task"],
                "sha256": sha256_file(task_path),
                "kind": task.kind,
                "classes": task.classes,
            },
            "features": dict(features),
            "scores": {head: scores_of(task)},
            "backbone": {
                "from": made_from,
                "weights": written.weights_digest,
                "labels": best.record["labels"],
                "draw": best.record["draw"],
            },
            **(more or {}),
            "fits": list(records),
            "versions": packages(
                best.architecture, from_pixels=not features, probe=any(one["probes"] for one in records)
            ),
        },
    )


def prune_training_cache(cache: Path) -> None:
    """Remove what trainings left in the cache and nobody used for `KEPT_DAYS`."""
    for path in (*(cache / "training").glob("*"), *(cache / "pixels").glob("pixels-*")):
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
