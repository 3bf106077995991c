"""Training samples: batches of pixels or of stored activations, in a seeded order.

The order of an epoch, the augmentation of each sample or the choice of its view depend only on the seed, the number of
the epoch and the keys, not on threads or earlier epochs. A resumed run therefore sees the same samples, and a student
sees the pixels whose features its teacher stored.
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

IN_MEMORY = 2**29  # bytes; more stored rows (of all views) than this are read in windows
WINDOW_BYTES = 2**27  # per window; up to four windows are in memory


class BatchTargets(Protocol):
    """Targets of a batch that are not a single tensor, such as outputs of teachers for the same samples."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Return rows by number, int64 (m,)."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same on a device."""


@dataclass(frozen=True)
class Batch:
    """A batch of samples, on the CPU.

    `inputs`: pixels uint8 (n, height, width, channels), or rows float32 (n, *shape of the tap). `targets`: int64 (n,),
    float32 (n,), float32 (n, classes), or outputs of teachers. `keys`: S16 (n,).
    """

    inputs: Tensor
    targets: Tensor | BatchTargets
    keys: np.ndarray


class Samples(Protocol):
    """Samples for training or evaluation."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample."""
        ...

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield all samples once, from batch `start` on; the last batch may be short, or have `size` + 1 samples.

        A last batch of a single sample is merged into the batch before, since BatchNorm cannot train on it. Without an
        epoch, samples come in the given order without augmentation; with an epoch, shuffled and augmented.
        """
        ...


class PixelSamples:
    """Decoded samples, augmented in each epoch, or transformed as one of the stored views."""

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
        """keys: S16 (n,), of `targets`. transforms: augmentation. views: stored views to draw from instead.

        Raises DataError for samples that were not decoded.
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
        """See `Samples`; the next batches are prepared in threads."""

        def make(rows: np.ndarray) -> Batch:
            inputs = torch.from_numpy(self._inputs(rows, epoch))
            return Batch(inputs, self.batch_targets(rows, epoch), self.keys[rows])

        return parallel_map(make, _batches(_order(len(self), seed=self.seed, epoch=epoch), size, start))

    def batch_targets(self, rows: np.ndarray, epoch: int | None) -> Tensor | BatchTargets:  # noqa: ARG002 - subclasses use it
        """Return the targets of rows in an epoch."""
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
    """Stored activations. In each epoch, a view is drawn for each sample; without an epoch, the first view is used."""

    def __init__(self, views: Sequence[Features], targets: Tensor, keys: np.ndarray, *, seed: int) -> None:
        """keys: S16 (n,), of `targets`.

        Raises StoreError if a view lacks a sample, or if views differ in more than their augmentation.
        """
        self.targets, self.keys, self.seed = targets, keys, seed
        self._views = [view.subset(keys) for view in views]
        _check_views(views)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a stored row."""
        return self._views[0].shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """See `Samples`; the next rows are read in a thread.

        Rows above IN_MEMORY are shuffled in blocks of about 1 MiB, and then within windows of about 128 MiB, so that
        reading stays sequential. The rows of a window then also depend on `size`.
        """
        window = size if self._in_memory is not None else max(1, WINDOW_BYTES // self._row_bytes // size) * size
        numbered = enumerate(_batches(self._shuffled(epoch, window), size, start), start)
        # A resumed epoch may start inside a window, whose remaining batches form a window.
        groups = itertools.groupby(numbered, key=lambda numbered_batch: numbered_batch[0] * size // window)
        windows = [[rows for _, rows in group] for _, group in groups]
        read = parallel_map(lambda parts: self._read(np.concatenate(parts), epoch), windows, threads=1)
        for parts, values in zip(windows, read, strict=True):
            ends = np.cumsum([len(rows) for rows in parts])
            for rows, own in zip(parts, np.split(values, ends[:-1]), strict=True):
                inputs = torch.from_numpy(own).float()
                yield Batch(inputs, self.targets[torch.from_numpy(rows)], self.keys[rows])

    def _shuffled(self, epoch: int | None, window: int) -> np.ndarray:
        if epoch is None or self._in_memory is not None or len(self) <= window:
            return _order(len(self), seed=self.seed, epoch=epoch)
        random = np.random.default_rng([self.seed, epoch])
        blocks = _cut(np.argsort(self.keys, kind="stable"), max(1, CHUNK_BYTES // self._row_bytes))
        order = np.concatenate([blocks[number] for number in random.permutation(len(blocks))])
        for part in _cut(order, window):
            random.shuffle(part)  # in place: a slice of `order`
        return order

    def _read(self, rows: np.ndarray, epoch: int | None) -> np.ndarray:
        """Read the stored rows of samples (n, ...), each from the view drawn in the epoch."""
        keys = self.keys[rows]
        count = len(self._views)
        numbers = np.zeros(len(rows), np.int64) if epoch is None else view_of_epoch(self.seed, epoch, keys, count)
        values = np.empty((len(rows), *self.shape), self._views[0].dtype)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            if self._in_memory is not None:
                values[here] = self._in_memory[number][rows[here]]
            else:
                here = here[np.argsort(keys[here])]  # in the order on the disk
                values[here] = self._views[number].load(keys[here])
        return values

    @property
    def _row_bytes(self) -> int:
        return max(1, int(np.prod(self.shape))) * self._views[0].dtype.itemsize

    @cached_property
    def _in_memory(self) -> list[np.ndarray] | None:
        """All rows of all views, read once; None if they exceed IN_MEMORY."""
        if len(self._views) * len(self) * self._row_bytes > IN_MEMORY:
            return None
        return [view.load(self.keys) for view in self._views]


def view_of_epoch(seed: int, epoch: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the view that each sample has in an epoch, int64 (n,)."""
    return np.array([seed_of_sample % count for seed_of_sample in seeds_of(seed, epoch, keys)], np.int64)


def _order(count: int, *, seed: int, epoch: int | None) -> np.ndarray:
    return np.arange(count) if epoch is None else np.random.default_rng([seed, epoch]).permutation(count)


def batch_count(rows: int, size: int) -> int:
    """Return the number of batches of an epoch; a last batch of a single row is merged into the batch before."""
    return math.ceil(rows / size) - (rows > size and rows % size == 1)


def _batches(order: np.ndarray, size: int, start: int) -> list[np.ndarray]:
    """Return the rows of each batch of an epoch, from batch `start` on."""
    count = batch_count(len(order), size)
    stops = [*range(size, count * size, size), len(order)]
    return [order[number * size : stops[number]] for number in range(start, count)]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _check_views(views: Sequence[Features]) -> None:
    """Raise StoreError unless views have the same identity except for their augmentation."""

    def without_view(view: Features) -> dict[str, object]:
        reader = {name: value for name, value in view.identity.get("reader", {}).items() if name != "view"}
        return {**view.identity, "reader": reader}

    for view in views[1:]:
        problems = differences(without_view(views[0]), without_view(view))
        if problems:
            raise StoreError(
                f"{view.folder}: expected a view of the features in {views[0].folder}, got other features: "
                f"{'; '.join(problems)}. Extract both with the same entry of `extract`."
            )


def normalise(pixels: Tensor, inputs: InputSpec) -> Tensor:
    """Normalise pixels uint8 (n, height, width, channels) to images float32 (n, channels, height, width)."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
    return feature_extractor.normalised(pixels, mean, std)
