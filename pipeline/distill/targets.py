"""What a student learns from: labels, and what teachers say of the same samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import TrainingError


@dataclass(frozen=True)
class DistillTargets:
    """The targets of a batch in distillation, where those of other training are one tensor.

    labels   int64 (n, branches): the class of a row in each branch, -1 where it has none. Of a multilabel branch it is
             0 where the row has its classes, which `truth` says.
    logits   float32 (n, classes of all branches), of teachers; (n, 0) where there are none, or a live teacher has them
    known    bool (n, branches): which rows a branch's teacher speaks of
    hints    float (n, ...) each: rows of a teacher's nodes as they were stored, by the names of the hints
    truth    float32 (n, classes of all branches): 1 for the classes that a row has. Read in multilabel branches alone;
             (n, 0) where there are none
    """

    labels: Tensor
    logits: Tensor
    known: Tensor
    hints: Mapping[str, Tensor] = field(default_factory=dict)
    truth: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise TrainingError for parts of different length."""
        lengths = {name: len(value) for name, value in self._parts()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise TrainingError(
                f"signals: expected as many rows in each part, got {counts}. Read them for the same keys."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "DistillTargets":
        """Return some rows, by their numbers int64 (m,)."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str) -> "DistillTargets":
        """Return the same on a device."""
        return self._each(lambda value: value.to(device))

    def _parts(self) -> list[tuple[str, Tensor]]:
        own = [("labels", self.labels), ("logits", self.logits), ("known", self.known)]
        truth = [] if self.truth is None else [("truth", self.truth)]
        return [*own, *truth, *((f"hint {name}", value) for name, value in self.hints.items())]

    def _each(self, change: Any) -> "DistillTargets":
        return DistillTargets(
            change(self.labels),
            change(self.logits),
            change(self.known),
            {name: change(value) for name, value in self.hints.items()},
            None if self.truth is None else change(self.truth),
        )
