"""Detection of divergence: a loss that is not finite ends a run before a checkpoint is written."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.training.checkpoint import LAST, State
from pipeline.training.early_stopping import Row

CHECK_EVERY = 16  # steps on a GPU: each check waits for the queued work


class LossTracker:
    """Collects the losses of an epoch's steps; checked losses are added to the run's state."""

    def __init__(self, device: torch.device, state: State, folder: Path) -> None:
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._state, self._folder = state, folder
        self._waiting: list[tuple[Tensor, int, int, float]] = []

    def add(self, total: Tensor, *, rows: int, step: int, rate: float) -> None:
        """Add a step: the sum of the losses of its rows, a scalar on the device, and its learning rate."""
        self._waiting.append((total, rows, step, rate))
        if len(self._waiting) >= self._every:
            self.check_losses()

    def check_losses(self) -> None:
        """Check and add up the collected losses; raises TrainingError with the first step whose loss is not finite."""
        totals = torch.stack([total for total, *_ in self._waiting]).tolist() if self._waiting else []
        for total, (_, rows, step, rate) in zip(totals, self._waiting, strict=True):
            if not math.isfinite(total):
                self._refuse(f"step {step}, learning rate {rate:g}: expected a finite loss, got {total}")
            self._state.total += total
            self._state.rows += rows
        self._waiting.clear()

    def check(self, row: Row, network: nn.Module) -> None:
        """Check an epoch before it is saved; raises TrainingError for metrics and weights that are not finite."""
        where = f"after epoch {int(row['epoch'])}, learning rate {row['learning_rate']:g}"
        for name, value in row.items():
            if not math.isfinite(value):
                self._refuse(f"{where}: expected a finite {name.replace('_', ' ')}, got {value}")
        for name, weights in network.named_parameters():
            if weights.requires_grad and not bool(torch.isfinite(weights).all()):
                self._refuse(f"{where}: expected finite weights, got others in {name}")

    def _refuse(self, what: str) -> None:
        path = self._folder / LAST
        checkpoint = f"The last good checkpoint is {path}." if path.is_file() else "There is no checkpoint before it."
        raise TrainingError(f"{what}. {checkpoint} Lower `learning_rate`, set `clip`, or warm up longer.")
