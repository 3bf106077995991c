"""A fine-tuning run: of each training set a network, trained, its predictions; the best one in the backbone format.

    data/models/<run>/model.json    what it was made from, and a record of each training set
    data/models/<run>/backbone/     the whole network with the best validation among those of the most labels

A training set that was trained before, with the same settings, data, weights and code, comes from the cache.
"""

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.backbones import artefact
from pipeline.backbones.headed import last_layer
from pipeline.errors import DataError, TrainingError
from pipeline.files import digest, sha256_file, write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.runtime import Progress, silent, versions
from pipeline.training import FinetuneConfig, pixels
from pipeline.training.breakeven import break_even
from pipeline.training.inputs import FromFeatures, compare, stored
from pipeline.training.loop import Log, make_fabric, outputs, quiet, train
from pipeline.training.lr_range import RangeTest, range_test
from pipeline.training.ready import Paths, Prepared, Run, opened, prepared
from pipeline.training.targets import answers
from pipeline.training_sets import Training, training_sets

HEAD = "finetune"  # what predictions call the head
KEPT_DAYS = 30  # that a training stays in the cache after it was last used
COMPARED = 64  # samples whose stored rows are compared with live ones at the end


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


def finetune(
    config: FinetuneConfig,
    paths: Paths,
    *,
    datasets: Sequence[str],
    progress: Progress = silent,
    log: Log = quiet,
    say: Log = quiet,
) -> dict[str, Any]:
    """Train, predict and write everything; return the record of the network that was kept.

    `datasets` have the samples of the task. `say` is told the break-even before anything is trained. Raises
    TrainingError, BackboneError, ConfigError, HeadError, StoreError or DataError where task, backbone, features and
    settings do not go together, where training fails, and where what was frozen is not what it was.
    """
    run = opened(config, paths, datasets=datasets)
    trainings = list(training_sets(run.task, config.labels_per_class, draws=config.draws, where=str(paths.task)))
    measured = np.concatenate([run.task.rows("validation"), run.task.rows("test")])
    if not len(measured):
        raise DataError(f"{paths.task}: expected validation or test rows to predict, got none. Change its `sizes`.")
    fabric = make_fabric(config)
    steps = [config.epochs * math.ceil(len(one.rows) / config.batch_size / config.accumulate) for one in trainings]
    best: Trained | None = None
    records = []
    scores: Scores = "none" if run.task.kind == "regression" else "probability"
    with Writer(paths.predictions, run.task.kind, run.task.classes, {HEAD: scores}) as writer:
        for number, training in enumerate(trainings):
            one = prepared(run, training, fabric)
            if number == 0:
                say(_foreseen(run, one, max(len(each.rows) for each in trainings)))
            trained = _train(
                run,
                training,
                one,
                folder=paths.cache / "training" / digest(one.made_from)[:32],
                curves=paths.curves / str(training),
                progress=partial(_moved, progress, sum(steps[:number]), sum(steps)),
                log=partial(_named, log, str(training)),
            )
            writer.add(_predictions(run, training, one, measured))
            one.targets.unfold(last_layer(one.network, one.architecture))
            records.append(trained.record)
            best = trained if best is None or trained.order > best.order else best
    assert best is not None, "there is a training set"
    if isinstance(run.inputs, FromFeatures):
        some = stored(paths.manifests, datasets, run.inputs.keys[run.task.rows("train")[:COMPARED]])
        live = pixels.decoded(run.source.spec.input, some, folder=paths.cache / "pixels")
        compare(best.network, run.source.spec, live, run.inputs.clean, run.inputs.node)
    if fabric.is_global_zero:
        _write(run, best, records, paths)
        _tidy(paths.cache)
    return best.record


def lr_range(config: FinetuneConfig, paths: Paths, *, datasets: Sequence[str]) -> RangeTest:
    """The learning-rate range test on the first training set of a run; raises what `finetune` does."""
    run = opened(config, paths, datasets=datasets)
    training = next(training_sets(run.task, config.labels_per_class, draws=config.draws, where=str(paths.task)))
    one = prepared(run, training, make_fabric(config))
    return range_test(one.module, one.samples, one.setting, one.frozen)


def _train(
    run: Run, training: Training, one: Prepared, *, folder: Path, curves: Path, progress: Progress, log: Log
) -> Trained:
    before = one.frozen.digest()
    history = train(
        one.module,
        one.samples,
        one.validation,
        one.setting,
        one.frozen,
        folder=folder,
        made_from=one.made_from,
        progress=progress,
        log=log,
        curves=curves,
    )
    os.utime(folder)
    after = one.frozen.digest()
    if after != before:
        raise TrainingError(
            f"{training}: expected the frozen part as it was, with the digest {before[:16]}…, got {after[:16]}…. "
            "Something in the network writes to its own weights or buffers: train that part too."
        )
    record = {
        "head": HEAD,
        "input": run.inputs.name,
        "labels": training.labels,
        "draw": training.draw,
        "file": None,
        "params": {},
        "search": None,
        "temperature": None,
        "rows": len(training.rows),
        "epochs": len(history.rows),
        "stopped": history.stopped,
        "kept": history.rows[history.best if run.config.weights == "best" else -1],
        "frozen": {"before": before, "after": after},
    }
    return Trained(one.network, one.architecture, record)


def _predictions(run: Run, training: Training, one: Prepared, rows: np.ndarray) -> Predictions:
    samples = run.inputs.samples(rows, one.targets.of(rows), training=False, seed=0)
    logits = torch.cat([found.cpu() for found, _ in outputs(one.module, samples, one.setting)])
    predicted, scores = answers(run.task, logits, one.targets)
    return Predictions(
        head=HEAD,
        input=run.inputs.name,
        labels=training.labels,
        draw=training.draw,
        keys=run.task.keys[rows],
        splits=run.task.table["split"].to_numpy()[rows],
        targets=run.task.targets[rows],
        predicted=predicted,
        scores=scores,
    )


def _foreseen(run: Run, one: Prepared, rows: int) -> str:
    """The break-even of stored rows, for this run or in its place."""
    config, spec, inputs = run.config, run.source.spec, run.inputs
    if isinstance(inputs, FromFeatures):
        reading = (inputs.clean, inputs.keys[run.task.rows("train")])
        return str(break_even(one.network, spec, inputs.node, rows=rows, config=config, reading=reading))
    node = one.frozen.cut(0)
    if node in (None, "input") or config.augment or config.unfreeze:
        return f"pixels: {rows:,} rows; nothing is frozen that stored rows could stand for"
    return str(break_even(one.network, spec, node, rows=rows, config=config, reading=None))


def _moved(progress: Progress, before: int, total: int, done: int, _all: int) -> None:
    progress(before + done, total)


def _named(log: Log, name: str, line: str) -> None:
    log(f"{name}: {line}")


def _tidy(cache: Path) -> None:
    """Remove what trainings left in the cache and nobody used for `KEPT_DAYS`."""
    for path in (*(cache / "training").glob("*"), *(cache / "pixels").glob("pixels-*.npy")):
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write(run: Run, best: Trained, records: list[dict[str, Any]], paths: Paths) -> None:
    config, spec = run.config, run.source.spec
    settings = config.model_dump(mode="json")
    written = artefact.write(
        paths.model / "backbone",
        best.network.cpu(),
        architecture=best.architecture,
        origin={"source": "finetuned", "from": spec.weights_digest, **settings},
        inputs=spec.input,
        classes=run.task.classes,
    )
    used = (run.inputs.clean, *run.inputs.views) if isinstance(run.inputs, FromFeatures) else ()
    scores = "none" if run.task.kind == "regression" else "probability"
    write_json(
        paths.model / "model.json",
        {
            "format": 2,
            "settings": {**settings, "head": HEAD},
            "task": {
                "name": config.task,
                "sha256": sha256_file(paths.task),
                "kind": run.task.kind,
                "classes": run.task.classes,
            },
            "features": {one.folder.name: {"address": one.index.address, "identity": one.identity} for one in used},
            "scores": {HEAD: scores},
            "backbone": {
                "from": spec.weights_digest,
                "weights": written.weights_digest,
                "labels": best.record["labels"],
                "draw": best.record["draw"],
            },
            "fits": records,
            "versions": versions("torch", "torchvision", "lightning-fabric"),
        },
    )
