"""Convert a fitted linear head of scikit-learn to a torch layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import HeadError

if TYPE_CHECKING:
    from torch import nn


def linear_of(
    head: Any, *, classes: Sequence[str], kind: Literal["classification", "multilabel", "regression"] = "classification"
) -> "nn.Linear":
    """Convert a fitted pipeline of scalers and a linear head to a float32 layer with outputs in the order of `classes`.

    The softmax of its logits (multilabel: the sigmoid) equals `predict_proba` of a logistic regression; for a
    regression, the output is the prediction. Raises HeadError for heads that are not linear, and for other classes.
    """
    *scalers, last = [step for _, step in getattr(head, "steps", [("", head)])]
    mean, scale = np.zeros(1), np.ones(1)
    for step in scalers:
        if type(step).__name__ != "StandardScaler":
            raise HeadError(
                f"head: expected StandardScaler and a linear classifier, which a linear layer can represent, got "
                f"{type(step).__name__}. Fit the head with `scale: standard` or `scale: none`."
            )
        # compose (x - mean) / scale of successive scalers
        mean = mean + scale * (step.mean_ if step.with_mean else 0)
        scale = scale * (step.scale_ if step.with_std else 1)
    per_label = getattr(last, "estimators_", None)  # of one-vs-rest
    linear = per_label if kind == "multilabel" and per_label is not None else [last]
    if not all(hasattr(part, "coef_") and (kind == "regression" or hasattr(part, "classes_")) for part in linear):
        wanted, use = "classifier, with `coef_` and `classes_`", "logistic"
        if kind == "regression":
            wanted, use = "regression, with `coef_`", "ridge"
        got = type(last.estimator if kind == "multilabel" and per_label is not None else last).__name__
        raise HeadError(f"head: expected a linear {wanted}, got {got}. Start from `head: {use}`.")
    if kind != "classification":
        weights = np.concatenate([np.atleast_2d(part.coef_) for part in linear])
        intercept = np.concatenate([np.atleast_1d(part.intercept_) for part in linear])
        outputs = 1 if kind == "regression" else len(classes)
        if len(weights) != outputs:
            raise HeadError(f"head: expected {outputs} outputs, got {len(weights)}. Fit the head on this task.")
        return head_from_linear(weights, np.broadcast_to(intercept, outputs), mean=mean, scale=scale)
    known = [str(name) for name in last.classes_]
    if sorted(known) != sorted(classes):
        different = sorted(set(known) ^ set(classes))
        raise HeadError(
            f"head: expected the {len(classes)} classes of the task, got {len(known)}. They differ in: "
            f"{', '.join(different[:12])}. Fit the head on this task."
        )
    weights, intercept = np.atleast_2d(last.coef_), np.atleast_1d(last.intercept_)
    if len(weights) == 1 and len(known) == 2:  # one decision value s: the probabilities are the softmax of -s/2, s/2
        weights, intercept = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    order = [known.index(name) for name in classes]
    return head_from_linear(weights[order], intercept[order], mean=mean, scale=scale)


def head_from_linear(
    weights: np.ndarray, intercept: np.ndarray, *, mean: np.ndarray | float = 0.0, scale: np.ndarray | float = 1.0
) -> "nn.Linear":
    """Return the linear layer weights @ ((x - mean) / scale) + intercept, in float64; weights (classes, width)."""
    import torch
    from torch import nn

    folded = np.asarray(weights, np.float64) / scale
    bias = np.asarray(intercept, np.float64) - folded @ np.broadcast_to(mean, folded.shape[1:])
    layer = nn.Linear(folded.shape[1], folded.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(folded))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer
