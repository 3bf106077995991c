"""Fold a linear head and the steps before it into one matrix that applies to the row of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.task import Kind

TOLERANCE = 1e-3
"""The largest accepted difference between folded matrix and head, relative to the largest score."""


@dataclass(frozen=True)
class LinearScores:
    """Scores as `weights @ row + intercept`, float64 (outputs, width) and (outputs,), in the order of the classes.

    A regression has a single output.
    """

    weights: np.ndarray
    intercept: np.ndarray


def fold_linear_head(head: Any, row: np.ndarray, *, kind: Kind, classes: Sequence[str]) -> LinearScores | None:
    """Return the decision values of a fitted head as a linear function of a row; None if they are not linear.

    row: the features of the image, (width,).

    A step that normalises rows is treated as a division by the length of this row, so that the result is exact only for
    this row. A temperature is left out, since it scales the scores of all classes equally. The result is compared with
    the head's own scores of the row.
    """
    steps, last = _unwrap(head)
    inputs = [np.asarray(row, np.float64)[None]]
    for step in steps:
        inputs.append(np.asarray(step.transform(inputs[-1])))
    scores = _scores_of_last(last, kind, classes)
    for step, values in zip(reversed(steps), reversed(inputs[:-1]), strict=True):
        scores = None if scores is None else _fold(step, values[0], scores)
    if scores is None:
        return None
    expected = _own_scores(last, inputs[-1], kind, classes)
    computed = scores.weights @ inputs[0][0] + scores.intercept
    if expected is None or expected.shape != computed.shape:
        return None
    bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    return scores if np.abs(computed - expected).max() <= bound else None


def _unwrap(head: Any) -> tuple[list[Any], Any]:
    """Return the steps before the estimator, and the estimator without its calibration."""
    name = type(head).__name__
    if name == "Pipeline":
        steps, last = _unwrap(head[-1])
        return [step for _, step in head.steps[:-1]] + steps, last
    if name == "FrozenEstimator":
        return _unwrap(head.estimator)
    if name == "CalibratedClassifierCV" and len(head.calibrated_classifiers_) == 1:
        return _unwrap(head.calibrated_classifiers_[0].estimator)
    return [], head


def _scores_of_last(last: Any, kind: Kind, classes: Sequence[str]) -> LinearScores | None:
    if kind == "multilabel" and hasattr(last, "estimators_"):  # one-vs-rest
        parts = last.estimators_
        width = next((part.coef_.shape[-1] for part in parts if hasattr(part, "coef_")), None)
        if width is None or not all(hasattr(part, "coef_") or hasattr(part, "y_") for part in parts):
            return None
        # The estimator of a label that all training rows have, or no training row has, is a constant.
        rows = [np.atleast_2d(part.coef_) if hasattr(part, "coef_") else np.zeros((1, width)) for part in parts]
        bias = [
            np.ravel(part.intercept_ if hasattr(part, "coef_") else part.decision_function([[0]])) for part in parts
        ]
        return LinearScores(np.concatenate(rows).astype(np.float64), np.concatenate(bias).astype(np.float64))
    if not hasattr(last, "coef_") or not hasattr(last, "intercept_"):
        return None
    dense = last.coef_.toarray() if hasattr(last.coef_, "toarray") else last.coef_
    weights = np.atleast_2d(np.asarray(dense, np.float64))
    outputs = 1 if kind == "regression" else len(classes)
    intercept = np.broadcast_to(np.atleast_1d(np.asarray(last.intercept_, np.float64)), len(weights))
    if kind == "classification":
        if len(weights) == 1 and len(classes) == 2:  # one decision value, positive for the second class
            weights, intercept = np.concatenate([-weights, weights]), np.concatenate([-intercept, intercept])
        if len(weights) == outputs:
            order = [[str(name) for name in last.classes_].index(name) for name in classes]
            weights, intercept = weights[order], intercept[order]
    return LinearScores(weights, intercept) if len(weights) == outputs else None


def _own_scores(last: Any, X: np.ndarray, kind: Kind, classes: Sequence[str]) -> np.ndarray | None:
    """Return the head's own decision values, or the number of a regression, (outputs,)."""
    if kind == "regression":
        return np.ravel(last.predict(X)).astype(np.float64)
    if not hasattr(last, "decision_function"):
        return None
    values = np.ravel(np.asarray(last.decision_function(X), np.float64))
    if kind == "multilabel":
        return values
    names = [str(name) for name in last.classes_]
    if len(values) == 1 and len(names) == 2:
        values = np.concatenate([-values, values])
    return values[[names.index(name) for name in classes]] if len(values) == len(names) else None


def _fold(step: Any, row: np.ndarray, scores: LinearScores) -> LinearScores | None:
    """Return scores as a function of a step's input, given scores of its output. row: the image's input to the step."""
    name, weights = type(step).__name__, scores.weights
    if name in ("StandardScaler", "StreamingScaler"):
        weights = weights / (step.scale_ if step.with_std else 1.0)
        return LinearScores(weights, scores.intercept - (weights @ step.mean_ if step.with_mean else 0.0))
    if name in ("PCA", "StreamingPCA"):
        components = np.asarray(step.components_, np.float64)
        if step.whiten:
            deviation = np.sqrt(step.explained_variance_)
            components = components / np.maximum(deviation, np.finfo(deviation.dtype).eps)[:, None]
        weights = weights @ components
        return LinearScores(weights, scores.intercept - weights @ step.mean_)
    if name in ("Normalizer", "StreamingNormalizer") and getattr(step, "norm", "l2") == "l2":
        return LinearScores(weights / _length(row), scores.intercept)
    if name == "ColumnTransformer":
        folded = weights.copy()
        for _, part, columns in step.transformers_:
            if type(part).__name__ != "Normalizer" or not isinstance(columns, slice):
                return None
            folded[:, columns] /= _length(row[columns])
        return LinearScores(folded, scores.intercept)
    return None


def _length(row: np.ndarray) -> float:
    return float(np.linalg.norm(row)) or 1.0
