"""Fit heads on stored features: each input, each number of labels and each draw of a run, from one reading of the taps.

The training rows of the task fit a head; its predictions on the validation and the test rows are written. Nothing is
chosen here: evaluation chooses on validation rows and reports on test rows.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from pipeline import heads
from pipeline.config import Settings
from pipeline.errors import DataError, HeadError, unknown
from pipeline.files import atomic, sha256_file, write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.runtime import Progress, silent, versions
from pipeline.store.features import Features
from pipeline.task import Task

# Values of a training matrix below which threads cost more than they bring: `python benchmarks/threads.py`.
SMALL = 5_000_000

Input = Annotated[tuple[str, ...], Field(min_length=1)]


class FitConfig(Settings):
    """A run: one kind of head on one task, over some inputs, numbers of labels and draws."""

    task: str
    backbone: str
    inputs: Annotated[tuple[str | Input, ...], Field(min_length=1, description="taps, or lists of taps to join")]
    head: str = "logistic"
    params: dict[str, Any] = Field({}, description="of the head's scikit-learn class")
    scale: heads.Scale = "standard"
    labels_per_class: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="few-shot; empty: all of train")

    @property
    def taps(self) -> list[str]:
        """Every tap that some input uses, sorted."""
        return sorted({tap for name in map(joined, self.inputs) for tap in name.split("+")})

    @field_validator("head")
    @classmethod
    def _known(cls, head: str) -> str:
        if head not in heads.HEADS:
            raise ValueError(unknown("head", head, heads.HEADS))
        return head

    @field_validator("inputs", "labels_per_class")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value if isinstance(value, int) else joined(value) for value in values]
        if len(set(names)) < len(names):
            raise ValueError("expected each of them once")  # twice the same fit would count as two draws
        return values


@dataclass(frozen=True)
class Training:
    """One training set of a run: its rows in the task, and how they were drawn."""

    rows: np.ndarray
    labels: int | None
    draw: int | None

    def __str__(self) -> str:
        return "all" if self.labels is None else f"n{self.labels}-draw{self.draw}"


def fit(
    config: FitConfig, *, task: Path, features: Path, models: Path, predictions: Path, progress: Progress = silent
) -> int:
    """Fit and predict everything; return the number of fits.

    `features` holds a folder a tap; heads go to `models`. Raises HeadError, DataError or StoreError before a fit starts
    where the task, the taps and the head do not go together.
    """
    loaded = Task.read(task)
    measured = np.concatenate([loaded.rows("validation"), loaded.rows("test")])
    if not len(measured):
        raise DataError(f"{task}: expected validation or test rows to predict, got none. Change the task's `sizes`.")
    trainings = list(training_sets(loaded, config, where=str(task)))
    taps = _open(config, features)
    columns = {tap: _matrix(column, loaded) for tap, column in taps.items()}
    total, done = len(config.inputs) * len(trainings), 0
    scores = _scores_of(config.head, heads.create(config.head, config.params, scale=config.scale))
    with Writer(predictions, loaded.kind, loaded.classes, {config.head: scores}) as writer:
        for name in map(joined, config.inputs):
            X = np.concatenate([columns[tap] for tap in name.split("+")], axis=1)
            for training in trainings:
                head = heads.create(config.head, config.params, scale=config.scale)
                with _refusals(where=f"{name}, {training}"), _threads_for(len(training.rows) * X.shape[1]):
                    head.fit(X[training.rows], loaded.targets[training.rows])
                    predicted = _predict(config.head, head, scores, X, loaded, measured, name, training)
                writer.add(predicted)
                _save(head, models / f"{name}.{training}.skops")
                done += 1
                progress(done, total)
    write_json(models / "model.json", _made_from(config, taps, task, scores))
    return total


def joined(taps: str | tuple[str, ...]) -> str:
    """The name of an input: its taps joined by +."""
    return taps if isinstance(taps, str) else "+".join(taps)


def training_sets(task: Task, config: FitConfig, *, where: str) -> Iterator[Training]:
    """The training sets that a run asks for; raises DataError where the task has none of that kind."""
    if not config.labels_per_class:
        rows = task.rows("train")
        if missing := sorted(set(task.classes) - set(task.targets[rows])):
            raise DataError(f"{where}: expected training rows of every class, got none of {', '.join(missing[:12])}.")
        yield Training(rows, None, None)
        return
    if not task.draws:
        raise DataError(f"{where}: `labels_per_class` needs few-shot draws. Give the task `few_shot` settings.")
    for labels in config.labels_per_class:
        for draw in range(task.draws):
            rows = task.few(draw, labels)
            if len(rows) < labels * len(task.classes):
                raise DataError(
                    f"{where}: expected {labels} training rows of each of {len(task.classes)} classes, got "
                    f"{len(rows)} in all. Raise `few_shot.labels_per_class` of the task, or ask for fewer."
                )
            yield Training(rows, labels, draw)


def _open(config: FitConfig, features: Path) -> dict[str, Features]:
    """The taps that the run uses; raises HeadError for one that was not extracted."""
    there = [path.parent.name for path in features.glob("*/index.json")]
    for tap in config.taps:
        if tap not in there:
            raise HeadError(f"{features}: {unknown('tap', tap, there)}")
    return {tap: Features.open(features / tap) for tap in config.taps}


def _matrix(column: Features, task: Task) -> np.ndarray:
    """A tap's rows of the task, flattened, float32 (rows, width)."""
    return column.load(list(task.keys)).reshape(len(task), -1).astype(np.float32)


