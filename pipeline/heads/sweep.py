"""A sweep: a head fitted with each value of a parameter, and the value that is best on held-out rows.

One split or several folds: for each value a head per fold is fitted to the fold's training rows, and the answers on the
held-out rows of all folds are measured together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import HeadError, bullets
from pipeline.heads import calibration, gpu, scoring
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.regularisation_path import copy_with, fit_path, try_fit
from pipeline.heads.scoring import Held
from pipeline.metrics import codes
from pipeline.predictions import Scores
from pipeline.task import Kind

ENOUGH = 3
"""Values in a row that are worse than the best, after which the log loss is taken to rise for good."""


@dataclass(frozen=True)
class LabelledRows:
    """Training or held-out rows: X (rows, width), targets as a task has them."""

    X: Any
    y: np.ndarray


@dataclass(frozen=True)
class Fold:
    """Training rows, and the rows that are held out from them."""

    train: LabelledRows
    held: LabelledRows


@dataclass(frozen=True)
class SearchResult:
    """The chosen value, a fitted pipeline with it for each fold, and how it was chosen.

    `temperature`: what the scores of the pipelines are to be divided by; None where that was not asked for.
    """

    heads: Sequence[Any]
    parameter: str
    value: Any
    record: dict[str, Any]
    temperature: float | None = None

    @property
    def head(self) -> Any:
        """Return the pipeline of the first fold; of a split the only one."""
        return self.heads[0]


@dataclass(frozen=True)
class Tried:
    """A value of the parameter on the held-out rows.

    `score`: of the metric that decides; `problem`: why the value cannot be chosen; `by_row` as `criteria.by_row`;
    `uncertainty` as `criteria.uncertainty`, or the score itself where log loss decides. Where values are compared at
    their best `temperature`, score and `by_row` are the doubted log loss there, `untempered` that of each row at none,
    and `uncertainty` the log loss at the temperature.
    """

    score: float | None = None
    problem: str | None = None
    by_row: np.ndarray | None = None
    uncertainty: float | None = None
    temperature: float | None = None
    untempered: np.ndarray | None = None

    @property
    def usable(self) -> bool:
        """Return whether the value can be chosen."""
        return self.score is not None and self.problem is None


@dataclass(frozen=True)
class _Prepared:
    """A fold after the pipeline's steps before the head, which are fitted to its training rows."""

    steps: Sequence[Any]
    X: Any
    y: np.ndarray
    held: LabelledRows


def sweep(
    pipeline: Any,
    parameter: str,
    values: Sequence[Any],
    folds: Sequence[Fold],
    *,
    metric: str = "accuracy",
    kind: Kind = "classification",
    classes: Sequence[str],
    given: Scores,
    on: str | None = None,
    stops: bool = False,
    tempered: bool = False,
) -> SearchResult:
    """Fit a head per fold for each value, in their order, and choose a value on the held-out rows of all folds.

    `given`: what the scores of the head are. `stops`: by log loss, values after the best one are tried until `ENOUGH`
    of them in a row are worse by more than a standard error. `tempered`: values are compared by the doubted log loss at
    their best temperatures (`pipeline.heads.calibration`): one is chosen by how well it tells classes apart, and not by
    how sure it is of them (Berta et al. 2025, Rethinking Early Stopping: Refine, Then Calibrate). The preparation is
    fitted once per fold.
    `pipeline.heads.regularisation_path` says how heads share work between values. A value with which a fit fails, or
    does not converge, is recorded and not chosen. Raises HeadError where that is so of all.
    """
    tried: list[Tried] = []
    best: tuple[int, list[Any]] | None = None
    with gpu.accept_tensors(on):
        ready = [_prepared(pipeline, fold, on) for fold in folds]
        running = zip(*(fit_path(pipeline[-1], parameter, values, fold.X, fold.y) for fold in ready), strict=True)
        for fitted_folds in running:
            heads = [head for head, _ in fitted_folds]
            problem = next((why for _, why in fitted_folds if why is not None), None)
            trial = Tried(problem=problem)
            if all(head is not None for head in heads):
                how: dict[str, Any] = {"kind": kind, "classes": classes, "given": given}
                trial = _measured(heads, ready, problem, metric=metric, tempered=tempered, **how)
            tried.append(trial)
            if trial.usable and (best is None or _loss(trial, metric) < _loss(tried[best[0]], metric)):
                best = len(tried) - 1, heads
            if stops and metric == "log_loss" and _rises(tried):
                break
        if best is None:
            lines = (f"{value}: {trial.problem}" for value, trial in zip(values, tried, strict=True))
            raise HeadError(bullets(f"search: no value of {parameter} gave a head that can be used.", lines))
        close = within_one_error(tried, metric)
        best_number = min(close, key=lambda number: _least(tried[number], metric))
        if best_number != best[0]:
            again = ((copy_with(pipeline[-1], **{parameter: values[best_number]}), fold) for fold in ready)
            best = best_number, [try_fit(head, fold.X, fold.y)[0] for head, fold in again]
    return SearchResult(
        [_joined(fold.steps, head) for fold, head in zip(ready, best[1], strict=True)],
        parameter,
        values[best_number],
        _record(values, tried, best_number, close, metric),
        tried[best_number].temperature,
    )


