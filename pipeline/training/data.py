"""Training samples: batches of pixels, or of activations that were stored, in orders that follow from a seed.

What an epoch is made of, its order, and how each sample is augmented or which of its views is taken, follows from the
seed, the number of the epoch and the keys: not on threads, and not on the epochs before. So a run that goes on from a
checkpoint sees what it would have seen, and a student sees the pixels whose features its teacher stored.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones import feature_extractor
from pipeline.backbones.spec import InputSpec
from pipeline.errors import StoreError
from pipeline.loading.image_cache import Pixels
from pipeline.readers.augment import Views, augment, seeds_of
from pipeline.readers.transforms import AugmentConfig
from pipeline.runtime import parallel_map
from pipeline.store.features import Features
from pipeline.store.identity import differences
from pipeline.store.shard_format import CHUNK_BYTES

IN_MEMORY = 2**29  # bytes of stored rows of all views, above which they are read in windows
WINDOW_BYTES = 2**27  # of a window; four may be in memory


class BatchTargets(Protocol):
    """Targets of a batch that are more than one tensor, such as what teachers say of the same samples."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Return some rows, by their numbers int64 (m,)."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same on a device."""


@dataclass(frozen=True)
class Batch:
    """Some samples, on the CPU.

    `inputs`: pixels uint8 (n, height, width, channels), or rows float32 (n, *shape of the tap). `targets`: int64 (n,),
    float32 (n,), float32 (n, classes), or signals of teachers. `keys`: S16 (n,).
    """

    inputs: Tensor
    targets: Tensor | BatchTargets
    keys: np.ndarray


class Samples(Protocol):
    """What a network trains on, or is measured on."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample."""
        ...

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield all samples once, from batch `start` on; the last batch may be short, or have one more than `size`.

        A last batch of one sample would be: BatchNorm cannot train on it, so that sample is put into the batch before.
        Without an epoch they come in the order of their keys as given, clean; in an epoch shuffled, and augmented where
        that is asked for.
        """
        ...


class PixelSamples:
    """Decoded samples, augmented anew in each epoch, or as one of the views that were stored of them."""

    def __init__(
        self,
        pixels: Pixels,
        targets: Tensor | BatchTargets,
        keys: np.ndarray,
        *,
        seed: int,
        transforms: AugmentConfig = (),
        views: Views | None = None,
    ) -> None:
        """Set the samples up. `keys`: S16 (n,), of `targets`. `transforms`: of each epoch; `views`: drawn from instead.

        Raises DataError if a sample was not decoded.
        """
        self.targets, self.keys, self.seed = targets, keys, seed
        self._pixels, self._rows = pixels, pixels.rows(keys)
        self._transforms, self._views = transforms, views

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return height, width and channels."""
        return self._pixels.shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """See `Samples`; the next batches are made in threads meanwhile."""

        def make(rows: np.ndarray) -> Batch:
            inputs = torch.from_numpy(self._inputs(rows, epoch))
            return Batch(inputs, self.batch_targets(rows, epoch), self.keys[rows])

        return parallel_map(make, _batches(_order(len(self), seed=self.seed, epoch=epoch), size, start))

    def batch_targets(self, rows: np.ndarray, epoch: int | None) -> Tensor | BatchTargets:  # noqa: ARG002 - a view may have its own
        """Return the targets of some rows in an epoch."""
        return self.targets[torch.from_numpy(rows)]

    def _inputs(self, rows: np.ndarray, epoch: int | None) -> np.ndarray:
        places, keys, size = self._rows[rows], self.keys[rows], (self.shape[0], self.shape[1])
        if epoch is None or (self._views is None and not self._transforms):
            return self._pixels.eval_images(places)
        if self._views is None:
            seeds = seeds_of(self.seed, epoch, keys)
            return augment(self._pixels.images(places), self._transforms, seeds=seeds, size=size)
        numbers = view_of_epoch(self.seed, epoch, keys, self._views.count)
        pixels = np.empty((len(rows), *self.shape), np.uint8)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            images = self._pixels.images(places[here])
            pixels[here] = self._views.view(number)(images, keys[here], size=size)
        return pixels


