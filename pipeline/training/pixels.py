"""Pixels to train on: every sample decoded once, into memory or, where they are many, into a file that is mapped."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.backbones.spec import InputSpec
from pipeline.errors import DataError, bullets
from pipeline.extract import feed
from pipeline.extract.decoders import decoders
from pipeline.extract.samples import Reject, Samples
from pipeline.files import atomic, digest, sha256_bytes
from pipeline.readers import Reader, image_reader
from pipeline.runtime import Progress, silent
from pipeline.store import keys as key_arrays

IN_MEMORY = 2**28  # bytes of pixels, above which they go to a file
AT_ONCE = 64  # samples that are decoded at a time


@dataclass(frozen=True)
class Pixels:
    """Decoded samples: keys S16 (n,), sorted, and their pixels uint8 (n, height, width, channels)."""

    keys: np.ndarray
    array: np.ndarray

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Where the pixels of some keys are; raises DataError if one was not decoded."""
        rows = key_arrays.find(self.keys, keys)
        if (rows < 0).any():
            missing = key_arrays.to_hex(keys[rows < 0])
            raise DataError(
                f"pixels: expected all samples of a training set, got {len(missing):,} that were not decoded, the "
                f"first is {missing[0]}. Decode the samples of the whole task."
            )
        return rows


def decoded(inputs: InputSpec, samples: Samples, *, folder: Path, progress: Progress = silent) -> Pixels:
    """Decode samples as a network wants them, or map the file of `folder` that an earlier run made of the same ones.

    Raises DataError with the first of the samples that cannot be read: training would be on others than was said.
    """
    reader = image_reader(inputs.image)
    shape = (len(samples), *inputs.size, inputs.shape[0])
    if math.prod(shape) <= IN_MEMORY:
        array = np.empty(shape, np.uint8)
        _fill(array, samples, reader, progress)
        return Pixels(samples.keys, array)
    made_of = {"reader": dict(reader.identity), "keys": sha256_bytes(samples.keys.tobytes())}
    path = folder / f"pixels-{digest(made_of)[:32]}.npy"
    if not path.is_file():
        with atomic(path) as temporary:
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _fill(mapped, samples, reader, progress)
            mapped.flush()
    return Pixels(samples.keys, np.load(path, mmap_mode="r", allow_pickle=False))


def _fill(array: np.ndarray, samples: Samples, reader: Reader, progress: Progress) -> None:
    rejects: list[Reject] = []
    done = 0
    with contextlib.closing(decoders(reader, "auto", sample_bytes=math.prod(array.shape[1:]))) as pool:
        for batch in feed.batches([samples], pool, batch_size=AT_ONCE):
            rejects += batch.rejects
            if len(batch.keys):
                array[key_arrays.find(samples.keys, batch.keys)] = batch.arrays["pixels"]
            done += batch.rows
            progress(done, len(samples))
    if rejects:
        title = (
            f"pixels: expected images that can be read, got {len(rejects):,} of {len(samples):,} that cannot. Run "
            "prepare again with `check: decode`, then split. The first of them"
        )
        raise DataError(bullets(title, [str(reject) for reject in rejects[:5]]))
