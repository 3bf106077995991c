"""One fit of a run: choose on held-out rows, calibrate on them, fit to all rows, predict what was not learned from."""

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
from pipeline.heads.outputs import answers_of
from pipeline.heads.search import SearchConfig, search
from pipeline.heads.sweep import Fold, LabelledRows
from pipeline.predictions import Predictions, Scores
from pipeline.task import Kind, Training

# Values of a training matrix below which threads cost more than they bring: `python benchmarks/threads.py`.
SMALL = 5_000_000


@dataclass(frozen=True)
class Head:
    """A head of a run: what predictions call it, its name in the table or import path, its parameters and scores.

    `plain`: its scores without a temperature. `search`: what is searched of it; None where nothing is.
    """

    called: str
    name: str
    params: dict[str, Any]
    scores: Scores
    plain: Scores
    search: SearchConfig | None
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
    before_refit: Any | None
    """The same head fitted to the training split alone, from which a network may start: its validation rows are new."""


def fit_one(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    validation: Validation,
    config: FitConfig,
    *,
    seed: int | None,
) -> Fit:
    """Fit one head to one training set of one input, with `seed` as its random state.

    A head that cannot be fitted to the folds, such as one that needs more rows, is fitted without them. Raises
    HeadError that names the fit.
    """
    try:
        return _fit(head, data, source, training, validation, config, seed=seed)
    except HeadError as error:
        if validation.instead is None:
            raise
        why = {"folds_failed": str(error.__cause__ or error)}
        instead = replace(validation.instead, record={**validation.instead.record, **why})
    return _fit(head, data, source, training, instead, config, seed=seed)


def _fit(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    validation: Validation,
    config: FitConfig,
    *,
    seed: int | None,
) -> Fit:
    params = {**head.params}
    if seed is not None:
        params.setdefault("random_state", seed)
    pipeline = heads.create(head.name, params, scale=config.scale, kind=data.kind, widths=data.widths, pca=config.pca)
    seeded = "" if seed is None or training.labels else f"-seed{seed}"
    where = f"{head.called} on {data.name}, {training}{seeded}"
    learned = validation.learned
    found = None
    if head.on is not None:
        pipeline = gpu.prepare(pipeline)
    with refusals(where) as unconverged, threads_for(len(learned) * sum(data.widths)):
        folds = [Fold(_rows(data, source, part.train), _rows(data, source, part.held)) for part in validation.parts]
        if head.search is not None and folds:
            how: dict[str, Any] = {"kind": data.kind, "classes": data.classes, "given": head.plain, "on": head.on}
            found = search(pipeline, head.name, head.search, folds, **how, calibrated=config.calibrate is not None)
            fitted = list(found.heads)
            pipeline = fitted[0]
            params |= {found.parameter: found.value}
        else:
            fitted = [_fitted(pipeline, fold.train, head.on) for fold in folds]
        if len(folds) == 1 and np.array_equal(learned, validation.parts[0].train):
            last = fitted[0]
        else:
            unconverged.clear()  # of heads that do not stay
            last = _fitted(pipeline, _rows(data, source, learned), head.on)
        temperature = None if found is None else found.temperature
        if temperature is not None:
            for one in {id(one): one for one in (*fitted, last)}.values():
                calibration.divide_scores(one, temperature)
        end, stopped = last[-1], list(unconverged)
        if config.calibrate is not None:
            if not folds:
                raise HeadError("calibrate: expected rows that can be held out, got none. Leave `calibrate` out.")
            parts = [(one, fold.held.X, fold.held.y) for one, fold in zip(fitted, folds, strict=True)]
            calibrated = calibration.by_temperature(parts)
            temperature = calibration.temperature_of(calibrated)
            same = last is fitted[0]
            fitted = [calibration.with_head(calibrated, one) for one in fitted]
            last = fitted[0] if same else calibration.with_head(calibrated, last)
        refit = bool((data.splits[learned] == "validation").any())
        before = None
        if refit and _is_linear(end):
            split = len(folds) == 1 and np.array_equal(validation.parts[0].train, training.rows)
            before = fitted[0] if split else _fitted(pipeline, _rows(data, source, training.rows), head.on)
            if not split and found is not None and found.temperature is not None:
                calibration.divide_scores(before, found.temperature)
        predicted = _predicted(head, data, source, training, validation, [*fitted, last], seed=seed)
    record = {
        "head": head.called,
        "input": data.name,
        "labels": predicted.labels,
        "draw": predicted.draw,
        "file": f"{head.called}.{data.name}.{training}{seeded}.skops",
        "params": {**heads.entry(head.name, data.kind)[1], **params, **heads.solved(last)},
        "validation": validation.record,
        "search": None if found is None else found.record,
        "temperature": temperature,
        "refit": refit,
        "learned_rows": len(learned),
        "not_converged": stopped[0] if stopped else None,
    }
    return Fit(last, predicted, record, learned[source.order(learned)], before)


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


def _is_linear(end: Any) -> bool:
    """Whether a fitted estimator, or that of its first label, has coefficients."""
    return any(hasattr(one, "coef_") for one in (end, *getattr(end, "estimators_", ())[:1]))


def _rows(data: Data, source: Matrix | Stream, rows: np.ndarray) -> LabelledRows:
    """Rows and what is to be learned of them, in the order in which they are best read."""
    rows = rows[source.order(rows)]
    targets = data.targets[rows]
    return LabelledRows(source.take(rows), targets.astype(np.int8) if data.kind == "multilabel" else targets)


def _fitted(pipeline: Any, rows: LabelledRows, on: str | None) -> Any:
    """A copy of a pipeline, fitted to rows."""
    from sklearn.base import clone

    found = clone(pipeline)
    with gpu.tensors(on):
        found.fit(gpu.placed(rows.X, on), rows.y)
    for _, step in found.steps if on is not None else ():
        gpu.to_arrays(step)
    return found


def _predicted(
    head: Head,
    data: Data,
    source: Matrix | Stream,
    training: Training,
    validation: Validation,
    fitted: Sequence[Any],
    *,
    seed: int | None,
) -> Predictions:
    """Predict held-out rows by the heads of their parts, then rows that nothing learned from by the last head.

    All that are no test rows stand under `validation`, also training rows that a fold held out.
    """
    held = validation.held
    left = np.setdiff1d(np.flatnonzero(data.splits == "validation"), np.union1d(held, validation.learned))
    blocks = [part.held for part in validation.parts] + [np.concatenate([left, np.flatnonzero(data.splits == "test")])]
    if len(fitted) > 1 and fitted[-1] is fitted[0]:  # one pass for the rows of one head
        fitted, blocks = fitted[:1], [np.concatenate(blocks)]
    answers = []
    for one, rows in zip(fitted, blocks, strict=True):
        if not len(rows):
            continue
        order = source.order(rows)
        X, back = source.take(rows[order]), np.argsort(order)
        found = answers_of(one, X, kind=data.kind, scores=head.scores, classes=data.classes)
        answers.append((found[0][back], found[1][back]))
    rows = np.concatenate(blocks)
    place = np.lexsort((rows, data.splits[rows] == "test"))
    rows = rows[place]
    return Predictions(
        head=head.called,
        input=data.name,
        labels=training.labels,
        draw=training.draw if training.labels else seed,
        keys=data.keys[rows],
        splits=np.where(data.splits[rows] == "test", "test", "validation").astype(object),
        targets=data.targets[rows],
        predicted=np.concatenate([predicted for predicted, _ in answers])[place],
        scores=np.concatenate([scores for _, scores in answers])[place],
    )
