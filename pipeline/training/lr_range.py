"""The learning-rate range test: which learning rate to begin with."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pipeline.runtime import repeatable_kernels, seed_everything
from pipeline.text import table
from pipeline.training.freezing import Frozen
from pipeline.training.loop import Setting, placed, step
from pipeline.training.optimisation import set_rate
from pipeline.training.samples import Batch, Samples

LEAST, MOST, STEPS = 1e-6, 1.0, 100


@dataclass(frozen=True)
class RangeTest:
    """Learning rates that were tried, the smoothed loss at each, and the one to begin with."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float

    def __str__(self) -> str:
        rows = [[f"{rate:.1e}", f"{loss:.4f}"] for rate, loss in zip(self.rates, self.losses, strict=True)]
        every = max(1, len(rows) // 20)
        return f"{table(['learning rate', 'loss'], rows[::every])}\n\nsuggested: `learning_rate: {self.suggested:.1e}`"


@repeatable_kernels()
def range_test(network: nn.Module, samples: Samples, setting: Setting, frozen: Frozen) -> RangeTest:
    """Raise the learning rate at each step, from `LEAST` to `MOST`, and watch the loss (Smith 2017, section 3.3).

    It ends where the smoothed loss is four times the best. Suggested is the rate at which it fell fastest, but at most
    a tenth of that at which it was lowest. The network is of no more use. Raises TrainingError as training does.
    """
    config = setting.config
    seed_everything(config.seed)
    wrapped, chosen = placed(network, frozen, setting)
    frozen.start(0)
    frozen.check_batch(config.batch_size, rows=len(samples))
    frozen.train_mode(network)
    found: list[tuple[float, float]] = []
    average = 0.0
    for number, batch in zip(range(STEPS), _for_ever(samples, config.batch_size), strict=False):
        rate = LEAST * (MOST / LEAST) ** (number / (STEPS - 1))
        set_rate(chosen, rate / config.learning_rate)
        loss = step(wrapped, chosen, [batch], number, setting).item() / len(batch.targets)
        average = 0.9 * average + 0.1 * loss
        smooth = average / (1 - 0.9 ** (number + 1))
        if not math.isfinite(loss) or smooth > 4 * min([smooth, *(one for _, one in found)]):
            break
        found.append((rate, smooth))
    return RangeTest(tuple(rate for rate, _ in found), tuple(loss for _, loss in found), suggested(found))


def suggested(found: list[tuple[float, float]]) -> float:
    """The rate to begin with, of pairs of a rate and the smoothed loss there."""
    lowest = min(found, key=lambda pair: pair[1], default=(LEAST, 0.0))[0]
    falls = [(after[1] - before[1], after[0]) for before, after in itertools.pairwise(found)]
    return min(lowest / 10, min(falls, default=(0.0, lowest))[1])


def _for_ever(samples: Samples, size: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from samples.batches(size, epoch=epoch)
