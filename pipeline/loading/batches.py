"""Batches of decoded samples, unit after unit, read and decoded ahead of the network."""

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

AHEAD = 2  # batches that are decoded while the network runs on another


@dataclass(frozen=True)
class Batch:
    """What became of some samples: keys (S16) and named arrays (n, ...) of those that could be read.

    Images of different sizes, which uncropped ones are, come as an array of n arrays.

    `unit`: which of the units they belong to; `last`: its last batch. `rows`: how many samples were dealt with.
    """

    unit: int
    last: bool
    rows: int
    keys: np.ndarray
    arrays: Sample
    rejects: list[Reject]


@dataclass(frozen=True)
class _Part:
    """Samples of one batch that are to be decoded."""

    unit: int
    last: bool
    keys: np.ndarray
    items: list[Item]


def batches(units: Iterable[Samples], decoders: Decoders, *, batch_size: int, ahead: int = AHEAD) -> Iterator[Batch]:
    """Yield the samples of all units, one unit after another; a batch has samples of one unit only.

    Within a unit they come in the order in which they are read.
    """
    pending: deque[tuple[_Part, Answer]] = deque()
    for part in _beforehand(_parts(units, batch_size), depth=max(1, ahead)):
        pending.append((part, decoders.submit(part.items)))
        if len(pending) > ahead:
            yield _batch(*pending.popleft())
    while pending:
        yield _batch(*pending.popleft())


def _parts(units: Iterable[Samples], batch_size: int) -> Iterator[_Part]:
    for number, unit in enumerate(units):
        ordered = unit.take(reading_order(unit))
        waiting = items(ordered)
        for start in range(0, len(unit), batch_size):
            stop = min(start + batch_size, len(unit))
            part = list(itertools.islice(waiting, batch_size))
            yield _Part(number, stop == len(unit), ordered.keys[start:stop], part)


def _beforehand(parts: Iterator[_Part], *, depth: int) -> Iterator[_Part]:
    """Yield the same parts; those that come next are made in a thread, since containers are read there."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        pending = deque(thread.submit(next, parts, None) for _ in range(depth))
        while (part := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, parts, None))
            yield part


def _batch(part: _Part, answer: Answer) -> Batch:
    found = answer()
    good = [row for row, one in enumerate(found) if not isinstance(one, Reject)]
    read = [one for one in found if not isinstance(one, Reject)]
    arrays = {name: _together([one[name] for one in read]) for name in (read[0] if read else ())}
    rejects = [one for one in found if isinstance(one, Reject)]
    return Batch(part.unit, part.last, len(found), part.keys[good], arrays, rejects)


def _together(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays of one shape; put arrays of several shapes into an array of arrays."""
    if len({one.shape for one in arrays}) == 1:
        return np.stack(arrays)
    result = np.empty(len(arrays), object)
    for row, one in enumerate(arrays):
        result[row] = one
    return result


def first_pixels(
    units: Iterable[Samples], decoders: Decoders, *, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read the first `count` samples that can be read, or all if there are fewer.

    Returns their keys S16 (n,) and their pixels uint8 (n, ...), both in the order in which the samples are read, which
    is not the order of the samples where these lie in containers.
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
