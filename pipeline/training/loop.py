"""The training loop, one for fine-tuning and distillation.

Lightning Fabric handles devices, precision and processes. Random numbers of a step depend only on (seed, epoch, step),
and the learning rate on the step and the validation so far. A checkpoint therefore needs only weights, optimizer state
and counters, and a killed run resumes to the same result, bit for bit on a single device.

    folder/last.ckpt          the state after an epoch, and every few minutes within one
    folder/best.safetensors   the weights of the best epoch so far
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.backbones import serialization
from pipeline.engines.memory_format import keep_contiguous
from pipeline.engines.out_of_memory import first_line, is_out_of_memory
from pipeline.errors import TrainingError, bullets, requires
from pipeline.runtime import SILENT, Reporter, repeatable_kernels, seed_everything
from pipeline.training import checkpoint
from pipeline.training.config import LoopConfig
from pipeline.training.data import batch_count
from pipeline.training.divergence import LossTracker
from pipeline.training.early_stopping import START, Curves, History, Row, line, means
from pipeline.training.losses import Mix, Objective
from pipeline.training.optim import build_optimizer, lr_factor, set_lr

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pipeline.training.data import Batch, Samples
    from pipeline.training.freezing import TrainableParts

SAVE_SECONDS = 300.0  # between checkpoints within an epoch


def identity(inputs: Tensor) -> Tensor:
    """Return inputs unchanged: `enter` for stored rows."""
    return inputs


@dataclass(frozen=True)
class TrainContext:
    """The context of a training step.

    enter: converts the inputs of a batch, on the device, to the network's input, such as normalised images. fitted:
    whether the classifier is a fitted head, so that the network may be best before its first epoch.
    """

    config: LoopConfig
    objective: Objective
    fabric: "Fabric"
    enter: Callable[[Tensor], Tensor] = identity
    mix: Mix | None = None
    fitted: bool = False


def make_fabric(config: LoopConfig) -> "Fabric":
    """Set up device, precision and processes; raises TrainingError for missing devices."""
    with requires("train", what="training a network"):
        from lightning_fabric import Fabric

    available = torch.cuda.device_count()
    if (config.device == "cuda" and not available) or (config.device != "cpu" and 0 < available < config.devices):
        raise TrainingError(
            f"device, devices: expected {config.devices} CUDA devices, got {available}. Set fewer `devices`, or "
            "`device: cpu`."
        )
    precision: Any = {"float32": "32-true", "bfloat16": "bf16-mixed"}[config.precision]
    fabric = Fabric(accelerator=config.device, devices=config.devices, precision=precision)
    fabric.launch()
    return fabric


@repeatable_kernels()
def train(
    network: nn.Module,
    samples: "Samples",
    validation: "Samples | None",
    context: TrainContext,
    trainable: "TrainableParts",
    *,
    folder: Path,
    made_from: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
    curves: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> History:
    """Train the parts `trainable` of a network, and leave it in evaluation mode with the best or the last weights.

    A run with a checkpoint in `folder` is resumed. made_from: what determines the result besides the settings, such as
    data and weights. curves: folder to which each epoch is written, as by DVCLive.

    Raises TrainingError if settings differ from those of the checkpoint, for a loss that is not finite (the last good
    checkpoint stays), for labels without an output, for too little memory, and for impossible settings.
    """
    config, fabric = context.config, context.fabric
    _refuse_impossible(samples, validation, config)
    settings = {"loop": config.model_dump(mode="json"), "made_from": dict(made_from or {})}
    steps = steps_per_epoch(len(samples), config)
    seed_everything(config.seed)
    wrapped, optimizer = setup_optimizer(network, trainable, context)
    average = _average(network, config.ema)
    eval_network: nn.Module = network if average is None else average.module
    last, best = folder / checkpoint.LAST, folder / checkpoint.BEST
    state = checkpoint.resume(last, network, average, optimizer, settings)
    curves_writer = Curves(curves if fabric.is_global_zero else None, state.history)
    if context.fitted and validation is not None and state.history.start is None:
        start = state.history.begin(by_row(eval_network, validation, context), config)
        if fabric.is_global_zero:
            checkpoint.save_weights(best, eval_network)
        reporter.log(line(start, config))
    saved = time.monotonic()
    while not state.history.stopped:
        trainable.start(state.epoch)
        trainable.check_batch(config.batch_size, rows=len(samples))
        trainable.train_mode(network)
        val_history, losses = state.history.monitored(config), LossTracker(fabric.device, state, folder)
        batches = samples.batches(config.batch_size, epoch=state.epoch, start=state.batch)
        for group in _groups(batches, config.accumulate):
            number = state.epoch * steps + state.batch // config.accumulate
            set_lr(optimizer, lr_factor(config, number, config.epochs * steps, val_history))
            context.objective.advance(number / max(1, config.epochs * steps - 1))
            total = step(wrapped, optimizer, group, number, context)
            if average is not None:
                average.update_parameters(network)
            state.batch += len(group)
            losses.add(total, rows=_rows(group), step=number, rate=_rate(optimizer))
            reporter.progress(number + 1, config.epochs * steps)
            if time.monotonic() - saved >= save_seconds and state.batch < steps * config.accumulate:
                losses.check_losses()
                if fabric.is_global_zero:
                    checkpoint.save(last, state, network, average, optimizer, settings)
                saved = time.monotonic()
        losses.check_losses()
        row: Row = {"epoch": state.epoch, "learning_rate": _rate(optimizer), "loss": state.total / state.rows}
        held = {} if validation is None else by_row(eval_network, validation, context)
        row |= means(held)
        losses.check(row, network)
        state.history.add(row, config, held)
        state.epoch, state.batch, state.total, state.rows = state.epoch + 1, 0, 0.0, 0
        if fabric.is_global_zero:
            if state.history.best == row["epoch"]:
                checkpoint.save_weights(best, eval_network)
            checkpoint.save(last, state, network, average, optimizer, settings)
        saved = time.monotonic()
        curves_writer.write()
        reporter.log(line(row, config))
    fabric.barrier()
    is_last = config.weights == "last" or state.history.best == len(state.history.rows) - 1
    if is_last:
        network.load_state_dict(eval_network.state_dict())
    else:
        serialization.load_state(network, safetensors.torch.load_file(best), where=str(best))
    is_start = config.weights == "best" and state.history.best == START
    if trainable.batch_norm == "recalibrate" and not is_start:
        batches = samples.batches(config.batch_size)
        trainable.recalibrate(network, (context.enter(fabric.to_device(batch.inputs)) for batch in batches))
    network.eval()
    return state.history


def steps_per_epoch(rows: int, config: LoopConfig) -> int:
    """Return the number of optimizer steps per epoch for a number of training rows."""
    return math.ceil(batch_count(rows, config.batch_size) / config.accumulate)


def setup_optimizer(network: nn.Module, trainable: "TrainableParts", context: TrainContext) -> tuple[Any, Any]:
    """Place the network on its devices, weights channels-last where torch can, and build its optimizer; return both."""
    trainable.network.to(memory_format=torch.channels_last)
    keep_contiguous(network)
    wrapped, optimizer = context.fabric.setup(network, build_optimizer(network, trainable, context.config))
    return wrapped, optimizer


def step(network: Any, optimizer: Any, group: "list[Batch]", number: int, context: TrainContext) -> Tensor:
    """Take an optimizer step on the mean loss over all rows of a group of batches; return the sum of the losses.

    number: of the step, from 0; it seeds the random numbers. Raises TrainingError for labels without an output
    and for too little memory.
    """
    config, fabric, rows = context.config, context.fabric, _rows(group)
    total = torch.zeros((), device=fabric.device)
    try:
        for place, batch in enumerate(group):
            context.objective.check(batch.targets, where=f"step {number}")
            torch.manual_seed(seed_of(config.seed, number, place, fabric.global_rank))
            part = torch.arange(len(batch.targets)).tensor_split(fabric.world_size)[fabric.global_rank]
            share = 1.0 if len(part) else 0.0  # an empty part still takes part in the reduction
            part = part if len(part) else torch.zeros(1, dtype=torch.int64)
            inputs, targets = (fabric.to_device(value[part]) for value in (batch.inputs, batch.targets))
            inputs = context.enter(inputs)
            if context.mix is not None:
                inputs, targets = context.mix(inputs, targets)
            with fabric.no_backward_sync(network, enabled=place + 1 < len(group)):
                loss = context.objective(network(inputs), targets).sum() * share
                fabric.backward(loss * fabric.world_size / rows)  # Fabric takes the mean over the processes
            total += loss.detach()
        if config.clip is not None:
            fabric.clip_gradients(network, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        optimizer.step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"step {number}: expected memory for a batch of {config.batch_size}, got too little: {first_line(error)}. "
            f"Set `batch_size: {max(1, config.batch_size // 2)}` with `accumulate: {2 * config.accumulate}`, which "
            "takes the same steps, or `precision: bfloat16`."
        ) from None
    optimizer.zero_grad(set_to_none=True)
    summed: Tensor = fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
    return summed


def evaluate(network: nn.Module, samples: "Samples", context: TrainContext) -> Row:
    """Return mean loss, without smoothing and weights, and accuracy over samples, in evaluation mode."""
    return means(by_row(network, samples, context))


def by_row(network: nn.Module, samples: "Samples", context: TrainContext) -> dict[str, np.ndarray]:
    """Return the values that `evaluate` averages: for each sample its loss, and whether it is right, float64 (n,)."""
    objective = context.objective
    losses, right = [], []
    for logits, batch in predict_logits(network, samples, context):
        objective.check(batch.targets, where="validation")
        targets = batch.targets.to(logits.device)
        losses.append(objective.plain(logits, targets).double().cpu())
        right.append(objective.right(logits, targets).double().cpu())
    columns = {"validation_loss": torch.cat(losses).numpy()}
    return columns if objective.kind == "regression" else {**columns, "validation_accuracy": torch.cat(right).numpy()}


def predict_logits(network: nn.Module, samples: "Samples", context: TrainContext) -> "Iterator[tuple[Tensor, Batch]]":
    """Yield the logits float32 of all samples, in their order, batch by batch, in evaluation mode."""
    network.eval()
    for batch in samples.batches(context.config.batch_size):
        with torch.inference_mode(), context.fabric.autocast():
            logits = network(context.enter(context.fabric.to_device(batch.inputs)))
        yield logits.float(), batch


def seed_of(*numbers: int) -> int:
    """Return a seed computed from numbers."""
    return zlib.crc32(repr(numbers).encode())


def _refuse_impossible(samples: "Samples", validation: "Samples | None", config: LoopConfig) -> None:
    """Raise TrainingError, with all reasons, for settings that would fail later."""
    problems = []
    if not len(samples):
        problems.append("expected training rows, got none.")
    if validation is None and (config.patience or config.schedule == "plateau"):
        problems.append("expected validation rows for `patience` or `schedule: plateau`, got none. Set `sizes`.")
    if problems:
        raise TrainingError(bullets("the network cannot be trained", problems))


def _groups(batches: "Iterator[Batch]", size: int) -> "Iterator[list[Batch]]":
    """Yield batches, `size` at a time; the last group may be short."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _rows(group: "list[Batch]") -> int:
    return sum(len(batch.targets) for batch in group)


def _rate(optimizer: Any) -> float:
    """Return the learning rate of the layers nearest the output."""
    return float(max(group["lr"] for group in optimizer.param_groups))


def _average(network: nn.Module, decay: float | None) -> Any:
    """Return torch's moving average of weights and buffers; None if it is off."""
    if decay is None:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    own = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=own, use_buffers=True)
