"""Steps of every engine around the network: short batches are padded before it, rows are projected after it."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.backbones import projection
from pipeline.backbones.spec import TapSpec


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pad a batch to `size` rows with copies of the last row: rounding of kernels may depend on the batch size."""
    missing = size - len(pixels)
    return pixels if missing <= 0 else np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])


def unpad(values: Sequence[np.ndarray], specs: Mapping[str, TapSpec], rows: int) -> dict[str, np.ndarray]:
    """Return {tap: rows} from the outputs of a network, without the padding, projected."""
    return {name: project(value[:rows], spec) for (name, spec), value in zip(specs.items(), values, strict=True)}


def project(rows: np.ndarray, spec: TapSpec) -> np.ndarray:
    """Apply the random projection of a tap, if it has one."""
    return rows if spec.project is None else projection.project(rows, spec.project)
