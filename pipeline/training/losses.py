"""Losses by the kind of task: a value per row, so that batches split over steps or devices give the same mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ConfigError, TrainingError, unknown
from pipeline.task import Kind
from pipeline.training.config import LoopConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mixes a batch and its targets with a permutation of itself; targets become class probabilities."""


class Objective(Protocol):
    """The objective of the loop: `SupervisedLoss` of logits, or `DistillationLoss` of a student's output."""

    @property
    def kind(self) -> Kind:
        """Return the kind of the task that validation measures."""
        ...

    def advance(self, share: float) -> None:
        """Set the progress of training, from 0 at its first step to 1 at its last, on which weights may depend."""
        ...

    def __call__(self, output: Any, targets: Any, /) -> Tensor:
        """Return the loss of each row, (n,), of the network's output in training mode."""
        ...

    def plain(self, logits: Tensor, targets: Any) -> Tensor:
        """Return the loss of each row, (n,), that validation compares."""
        ...

    def right(self, logits: Tensor, targets: Any) -> Tensor:
        """Return which rows are right, bool (n,)."""
        ...

    def check(self, targets: Any, *, where: str) -> None:
        """Raise TrainingError for targets that the network has no output for."""
        ...


class SupervisedLoss:
    """The supervised loss of a kind of task, for training and validation.

    classification   cross-entropy of logits (n, classes); targets int64 (n,) or shares float32 (n, classes)
    multilabel       binary cross-entropy, mean over the classes; targets float32 (n, classes)
    regression       squared error of (n, 1); targets float32 (n,)

    weights: one per class. In a classification, they multiply the loss of each row by the weight of its class; in a
    multilabel task, the loss of the rows that have the class.
    """

    def __init__(
        self, kind: Kind, outputs: int, *, label_smoothing: float = 0.0, weights: Tensor | None = None
    ) -> None:
        self.kind, self.outputs, self.label_smoothing, self.weights = kind, outputs, label_smoothing, weights

    def advance(self, share: float) -> None:
        """Do nothing: the loss does not change during training."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of each row, (n,)."""
        weights = None if self.weights is None else self.weights.to(logits.device)
        return self._rows(logits, targets, weights, self.label_smoothing)

    def plain(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, (n,), without smoothing and weights: what validation compares."""
        return self._rows(logits, targets, None, 0.0)

    def _rows(self, logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        if self.kind == "classification":
            return functional.cross_entropy(
                logits, targets, weight=weights, label_smoothing=smoothing, reduction="none"
            )
        if self.kind == "multilabel":
            smooth = targets * (1 - smoothing) + smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")
            return losses.mean(dim=1)
        return (logits.squeeze(1) - targets).square()

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return which rows are right, bool (n,); for multilabel in every class; False for a regression."""
        if self.kind == "classification":
            return logits.argmax(dim=1) == targets
        if self.kind == "multilabel":
            return ((logits > 0) == (targets > 0.5)).all(dim=1)
        return torch.zeros(len(targets), dtype=torch.bool, device=targets.device)

    def check(self, targets: Tensor, *, where: str) -> None:
        """Raise TrainingError for targets that the network has no output for; on a GPU they would end the process."""
        if self.kind != "classification" or targets.ndim != 1 or not len(targets):
            return
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self.outputs:
            raise TrainingError(
                f"{where}: expected labels from 0 to {self.outputs - 1} ({self.outputs} classes), got "
                f"{low if low < 0 else high}. Are these the classes of the task?"
            )


def class_weights(
    wanted: str | Mapping[str, float], targets: np.ndarray, kind: Kind, classes: Sequence[str]
) -> Tensor | None:
    """Return a weight per class, float32 (classes,), or None for no weights.

    `targets`: of the training rows, class numbers (n,), or bool (n, classes) of a multilabel task. `balanced` is
    n / (classes × rows of the class), as in scikit-learn; for multilabel, the number of rows without the class over
    those with it. Raises ConfigError for unknown classes, and for a regression.
    """
    if wanted == "none":
        return None
    if kind == "regression":
        raise ConfigError("class_weights: expected none for a regression, which has no classes. Leave it out.")
    if not isinstance(wanted, str):
        for name in wanted:
            if name not in classes:
                raise ConfigError(f"class_weights: {unknown('class', name, classes)}")
        return torch.tensor([wanted.get(name, 1.0) for name in classes])
    if kind == "multilabel":
        positive = targets.sum(axis=0)
        return torch.from_numpy((len(targets) - positive) / np.maximum(positive, 1)).float()
    counts = np.bincount(targets, minlength=len(classes))
    return torch.from_numpy(len(targets) / (len(classes) * np.maximum(counts, 1))).float()


def mixing(config: LoopConfig, kind: Kind, classes: int, shape: Sequence[int]) -> Mix | None:
    """Return Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or a random choice of both; None if both are off.

    It takes images float32 (n, channels, height, width). Raises ConfigError unless the task is a classification of
    images or maps.
    """
    if not (config.mixup or config.cutmix):
        return None
    if kind != "classification" or len(shape) != 3:
        raise ConfigError(
            f"mixup, cutmix: expected a classification of images or maps, got a {kind} of rows of the shape "
            f"{tuple(shape)}. Leave them out."
        )
    from torchvision.transforms import v2

    kinds: list[Any] = [v2.MixUp(alpha=config.mixup, num_classes=classes)] if config.mixup else []
    kinds += [v2.CutMix(alpha=config.cutmix, num_classes=classes)] if config.cutmix else []
    mix: Mix = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    return mix
