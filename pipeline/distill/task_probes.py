"""Fit a linear probe per task, from which the classifier of a pretrained student starts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pipeline.distill.dataset import NO_LABEL, DistillSet, label_targets
from pipeline.distill.loss import OutputSlice
from pipeline.distill.tasks import StudentTask
from pipeline.loading.image_cache import Pixels
from pipeline.store import key_arrays
from pipeline.training.data import PixelSamples
from pipeline.training.linear_probe import MOST_ROWS, Probe, fit_probe
from pipeline.training.loop import TrainContext


def fit_task_probe(
    tasks: Sequence[StudentTask],
    number: int,
    distill_set: DistillSet,
    pixels: Pixels,
    last: nn.Module,
    student: nn.Module,
    context: TrainContext,
    *,
    reads_labels: bool,
) -> Probe:
    """Fit a probe of a task to the student's training samples: to labels, or to the teachers' classes without a label.

    number: the index of the task in `tasks`. last: the student's last layer. reads_labels: whether the loss uses
    labels.
    """
    task = tasks[number]
    has_label = distill_set.labels[:, number] != NO_LABEL if reads_labels else np.zeros(len(distill_set.keys), bool)
    rows = key_arrays.find(task.keys, distill_set.keys)
    own = np.unique(rows[has_label & (rows >= 0)])
    others = np.setdiff1d(rows[distill_set.known[:, number] & (rows >= 0)], own)
    others = np.sort(np.random.default_rng(0).permutation(others)[:MOST_ROWS])
    targets = task.task.targets.copy()
    if len(others):
        logits = task.logits(task.keys[others], None)
        multilabel = task.task.kind == "multilabel"
        targets[others] = logits > 0 if multilabel else np.asarray(task.classes, object)[logits.argmax(axis=1)]

    def clean(rows: np.ndarray) -> PixelSamples:
        return PixelSamples(pixels, label_targets(tasks, number, rows), task.keys[rows], seed=0)

    training = replace(distill_set.training, rows=np.union1d(own, others))
    return fit_probe(task.task, training, last, student, clean, context, targets=targets)


def join_heads(last: nn.Module, parts: Sequence[tuple[OutputSlice, nn.Linear | None]]) -> nn.Linear:
    """Return the probes of all tasks as one layer; a task without a probe keeps the outputs of the layer `last`."""
    weight, bias = last.get_parameter("weight").flatten(1), last.get_parameter("bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.load_state_dict({"weight": weight, "bias": bias})
        for branch, linear in parts:
            if linear is not None:
                layer.weight[branch.start : branch.stop] = linear.weight
                layer.bias[branch.start : branch.stop] = linear.bias
    return layer
