"""Break-even of training from the middle: after how many epochs stored activations pay for themselves.

Without them, each epoch reads pixels and runs the frozen part of the network. With them the frozen part runs once for
each view, and each epoch reads the stored rows.
"""

import math
import timeit
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from pipeline.backbones.hooks import collect
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.errors import counted
from pipeline.finetune.config import FinetuneConfig
from pipeline.store.features import Features

MEASURED = 32  # rows


def break_even(
    network: nn.Module,
    spec: BackboneSpec,
    node: str,
    *,
    rows: int,
    config: FinetuneConfig,
    reading: tuple[Features, np.ndarray] | None,
) -> str:
    """Measure the forward pass up to a node, and the reading of its rows, on a batch each; say what follows.

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
        row, dtype = np.zeros((MEASURED, *shape), np.float32), np.dtype(np.float32)
        copying = _seconds(row.copy) / MEASURED
    else:
        features, keys = reading
        some, dtype = keys[:MEASURED], features.dtype
        copying = _seconds(lambda: features.load(some)) / len(some)
    return describe(
        node,
        rows=rows,
        row_bytes=math.prod(shape) * dtype.itemsize,
        epochs=config.epochs,
        frozen=computing / MEASURED,
        reading=copying,
        views=max(1, config.views),
        stored=reading is not None,
    )


def describe(
    node: str,
    *,
    rows: int,
    row_bytes: int,
    epochs: int,
    frozen: float,
    reading: float,
    views: int = 1,
    stored: bool = True,
) -> str:
    """Return the line that a run prints of stored rows.

    `frozen`: seconds per row of the forward pass up to the tap. `reading`: of a stored row. `stored`: whether all rows
    are there, so that nothing has to be computed for them.
    """
    saved, whole = frozen - reading, rows * row_bytes * views
    needed = math.ceil(views * frozen / saved) if saved > 0 else math.inf  # epochs, whoever extracts
    size = f"{whole / 2**20:,.1f} MiB" if whole < 2**30 else f"{whole / 2**30:,.1f} GiB"
    copies = f" in {views} views" if views > 1 else ""
    costs = f"{frozen * 1e3:.3g} ms a row to compute, {reading * 1e3:.3g} ms to read"
    after = counted(int(needed), "epoch") if math.isfinite(needed) else "never"
    line = f"{node}: {counted(rows, 'row')}{copies}, {size} stored; {costs}; pays after: {after}"
    if saved > 0 if stored else epochs >= needed:
        return f"{line}. It pays here, in {counted(epochs, 'epoch')}."
    advice = "`input: pixels` is faster" if stored else "train from pixels, as it is"
    return f"{line}. It does not pay here, in {counted(epochs, 'epoch')}: {advice}."


def _seconds(act: Callable[[], object]) -> float:
    """Return the least time of three, after one that counts for nothing."""
    return min(timeit.repeat(act, number=1, repeat=4)[1:])
