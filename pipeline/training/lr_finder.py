"""The learning-rate range test, which chooses the learning rate of a run with `learning_rate: auto`."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from pipeline.errors import counted
from pipeline.files import digest, read_json, write_json
from pipeline.runtime import Reporter, repeatable_kernels, seed_everything
from pipeline.store.use import hold
from pipeline.text import duration, table
from pipeline.training.config import RunConfig
from pipeline.training.data import Batch, Samples
from pipeline.training.freezing import TrainableParts
from pipeline.training.job import TrainingJob
from pipeline.training.loop import TrainContext, setup_optimizer, step
from pipeline.training.optim import set_lr

LEAST, MOST, STEPS = 1e-6, 1.0, 100
AUTO = "auto"
ANY = 1e-3  # placeholder rate, of which the tried rates are multiples

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class RangeTest:
    """The tried learning rates, the smoothed loss at each, and the suggested rate."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float

    def __str__(self) -> str:
        rows = [[f"{rate:.1e}", f"{loss:.4f}"] for rate, loss in zip(self.rates, self.losses, strict=True)]
        every = max(1, len(rows) // 20)
        return f"{table(['learning rate', 'loss'], rows[::every])}\n\nsuggested: `learning_rate: {self.suggested:.1e}`"


@repeatable_kernels()
def range_test(network: nn.Module, samples: Samples, context: TrainContext, trainable: TrainableParts) -> RangeTest:
    """Raise the learning rate at each step, from `LEAST` to `MOST`, and record the loss (Smith 2017, section 3.3).

    It ends when the smoothed loss exceeds four times the best. The suggestion is the rate at which the loss fell
    fastest, at most a tenth of the rate with the lowest loss. The network must not be used afterwards. Raises
    TrainingError as training does.
    """
    config = context.config
    seed_everything(config.seed)
    wrapped, optimizer = setup_optimizer(network, trainable, context)
    trainable.start(0)
    trainable.check_batch(config.batch_size, rows=len(samples))
    trainable.train_mode(network)
    curve: list[tuple[float, float]] = []
    average = 0.0
    for number, batch in zip(range(STEPS), _for_ever(samples, config.batch_size), strict=False):
        rate = LEAST * (MOST / LEAST) ** (number / (STEPS - 1))
        set_lr(optimizer, rate / config.rate)
        loss = step(wrapped, optimizer, [batch], number, context).item() / len(batch.targets)
        average = 0.9 * average + 0.1 * loss
        smooth = average / (1 - 0.9 ** (number + 1))
        if not math.isfinite(loss) or smooth > 4 * min([smooth, *(earlier for _, earlier in curve)]):
            break
        curve.append((rate, smooth))
    return RangeTest(tuple(rate for rate, _ in curve), tuple(loss for _, loss in curve), suggest_rate(curve))


def choose_rate(config: Config, prepare: Callable[[Config], TrainingJob], *, cache: Path, reporter: Reporter) -> Config:
    """Return the settings with a number as learning rate: for `auto`, the suggestion of the range test.

    prepare: builds the job of the test with given settings. The suggestion is stored in
    `<cache>/training/<digest>/rate.json` and reused. Raises the errors of `range_test`.
    """
    if config.learning_rate != AUTO:
        return config
    job = prepare(config.model_copy(update={"learning_rate": ANY}))
    note = cache / "training" / digest({"range test": job.made_from})[:32] / "rate.json"
    with hold(note.parent):
        how = "an earlier range test"
        if not note.is_file():
            begin = time.monotonic()
            tried = range_test(job.module, job.samples, job.context, job.trainable)
            write_json(note, {"learning_rate": tried.suggested})
            how = f"a range test of {counted(len(tried.rates), 'step')}, {duration(time.monotonic() - begin)}"
        rate = read_json(note)["learning_rate"]
    reporter.message(f"learning rate: {rate:.2g}, by {how} (`learning_rate: auto`)")
    return config.model_copy(update={"learning_rate": rate})


def suggest_rate(curve: list[tuple[float, float]]) -> float:
    """Return the suggested rate from pairs of a rate and the smoothed loss.

    Slopes are measured over a tenth of the steps: between consecutive steps, early losses differ only by their samples.
    """
    span = max(1, len(curve) // 10)
    lowest = min(curve, key=lambda pair: pair[1], default=(LEAST, 0.0))[0]
    falls = [
        (after[1] - before[1], middle[0])
        for before, middle, after in zip(curve, curve[(span + 1) // 2 :], curve[span:], strict=False)
    ]
    return min(lowest / 10, min(falls, default=(0.0, lowest))[1])


def _for_ever(samples: Samples, size: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from samples.batches(size, epoch=epoch)
