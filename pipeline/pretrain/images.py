"""The images that the source network learns from, as tensors with their classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import manifest
from pipeline.backbones import glyphs
from pipeline.errors import DataError, counted
from pipeline.pretrain.config import PretrainConfig
from pipeline.readers.image import ImageReader
from pipeline.sources import SampleLocation, read_in_order


def normalise(images: Tensor) -> Tensor:
    """Normalise values in [0, 1] with the network's mean and standard deviation."""
    return (images - glyphs.INPUT.mean[0]) / glyphs.INPUT.std[0]


def load_images(config: PretrainConfig, manifests: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return all images, (n, 1, 32, 32) in [0, 1], their class numbers and the class names."""
    column = manifest.label_column(config.target)
    table = manifest.read(manifests, config.dataset, ["path", "size", "container", "offset", column])
    labels = table[column].to_pylist()
    if missing := labels.count(None):
        raise DataError(
            f"{config.dataset}: {counted(missing, 'row has', 'rows have')} no value in {config.target!r}. Give it."
        )
    classes = sorted({str(label) for label in labels})
    if len(classes) < 2:
        raise DataError(f"{config.dataset}: expected at least two classes in {config.target!r}, got {classes}.")
    reader = ImageReader(glyphs.INPUT.image)
    pixels = np.stack(_read_pixels(reader, _locations(table)))
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[str(label)] for label in labels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, targets, classes


def _locations(table: pa.Table) -> list[SampleLocation]:
    """Return the location of each row of a manifest."""
    columns = (table[name].to_pylist() for name in ("path", "container", "offset", "size"))
    return [SampleLocation(*row) for row in zip(*columns, strict=True)]


def _read_pixels(reader: ImageReader, locations: list[SampleLocation]) -> list[np.ndarray]:
    """Return the pixels of all samples in order, (height, width, 1) uint8 each. Reads containers front to back."""
    pixels: dict[SampleLocation, np.ndarray] = {}
    ordered = sorted(locations, key=lambda location: (location.container or "", location.offset or 0))
    for location, data in zip(ordered, read_in_order(ordered), strict=True):
        try:
            if isinstance(data, OSError):
                raise data
            pixels[location] = reader(data)["pixels"]
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{location.path}: {reason}. Run prepare again, with `check: decode`.") from None
    return [pixels[location] for location in locations]
