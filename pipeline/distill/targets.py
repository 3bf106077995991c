"""The targets of a student: labels, and teachers' outputs for the same samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import TrainingError


@dataclass(frozen=True)
class DistillTargets:
    """The targets of a batch in distillation.

    labels   int64 (n, branches): the class of a row in each branch, -1 without a label. For a multilabel branch, 0 if
             `truth` has the classes of the row.
    logits   float32 (n, classes of all branches), of teachers; (n, 0) without teachers, or with an online teacher
    known    bool (n, branches): the rows for which a branch's teacher has scores
    hints    {hint: rows}, float (n, ...): stored rows of a teacher's nodes
    truth    float32 (n, classes of all branches): 1 for the classes that a row has. Used in multilabel branches
             only; None without such branches
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
                f"targets: expected the same number of rows in each part, got {counts}. Read them for the same keys."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "DistillTargets":
        """Return rows by number, int64 (m,)."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str) -> "DistillTargets":
        """Move the targets to a device."""
        return self._map(lambda value: value.to(device))

    def _parts(self) -> list[tuple[str, Tensor]]:
        own = [("labels", self.labels), ("logits", self.logits), ("known", self.known)]
        truth = [] if self.truth is None else [("truth", self.truth)]
        return [*own, *truth, *((f"hint {name}", value) for name, value in self.hints.items())]

    def _map(self, change: Any) -> "DistillTargets":
        return DistillTargets(
            change(self.labels),
            change(self.logits),
            change(self.known),
            {name: change(value) for name, value in self.hints.items()},
            None if self.truth is None else change(self.truth),
        )
