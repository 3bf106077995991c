"""The watch over losses: one that is no finite number ends a run before it spoils a checkpoint."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.training.checkpoint import LAST, State
from pipeline.training.early_stopping import Row

LOOK = 16  # steps on a GPU after which losses are looked at: each look waits for all that was queued


class LossTracker:
    """The losses of the steps of an epoch; those that were looked at are added up in the run's state."""

    def __init__(self, device: torch.device, state: State, folder: Path) -> None:
        self._every = 1 if device.type == "cpu" else LOOK
        self._state, self._folder = state, folder
        self._waiting: list[tuple[Tensor, int, int, float]] = []

    def add(self, total: Tensor, *, rows: int, step: int, rate: float) -> None:
        """Take up a step: the sum of the losses of its rows, a scalar on the device, and its learning rate."""
        self._waiting.append((total, rows, step, rate))
        if len(self._waiting) >= self._every:
            self.look()

    def look(self) -> None:
        """Add up what waits; raises TrainingError with the first step whose loss is no finite number."""
        totals = torch.stack([total for total, *_ in self._waiting]).tolist() if self._waiting else []
        for total, (_, rows, step, rate) in zip(totals, self._waiting, strict=True):
            if not math.isfinite(total):
                self._refuse(f"step {step}, learning rate {rate:g}: expected a finite loss, got {total}")
            self._state.total += total
            self._state.rows += rows
        self._waiting.clear()

    def check(self, row: Row, network: nn.Module) -> None:
        """Check an epoch before it is kept; raises TrainingError for numbers and weights that are not finite."""
        where = f"after epoch {int(row['epoch'])}, learning rate {row['learning_rate']:g}"
        for name, value in row.items():
            if not math.isfinite(value):
                self._refuse(f"{where}: expected a finite {name.replace('_', ' ')}, got {value}")
        for name, weights in network.named_parameters():
            if weights.requires_grad and not bool(torch.isfinite(weights).all()):
                self._refuse(f"{where}: expected finite weights, got others in {name}")

    def _refuse(self, what: str) -> None:
        there = self._folder / LAST
        checkpoint = f"The last good checkpoint is {there}." if there.is_file() else "There is no checkpoint before it."
        raise TrainingError(f"{what}. {checkpoint} Lower `learning_rate`, set `clip`, or warm up longer.")
