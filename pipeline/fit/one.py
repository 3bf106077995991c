"""One fit of a run: choose on validation rows, calibrate on them, refit with them, predict what was not learnt from."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.fit import FitConfig
from pipeline.fit.inputs import Matrix, Stream
from pipeline.fit.training import Training
from pipeline.heads import calibration, device
from pipeline.heads.scores import kind_of_scores, predictions_of, scores_of
from pipeline.heads.search import search
from pipeline.heads.sweep import Rows
from pipeline.predictions import Predictions, Scores
from pipeline.task import Kind, Task

# Values of a training matrix below which threads cost more than they bring: `python benchmarks/threads.py`.
SMALL = 5_000_000


@dataclass(frozen=True)
class Head:
    """A head of a run: what predictions call it, its name in the table or import path, its parameters."""

    called: str
    name: str
    params: dict[str, Any]
    random: bool

    @property
    def streaming(self) -> bool:
        """Whether it reads its rows in blocks."""
        return heads.is_streaming(self.name)


@dataclass(frozen=True)
class Data:
    """A task with its arrays, which a Task makes anew whenever it is asked, and an input to predict it from."""

    task: Task
    kind: Kind
    classes: list[str]
    targets: np.ndarray
    keys: np.ndarray
    splits: np.ndarray
    name: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """A fitted head, its predictions, what `model.json` says of it, and a line for people."""

    head: Any
    predictions: Predictions
    record: dict[str, Any]
    line: str


def fit_one(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    config: FitConfig,
    *,
    seed: int | None,
    on: str | None,
    scores: Scores,
) -> Fit:
    """Fit one head to one training set of one input. `on` is a torch device, None for arrays; `seed` is the head's.

    Raises HeadError that names the fit.
    """
    params = {**head.params}
    if seed is not None:
        params.setdefault("random_state", seed)
    pipeline = heads.create(
        head.name, params, scale=config.scale, kind=data.kind, widths=data.widths, pca=config.pca
    )
    where = f"{head.called} on {data.name}, {training}" + (f", seed {seed}" if seed and not training.labels else "")
    train = Rows(source.take(training.rows), _as_learnt(data.targets[training.rows], data.kind))
    validation, test = (np.flatnonzero(data.splits == split) for split in ("validation", "test"))
    temperature, found = None, None
    if on is not None:
        pipeline = device.prepare(pipeline)
    with refusals(where), threads_for(len(training.rows) * sum(data.widths)):
        if config.search is not None:
            held = Rows(source.take(validation), data.targets[validation])
            what = {"kind": data.kind, "classes": data.classes, "on": on}
            found = search(pipeline, head.name, config.search, train=train, validation=held, **what)
            pipeline, params = found.head, {**params, found.parameter: found.value}
        else:
            _fit(pipeline, train, on)
        first = pipeline
        if config.calibrate is not None:
            X = np.asarray(source.take(validation)[0 : len(validation)])
            first = calibration.by_temperature(pipeline, X, data.targets[validation], classes=data.classes)
            temperature = calibration.temperature_of(first)
        last = _refitted(pipeline, first, data, source, training, config, on) if config.refit else first
        parts = [(first, validation), (last, test)] if config.refit else [(last, np.concatenate([validation, test]))]
        predicted = _predicted(head, data, source, training, parts, seed=seed, scores=scores)
    record = {
        "head": head.called,
        "input": data.name,
        "labels": predicted.labels,
        "draw": predicted.draw,
        "file": f"{head.called}.{data.name}.{training}{'' if seed is None or training.labels else f'-seed{seed}'}.skops",
        "params": {**heads.entry(head.name, data.kind)[1], **params},
        "search": None if found is None else found.record,
        "temperature": temperature,
    }
    said = [] if found is None else [_chosen(found.record)]
    said += [] if temperature is None else [f"temperature {temperature:.3g}"]
    return Fit(last, predicted, record, f"{where}: {', '.join(said) or 'fitted'}")


@contextmanager
def refusals(where: str) -> Iterator[None]:
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
        except HeadError as error:
            raise HeadError(f"{where}: {error}") from None
        except ValueError as error:
            raise HeadError(f"{where}: scikit-learn refuses the head or its training set: {error}") from None


def threads_for(values: int) -> AbstractContextManager[Any]:
    """One thread for a small training set; the libraries' own choice for a large one."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1) if values < SMALL else nullcontext()


def _as_learnt(targets: np.ndarray, kind: Kind) -> np.ndarray:
    return targets.astype(np.int8) if kind == "multilabel" else targets


def _fit(pipeline: Any, rows: Rows, on: str | None) -> None:
    with device.tensors(on):
        pipeline.fit(device.placed(rows.X, on), rows.y)
    for _, step in pipeline.steps if on is not None else ():
        device.to_arrays(step)


def _refitted(
    pipeline: Any, first: Any, data: Data, source: Matrix | Stream, training: Training, config: FitConfig, on: str | None
) -> Any:
    """The head with what was chosen, fitted to training and validation rows; its temperature is the one before."""
    from sklearn.base import clone

    rows = np.sort(np.concatenate([training.rows, np.flatnonzero(data.splits == "validation")]))
    again = clone(pipeline)
    _fit(again, Rows(source.take(rows), _as_learnt(data.targets[rows], data.kind)), on)
    return again if config.calibrate is None else calibration.with_head(first, again)


def _predicted(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    parts: Sequence[tuple[Any, np.ndarray]],
    *,
    seed: int | None,
    scores: Scores,
) -> Predictions:
    predicted, scored = [], []
    for fitted, rows in parts:
        if not len(rows):
            continue
        X = source.take(rows)
        predicted.append(predictions_of(fitted, X, kind=data.kind))
        scored.append(scores_of(fitted, X, kind=data.kind, scores=scores, classes=data.classes))
    rows = np.concatenate([rows for _, rows in parts])
    return Predictions(
        head=head.called,
        input=data.name,
        labels=training.labels,
        draw=training.draw if training.labels else seed,
        keys=data.keys[rows],
        splits=data.splits[rows],
        targets=data.targets[rows],
        predicted=np.concatenate(predicted),
        scores=np.concatenate(scored),
    )


def _chosen(record: dict[str, Any]) -> str:
    value = record["chosen"]
    best = next(score for one, score in zip(record["values"], record["validation"], strict=True) if one == value)
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{record['parameter']} {shown} of {len(record['values'])} ({record['metric']} {best:.4f} on validation rows)"


def scores_kind(head: Head, data_kind: Kind, config: FitConfig, create: Callable[..., Any] = heads.create) -> Scores:
    """What the scores of a head of the run are."""
    if head.name in heads.WITHOUT_SCORES:
        return "none"
    if config.calibrate is not None:
        return "probability"
    return kind_of_scores(create(head.name, head.params, scale="none", kind=data_kind), data_kind)
