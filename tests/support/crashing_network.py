"""A network that ends its process at a white image, as one does that takes too much memory for some of them."""

import time
from pathlib import Path

import torch
from torch import nn

from support.crashing_reader import end


class Marked(nn.Module):
    """One convolution, (1, 32, 32) -> (32, 32, 32), a mean and a linear classifier."""

    def __init__(self, trap: Path, delay: float) -> None:
        super().__init__()
        self._trap, self._delay = trap, delay
        self.wide = nn.Conv2d(1, 32, 3, padding=1)
        self.penultimate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(32, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 1, 32, 32) to logits (n, 3)."""
        if self._trap.exists():
            if bool((images.flatten(1).amin(1) > 0.99).any()):
                end()
            time.sleep(self._delay)
        out: torch.Tensor = self.classifier(self.penultimate(self.wide(images)))
        return out


def build(trap: str, delay: float) -> nn.Module:
    """The network; it does no harm, and waits for nothing, where the file `trap` is not there."""
    torch.manual_seed(0)
    return Marked(Path(trap), delay)
