"""Break-even of training from the middle: after how many epochs stored activations pay for themselves.

Without them, each epoch reads pixels and runs the frozen part of the network. With them the frozen part runs once for
each view, and each epoch reads the stored rows.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.backbones.taps import collect
from pipeline.errors import counted
from pipeline.store.features import Features
from pipeline.training import FinetuneConfig

MEASURED = 32  # rows


@dataclass(frozen=True)
class BreakEven:
    """Measured seconds a row, and what follows from them.

    `frozen`: of the forward pass up to the tap. `reading`: of a stored row. `stored`: whether all rows are there.
    """

    node: str
    rows: int
    row_bytes: int
    epochs: int
    frozen: float
    reading: float
    views: int = 1
    stored: bool = True

    @property
    def bytes(self) -> int:
        """Of the stored rows of all views."""
        return self.rows * self.row_bytes * self.views

    @property
    def needed(self) -> float:
        """Epochs after which it has paid, whoever extracts: infinite where reading takes as long as computing."""
        saved = self.frozen - self.reading
        return math.ceil(self.views * self.frozen / saved) if saved > 0 else math.inf

    @property
    def pays(self) -> bool:
        """Whether stored rows make this run shorter."""
        return self.frozen > self.reading if self.stored else self.epochs >= self.needed

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:,.1f} MiB" if self.bytes < 2**30 else f"{self.bytes / 2**30:,.1f} GiB"
        copies = f" in {self.views} views" if self.views > 1 else ""
        costs = f"{self.frozen * 1e3:.3g} ms a row to compute, {self.reading * 1e3:.3g} ms to read"
        needed = counted(int(self.needed), "epoch") if math.isfinite(self.needed) else "never"
        told = f"{self.node}: {counted(self.rows, 'row')}{copies}, {size} stored; {costs}; pays after: {needed}"
        if not self.pays:
            advice = "`input: pixels` is faster" if self.stored else "train from pixels, as it is"
            return f"{told}. It does not pay here, in {counted(self.epochs, 'epoch')}: {advice}."
        return f"{told}. It pays here, in {counted(self.epochs, 'epoch')}."


def break_even(
    network: nn.Module,
    spec: BackboneSpec,
    node: str,
    *,
    rows: int,
    config: FinetuneConfig,
    reading: tuple[Features, np.ndarray] | None,
) -> BreakEven:
    """Measure the forward pass up to a node, and the reading of its rows, on a batch each.

    `reading`: stored rows and some keys of them; None where none are stored, and copying such rows stands for it.
    """
    node = spec.node(node)
    shape = spec.taps[node].shape
    like = next(network.parameters())
    images = torch.zeros(MEASURED, *spec.input.shape, device=like.device).contiguous(memory_format=torch.channels_last)
    network.eval()
    with torch.inference_mode():
        computing = _seconds(lambda: collect(network, images, {"rows": TapSpec(node=node)}, spec.taps)["rows"].cpu())
    if reading is None:
        row = np.zeros((MEASURED, *shape), np.float32)
        seconds = _seconds(row.copy)
    else:
        features, keys = reading
        seconds = _seconds(lambda: features.load(keys[:MEASURED]))
    counted = MEASURED if reading is None else min(MEASURED, len(reading[1]))
    dtype = np.dtype(np.float32) if reading is None else reading[0].dtype
    return BreakEven(
        node=node,
        rows=rows,
        row_bytes=math.prod(shape) * dtype.itemsize,
        epochs=config.epochs,
        frozen=computing / MEASURED,
        reading=seconds / counted,
        views=max(1, config.views),
        stored=reading is not None,
    )


def _seconds(act: Callable[[], object]) -> float:
    """The least time of three, after one that counts for nothing."""
    act()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return min(found)
