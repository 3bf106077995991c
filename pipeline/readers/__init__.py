"""Readers turn the bytes of a sample into named arrays; one file a modality.

A reader is deterministic: equal bytes and equal settings give equal arrays. `identity` names everything that shapes the
arrays, and goes into the address of each feature made from them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

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
