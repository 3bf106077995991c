"""Decoded images for training: every sample is decoded once, into memory or into a memory-mapped file.

If augmentation crops or warps, uncropped images are stored: decoded and resized as in evaluation, before the centre
crop, of different sizes. Their centre crops equal the pixels of evaluation and extraction, byte for byte.
"""

import contextlib
import errno
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.backbones.spec import InputSpec
from pipeline.errors import DataError, StoreError, bullets
from pipeline.files import atomic, digest, sha256_bytes
from pipeline.loading import batches
from pipeline.loading.decoders import start_decoders
from pipeline.loading.samples import Reject, Samples
from pipeline.readers import Reader
from pipeline.readers.image import ImageReader
from pipeline.readers.pixels import centre_crop
from pipeline.readers.transforms import AugmentConfig, needs_uncropped
from pipeline.runtime import SILENT, Reporter, free_disk, versions
from pipeline.store import key_arrays

IN_MEMORY = 2**28  # bytes; more pixels than this go to a file
BATCH_SIZE = 64  # samples that are decoded at a time
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
INDEX = np.dtype([("start", "<i8"), ("height", "<i4"), ("width", "<i4")])


@dataclass(frozen=True)
class Pixels:
    """Decoded samples: keys S16 (n,), sorted, and their pixels uint8 (n, height, width, channels)."""

    keys: np.ndarray
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image as evaluation takes it."""
        return self.array.shape[1:]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return the row of each key; raises DataError for keys that were not decoded."""
        rows = key_arrays.find(self.keys, keys)
        if (rows < 0).any():
            missing = key_arrays.to_hex(keys[rows < 0])
            raise DataError(
                f"pixels: expected all samples of a training set, got {len(missing):,} that were not decoded; the "
                f"first is {missing[0]}. Decode the samples of the whole task."
            )
        return rows

    def eval_images(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of rows as evaluation takes them: uint8 (n, height, width, channels)."""
        return np.array(self.array[rows])

    def images(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        """Return rows as augmentation takes them: an image uint8 (height, width, channels) each."""
        return list(self.eval_images(rows))


@dataclass(frozen=True)
class Uncropped(Pixels):
    """Decoded samples before the centre crop: `array` is uint8 (bytes,), the images one after another.

    index: INDEX (n,), the start and size of each image. cropped: (height, width, channels) after the centre crop.
    """

    index: np.ndarray
    cropped: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image as evaluation takes it."""
        return self.cropped

    def eval_images(self, rows: np.ndarray) -> np.ndarray:
        """Return the centre crops of rows: uint8 (n, height, width, channels)."""
        height, width, _ = self.cropped
        return np.stack([centre_crop(image, (height, width)) for image in self.images(rows)])

    def images(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        """Return the uncropped images of rows, read-only."""
        return [self._image(*self.index[row].tolist()) for row in rows]

    def _image(self, start: int, height: int, width: int) -> np.ndarray:
        channels = self.cropped[2]
        return self.array[start : start + height * width * channels].reshape(height, width, channels)


def load_pixels(
    inputs: InputSpec,
    samples: Samples,
    *,
    folder: Path,
    transforms: AugmentConfig = (),
    reporter: Reporter = SILENT,
) -> Pixels:
    """Decode samples for a network, or map the file that an earlier run wrote to `folder` for the same samples.

    transforms: augmentation of the samples; if any crops or warps, uncropped images are returned. A file that is reused
    gets the current time, from which its age counts.

    Raises DataError with the first samples that cannot be read: training would miss samples of the task.
    Raises StoreError, and leaves no file, if the disk is too small.
    """
    reader = ImageReader(inputs.image)
    channels, *size = inputs.shape
    shape = (len(samples), *size, channels)
    uncropped = inputs.image.crop is not None and needs_uncropped(transforms)
    if uncropped:
        reader = ImageReader(inputs.image.model_copy(update={"crop": None}))
    elif math.prod(shape) <= IN_MEMORY:
        array = np.empty(shape, np.uint8)
        for row, image in _decode_images(samples, reader, shape, reporter):
            array[row] = image
        return Pixels(samples.keys, array)
    identity = {
        "reader": dict(reader.identity),
        "keys": sha256_bytes(samples.keys.tobytes()),
        "versions": versions("pillow"),
    }
    path = folder / f"pixels-{digest(identity)[:32]}.{'images' if uncropped else 'npy'}"
    if path.is_file():
        with contextlib.suppress(PermissionError):  # another user's file: it only needs to be readable
            os.utime(path)
    else:
        with _disk_space(path, math.prod(shape)), atomic(path) as temporary, temporary.open("wb", buffering=0) as file:
            images = _decode_images(samples, reader, shape, reporter)
            if uncropped:
                _write_uncropped(file, images, len(samples))
            else:
                _write(file, images, shape)
    if not uncropped:
        return Pixels(samples.keys, np.load(path, mmap_mode="r", allow_pickle=False))
    array = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    index = array[len(array) - len(samples) * INDEX.itemsize :].view(INDEX)
    return Uncropped(samples.keys, array, index, (size[0], size[1], channels))


@contextlib.contextmanager
def _disk_space(path: Path, needed: int) -> Iterator[None]:
    """Raise StoreError if the disk has less free space than the bytes needed, or fills up during the block.

    The file is written, not mapped: with a mapped file, a full disk would end the process with SIGBUS.
    """
    advice = "Free some space (`icecore cache prune`), or set ICECORE_CACHE to a folder on a larger disk."
    if (available := free_disk(path.parent)) < needed:
        raise StoreError(
            f"{path.parent}: expected at least {needed:,} bytes of free space for decoded images, got {available:,} "
            f"bytes. {advice}"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StoreError(
            f"{path.parent}: expected at least {needed:,} bytes of free space for decoded images, got an error while "
            f"writing them: {error.strerror}. {advice}"
        ) from None


def _write(file: BinaryIO, images: Iterator[tuple[int, np.ndarray]], shape: tuple[int, ...]) -> None:
    """Write images of equal size as an .npy file, each at its row."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    start, size = file.tell(), math.prod(shape[1:])
    for row, image in images:
        file.seek(start + row * size)
        _write_all(file, image.tobytes())


def _write_uncropped(file: BinaryIO, images: Iterator[tuple[int, np.ndarray]], count: int) -> None:
    """Write images of any size in the order given, then, at a multiple of 8 bytes, the index."""
    index = np.zeros(count, INDEX)
    for row, image in images:
        index[row] = (file.tell(), *image.shape[:2])
        _write_all(file, image.tobytes())
    _write_all(file, bytes(-file.tell() % 8))
    _write_all(file, index.tobytes())


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all bytes: on a nearly full disk, `write` may write only a part of them before the next call fails."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _decode_images(
    samples: Samples, reader: Reader, shape: tuple[int, ...], reporter: Reporter
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield row and image of each sample, in the order of reading; raises DataError if any cannot be read."""
    rejects: list[Reject] = []
    done = 0
    with contextlib.closing(start_decoders(reader, "auto", sample_bytes=2 * math.prod(shape[1:]))) as pool:
        for batch in batches.batches([samples], pool, batch_size=BATCH_SIZE):
            rejects += batch.rejects
            if len(batch.keys):
                yield from zip(key_arrays.find(samples.keys, batch.keys).tolist(), batch.arrays["pixels"], strict=True)
            done += batch.rows
            reporter.progress(done, len(samples))
    if rejects:
        title = (
            f"pixels: expected images that can be read, got {len(rejects):,} of {len(samples):,} that cannot. Run "
            "prepare again with `check: decode`, then split. The first of them"
        )
        raise DataError(bullets(title, [str(reject) for reject in rejects[:5]]))
