"""Run a FitConfig: read the taps once, fit every head on every input, leave models and predictions on disk."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import ConfigError, DataError, HeadError, counted
from pipeline.files import AnyPath, as_path, atomic, sha256_file, write_json
from pipeline.fit.checks import check_classes, check_targets
from pipeline.fit.config import FitConfig, joined
from pipeline.fit.folds import Validation, validation_of
from pipeline.fit.inputs import Matrix, Stream, check_memory, load, open_taps, width
from pipeline.fit.single_fit import Data, Fit, Head, fit_one
from pipeline.fit.workers import Sums
from pipeline.heads import calibration, gpu, scoring
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.knn_rows import looks_at_rows, write_keys
from pipeline.heads.outputs import kind_of_scores
from pipeline.heads.search import grid_of
from pipeline.heads.skops_import import skops_io
from pipeline.predictions import Scores, Writer
from pipeline.runtime import SILENT, Reporter, versions
from pipeline.store import keys as key_arrays
from pipeline.store.features import Features
from pipeline.task import Kind, Task, training_sets


@dataclass(frozen=True)
class Summary:
    """What a run did: how many heads it fitted, a line of each, and what was not as the settings wanted it."""

    fits: int
    lines: list[str]
    notes: list[str]


def fit(
    config: FitConfig,
    *,
    task: AnyPath,
    features: AnyPath,
    models: AnyPath,
    predictions: AnyPath,
    reporter: Reporter = SILENT,
) -> Summary:
    """Fit and predict everything; a fit that cannot be made is recorded with its cause, and the others go on.

    `features` holds a folder a tap; heads go to `models`. Raises HeadError, ConfigError, DataError or StoreError before
    a fit starts where the task, the taps, the heads and what is asked of them do not go together, and HeadError with
    the cause of the first fit where none can be made.
    """
    task, features = as_path(task, "fit: task"), as_path(features, "fit: features")
    models, predictions = as_path(models, "fit: models"), as_path(predictions, "fit: predictions")
    on, note = gpu.choose(config.device)
    notes = [note] if note is not None else []
    loaded = Task.read(task)
    check_targets(loaded, where=str(task))
    _check_splits(config, loaded, where=str(task))
    trainings = list(training_sets(loaded, config.labels_per_class, where=str(task)))
    for training in trainings:
        if training.labels is None:  # a draw has rows of every class
            check_classes(loaded, training.rows, where=str(task))
    validated = [validation_of(config, loaded, training) for training in trainings]
    notes += _of_folds(validated)
    plan = [(head, seed) for head in _heads(config, loaded.kind, on) for seed in _seeds(head, config)]
    found = [head for head, _ in plan]
    if on is not None:
        gone = sorted({head.called for head in found if head.on is None})
        notes += [f"{name}: scikit-learn has no `device: {on}` for it; it is fitted on the processor." for name in gone]
    # A worker may run in another folder.
    taps = open_taps(config.taps, features.absolute() if config.run.several(gpus=0) else features)
    names = [joined(one) for one in config.inputs]
    holding = sorted({head.called for head in found if not head.streaming})
    columns = {}
    if holding:
        searched = any(head.search is not None and not head.streaming for head in found)
        copies = max(len(one.parts) for one in validated) if searched else 1
        check_memory(taps, names, rows=len(loaded), memory_gb=config.memory_gb, who=", ".join(holding), copies=copies)
        columns = load(taps, loaded.keys)
    total = len(names) * len(trainings) * len(plan)
    fits: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    first: HeadError | None = None
    keys = key_arrays.from_hex(loaded.keys)
    scores = {head.called: head.scores for head in found}
    with (
        Writer(predictions, loaded.kind, loaded.classes, scores, paths_of=loaded.paths_of) as writer,
        Sums(config.run) as sums,
    ):
        for data in _inputs(loaded, names, taps):
            parts = data.name.split("+")
            matrix = Matrix(_joined([columns[tap] for tap in parts])) if holding else None
            for training, validation in zip(trainings, validated, strict=True):
                stream = Stream(tuple(taps[tap] for tap in parts), keys, sums)
                for head, seed in plan:
                    source = stream if head.streaming or matrix is None else matrix
                    state = training.draw if head.random and training.draw is not None else seed
                    try:
                        one = fit_one(head, data, source, training, validation, config, seed=state)
                        record = _saved(one, data, models)
                    except HeadError as error:
                        first = first or error
                        draw = training.draw if training.labels else state
                        which = {"head": head.called, "input": data.name, "labels": training.labels, "draw": draw}
                        failed.append({**which, "cause": str(error)})
                    else:
                        writer.add(one.predictions)
                        fits.append(record)
                    reporter.progress(len(fits) + len(failed), total)
        if first is not None and not fits:
            raise first
        if config.run.several(gpus=0):
            notes += _shared(found, started=sums.started)
    write_json(
        models / "model.json", {**_made_from(config, taps, task, loaded, scores), "fits": fits, "failed": failed}
    )
    notes += [f"not fitted: {one['cause']}" for one in failed]
    return Summary(len(fits), _lines(fits), [*notes, *_at_the_end(fits)])


def _heads(config: FitConfig, kind: Kind, on: str | None) -> list[Head]:
    """The heads of a run, created once so that what is wrong with one is said before anything is read."""
    found = []
    for called, (name, params) in config.heads.items():
        pipeline = heads.create(name, params, scale=config.scale, kind=kind, pca=config.pca)
        plain: Scores = kind_of_scores(pipeline, kind) if heads.has_scores(name, kind) else "none"
        search, scores = config.search_of(name, params), plain
        if search is not None:
            grid_of(search, name)
            scoring.check(scoring.criterion(search.metric, kind, plain), pipeline, kind=kind)
        if config.calibrate is not None:
            calibration.check(called, scores, kind=kind)
            scores = "probability"
        random = heads.is_random(name, kind)
        found.append(Head(called, name, params, scores, plain, search, random, on if gpu.supports(pipeline) else None))
    if config.seeds > 1 and not any(head.random for head in found):
        raise ConfigError(
            f"seeds: expected a head that starts at random, got {', '.join(config.heads)}: each fit would be the same. "
            "Leave `seeds` out."
        )
    return found


def _seeds(head: Head, config: FitConfig) -> Sequence[int | None]:
    return range(config.seeds) if head.random and config.seeds > 1 else (None,)


def _check_splits(config: FitConfig, task: Task, *, where: str) -> None:
    validation, test = task.rows("validation"), task.rows("test")
    if not len(validation) + len(test):
        raise DataError(f"{where}: expected validation or test rows to predict, got none. Change the task's `sizes`.")
    if config.needs_split and not len(validation):
        raise DataError(
            f"{where}: expected validation rows for `{config.needs_split}`, got none, and test rows must not choose. "
            "Give the task's `sizes` a validation share."
        )


def _inputs(task: Task, names: Sequence[str], taps: dict[str, Features]) -> Iterator[Data]:
    keys, targets, splits = task.keys, task.targets, task.table["split"].to_numpy()
    for name in names:
        widths = tuple(width(taps[tap]) for tap in name.split("+"))
        yield Data(task.kind, task.classes, targets, keys, splits, name, widths)


def _shared(found: Sequence[Head], *, started: bool) -> list[str]:
    """What workers did not do."""
    if not started:
        return ["run: no worker was started: every training set is one piece, or is held in memory."]
    notes = []
    for head in {head.called: head for head in found}.values():
        if not head.streaming:
            notes.append(f"{head.called}: it holds its training rows; workers have no part in it.")
        elif head.name == "streaming_logistic":
            notes.append(f"{head.called}: workers make its first pass; its search reads the training rows here.")
        elif head.name not in heads.SUMMED:
            notes.append(f"{head.called}: it is not solved from sums; its training rows are read here.")
    return notes


def _joined(columns: Sequence[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def _lines(fits: Sequence[dict[str, Any]]) -> list[str]:
    """What was chosen, a line for each head on each input."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in fits:
        groups[one["head"], one["input"]].append(one)
    lines = []
    for (head, name), found in groups.items():
        said = [counted(len(found), "fit")]
        if searched := [one["search"] for one in found if one["search"]]:
            values = dict.fromkeys(_shown(one["chosen"]) for one in searched)
            said.append(f"{searched[0]['parameter']} {', '.join(values)} of {len(searched[0]['values'])} values")
            best = [dict(zip(map(_shown, one["values"]), one["validation"], strict=True)) for one in searched]
            mean = np.mean([scores[_shown(one["chosen"])] for one, scores in zip(searched, best, strict=True)])
            said.append(f"{searched[0]['metric']} {mean:.4f} on {_held(found)}")
        if warm := [one["temperature"] for one in found if one["temperature"] is not None]:
            said.append(f"temperature {np.mean(warm):.3g}")
        if stopped := [one for one in found if one["not_converged"] is not None]:
            said.append(
                f"{len(stopped):,} did not converge ({stopped[0]['file']}: {stopped[0]['not_converged']}); raise "
                "`max_iter` in `params`, or regularise more"
            )
        lines.append(f"{head} on {name}: {'; '.join(said)}")
    return lines


