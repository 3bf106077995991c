"""Optimizers, and schedules of the learning rate.

A schedule is a function of the step and the validation so far, without state of its own in the checkpoint.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.training.config import LoopConfig

if TYPE_CHECKING:
    from pipeline.training.freezing import TrainableParts

BASE = "base_lr"  # key of a parameter group: its learning rate before the schedule

# The one-cycle schedule, as in torch: share of rising steps, and divisors of the peak at both ends.
UPWARDS, FIRST, LAST = 0.3, 25.0, 250_000.0

MILESTONES = (0.5, 0.75)
"""`schedule: step`: shares of the steps after which the rate falls (He et al. 2016, CIFAR-10)."""

DECAY = 0.1
"""`schedule: step` and `plateau`: factor of each fall (He et al. 2016)."""

PATIENCE = 3
"""`schedule: plateau`: epochs without improvement before a fall; a run has some tens of epochs."""


def build_optimizer(network: nn.Module, trainable: "TrainableParts", config: LoopConfig) -> torch.optim.Optimizer:
    """Build an optimizer for the trained part of a network and for modules around it, such as projections.

    network: the module that is trained, which contains the network of `trainable`. Other parameters in it have the full
    learning rate.
    """
    groups = trainable.groups(config.rate, layer_decay=config.layer_decay, weight_decay=config.weight_decay)
    inside = {id(parameter) for parameter in trainable.network.parameters()}
    outside = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    for decay, parameters in (
        (config.weight_decay, [parameter for parameter in outside if parameter.ndim > 1]),
        (0.0, [parameter for parameter in outside if parameter.ndim < 2]),
    ):
        if parameters:
            groups.append({"params": parameters, "lr": config.rate, "weight_decay": decay})
    return optimizer_of(groups, config)


def optimizer_of(groups: Iterable[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """Build an optimizer over groups of parameters, each with `lr` and `weight_decay`."""
    own = [{**group, BASE: group["lr"]} for group in groups]
    if config.optimiser == "sgd":
        return torch.optim.SGD(own, lr=config.rate, momentum=config.momentum)
    return torch.optim.AdamW(own, lr=config.rate)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group[BASE] * factor


def lr_factor(config: LoopConfig, step: int, steps: int, validation: Sequence[float]) -> float:
    """Return the factor of the learning rate at a step, from 0, of `steps`.

    validation: the monitored loss after each epoch so far. 1) Linear warm-up, which reaches 1 at its last step. 2)
    Cosine decay (Loshchilov and Hutter 2017, eq. 5, without restarts), steps, or plateaus. One-cycle (Smith and Topin
    2019) is as in torch, without the cycle of the momentum.
    """
    if config.schedule == "one_cycle":
        return _one_cycle(step, steps)
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    if config.schedule == "step":
        return float(DECAY ** sum(step >= share * steps for share in MILESTONES))
    if config.schedule == "plateau":
        return float(DECAY ** _plateaus(validation, PATIENCE))
    return 1.0


def _one_cycle(step: int, steps: int) -> float:
    top = UPWARDS * steps - 1
    if 0 < top >= step:
        return _between(1 / FIRST, 1.0, step / top)
    return _between(1.0, 1 / LAST, (step - top) / (steps - 1 - top) if steps - 1 > top else 0.0)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _plateaus(validation: Sequence[float], patience: int) -> int:
    """Return the number of times that `patience` epochs passed without improvement."""
    best, waited, count = math.inf, 0, 0
    for value in validation:
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited >= patience:
            waited, count = 0, count + 1
    return count