class FeatureSamples:
    """Stored activations. Of several views, each epoch draws one for each sample; without an epoch it is the first."""

    def __init__(self, views: Sequence[Features], targets: Tensor, keys: np.ndarray, *, seed: int) -> None:
        """Open the views. `keys`: S16 (n,), of `targets`.

        Raises StoreError if a view lacks a sample, and if views differ in more than their pixels.
        """
        self.targets, self.keys, self.seed = targets, keys, seed
        self._views = [view.subset(keys) for view in views]
        _alike(views)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a stored row."""
        return self._views[0].shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """See `Samples`; the next rows are read in a thread meanwhile.

        Rows that are more than memory should hold are shuffled in blocks of about 1 MiB, and mixed within windows of
        about 128 MiB, so that reading stays sequential. Which rows a window has then depends on `size` too.
        """
        window = size if self._held is not None else max(1, WINDOW_BYTES // self._row_bytes // size) * size
        numbered = enumerate(_batches(self._shuffled(epoch, window), size, start), start)
        # A resumed epoch starts within a window: its rest is one.
        groups = itertools.groupby(numbered, key=lambda numbered_batch: numbered_batch[0] * size // window)
        windows = [[rows for _, rows in group] for _, group in groups]
        read = parallel_map(lambda parts: self._read(np.concatenate(parts), epoch), windows, threads=1)
        for parts, values in zip(windows, read, strict=True):
            ends = np.cumsum([len(rows) for rows in parts])
            for rows, own in zip(parts, np.split(values, ends[:-1]), strict=True):
                inputs = torch.from_numpy(own).float()
                yield Batch(inputs, self.targets[torch.from_numpy(rows)], self.keys[rows])

    def _shuffled(self, epoch: int | None, window: int) -> np.ndarray:
        if epoch is None or self._held is not None or len(self) <= window:
            return _order(len(self), seed=self.seed, epoch=epoch)
        random = np.random.default_rng([self.seed, epoch])
        blocks = _cut(np.argsort(self.keys, kind="stable"), max(1, CHUNK_BYTES // self._row_bytes))
        order = np.concatenate([blocks[number] for number in random.permutation(len(blocks))])
        for part in _cut(order, window):
            random.shuffle(part)  # a part of `order` itself
        return order

    def _read(self, rows: np.ndarray, epoch: int | None) -> np.ndarray:
        """Read the stored rows of samples (n, ...), each of the view that the epoch draws."""
        keys = self.keys[rows]
        count = len(self._views)
        numbers = np.zeros(len(rows), np.int64) if epoch is None else view_of_epoch(self.seed, epoch, keys, count)
        values = np.empty((len(rows), *self.shape), self._views[0].dtype)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            if self._held is not None:
                values[here] = self._held[number][rows[here]]
            else:
                here = here[np.argsort(keys[here])]  # as they lie on the disk
                values[here] = self._views[number].load(keys[here])
        return values

    @property
    def _row_bytes(self) -> int:
        return max(1, int(np.prod(self.shape))) * self._views[0].dtype.itemsize

    @cached_property
    def _held(self) -> list[np.ndarray] | None:
        """Read all rows of all views, once, where memory should hold them."""
        if len(self._views) * len(self) * self._row_bytes > IN_MEMORY:
            return None
        return [view.load(self.keys) for view in self._views]


def view_of_epoch(seed: int, epoch: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Return which of `count` views each sample has in an epoch: int64 (n,), by its key alone."""
    return np.array([seed_of_sample % count for seed_of_sample in seeds_of(seed, epoch, keys)], np.int64)


def _order(count: int, *, seed: int, epoch: int | None) -> np.ndarray:
    return np.arange(count) if epoch is None else np.random.default_rng([seed, epoch]).permutation(count)


def batch_count(rows: int, size: int) -> int:
    """Return the number of batches of an epoch, when a last batch of one row is put into the batch before."""
    return math.ceil(rows / size) - (rows > size and rows % size == 1)


def _batches(order: np.ndarray, size: int, start: int) -> list[np.ndarray]:
    """Return the rows of each batch of an epoch, from batch `start` on."""
    count = batch_count(len(order), size)
    stops = [*range(size, count * size, size), len(order)]
    return [order[number * size : stops[number]] for number in range(start, count)]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _alike(views: Sequence[Features]) -> None:
    """Raise StoreError unless views are of one tap of one network, read alike but for what is augmented."""

    def bare(view: Features) -> dict[str, object]:
        reader = {name: value for name, value in view.identity.get("reader", {}).items() if name != "view"}
        return {**view.identity, "reader": reader}

    for view in views[1:]:
        problems = differences(bare(views[0]), bare(view))
        if problems:
            raise StoreError(
                f"{view.folder}: expected a view of what {views[0].folder} has, got other features: "
                f"{'; '.join(problems)}. Extract both with one entry of `extract`."
            )


def normalise(pixels: Tensor, inputs: InputSpec) -> Tensor:
    """Normalise pixels uint8 (n, height, width, channels) to images float32 (n, channels, height, width)."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
    return feature_extractor.normalised(pixels, mean, std)
