"""Fit one head: search and calibrate on held-out rows, fit to all rows, predict rows outside the fit."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.fit.config import FitConfig
from pipeline.fit.folds import Validation
from pipeline.fit.inputs import Matrix, Stream
from pipeline.heads import calibration, gpu
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.outputs import predict_with_scores
from pipeline.heads.search import SearchConfig, search
from pipeline.heads.sweep import Fold, LabelledRows
from pipeline.model_record import HeadFit
from pipeline.predictions import Predictions, Scores
from pipeline.task import Kind, Training

# A training matrix with fewer values is fitted faster by one thread: `python benchmarks/threads.py`.
SMALL = 5_000_000


@dataclass(frozen=True)
class Head:
    """A head of a run.

    called: its name in predictions. name: its name in the table of heads, or its import path.
    scores: the kind of its scores. plain: the same without a temperature. search: None if there is no search.
    """

    called: str
    name: str
    params: dict[str, Any]
    scores: Scores
    plain: Scores
    search: SearchConfig | None
    random: bool
    on: str | None
    """The torch device of the fit; None to fit NumPy arrays on the processor."""

    @property
    def streaming(self) -> bool:
        """Return whether the head reads its rows in blocks."""
        return heads.is_streaming(self.name)


@dataclass(frozen=True)
class Data:
    """The columns of a task, computed once, and the name of an input with the widths of its taps."""

    kind: Kind
    classes: list[str]
    targets: np.ndarray
    keys: np.ndarray
    splits: np.ndarray
    name: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class FitJob:
    """One fit of a run: a head, an input with its rows, a training set and its validation, and the random state."""

    head: Head
    data: Data
    source: Matrix | Stream
    training: Training
    validation: Validation
    config: FitConfig
    seed: int | None

    @property
    def draw(self) -> int | None:
        """Return the draw of few labels, or the seed."""
        return self.training.draw if self.training.labels else self.seed


@dataclass(frozen=True)
class FittedHead:
    """A fitted head, its predictions, and its record in `model.json`."""

    head: Any
    predictions: Predictions
    record: HeadFit
    rows: np.ndarray
    """The numbers of the rows that the head was fitted to, in the order of the fit."""
    before_refit: Any | None
    """The head fitted to the training split only, from which fine-tuning may start: it has not seen validation rows."""


def fit_head(job: FitJob) -> FittedHead:
    """Fit one head to one training set of one input.

    A head that cannot be fitted to the folds, such as one that needs more rows, is fitted without them. Raises
    HeadError that names the fit.
    """
    try:
        return _fit(job)
    except HeadError as error:
        instead = job.validation.instead
        if instead is None:
            raise
        why = {"folds_failed": str(error.__cause__ or error)}
    return _fit(replace(job, validation=replace(instead, record={**instead.record, **why})))


def _fit(job: FitJob) -> FittedHead:
    head, data, source, config, validation = job.head, job.data, job.source, job.config, job.validation
    params = {**head.params}
    if job.seed is not None:
        params.setdefault("random_state", job.seed)
    pipeline = heads.create(head.name, params, scale=config.scale, kind=data.kind, widths=data.widths, pca=config.pca)
    name = str(job.training) if job.seed is None or job.training.labels else f"{job.training}-seed{job.seed}"
    where = f"{head.called} on {data.name}, {name}"
    learned = validation.learned
    search_result = None
    if head.on is not None:
        pipeline = gpu.prepare_for_tensors(pipeline)
    with refusals(where) as unconverged, threads_for(len(learned) * sum(data.widths)):
        folds = [
            Fold(_take_rows(data, source, part.train), _take_rows(data, source, part.held)) for part in validation.parts
        ]
        if head.search is not None and folds:
            how: dict[str, Any] = {"kind": data.kind, "classes": data.classes, "given": head.plain, "on": head.on}
            search_result = search(
                pipeline, head.name, head.search, folds, **how, calibrated=config.calibrate is not None
            )
            fitted = list(search_result.heads)
            pipeline = fitted[0]
            params |= {search_result.parameter: search_result.value}
        else:
            fitted = [_fit_copy(pipeline, fold.train, head.on) for fold in folds]
        if len(folds) == 1 and np.array_equal(learned, validation.parts[0].train):
            last = fitted[0]
        else:
            unconverged.clear()  # these are of heads that are not saved
            last = _fit_copy(pipeline, _take_rows(data, source, learned), head.on)
        temperature = None if search_result is None else search_result.temperature
        if temperature is not None:
            for estimator in {id(estimator): estimator for estimator in (*fitted, last)}.values():
                calibration.divide_scores(estimator, temperature)
        end, stopped = last[-1], list(unconverged)
        if config.calibrate is not None:
            if not folds:
                raise HeadError("calibrate: expected rows that can be held out, got none. Leave `calibrate` out.")
            parts = [(estimator, fold.held.X, fold.held.y) for estimator, fold in zip(fitted, folds, strict=True)]
            calibrated = calibration.fit_temperature(parts)
            temperature = calibration.temperature_of(calibrated)
            same = last is fitted[0]
            fitted = [calibration.with_head(calibrated, estimator) for estimator in fitted]
            last = fitted[0] if same else calibration.with_head(calibrated, last)
        refit = bool((data.splits[learned] == "validation").any())
        before = None
        if refit and _is_linear(end):
            split = len(folds) == 1 and np.array_equal(validation.parts[0].train, job.training.rows)
            before = fitted[0] if split else _fit_copy(pipeline, _take_rows(data, source, job.training.rows), head.on)
            if not split and search_result is not None and search_result.temperature is not None:
                calibration.divide_scores(before, search_result.temperature)
        predictions = _predict(job, [*fitted, last])
    record = HeadFit(
        head=head.called,
        input=data.name,
        labels=predictions.labels,
        draw=predictions.draw,
        file=f"{head.called}.{data.name}.{name}.skops",
        params={**heads.entry(head.name, data.kind)[1], **params, **heads.fitted_penalty(last)},
        validation=validation.record,
        search=None if search_result is None else search_result.record,
        temperature=temperature,
        refit=refit,
        learned_rows=len(learned),
        not_converged=stopped[0] if stopped else None,
    )
    return FittedHead(last, predictions, record, learned[source.order(learned)], before)


@contextmanager
def refusals(where: str) -> Iterator[list[str]]:
    """Convert errors of scikit-learn, or of a class by import path, to a HeadError that names the fit.

    Yields a list that collects the warnings of optimisers that stopped before they converged: such a head still
    predicts, and the other fits of its run continue. Other warnings are shown as usual.
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
    """Return a context that limits libraries to one thread for a small training set; no limit for a large one."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1) if values < SMALL else nullcontext()


def _is_linear(end: Any) -> bool:
    """Return whether a fitted estimator, or the estimator of its first label, has coefficients."""
    return any(hasattr(estimator, "coef_") for estimator in (end, *getattr(end, "estimators_", ())[:1]))


def _take_rows(data: Data, source: Matrix | Stream, rows: np.ndarray) -> LabelledRows:
    """Return rows with their targets, in the order of the fastest reading."""
    rows = rows[source.order(rows)]
    targets = data.targets[rows]
    return LabelledRows(source.take(rows), targets.astype(np.int8) if data.kind == "multilabel" else targets)


def _fit_copy(pipeline: Any, rows: LabelledRows, on: str | None) -> Any:
    """Return a copy of a pipeline, fitted to rows."""
    from sklearn.base import clone

    copy = clone(pipeline)
    with gpu.accept_tensors(on):
        copy.fit(gpu.to_tensor(rows.X, on), rows.y)
    for _, step in copy.steps if on is not None else ():
        gpu.to_arrays(step)
    return copy


def _predict(job: FitJob, fitted: Sequence[Any]) -> Predictions:
    """Predict held-out rows by the head of their part, and other validation rows and test rows by the last head.

    Rows that are no test rows have the split `validation` in the predictions, also training rows held out by a fold.
    """
    head, data, source, validation = job.head, job.data, job.source, job.validation
    held = validation.held
    left = np.setdiff1d(np.flatnonzero(data.splits == "validation"), np.union1d(held, validation.learned))
    blocks = [part.held for part in validation.parts] + [np.concatenate([left, np.flatnonzero(data.splits == "test")])]
    if len(fitted) > 1 and fitted[-1] is fitted[0]:  # one pass for the rows of one head
        fitted, blocks = fitted[:1], [np.concatenate(blocks)]
    answers = []
    for estimator, rows in zip(fitted, blocks, strict=True):
        if not len(rows):
            continue
        order = source.order(rows)
        X, back = source.take(rows[order]), np.argsort(order)
        predicted, scores = predict_with_scores(estimator, X, kind=data.kind, scores=head.scores, classes=data.classes)
        answers.append((predicted[back], scores[back]))
    rows = np.concatenate(blocks)
    place = np.lexsort((rows, data.splits[rows] == "test"))
    rows = rows[place]
    return Predictions(
        head=head.called,
        input=data.name,
        labels=job.training.labels,
        draw=job.draw,
        keys=data.keys[rows],
        splits=np.where(data.splits[rows] == "test", "test", "validation").astype(object),
        targets=data.targets[rows],
        predicted=np.concatenate([predicted for predicted, _ in answers])[place],
        scores=np.concatenate([scores for _, scores in answers])[place],
    )