def _prepared(pipeline: Any, fold: Fold, on: str | None) -> _Prepared:
    from sklearn.base import clone

    X = gpu.to_tensor(fold.train.X, on)
    if len(pipeline.steps) == 1:
        return _Prepared([], X, fold.train.y, fold.held)
    before = clone(pipeline[:-1])
    X = before.fit_transform(X, fold.train.y)
    before = gpu.to_arrays(before)
    return _Prepared(
        [step for _, step in before.steps], X, fold.train.y, LabelledRows(before.transform(fold.held.X), fold.held.y)
    )


def _joined(steps: Sequence[Any], head: Any) -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps, head)


def _measured(
    heads: Sequence[Any],
    ready: Sequence[_Prepared],
    problem: str | None,
    *,
    metric: str,
    tempered: bool,
    kind: Kind,
    classes: Sequence[str],
    given: Scores,
) -> Tried:
    """Measure the heads of one value on the held-out rows of all folds."""
    try:
        parts = [
            Held.of(head, fold.held.X, fold.held.y, kind=kind, classes=classes, given=given)
            for head, fold in zip(heads, ready, strict=True)
        ]
        held = scoring.join_held_out(parts)
        if tempered:
            return _at_best_temperature(held, problem, kind=kind, classes=classes)
        score = scoring.measure(metric, held, kind=kind, classes=classes)
    except Exception as error:  # noqa: BLE001 - such as more neighbours than there are training rows
        return Tried(problem=problem or cause_of_failure(error))
    if math.isnan(score):
        return Tried(problem=problem or f"{metric} is not a number")
    unsure = score if metric == "log_loss" else scoring.uncertainty(held, kind=kind, classes=classes)
    return Tried(score, problem, scoring.by_row(metric, held, kind=kind, classes=classes), unsure)


def _at_best_temperature(held: Held, problem: str | None, *, kind: Kind, classes: Sequence[str]) -> Tried:
    several = kind == "multilabel"
    targets = held.targets if several else codes(held.targets, classes)
    temperature = calibration.best_temperature(held.scores, targets)
    at_best = replace(held, scores=calibration.at_temperature(held.scores, temperature, several=several))
    rows = calibration.doubted_losses(at_best.scores, targets)
    unsure = scoring.measure("log_loss", at_best, kind=kind, classes=classes)
    return Tried(
        float(rows.mean()), problem, rows, unsure, temperature, calibration.doubted_losses(held.scores, targets)
    )


def _loss(trial: Tried, metric: str) -> float:
    """Return the score of a value that can be chosen, less is better."""
    assert trial.score is not None, "the value can be chosen"
    return -scoring.sign(metric) * trial.score


def within_one_error(tried: Sequence[Tried], metric: str) -> list[int]:
    """Return the numbers of the values whose score is within one standard error of the best score.

    The standard error is that of the mean difference per row, since all values are measured on the same rows; of a
    metric that is no mean over rows only equal scores count.
    """
    usable = [number for number, trial in enumerate(tried) if trial.usable]
    best = tried[min(usable, key=lambda number: _loss(tried[number], metric))]
    return [
        number
        for number in usable
        if _loss(tried[number], metric) - _loss(best, metric) <= _error_between(tried[number], best)
    ]


def _rises(tried: Sequence[Tried]) -> bool:
    """Return whether the last values' log loss, without temperature, is over a standard error above the least."""
    losses = [trial.by_row if trial.untempered is None else trial.untempered for trial in tried if trial.usable]
    least = min((rows for rows in losses if rows is not None), key=lambda rows: float(rows.mean()), default=None)
    last = tried[-ENOUGH:]
    if least is None or len(last) < ENOUGH:
        return False
    for trial in last:
        rows = trial.by_row if trial.untempered is None else trial.untempered
        if rows is not None and rows.mean() - least.mean() <= _standard_error(rows - least):
            return False
    return True


def _error_between(trial: Tried, other: Tried) -> float:
    """Return the standard error of the mean difference per row; 0 where the metric is no mean over rows."""
    if trial.by_row is None or other.by_row is None:
        return 0.0
    return _standard_error(trial.by_row - other.by_row)


def _standard_error(rows: np.ndarray) -> float:
    """Return the standard error of a mean over rows; 0 of a single row."""
    return float(np.std(rows, ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0


def _least(trial: Tried, metric: str) -> tuple[float, float]:
    """Return what the chosen value minimises: the log loss, and then the loss by the metric that decides."""
    loss = _loss(trial, metric)
    return (loss if trial.uncertainty is None or trial.temperature is not None else trial.uncertainty), loss


def _record(
    values: Sequence[Any], tried: Sequence[Tried], best_number: int, close: Sequence[int], metric: str
) -> dict[str, Any]:
    """Return the record of the search in `model.json`: the curve, and what decided."""
    trial = tried[best_number]
    rows = trial.by_row
    error = None if rows is None or len(rows) < 2 else _standard_error(rows)
    scores = {other.score for other in tried if other.usable}
    ordered = len(values) > 2 and all(isinstance(value, int | float) for value in values)
    return {
        "values": list(values[: len(tried)]),
        "left_out": list(values[len(tried) :]),
        "validation": [other.score for other in tried],
        "log_loss": [other.uncertainty for other in tried] if metric != "log_loss" or trial.temperature else None,
        "temperatures": None if trial.temperature is None else [other.temperature for other in tried],
        "problems": [other.problem for other in tried],
        "standard_error": error,
        "within_one_standard_error": [values[number] for number in close],
        "chosen": values[best_number],
        # A neighbour within one standard error says that the next value would bring nothing either.
        "at_the_end": ordered
        and len(scores) > 1
        and best_number in (0, len(values) - 1)
        and list(close) == [best_number],
    }
