"""Fit a head with each value of a parameter, and choose the value that is best on held-out rows.

For each value, a head per fold (a single fold for a split) is fitted to the fold's training rows. The metric is
computed on the held-out rows of all folds together.
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
from pipeline.heads.scoring import HeldOutAnswers
from pipeline.metrics import codes
from pipeline.predictions import Scores
from pipeline.task import Kind

PATIENCE = 3
"""Number of consecutive values worse than the best after which the sweep stops."""


@dataclass(frozen=True)
class LabelledRows:
    """Training or held-out rows: X (rows, width), and targets in the form of the task."""

    X: Any
    y: np.ndarray


@dataclass(frozen=True)
class Fold:
    """Training rows and held-out rows."""

    train: LabelledRows
    held: LabelledRows


@dataclass(frozen=True)
class SearchResult:
    """The chosen value, a pipeline fitted with it per fold, and the record of the search.

    temperature: the number to divide the pipelines' scores by; None without temperatures.
    """

    heads: Sequence[Any]
    parameter: str
    value: Any
    record: dict[str, Any]
    temperature: float | None = None

    @property
    def head(self) -> Any:
        """Return the pipeline of the first fold, which is the only fold for a split."""
        return self.heads[0]


@dataclass(frozen=True)
class Trial:
    """The results of a value on the held-out rows.

    score: the metric of the search. problem: why the value cannot be chosen. by_row: from `scoring.row_scores`.
    uncertainty: from `scoring.uncertainty`, or the score if the metric is the log loss. If values are compared at their
    best temperature: `score` and `by_row` are the doubted log loss at that temperature, `untempered` is that of each
    row without it, and `uncertainty` is the log loss at the temperature.
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
class _PreparedFold:
    """A fold after the preprocessing steps, which are fitted to its training rows."""

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
    """Fit a head per fold with each value, in their order, and choose a value on the held-out rows of all folds.

    given: the kind of the head's scores. on: a torch device, or None. stops: with log loss, stop after `PATIENCE`
    consecutive values that are worse than the best by more than a standard error. tempered: compare values by the
    doubted log loss at their best temperatures (`pipeline.heads.calibration`), that is, by how well they separate
    classes, not by how well they are calibrated (Berta et al. 2025, Rethinking Early Stopping: Refine, Then Calibrate).

    Preprocessing is fitted once per fold; `pipeline.heads.regularisation_path` shares work between values. A value
    whose fit fails or does not converge is recorded and not chosen. Raises HeadError if that holds for all values.
    """
    tried: list[Trial] = []
    best: tuple[int, list[Any]] | None = None
    with gpu.accept_tensors(on):
        ready = [_prepare_fold(pipeline, fold, on) for fold in folds]
        running = zip(*(fit_path(pipeline[-1], parameter, values, fold.X, fold.y) for fold in ready), strict=True)
        for fitted_folds in running:
            heads = [head for head, _ in fitted_folds]
            problem = next((why for _, why in fitted_folds if why is not None), None)
            trial = Trial(problem=problem)
            if all(head is not None for head in heads):
                options: dict[str, Any] = {"kind": kind, "classes": classes, "given": given}
                trial = _evaluate(heads, ready, problem, metric=metric, tempered=tempered, **options)
            tried.append(trial)
            if trial.usable and (best is None or _loss(trial, metric) < _loss(tried[best[0]], metric)):
                best = len(tried) - 1, heads
            if stops and metric == "log_loss" and _keeps_rising(tried):
                break
        if best is None:
            lines = (f"{value}: {trial.problem}" for value, trial in zip(values, tried, strict=True))
            raise HeadError(bullets(f"search: the fits of all values of {parameter} failed.", lines))
        close = within_one_error(tried, metric)
        best_number = min(close, key=lambda number: _final_criterion(tried[number], metric))
        if best_number != best[0]:
            again = ((copy_with(pipeline[-1], **{parameter: values[best_number]}), fold) for fold in ready)
            best = best_number, [try_fit(head, fold.X, fold.y)[0] for head, fold in again]
    return SearchResult(
        [_join_steps(fold.steps, head) for fold, head in zip(ready, best[1], strict=True)],
        parameter,
        values[best_number],
        _search_record(values, tried, best_number, close, metric),
        tried[best_number].temperature,
    )


def _prepare_fold(pipeline: Any, fold: Fold, on: str | None) -> _PreparedFold:
    from sklearn.base import clone

    X = gpu.to_tensor(fold.train.X, on)
    if len(pipeline.steps) == 1:
        return _PreparedFold([], X, fold.train.y, fold.held)
    before = clone(pipeline[:-1])
    X = before.fit_transform(X, fold.train.y)
    before = gpu.to_arrays(before)
    return _PreparedFold(
        [step for _, step in before.steps], X, fold.train.y, LabelledRows(before.transform(fold.held.X), fold.held.y)
    )


