"""Batches of decoded samples, unit by unit, read and decoded ahead of the network."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.loading.decoders import Answer, Decoders
from pipeline.loading.samples import Item, Reject, Samples, items, reading_order
from pipeline.readers import Sample
from pipeline.store import key_arrays

AHEAD = 2  # batches that are decoded while the network runs on the one before


@dataclass(frozen=True)
class Batch:
    """A batch of samples: keys (S16) and named arrays (n, ...) of those that were decoded, and the rejects.

    Uncropped images, whose sizes differ, are an object array of n arrays.

    `unit`: number of the unit that the samples belong to. `last`: whether the batch is the last of its unit. `rows`:
    number of samples, with rejects.
    """

    unit: int
    last: bool
    rows: int
    keys: np.ndarray
    arrays: Sample
    rejects: list[Reject]


@dataclass(frozen=True)
class _Part:
    """The samples of a batch before decoding."""

    unit: int
    last: bool
    keys: np.ndarray
    items: list[Item]


def batches(units: Iterable[Samples], decoders: Decoders, *, batch_size: int, ahead: int = AHEAD) -> Iterator[Batch]:
    """Yield the samples of all units in batches, unit by unit; a batch has samples of a single unit.

    Within a unit, samples come in the order in which they are read.
    """
    pending: deque[tuple[_Part, Answer]] = deque()
    for part in _read_ahead(_split_units(units, batch_size), depth=max(1, ahead)):
        pending.append((part, decoders.submit(part.items)))
        if len(pending) > ahead:
            yield _build_batch(*pending.popleft())
    while pending:
        yield _build_batch(*pending.popleft())


def _split_units(units: Iterable[Samples], batch_size: int) -> Iterator[_Part]:
    for number, unit in enumerate(units):
        ordered = unit.take(reading_order(unit))
        waiting = items(ordered)
        for start in range(0, len(unit), batch_size):
            stop = min(start + batch_size, len(unit))
            part = list(itertools.islice(waiting, batch_size))
            yield _Part(number, stop == len(unit), ordered.keys[start:stop], part)


def _read_ahead(parts: Iterator[_Part], *, depth: int) -> Iterator[_Part]:
    """Yield the same parts, while a thread prepares the next ones: it reads the containers."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        pending = deque(thread.submit(next, parts, None) for _ in range(depth))
        while (part := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, parts, None))
            yield part


def _build_batch(part: _Part, answer: Answer) -> Batch:
    results = answer()
    rows = [row for row, result in enumerate(results) if not isinstance(result, Reject)]
    samples = [result for result in results if not isinstance(result, Reject)]
    arrays = {name: _stack([sample[name] for sample in samples]) for name in (samples[0] if samples else ())}
    rejects = [result for result in results if isinstance(result, Reject)]
    return Batch(part.unit, part.last, len(results), part.keys[rows], arrays, rejects)


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays of equal shape; put arrays of different shapes into an object array."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    result = np.empty(len(arrays), object)
    for row, array in enumerate(arrays):
        result[row] = array
    return result


def first_pixels(
    units: Iterable[Samples], decoders: Decoders, *, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the first `count` samples that can be read, or all if there are fewer.

    Returns keys S16 (n,) and pixels uint8 (n, ...), in the order in which the samples are read. For samples in
    containers, that is not the order of `units`.
    """
    keys: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    for batch in batches(units, decoders, batch_size=batch_size, ahead=0):
        if len(batch.keys):
            keys.append(batch.keys)
            pixels.append(batch.arrays["pixels"])
        if sum(map(len, keys)) >= count:
            break
    if not keys:
        return np.empty(0, key_arrays.DTYPE), np.empty((0,), np.uint8)
    return np.concatenate(keys)[:count], np.concatenate(pixels)[:count]
