"""Write a shard of rows that are held in memory, without the file that collects rows in batches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.store import shard_writer
from pipeline.store.shard_format import Layout, ShardRecord


@dataclass(frozen=True)
class Held:
    """Rows in the stored dtype, which is not int8."""

    values: np.ndarray
    scale: None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, C-contiguous."""
        return np.ascontiguousarray(self.values[start:stop])


def write(folder: Path, keys: np.ndarray, rows: np.ndarray, layout: Layout) -> ShardRecord:
    """Write rows (keys, ...) of float16 or float32; `keys`: S16, sorted."""
    return shard_writer.write(folder, keys, Held(rows.astype(layout.dtype, copy=False)), layout)
