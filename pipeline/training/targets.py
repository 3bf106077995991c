"""Convert the targets of a task to tensors for training, and network outputs back to predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.task import Kind, Task


@dataclass(frozen=True)
class Targets:
    """Targets: int64 (n,) for classification, float32 (n, classes) for multilabel, float32 (n,) for regression.

    Those of a regression are standardised: minus `centre`, divided by `spread`, mean and deviation of the training
    rows.
    """

    values: Tensor
    centre: float = 0.0
    spread: float = 1.0

    def of(self, rows: np.ndarray) -> Tensor:
        """Return the targets of rows."""
        return self.values[torch.from_numpy(rows)]

    def unfold(self, last: nn.Module) -> None:
        """Rescale a last layer that was trained on these targets to the unit of the task."""
        weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
        with torch.no_grad():
            weight.mul_(self.spread)
            bias.mul_(self.spread).add_(self.centre)

    def fold(self, last: nn.Module) -> None:
        """Invert `unfold`: rescale a last layer with outputs in the unit of the task to these targets."""
        weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
        with torch.no_grad():
            weight.div_(self.spread)
            bias.sub_(self.centre).div_(self.spread)


def targets_of(task: Task, training: np.ndarray) -> Targets:
    """Return the targets of all rows of a task; `training`: the training rows."""
    if task.kind == "multilabel":
        return Targets(torch.from_numpy(task.targets).float())
    if task.kind == "regression":
        known = task.targets[training]
        centre, spread = float(known.mean()), float(known.std()) or 1.0
        return Targets(torch.from_numpy((task.targets - centre) / spread).float(), centre, spread)
    numbers = {name: number for number, name in enumerate(task.classes)}
    return Targets(torch.tensor([numbers[name] for name in task.targets]))


def answers(task: Task, logits: Tensor, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions of logits (n, outputs), as in `Task.targets`, and probabilities float32 (n, classes)."""
    predicted, scores = answers_to(task.kind, task.classes, logits)
    if task.kind == "regression":
        predicted = predicted * targets.spread + targets.centre
    return predicted, scores


def answers_to(kind: Kind, classes: Sequence[str], logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for a kind of task and its classes; for a regression, logits are in the unit of the task."""
    if kind == "classification":
        names = np.asarray(classes, dtype=object)
        return names[logits.argmax(dim=1).numpy()], logits.softmax(dim=1).numpy()
    if kind == "multilabel":
        return (logits > 0).numpy(), logits.sigmoid().numpy()
    values = logits.squeeze(1).double().numpy()
    return values, np.empty((len(values), 0), np.float32)
