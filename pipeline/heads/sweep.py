"""A sweep: a head fitted with each value of a parameter, and the one that is best on validation rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import HeadError, bullets
from pipeline.heads import criteria, device
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.paths import candidates
from pipeline.task import Kind


@dataclass(frozen=True)
class Rows:
    """Training or validation rows: X (rows, width), targets as a task has them."""

    X: Any
    y: np.ndarray


@dataclass(frozen=True)
class Found:
    """A fitted pipeline with the chosen value, and how it was chosen."""

    head: Any
    parameter: str
    value: Any
    record: dict[str, Any]


def sweep(
    pipeline: Any,
    parameter: str,
    values: Sequence[Any],
    train: Rows,
    validation: Rows,
    *,
    metric: str = "accuracy",
    kind: Kind = "classification",
    classes: Sequence[str],
    on: str | None = None,
) -> Found:
    """Fit a head for each value, in their order, and keep the one that is best on validation rows.

    The preparation is fitted once. `pipeline.heads.paths` says how heads share work between values. A value with
    which the fit fails, or does not converge, is recorded and not chosen. Raises HeadError where
    that is so of all.
    """
    from sklearn.pipeline import make_pipeline

    before = pipeline[:-1] if len(pipeline.steps) > 1 else None
    X, X_validation = device.placed(train.X, on), validation.X
    curve: list[float | None] = []
    problems: list[str | None] = []
    best: tuple[float, Any, Any] | None = None
    with device.tensors(on):
        if before is not None:
            X = before.fit_transform(X, train.y)
            X_validation = device.to_arrays(before).transform(X_validation)
        for value, (head, found) in zip(values, candidates(pipeline[-1], parameter, values, X, train.y), strict=True):
            score, problem = None, found
            if head is not None:
                try:
                    score = criteria.measure(metric, head, X_validation, validation.y, kind=kind, classes=classes)
                except Exception as error:  # noqa: BLE001 - such as more neighbours than there are training rows
                    problem = cause_of_failure(error)
            if score is not None and math.isnan(score):
                score, problem = None, f"{metric} is not a number"
            curve.append(score)
            problems.append(problem)
            if score is not None and problem is None and (best is None or score * criteria.sign(metric) > best[0]):
                best = score * criteria.sign(metric), value, head
    if best is None:
        told = (f"{value}: {problem}" for value, problem in zip(values, problems, strict=True))
        raise HeadError(bullets(f"search: no value of {parameter} gave a head that can be used.", told))
    steps = [step for _, step in before.steps] if before is not None else []
    record = {"values": list(values), "validation": curve, "problems": problems, "chosen": best[1]}
    return Found(make_pipeline(*steps, best[2]), parameter, best[1], record)