def _threads_for(values: int) -> AbstractContextManager[Any]:
    """One thread for a small training set; the libraries' own choice for a large one."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1) if values < SMALL else nullcontext()


@contextmanager
def _refusals(*, where: str) -> Iterator[None]:
    """What scikit-learn has against a head or its training set becomes a HeadError that says which fit it was."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        # NearestCentroid divides by zero where every class has one sample; only its unused scores suffer.
        warnings.filterwarnings("ignore", "invalid value encountered in divide", RuntimeWarning)
        try:
            yield
        except ConvergenceWarning as warning:
            raise HeadError(
                f"{where}: the head did not converge: {str(warning).splitlines()[0]} "
                "Raise `max_iter` in `params`, or regularise more."
            ) from None
        except ValueError as error:
            raise HeadError(f"{where}: scikit-learn refuses the head or its training set: {error}") from None


def _scores_of(name: str, head: Any) -> Scores:
    if name in heads.WITHOUT_SCORES:
        return "none"
    if hasattr(head, "predict_proba"):
        return "probability"
    return "decision" if hasattr(head, "decision_function") else "none"


def _predict(
    named: str, head: Any, kind: Scores, X: np.ndarray, task: Task, rows: np.ndarray, name: str, training: Training
) -> Predictions:
    scores = np.full((len(rows), len(task.classes)), np.nan, dtype=np.float32)
    if kind != "none":
        found = head.predict_proba(X[rows]) if kind == "probability" else head.decision_function(X[rows])
        if found.ndim == 1:  # two classes: one column, positive for the second
            found = np.stack([-found, found], axis=1)
        order = list(head.classes_)
        scores = found[:, [order.index(label) for label in task.classes]].astype(np.float32)
        if not np.isfinite(scores).all():
            raise ValueError("it gives scores that are no finite numbers; are the features constant?")
    return Predictions(
        head=named,
        input=name,
        labels=training.labels,
        draw=training.draw,
        keys=task.keys[rows],
        splits=task.table["split"].to_numpy()[rows],
        targets=task.targets[rows],
        predicted=head.predict(X[rows]),
        scores=scores,
    )


def _save(head: Any, path: Path) -> None:
    import skops.io

    with atomic(path) as temporary, temporary.open("wb") as file:
        skops.io.dump(head, file)


def _made_from(config: FitConfig, taps: dict[str, Features], task: Path, scores: Scores) -> dict[str, Any]:
    """model.json: everything that the run was made from."""
    return {
        "format": 1,
        "settings": config.model_dump(mode="json"),
        "scores": scores,
        "task": {"name": config.task, "sha256": sha256_file(task)},
        "features": {name: {"address": t.index.address, "identity": t.identity} for name, t in taps.items()},
        "versions": versions("scikit-learn", "numpy"),
    }
