"""One fit of a run: choose on validation rows, calibrate on them, refit with them, predict what was not learnt from."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.fit import FitConfig
from pipeline.fit.inputs import Matrix, Stream
from pipeline.heads import calibration, device
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.scores import answers_of
from pipeline.heads.search import search
from pipeline.heads.sweep import Rows
from pipeline.predictions import Predictions, Scores
from pipeline.task import Kind
from pipeline.training_sets import Training

# Values of a training matrix below which threads cost more than they bring: `python benchmarks/threads.py`.
SMALL = 5_000_000


@dataclass(frozen=True)
class Head:
    """A head of a run: what predictions call it, its name in the table or import path, its parameters and scores."""

    called: str
    name: str
    params: dict[str, Any]
    scores: Scores
    random: bool
    on: str | None
    """The torch device that it is fitted on; None for arrays."""

    @property
    def streaming(self) -> bool:
        """Whether it reads its rows in blocks."""
        return heads.is_streaming(self.name)


@dataclass(frozen=True)
class Data:
    """The columns of a task, which a Task makes anew whenever it is asked, and an input to learn them from."""

    kind: Kind
    classes: list[str]
    targets: np.ndarray
    keys: np.ndarray
    splits: np.ndarray
    name: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """A fitted head, its predictions, and what `model.json` says of it."""

    head: Any
    predictions: Predictions
    record: dict[str, Any]
    rows: np.ndarray
    """The numbers of the rows that the head was fitted to, in that order."""


def fit_one(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    config: FitConfig,
    *,
    seed: int | None,
) -> Fit:
    """Fit one head to one training set of one input, with `seed` as its random state.

    Raises HeadError that names the fit.
    """
    params = {**head.params}
    if seed is not None:
        params.setdefault("random_state", seed)
    pipeline = heads.create(head.name, params, scale=config.scale, kind=data.kind, widths=data.widths, pca=config.pca)
    seeded = "" if seed is None or training.labels else f"-seed{seed}"
    where = f"{head.called} on {data.name}, {training}{seeded}"
    train = _training(data, source, training.rows)
    validation, test = (np.flatnonzero(data.splits == split) for split in ("validation", "test"))
    chosen_on = validation[source.order(validation)]
    temperature, found = None, None
    if head.on is not None:
        pipeline = device.prepare(pipeline)
    with refusals(where) as unconverged, threads_for(len(training.rows) * sum(data.widths)):
        if config.search is not None:
            held = Rows(source.take(chosen_on), data.targets[chosen_on])
            found = search(
                pipeline,
                head.name,
                config.search,
                train=train,
                validation=held,
                kind=data.kind,
                classes=data.classes,
                on=head.on,
            )
            pipeline, params = found.head, {**params, found.parameter: found.value}
        else:
            _fit(pipeline, train, head.on)
        first = pipeline
        if config.calibrate is not None:
            X = np.asarray(source.take(chosen_on)[0 : len(chosen_on)])
            first = calibration.by_temperature(pipeline, X, data.targets[chosen_on], classes=data.classes)
            temperature = calibration.temperature_of(first)
        learnt = np.sort(np.concatenate([training.rows, validation])) if config.refit else training.rows
        last = _refitted(pipeline, first, _training(data, source, learnt), config, head.on) if config.refit else first
        parts = [(first, validation), (last, test)] if config.refit else [(last, np.concatenate([validation, test]))]
        predicted = _predicted(head, data, source, training, parts, seed=seed)
    record = {
        "head": head.called,
        "input": data.name,
        "labels": predicted.labels,
        "draw": predicted.draw,
        "file": f"{head.called}.{data.name}.{training}{seeded}.skops",
        "params": {**heads.entry(head.name, data.kind)[1], **params, **heads.solved(last)},
        "search": None if found is None else found.record,
        "temperature": temperature,
        "not_converged": unconverged[0] if unconverged else None,
    }
    return Fit(last, predicted, record, learnt[source.order(learnt)])


@contextmanager
def refusals(where: str) -> Iterator[list[str]]:
    """Turn what scikit-learn, or any class by import path, has against a fit into a HeadError that names the fit.

    Yields a list, which holds at the end why an optimiser stopped before it converged: such a head still predicts, and
    the other fits of its run go on. Any other warning is given again.
    """
    from sklearn.exceptions import ConvergenceWarning

    unconverged: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, ConvergenceWarning):
                unconverged.append(str(message).splitlines()[0])
            else:
                show(message, category, *rest)

        warnings.simplefilter("always", ConvergenceWarning)
        warnings.showwarning = note  # type: ignore[assignment]
        # NearestCentroid divides by zero where every class has one sample; only its unused scores suffer.
        warnings.filterwarnings("ignore", "invalid value encountered in divide", RuntimeWarning)
        try:
            yield unconverged
        except HeadError as error:
            raise HeadError(f"{where}: {error}") from None
        except ValueError as error:
            raise HeadError(f"{where}: scikit-learn refuses the head or its training set: {error}") from None
        except Exception as error:
            raise HeadError(f"{where}: {cause_of_failure(error)}") from error


def threads_for(values: int) -> AbstractContextManager[Any]:
    """One thread for a small training set; the libraries' own choice for a large one."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1) if values < SMALL else nullcontext()


def _training(data: Data, source: Matrix | Stream, rows: np.ndarray) -> Rows:
    """Rows and what is to be learnt of them, in the order in which they are best read."""
    rows = rows[source.order(rows)]
    return Rows(source.take(rows), _as_learnt(data.targets[rows], data.kind))


def _as_learnt(targets: np.ndarray, kind: Kind) -> np.ndarray:
    return targets.astype(np.int8) if kind == "multilabel" else targets


def _fit(pipeline: Any, rows: Rows, on: str | None) -> None:
    with device.tensors(on):
        pipeline.fit(device.placed(rows.X, on), rows.y)
    for _, step in pipeline.steps if on is not None else ():
        device.to_arrays(step)


def _refitted(pipeline: Any, first: Any, rows: Rows, config: FitConfig, on: str | None) -> Any:
    """The head with what was chosen, fitted to training and validation rows; its temperature is the one before."""
    from sklearn.base import clone

    again = clone(pipeline)
    _fit(again, rows, on)
    return again if config.calibrate is None else calibration.with_head(first, again)


def _predicted(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    parts: Sequence[tuple[Any, np.ndarray]],
    *,
    seed: int | None,
) -> Predictions:
    answers = []
    for fitted, rows in parts:
        if not len(rows):
            continue
        order = source.order(rows)
        X, back = source.take(rows[order]), np.argsort(order)
        found = answers_of(fitted, X, kind=data.kind, scores=head.scores, classes=data.classes)
        answers.append((found[0][back], found[1][back]))
    rows = np.concatenate([rows for _, rows in parts])
    return Predictions(
        head=head.called,
        input=data.name,
        labels=training.labels,
        draw=training.draw if training.labels else seed,
        keys=data.keys[rows],
        splits=data.splits[rows],
        targets=data.targets[rows],
        predicted=np.concatenate([predicted for predicted, _ in answers]),
        scores=np.concatenate([scores for _, scores in answers]),
    )
