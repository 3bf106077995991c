"""Readers turn the bytes of a sample into named arrays; one file per modality.

A reader is deterministic: equal bytes and equal settings give equal arrays. `identity` names everything that changes
the arrays, and is a part of the address of each feature computed from them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

Sample = dict[str, np.ndarray]
"""Named arrays of a sample, such as `pixels`: uint8, (height, width, channels)."""


class Reader(Protocol):
    """A callable that decodes the bytes of a sample to named arrays."""

    def __call__(self, data: bytes) -> Sample:
        """Decode a sample; raises DataError with the reason if the bytes cannot be used."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """The reader's name, version and settings: everything that changes the arrays."""
        ...
