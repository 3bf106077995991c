"""Break-even of stored activations: the number of epochs after which storing them pays.

Without stored activations, each epoch reads pixels and runs the frozen part of the network. With them, the frozen part
runs once per view, and each epoch reads stored rows.
"""

import math
import timeit
from collections.abc import Callable

import numpy as np
import torch

from pipeline.backbones.hooks import INPUT, collect
from pipeline.backbones.spec import TapSpec
from pipeline.errors import counted
from pipeline.finetune.inputs import FromFeatures, FromPixels
from pipeline.finetune.setup import RunContext
from pipeline.training.job import TrainingJob

MEASURED = 32  # rows that are timed


def break_even(run: RunContext, job: TrainingJob) -> str:
    """Time the frozen part and the reading of stored rows on a batch; return the line that a run prints.

    If a run trains from pixels, the line is about possible stored rows, and copying rows is timed instead of reading.
    """
    spec, inputs, rows = run.source.spec, run.inputs, len(run.largest.rows)
    node = inputs.node if isinstance(inputs, FromFeatures) else job.trainable.cut(0)
    if isinstance(inputs, FromPixels) and (node in (None, INPUT) or run.config.augment or run.config.unfreeze):
        return f"pixels: {counted(rows, 'row')}; stored rows cannot replace any part of the network here"
    node = spec.node(str(node))
    shape = spec.taps[node].shape
    like = next(job.network.parameters())
    images = torch.zeros(MEASURED, *spec.input.shape, device=like.device).contiguous(memory_format=torch.channels_last)
    job.network.eval()
    with torch.inference_mode():
        taps = {"rows": TapSpec(node=node)}
        computing = _seconds(lambda: collect(job.network, images, taps, spec.taps)["rows"].cpu())
    if isinstance(inputs, FromFeatures):
        keys, dtype = inputs.keys[run.task.rows("train")][:MEASURED], inputs.clean.dtype
        reading = _seconds(lambda: inputs.clean.load(keys)) / len(keys)
    else:
        batch, dtype = np.zeros((MEASURED, *shape), np.float32), np.dtype(np.float32)
        reading = _seconds(batch.copy) / MEASURED
    return describe(
        node,
        rows=rows,
        row_bytes=math.prod(shape) * dtype.itemsize,
        epochs=run.config.epochs,
        frozen=computing / MEASURED,
        reading=reading,
        views=max(1, run.config.views),
        stored=isinstance(inputs, FromFeatures),
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
    """Return the line that a run prints about stored rows.

    frozen: seconds per row of the forward pass up to the tap. reading: seconds per stored row. stored: whether all rows
    are stored already, so that the forward pass is not needed.
    """
    saved, total = frozen - reading, rows * row_bytes * views
    needed = math.ceil(views * frozen / saved) if saved > 0 else math.inf  # epochs, with the cost of extraction
    size = f"{total / 2**20:,.1f} MiB" if total < 2**30 else f"{total / 2**30:,.1f} GiB"
    copies = f" in {views} views" if views > 1 else ""
    costs = f"{frozen * 1e3:.3g} ms per row to compute, {reading * 1e3:.3g} ms to read"
    after = counted(int(needed), "epoch") if math.isfinite(needed) else "never"
    line = f"{node}: {counted(rows, 'row')}{copies}, {size} stored; {costs}; pays after: {after}"
    if saved > 0 if stored else epochs >= needed:
        return f"{line}. It pays here, in {counted(epochs, 'epoch')}."
    advice = "`input: pixels` is faster" if stored else "train from pixels, as it is"
    return f"{line}. It does not pay here, in {counted(epochs, 'epoch')}: {advice}."


def _seconds(function: Callable[[], object]) -> float:
    """Return the shortest time of three calls, after a first call that is not timed."""
    return min(timeit.repeat(function, number=1, repeat=4)[1:])
