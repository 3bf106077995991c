"""The probe: a linear head fitted to the inputs of the last layer, whose weights initialise the new classifier.

Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): the gradients of a random classifier distort the
features of a network before the classifier has learned anything, and few rows cannot repair them. The head is the
default of `fit`: logistic regression, or ridge for a regression, with the penalty chosen on folds of the training rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.errors import HeadError
from pipeline.fit.config import FitConfig
from pipeline.fit.folds import validation_of
from pipeline.fit.inputs import Matrix
from pipeline.fit.single_fit import Data, FitJob, FittedHead, Head, fit_head
from pipeline.heads.linear_layer import linear_of
from pipeline.heads.search import automatic_search
from pipeline.predictions import Scores
from pipeline.task import Kind, Task, Training, column_of
from pipeline.training.data import Samples
from pipeline.training.loop import TrainContext, predict_logits

MOST_ROWS = 10_000
"""Maximum of training rows for a probe, which is only the start of a training on all rows."""

INPUT = "penultimate"


@dataclass(frozen=True)
class Probe:
    """A fitted head as a layer with an output per class of the task, and its record in `model.json`.

    linear: for a regression, in the unit of the task; None if no head can be fitted to the training rows.
    """

    linear: nn.Linear | None
    record: dict[str, Any]

    def __str__(self) -> str:
        record = self.record
        if self.linear is None:
            return f"classifier: starts with random weights, since no head can be fitted. {record['failed']}"
        params = "".join(f", {name} {value:.3g}" for name, value in record["params"].items())
        return (
            f"classifier: starts as {record['head']} on {record['rows']:,} rows of {record['width']:,} values{params}"
        )


def fit_probe(
    task: Task,
    training: Training,
    last: nn.Module,
    module: nn.Module,
    samples: Callable[[np.ndarray], Samples],
    context: TrainContext,
    *,
    targets: np.ndarray | None = None,
) -> Probe:
    """Fit a linear head to the inputs of the layer `last` for training rows, and return it.

    module: the part of the network that runs on samples. samples: returns the samples of rows, without augmentation.
    targets: of all rows, instead of the task's.
    """
    targets, classes = task.targets if targets is None else targets, task.classes
    rows = sample(training.rows, targets, task.kind)
    X = inputs_of(last, module, samples(rows), context)
    targets = targets[rows]
    learned = _learned(targets, task.kind, classes)
    names = [name for name, there in zip(classes, learned, strict=True) if there]
    own = targets[:, learned] if task.kind == "multilabel" else targets
    table = task.table.take(pa.array(rows))
    place = table.column_names.index("target")
    part = Task(table.set_column(place, table.schema.field(place), column_of(own, task.kind, names)))
    try:
        fitted = _fitted(part, Training(np.arange(len(rows)), training.labels, training.draw), X)
    except HeadError as error:
        return Probe(None, {"failed": str(error)})
    linear = linear_of(fitted.head, classes=names, kind=task.kind)
    if not all(learned):
        linear = _with_all_classes(linear, X, targets, learned, task.kind)
    params = {name: value for name, value in fitted.record.params.items() if name in ("C", "alpha")}
    record = {"head": fitted.record.head, "rows": len(rows), "width": X.shape[1], "params": params}
    return Probe(linear, record)


def inputs_of(last: nn.Module, module: nn.Module, samples: Samples, context: TrainContext) -> np.ndarray:
    """Return the inputs of a layer for samples, float32 (n, width), averaged over positions if there are any."""
    inputs: list[Tensor] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0]
        if rows.ndim > 2:
            rows = rows.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else rows.flatten(1, -2).mean(1)
        inputs.append(rows.float().cpu())

    module.to(context.fabric.device)
    hook = last.register_forward_pre_hook(keep)
    try:
        for _ in predict_logits(module, samples, context):
            pass
    finally:
        hook.remove()
    return torch.cat(inputs).numpy()


def _fitted(task: Task, training: Training, X: np.ndarray) -> FittedHead:
    """Fit the default head of `fit` for this kind of task."""
    name = "ridge" if task.kind == "regression" else "logistic"
    given = {
        "task": "task",
        "backbone": "network",
        "inputs": [INPUT],
        "head": name,
        "validation": "folds",
        "refit": False,
    }
    config = FitConfig.model_validate(given)
    scores: Scores = "none" if task.kind == "regression" else "probability"
    head = Head(name, name, {}, scores, scores, automatic_search(name, {}), random=False, on=None)
    splits = task.table["split"].to_numpy()
    data = Data(task.kind, task.classes, task.targets, task.keys, splits, INPUT, (X.shape[1],))
    validation = validation_of(config, task, training)
    return fit_head(FitJob(head, data, Matrix(X), training, validation, config, seed=None))


def sample(rows: np.ndarray, targets: np.ndarray, kind: Kind) -> np.ndarray:
    """Return at most `MOST_ROWS` rows, ascending, balanced over the classes as far as possible."""
    if len(rows) <= MOST_ROWS:
        return rows
    mixed = np.random.default_rng(0).permutation(rows)
    if kind == "classification":
        _, classes, counts = np.unique(targets[mixed].astype(str), return_inverse=True, return_counts=True)
        order = np.argsort(classes, kind="stable")
        rank = np.empty(len(mixed), np.int64)
        rank[order] = np.arange(len(mixed)) - np.repeat(np.cumsum(counts) - counts, counts)
        mixed = mixed[np.argsort(rank, kind="stable")]
    return np.sort(mixed[:MOST_ROWS])


def _learned(targets: np.ndarray, kind: Kind, classes: Sequence[str]) -> np.ndarray:
    """Return which classes can be learned, bool (classes,): for multilabel, labels that some but not all rows have."""
    if kind == "multilabel":
        return np.asarray(targets.any(axis=0) & ~targets.all(axis=0))
    return np.isin(np.asarray(classes, dtype=str), targets.astype(str))


def _with_all_classes(
    linear: nn.Linear, X: np.ndarray, targets: np.ndarray, learned: np.ndarray, kind: Kind
) -> nn.Linear:
    """Extend the layer to all classes; a class that was not learned is about as probable as one more row suggests."""
    rare = math.log(len(X) + 1)
    weight, bias = torch.zeros(len(learned), X.shape[1]), torch.empty(len(learned))
    with torch.no_grad():
        if kind == "multilabel":
            bias[:] = torch.where(torch.from_numpy(targets.any(axis=0)), rare, -rare)
        else:
            bias[:] = linear(torch.from_numpy(X)).logsumexp(1).mean() - rare
        weight[torch.from_numpy(learned)] = linear.weight
        bias[torch.from_numpy(learned)] = linear.bias
        layer = nn.Linear(X.shape[1], len(learned))
        layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
