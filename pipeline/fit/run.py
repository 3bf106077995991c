"""Run a FitConfig: read the taps once, fit every head on every input, leave models and predictions on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import ConfigError, DataError, HeadError
from pipeline.files import atomic, sha256_file, write_json
from pipeline.fit import FitConfig, joined
from pipeline.fit.inputs import Matrix, Stream, check_memory, load, open_taps, width
from pipeline.fit.one import Data, Head, fit_one, scores_kind
from pipeline.fit.training import Training, check_targets, training_sets
from pipeline.heads import criteria, device
from pipeline.predictions import Scores, Writer
from pipeline.runtime import Progress, silent, versions
from pipeline.store.features import Features
from pipeline.task import Kind, Task


@dataclass(frozen=True)
class Summary:
    """What a run did: how many heads it fitted, a line of each, and what was not as the settings wanted it."""

    fits: int
    lines: list[str]
    notes: list[str]


def fit(
    config: FitConfig, *, task: Path, features: Path, models: Path, predictions: Path, progress: Progress = silent
) -> Summary:
    """Fit and predict everything.

    `features` holds a folder a tap; heads go to `models`. Raises HeadError, ConfigError, DataError or StoreError before
    a fit starts where the task, the taps, the heads and what is asked of them do not go together.
    """
    on, note = device.choose(config.device)
    notes = [note] if note is not None else []
    loaded = Task.read(task)
    check_targets(loaded, where=str(task))
    _check_splits(config, loaded, where=str(task))
    trainings = list(training_sets(loaded, config.labels_per_class, where=str(task)))
    chosen = _heads(config, loaded.kind)
    taps = open_taps(config.taps, features)
    names = [joined(one) for one in config.inputs]
    holding = [head.called for head in chosen if not head.streaming]
    if holding:
        who = ", ".join(holding)
        check_memory(taps, names, rows=len(loaded), memory_gb=config.memory_gb, who=who)
    columns = load(taps, loaded.keys) if holding else {}
    plan = [(head, seed) for head in chosen for seed in _seeds(head, config)]
    total, done = len(names) * len(trainings) * len(plan), 0
    scores = {head.called: scores_kind(head, loaded.kind, config) for head in chosen}
    places = {head.called: _place(head, loaded.kind, config, on, notes) for head in chosen}
    fits, lines = [], []
    with Writer(predictions, loaded.kind, loaded.classes, scores) as writer:
        for data in _inputs(loaded, names, taps):
            of = [taps[tap] for tap in data.name.split("+")]
            held = Matrix(np.concatenate([columns[tap] for tap in data.name.split("+")], axis=1)) if holding else None
            stream = Stream(tuple(of), data.keys)
            for head, seed in plan:
                for training in trainings:
                    source = stream if head.streaming or held is None else held
                    drawn = training.draw if head.random and training.labels else seed
                    one = fit_one(
                        head,
                        data,
                        source,
                        training,
                        config,
                        seed=drawn,
                        on=places[head.called],
                        scores=scores[head.called],
                    )
                    writer.add(one.predictions)
                    _save(one.head, models / one.record["file"])
                    fits.append(one.record)
                    lines.append(one.line)
                    done += 1
                    progress(done, total)
    write_json(models / "model.json", {**_made_from(config, taps, task, loaded, scores), "fits": fits})
    return Summary(total, lines, notes)


def _heads(config: FitConfig, kind: Kind) -> list[Head]:
    """The heads of a run, created once so that what is wrong with one is said before anything is read."""
    found = []
    for called, (name, params) in config.heads.items():
        pipeline = heads.create(name, params, scale=config.scale, kind=kind, pca=config.pca)
        if config.search is not None:
            criteria.check(criteria.criterion(config.search.metric, kind), pipeline, kind=kind)
        found.append(Head(called, name, params, random=heads.is_random(name, kind)))
    if config.seeds > 1 and not any(head.random for head in found):
        raise ConfigError(
            f"seeds: expected a head that starts at random, got {', '.join(config.heads)}: each fit would be the same. "
            "Leave `seeds` out."
        )
    if config.calibrate is not None:
        if kind != "classification":
            raise HeadError(f"calibrate: expected a classification, the task is a {kind}. Leave `calibrate` out.")
        for head in found:
            if head.name in heads.WITHOUT_SCORES:
                raise HeadError(f"calibrate: expected heads with scores, {head.called} has none that can be used.")
    return found


def _seeds(head: Head, config: FitConfig) -> Sequence[int | None]:
    return range(config.seeds) if head.random and config.seeds > 1 else (None,)


def _check_splits(config: FitConfig, task: Task, *, where: str) -> None:
    validation, test = task.rows("validation"), task.rows("test")
    if not len(validation) + len(test):
        raise DataError(f"{where}: expected validation or test rows to predict, got none. Change the task's `sizes`.")
    asked = [name for name in ("search", "calibrate", "refit") if getattr(config, name) not in (None, False)]
    if asked and not len(validation):
        raise DataError(
            f"{where}: expected validation rows for `{asked[0]}`, got none, and test rows must not choose. "
            "Give the task's `sizes` a validation share."
        )


def _place(head: Head, kind: Kind, config: FitConfig, on: str | None, notes: list[str]) -> str | None:
    """The device for a head; a note where scikit-learn cannot fit it there."""
    if on is None:
        return None
    pipeline = heads.create(head.name, head.params, scale=config.scale, kind=kind, pca=config.pca)
    if not head.streaming and device.supports(pipeline) and (config.search is None or config.search.method == "grid"):
        return on
    notes.append(f"{head.called}: scikit-learn cannot fit it on `device: {config.device}`; it is fitted on the processor.")
    return None


def _inputs(task: Task, names: Sequence[str], taps: dict[str, Features]) -> Iterator[Data]:
    keys, targets, splits = task.keys, task.targets, task.table["split"].to_numpy()
    for name in names:
        widths = tuple(width(taps[tap]) for tap in name.split("+"))
        yield Data(task, task.kind, task.classes, targets, keys, splits, name, widths)


def _save(head: Any, path: Path) -> None:
    import skops.io

    with atomic(path) as temporary, temporary.open("wb") as file:
        skops.io.dump(head, file)


def _made_from(
    config: FitConfig, taps: dict[str, Features], path: Path, task: Task, scores: dict[str, Scores]
) -> dict[str, Any]:
    """model.json: everything that the run was made from."""
    return {
        "format": 2,
        "settings": config.model_dump(mode="json"),
        "scores": scores,
        "task": {"name": config.task, "sha256": sha256_file(path), "kind": task.kind, "classes": task.classes},
        "features": {name: {"address": t.index.address, "identity": t.identity} for name, t in taps.items()},
        "versions": versions("scikit-learn", "numpy"),
    }


__all__ = ["Summary", "Training", "fit"]
