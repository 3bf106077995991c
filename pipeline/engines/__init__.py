"""Engines run a backbone: a batch of named arrays in, a mapping from tap to array out."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Engine(Protocol):
    """One way to run one backbone."""

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`pixels` uint8 (n, height, width, channels) to each tap, float32, (n, ...)."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device and versions, for the record beside each shard."""
        ...
