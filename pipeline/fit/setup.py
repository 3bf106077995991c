"""Load the task and the features of a run, check them against its settings, and list its fits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import heads
from pipeline.errors import ConfigError, DataError
from pipeline.fit.checks import check_classes, check_targets
from pipeline.fit.config import FitConfig, input_name
from pipeline.fit.folds import Validation, validation_of
from pipeline.fit.inputs import Matrix, Stream, check_memory, load, open_taps, width
from pipeline.fit.single_fit import Data, FitJob, Head
from pipeline.fit.workers import Sums
from pipeline.heads import calibration, gpu, scoring
from pipeline.heads.outputs import kind_of_scores
from pipeline.heads.search import grid_values
from pipeline.predictions import Scores
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.task import Kind, Task, Training, training_sets


@dataclass(frozen=True)
class FitRun:
    """The data and the heads that all fits of a run share.

    trainings: each training set with its validation.
    heads:     each head with each of its seeds; None for a head without a seed.
    columns:   the taps in memory, float32 (rows, width); empty if all heads stream.
    notes:     where the run deviates from its settings.
    """

    config: FitConfig
    task: Task
    trainings: Sequence[tuple[Training, Validation]]
    heads: Sequence[tuple[Head, int | None]]
    taps: dict[str, Features]
    columns: dict[str, np.ndarray]
    notes: Sequence[str]

    @property
    def inputs(self) -> list[str]:
        """Return the names of the inputs."""
        return [input_name(taps) for taps in self.config.inputs]

    @property
    def fits(self) -> int:
        """Return the number of fits."""
        return len(self.inputs) * len(self.trainings) * len(self.heads)


def load_run(config: FitConfig, *, task: Path, features: Path) -> FitRun:
    """Read the task and open the taps; raises what `fit` raises before its first fit."""
    device, note = gpu.choose_device(config.device)
    loaded = Task.read(task)
    check_targets(loaded, where=str(task))
    _check_splits(config, loaded, where=str(task))
    trainings = list(training_sets(loaded, config.labels_per_class, where=str(task)))
    for training in trainings:
        if training.labels is None:  # a draw has rows of every class
            check_classes(loaded, training.rows, where=str(task))
    validated = [(training, validation_of(config, loaded, training)) for training in trainings]
    notes = [] if note is None else [note]
    notes += dict.fromkeys(f"validation: {note}" for _, validation in validated for note in validation.notes)
    created = _create_heads(config, loaded.kind, device)
    if device is not None:
        names = sorted({head.called for head in created if head.on is None})
        notes += [
            f"{name}: scikit-learn has no `device: {device}` for it; it is fitted on the processor." for name in names
        ]
    # A worker may run in another folder.
    taps = open_taps(config.taps, features.absolute() if config.run.several(gpus=0) else features)
    columns = {}
    if in_memory := sorted({head.called for head in created if not head.streaming}):
        searched = any(head.search is not None and not head.streaming for head in created)
        check_memory(
            taps,
            [input_name(names) for names in config.inputs],
            rows=len(loaded),
            memory_gb=config.memory_gb,
            who=", ".join(in_memory),
            copies=max(len(validation.parts) for _, validation in validated) if searched else 1,
        )
        columns = load(taps, loaded.keys)
    seeded = [(head, seed) for head in created for seed in _seeds(head, config)]
    return FitRun(config, loaded, validated, seeded, taps, columns, notes)


def list_jobs(run: FitRun, sums: Sums) -> Iterator[FitJob]:
    """Yield the fits of a run; only one joined input is in memory at a time, and heads share the sums of one pass."""
    task, keys = run.task, key_arrays.from_hex(run.task.keys)
    targets, splits = task.targets, task.table["split"].to_numpy()
    for name in run.inputs:
        names = name.split("+")
        taps = tuple(run.taps[tap] for tap in names)
        data = Data(task.kind, task.classes, targets, task.keys, splits, name, tuple(width(tap) for tap in taps))
        matrix = Matrix(_join([run.columns[tap] for tap in names])) if run.columns else None
        for training, validation in run.trainings:
            stream = Stream(taps, keys, sums)
            for head, seed in run.heads:
                source = stream if head.streaming or matrix is None else matrix
                state = training.draw if head.random and training.draw is not None else seed
                yield FitJob(head, data, source, training, validation, run.config, state)


def _create_heads(config: FitConfig, kind: Kind, device: str | None) -> list[Head]:
    """Create the heads of a run, so that their errors are raised before features are read."""
    created = []
    for called, (name, params) in config.heads.items():
        pipeline = heads.create(name, params, scale=config.scale, kind=kind, pca=config.pca)
        plain: Scores = kind_of_scores(pipeline, kind) if heads.has_scores(name, kind) else "none"
        search, scores = config.search_of(name, params), plain
        if search is not None:
            grid_values(search, name)
            scoring.check(scoring.choose_metric(search.metric, kind, plain), pipeline, kind=kind)
        if config.calibrate is not None:
            calibration.check(called, scores, kind=kind)
            scores = "probability"
        on = device if gpu.supports_tensors(pipeline) else None
        created.append(Head(called, name, params, scores, plain, search, heads.is_random(name, kind), on))
    if config.seeds > 1 and not any(head.random for head in created):
        raise ConfigError(
            f"seeds: expected a head that starts at random, got {', '.join(config.heads)}: each fit would be the same. "
            "Leave `seeds` out."
        )
    return created


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


def _join(columns: Sequence[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