def _held(fits: Sequence[dict[str, Any]]) -> str:
    """On which rows was chosen."""
    rows = sorted({one["validation"]["held_rows"] for one in fits})
    many = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    folds = sorted({one["validation"].get("folds", 0) for one in fits})
    return f"{many} held-out rows" + (f" ({folds[-1]} folds)" if folds[-1] else "")


def _of_folds(validated: Sequence[Validation]) -> list[str]:
    """What is to be said of how rows are held out, each once."""
    return [f"validation: {note}" for note in dict.fromkeys(note for one in validated for note in one.notes)]


def _at_the_end(fits: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each head on each input whose best value is the first or the last of its values."""
    lines = []
    for head, name in dict.fromkeys((one["head"], one["input"]) for one in fits):
        searches = [one["search"] for one in fits if (one["head"], one["input"]) == (head, name) and one["search"]]
        ends = [one for one in searches if one.get("at_the_end")]
        if ends:
            share = f" in {len(ends):,} of {len(searches):,} fits" if len(searches) > 1 else ""
            values = ", ".join(dict.fromkeys(_shown(one["chosen"]) for one in ends))
            lines.append(
                f"{head} on {name}: the best {ends[0]['parameter']} is at the end of its values{share} ({values}). "
                "Name further `values` in `search` to see whether they are better."
            )
    return lines


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _save(head: Any, path: Path) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        skops_io().dump(head, file)


def _saved(one: Fit, data: Data, models: Path) -> dict[str, Any]:
    """Write a head, and return what `model.json` says of it; raises HeadError for a class that skops cannot save."""
    path = models / one.record["file"]
    try:
        _save(one.head, path)
        if one.before_refit is not None:
            before = path.with_name(f"{path.stem}.before-refit.skops")
            _save(one.before_refit, before)
            one.record["before_refit"] = before.name
    except Exception as error:
        raise HeadError(f"{path}: the head cannot be saved: {cause_of_failure(error)}") from error
    if not looks_at_rows(one.head):
        return one.record
    return {**one.record, "rows": write_keys(path.with_suffix(".keys.npy"), data.keys[one.rows])}


def _made_from(
    config: FitConfig, taps: dict[str, Features], path: Path, task: Task, scores: dict[str, Scores]
) -> dict[str, Any]:
    """model.json: everything that the run was made from."""
    return {
        "format": 2,
        "settings": config.model_dump(mode="json", exclude={"run"}),  # who worked changes no value
        "scores": scores,
        "task": {"name": config.task, "sha256": sha256_file(path), "kind": task.kind, "classes": task.classes},
        "features": {name: {"address": t.index.address, "identity": t.identity} for name, t in taps.items()},
        "versions": versions("scikit-learn", "numpy"),
    }
