"""What every engine does around the network: short batches are filled up before it, rows are projected after it."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.backbones import projection
from pipeline.backbones.spec import TapSpec


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return a batch of `size` rows, the last one repeated: kernels may round by the batch size."""
    missing = size - len(pixels)
    return pixels if missing <= 0 else np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])


def unpad(values: Sequence[np.ndarray], specs: Mapping[str, TapSpec], rows: int) -> dict[str, np.ndarray]:
    """Return the outputs of a network, in the order of the taps, without what filled the batch up, projected."""
    return {name: project(value[:rows], spec) for (name, spec), value in zip(specs.items(), values, strict=True)}


def project(rows: np.ndarray, spec: TapSpec) -> np.ndarray:
    """Return what is left to do after the network: the random projection, where the tap has one."""
    return rows if spec.project is None else projection.project(rows, spec.project)