def _join_steps(steps: Sequence[Any], head: Any) -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps, head)


def _evaluate(
    heads: Sequence[Any],
    ready: Sequence[_PreparedFold],
    problem: str | None,
    *,
    metric: str,
    tempered: bool,
    kind: Kind,
    classes: Sequence[str],
    given: Scores,
) -> Trial:
    """Evaluate the heads of a value on the held-out rows of all folds."""
    try:
        parts = [
            HeldOutAnswers.of(head, fold.held.X, fold.held.y, kind=kind, classes=classes, given=given)
            for head, fold in zip(heads, ready, strict=True)
        ]
        held = scoring.join_held_out(parts)
        if tempered:
            return _evaluate_tempered(held, problem, kind=kind, classes=classes)
        score = scoring.compute_metric(metric, held, kind=kind, classes=classes)
    except Exception as error:  # noqa: BLE001 - such as more neighbours than there are training rows
        return Trial(problem=problem or cause_of_failure(error))
    if math.isnan(score):
        return Trial(problem=problem or f"{metric} is not a number")
    unsure = score if metric == "log_loss" else scoring.uncertainty(held, kind=kind, classes=classes)
    return Trial(score, problem, scoring.row_scores(metric, held, kind=kind, classes=classes), unsure)


def _evaluate_tempered(held: HeldOutAnswers, problem: str | None, *, kind: Kind, classes: Sequence[str]) -> Trial:
    multilabel = kind == "multilabel"
    targets = held.targets if multilabel else codes(held.targets, classes)
    temperature = calibration.best_temperature(held.scores, targets)
    at_best = replace(held, scores=calibration.apply_temperature(held.scores, temperature, multilabel=multilabel))
    rows = calibration.doubted_losses(at_best.scores, targets)
    unsure = scoring.compute_metric("log_loss", at_best, kind=kind, classes=classes)
    return Trial(
        float(rows.mean()), problem, rows, unsure, temperature, calibration.doubted_losses(held.scores, targets)
    )


def _loss(trial: Trial, metric: str) -> float:
    """Return the score of a usable trial as a loss."""
    assert trial.score is not None, "the value can be chosen"
    return -scoring.sign(metric) * trial.score


def within_one_error(tried: Sequence[Trial], metric: str) -> list[int]:
    """Return the numbers of the values whose score is within one standard error of the best score.

    The standard error is that of the mean difference per row, since all values are evaluated on the same rows. For a
    metric that is not a mean over rows, only equal scores count.
    """
    usable = [number for number, trial in enumerate(tried) if trial.usable]
    best = tried[min(usable, key=lambda number: _loss(tried[number], metric))]
    return [
        number
        for number in usable
        if _loss(tried[number], metric) - _loss(best, metric) <= _error_between(tried[number], best)
    ]


def _keeps_rising(tried: Sequence[Trial]) -> bool:
    """Return whether the log loss of the last values, without temperature, exceeds the best by a standard error."""
    losses = [trial.by_row if trial.untempered is None else trial.untempered for trial in tried if trial.usable]
    least = min((rows for rows in losses if rows is not None), key=lambda rows: float(rows.mean()), default=None)
    last = tried[-PATIENCE:]
    if least is None or len(last) < PATIENCE:
        return False
    for trial in last:
        rows = trial.by_row if trial.untempered is None else trial.untempered
        if rows is not None and rows.mean() - least.mean() <= _standard_error(rows - least):
            return False
    return True


def _error_between(trial: Trial, other: Trial) -> float:
    """Return the standard error of the mean difference per row; 0 if the metric is not a mean over rows."""
    if trial.by_row is None or other.by_row is None:
        return 0.0
    return _standard_error(trial.by_row - other.by_row)


def _standard_error(rows: np.ndarray) -> float:
    """Return the standard error of a mean over rows; 0 for a single row."""
    return float(np.std(rows, ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0


def _final_criterion(trial: Trial, metric: str) -> tuple[float, float]:
    """Return the criterion that the chosen value minimises: the log loss, then the loss by the metric."""
    loss = _loss(trial, metric)
    return (loss if trial.uncertainty is None or trial.temperature is not None else trial.uncertainty), loss


def _search_record(
    values: Sequence[Any], tried: Sequence[Trial], best_number: int, close: Sequence[int], metric: str
) -> dict[str, Any]:
    """Return the record of the search in `model.json`: the curve and the choice."""
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
        # If a neighbour is within one standard error, values beyond the end would not improve either.
        "at_the_end": ordered
        and len(scores) > 1
        and best_number in (0, len(values) - 1)
        and list(close) == [best_number],
    }
