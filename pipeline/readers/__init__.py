"""Readers turn the bytes of a sample into named arrays; one file a modality.

A reader is deterministic: equal bytes and equal settings give equal arrays. `identity` names everything that shapes the
arrays, and goes into the address of each feature made from them.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.readers.image import ImageSpec

# By `ImageSpec.decoder`.
IMAGE_READERS: Mapping[str, str] = {
    "pillow": "pipeline.readers.image:ImageReader",
    "nvjpeg": "pipeline.readers.nvjpeg:NvjpegReader",
}

Sample = dict[str, np.ndarray]
"""Named arrays of one sample, such as `pixels`: uint8, (height, width, channels)."""


class Reader(Protocol):
    """Bytes in, named arrays out."""

    def __call__(self, data: bytes) -> Sample:
        """Decode one sample; raises DataError with the reason if the bytes cannot be used."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, version and settings: what shapes the arrays."""
        ...


@runtime_checkable
class BatchReader(Reader, Protocol):
    """A reader that takes many samples at once, as a device does."""

    def batch(self, data: Sequence[bytes]) -> list[Sample | DataError]:
        """Decode samples; those that cannot be used have their reason in their place."""
        ...


def image_reader(spec: "ImageSpec") -> Reader:
    """The reader of images that a spec asks for; raises EngineError where its device is not there."""
    module, attribute = IMAGE_READERS[spec.decoder].split(":")
    made: Reader = getattr(importlib.import_module(module), attribute)(spec)
    return made
