"""Optimisers, schedules of the learning rate, and the learning-rate range test.

A schedule is a function of the step and of the validation so far: it has no state that a checkpoint could lose.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.text import table
from pipeline.training import LoopConfig

BASE = "base_lr"  # of a group: what its learning rate is a multiple of

# Of the one-cycle schedule, as torch has it: the share of steps upwards, and what the peak is divided by at both ends.
UPWARDS, FIRST, LAST = 0.3, 25.0, 250_000.0


def optimiser(groups: Iterable[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """An optimiser over groups of parameters, each with `lr` and `weight_decay`."""
    own = [{**group, BASE: group["lr"]} for group in groups]
    if config.optimiser == "sgd":
        return torch.optim.SGD(own, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(own, lr=config.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, multiple: float) -> None:
    """Give each group that multiple of its own learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = group[BASE] * multiple


def multiple(config: LoopConfig, step: int, steps: int, validation: Sequence[float]) -> float:
    """What the learning rate is multiplied by at a step, from 0, of `steps`.

    `validation`: what is monitored after each epoch so far, where less is better. Linear warm-up reaches 1 with its
    last step; then cosine (Loshchilov and Hutter 2017, eq. 5, without restarts), steps, or a plateau's. One-cycle
    (Smith and Topin 2019) is torch's, without its cycle of the momentum.
    """
    if config.schedule == "one_cycle":
        return _one_cycle(step, steps)
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    if config.schedule == "step":
        return float(config.decay ** sum(step >= share * steps for share in config.milestones))
    if config.schedule == "plateau":
        return float(config.decay ** _plateaus(validation, config.plateau))
    return 1.0


def _one_cycle(step: int, steps: int) -> float:
    top = UPWARDS * steps - 1
    if 0 < top >= step:
        return _between(1 / FIRST, 1.0, step / top)
    return _between(1.0, 1 / LAST, (step - top) / (steps - 1 - top) if steps - 1 > top else 0.0)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _plateaus(validation: Sequence[float], patience: int) -> int:
    """How often nothing was better for `patience` epochs; the count begins anew after each time."""
    best, waited, found = math.inf, 0, 0
    for value in validation:
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited >= patience:
            waited, found = 0, found + 1
    return found


@dataclass(frozen=True)
class RangeTest:
    """Learning rates that were tried, the smoothed loss at each, and the one to begin with."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float

    def __str__(self) -> str:
        every = max(1, len(self.rates) // 20)
        rows = [[f"{rate:.2e}", f"{loss:.4f}"] for rate, loss in zip(self.rates, self.losses, strict=True)]
        return f"{table(['learning rate', 'loss'], rows[::every])}\n\nsuggested: learning_rate: {self.suggested:.1e}"


def range_test(
    network: nn.Module,
    loss: Callable[[], Tensor],
    groups: Iterable[dict[str, Any]],
    config: LoopConfig,
    *,
    least: float = 1e-6,
    most: float = 1.0,
    steps: int = 100,
) -> RangeTest:
    """Raise the learning rate at each step, from `least` to `most`, and watch the loss (Smith 2017, section 3.3).

    `loss` gives that of the next batch. It ends where the smoothed loss is four times the best. Suggested is the rate
    at which it fell fastest, but at most a tenth of that at which it was lowest. The network comes back as it was.
    """
    as_it_was = {name: value.clone() for name, value in network.state_dict().items()}
    chosen = optimiser(groups, config)
    peak = max(group[BASE] for group in chosen.param_groups)
    rates: list[float] = []
    smooth: list[float] = []
    average = 0.0
    for step in range(steps):
        rate = least * (most / least) ** (step / max(1, steps - 1))
        set_rate(chosen, rate / peak)
        value = loss()
        found = float(value.detach())
        average = 0.9 * average + 0.1 * found
        rates.append(rate)
        smooth.append(average / (1 - 0.9 ** (step + 1)))
        if not math.isfinite(found) or smooth[-1] > 4 * min(smooth):
            break
        chosen.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        chosen.step()
    network.load_state_dict(as_it_was)
    kept = list(itertools.takewhile(lambda pair: math.isfinite(pair[1]), zip(rates, smooth, strict=True)))
    falls = [(after[1] - before[1], after[0]) for before, after in itertools.pairwise(kept)]
    lowest = min(kept, key=lambda pair: pair[1], default=(least, 0.0))[0]
    suggested = min(lowest / 10, min(falls, default=(0.0, lowest))[1])
    return RangeTest(tuple(rate for rate, _ in kept), tuple(value for _, value in kept), suggested)
