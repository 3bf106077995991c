"""The feed of the network: the samples of one unit after another, read and decoded ahead, a batch at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.extract.decoders import Answer, Decoders
from pipeline.extract.samples import Reject, Samples, items_of
from pipeline.readers import Sample

AHEAD = 2  # batches that are decoded while the network runs on another


@dataclass(frozen=True)
class Batch:
    """What became of some samples: keys (S16) and named arrays (n, ...) of those that could be read.

    `unit`: which of the units they belong to; `last`: its last batch. `rows`: how many samples were dealt with.
    """

    unit: int
    last: bool
    rows: int
    keys: np.ndarray
    arrays: Sample
    rejects: list[Reject]


def batches(units: Iterable[Samples], decoders: Decoders, *, batch_size: int, ahead: int = AHEAD) -> Iterator[Batch]:
    """The samples of all units in their order; a batch has samples of one unit only."""
    pending: deque[tuple[int, bool, Samples, Answer]] = deque()
    for number, unit in enumerate(units):
        for start in range(0, len(unit), batch_size):
            part = unit.take(np.arange(start, min(start + batch_size, len(unit))))
            last = start + batch_size >= len(unit)
            pending.append((number, last, part, decoders.submit(items_of(part))))
            if len(pending) > ahead:
                yield _batch(*pending.popleft())
    while pending:
        yield _batch(*pending.popleft())


def _batch(unit: int, last: bool, samples: Samples, answer: Answer) -> Batch:
    found = answer()
    good = [row for row, one in enumerate(found) if not isinstance(one, Reject)]
    read = [one for one in found if not isinstance(one, Reject)]
    arrays = {name: np.stack([one[name] for one in read]) for name in (read[0] if read else ())}
    rejects = [one for one in found if isinstance(one, Reject)]
    return Batch(unit, last, len(samples), samples.keys[good], arrays, rejects)


def first_pixels(units: Iterable[Samples], decoders: Decoders, *, count: int, batch_size: int) -> np.ndarray:
    """The pixels of the first `count` samples that can be read, or of all if there are fewer; uint8 (n, ...)."""
    good: list[np.ndarray] = []
    for batch in batches(units, decoders, batch_size=batch_size, ahead=0):
        good += [batch.arrays["pixels"]] if len(batch.keys) else []
        if sum(map(len, good)) >= count:
            break
    return np.concatenate(good)[:count] if good else np.empty((0,), np.uint8)
