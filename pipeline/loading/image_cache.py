"""Pixels to train on: every sample decoded once, into memory or into a file that is mapped.

Where augmentation crops or warps, the uncropped images are stored: decoded and resized as in evaluation, before the
centre crop, each of its own size. Their centre crops are the pixels of evaluation and of extraction, byte for byte.
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
from pipeline.loading.decoders import decoders
from pipeline.loading.samples import Reject, Samples
from pipeline.readers import Reader
from pipeline.readers.image import ImageReader
from pipeline.readers.pixels import centre_crop
from pipeline.readers.transforms import AugmentConfig, needs_uncropped
from pipeline.runtime import SILENT, Reporter, free_disk, versions
from pipeline.store import key_arrays

IN_MEMORY = 2**28  # bytes of pixels, above which they go to a file
AT_ONCE = 64  # samples that are decoded at a time
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
INDEX = np.dtype([("start", "<i8"), ("height", "<i4"), ("width", "<i4")])


@dataclass(frozen=True)
class Pixels:
    """Decoded samples: keys S16 (n,), sorted, and their pixels uint8 (n, height, width, channels)."""

    keys: np.ndarray
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of a clean sample."""
        return self.array.shape[1:]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return where the pixels of some keys are; raises DataError if one was not decoded."""
        rows = key_arrays.find(self.keys, keys)
        if (rows < 0).any():
            missing = key_arrays.to_hex(keys[rows < 0])
            raise DataError(
                f"pixels: expected all samples of a training set, got {len(missing):,} that were not decoded, the "
                f"first is {missing[0]}. Decode the samples of the whole task."
            )
        return rows

    def clean(self, rows: np.ndarray) -> np.ndarray:
        """Copy the pixels of some rows, as evaluation reads them: uint8 (n, height, width, channels)."""
        return np.array(self.array[rows])

    def images(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        """Return the images of some rows that augmentation gets: uint8 (height, width, channels) each."""
        return list(self.clean(rows))


@dataclass(frozen=True)
class Uncropped(Pixels):
    """Decoded samples before the centre crop: `array` is uint8 (bytes,), one image after another.

    index: INDEX (n,), where the image of each key starts and its size. cropped: (height, width, channels).
    """

    index: np.ndarray
    cropped: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of a clean sample."""
        return self.cropped

    def clean(self, rows: np.ndarray) -> np.ndarray:
        """Cut the centre out of some images: uint8 (n, height, width, channels)."""
        height, width, _ = self.cropped
        return np.stack([centre_crop(image, (height, width)) for image in self.images(rows)])

    def images(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        """Return the uncropped images of some rows, not to be written to."""
        return [self._image(*self.index[row].tolist()) for row in rows]

    def _image(self, start: int, height: int, width: int) -> np.ndarray:
        channels = self.cropped[2]
        return self.array[start : start + height * width * channels].reshape(height, width, channels)


def decoded(
    inputs: InputSpec,
    samples: Samples,
    *,
    folder: Path,
    transforms: AugmentConfig = (),
    reporter: Reporter = SILENT,
) -> Pixels:
    """Decode samples as a network wants them, or map the file of `folder` that an earlier run made of the same samples.

    transforms: the augmentation of the samples; where it crops or warps, the images come back uncropped. A file that is
    used gets the present time, from which its age counts.

    Raises DataError with the first samples that cannot be read: training would not be on the samples of the task.
    Raises StoreError, and leaves no file, where the disk has no room.
    """
    reader = ImageReader(inputs.image)
    channels, *size = inputs.shape
    shape = (len(samples), *size, channels)
    uncropped = inputs.image.crop is not None and needs_uncropped(transforms)
    if uncropped:
        reader = ImageReader(inputs.image.model_copy(update={"crop": None}))
    elif math.prod(shape) <= IN_MEMORY:
        array = np.empty(shape, np.uint8)
        for row, image in _read(samples, reader, shape, reporter):
            array[row] = image
        return Pixels(samples.keys, array)
    made_of = {
        "reader": dict(reader.identity),
        "keys": sha256_bytes(samples.keys.tobytes()),
        "versions": versions("pillow"),
    }
    path = folder / f"pixels-{digest(made_of)[:32]}.{'images' if uncropped else 'npy'}"
    if path.is_file():
        with contextlib.suppress(PermissionError):  # of another user: readable is enough
            os.utime(path)
    else:
        with _disk_space(path, math.prod(shape)), atomic(path) as temporary, temporary.open("wb", buffering=0) as file:
            images = _read(samples, reader, shape, reporter)
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
    """Raise StoreError where the disk of a file has less room than the bytes needed, and where it fills up meanwhile.

    Files are written, not mapped: a full disk under a mapped file ends the process with SIGBUS.
    """
    advice = "Free some (`icecore cache prune`), or name a folder on a larger disk by ICECORE_CACHE."
    if (there := free_disk(path.parent)) < needed:
        raise StoreError(
            f"{path.parent}: expected room for decoded images, {needed:,} bytes at least, got {there:,} bytes. {advice}"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StoreError(
            f"{path.parent}: expected room for decoded images, {needed:,} bytes at least, got an error while writing "
            f"them: {error.strerror}. {advice}"
        ) from None


def _write(file: BinaryIO, images: Iterator[tuple[int, np.ndarray]], shape: tuple[int, ...]) -> None:
    """Write images of one size as an .npy file, each to its row."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    start, size = file.tell(), math.prod(shape[1:])
    for row, image in images:
        file.seek(start + row * size)
        _write_all(file, image.tobytes())


def _write_uncropped(file: BinaryIO, images: Iterator[tuple[int, np.ndarray]], count: int) -> None:
    """Write images of any sizes as they come, and last, at a multiple of 8, the index."""
    index = np.zeros(count, INDEX)
    for row, image in images:
        index[row] = (file.tell(), *image.shape[:2])
        _write_all(file, image.tobytes())
    _write_all(file, bytes(-file.tell() % 8))
    _write_all(file, index.tobytes())


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all bytes: a nearly full disk takes a part of them before it refuses the rest."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _read(
    samples: Samples, reader: Reader, shape: tuple[int, ...], reporter: Reporter
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the row and the image of each sample, in the order of reading; raises DataError where some cannot be
    read.
    """
    rejects: list[Reject] = []
    done = 0
    with contextlib.closing(decoders(reader, "auto", sample_bytes=2 * math.prod(shape[1:]))) as pool:
        for batch in batches.batches([samples], pool, batch_size=AT_ONCE):
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
