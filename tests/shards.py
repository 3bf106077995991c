"""Rows that are all there, stored as one shard of a column or of a folder; other processes import it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.store import shard_writer
from pipeline.store.cache import CacheEntry
from pipeline.store.row_buffer import open_row_buffer
from pipeline.store.shard_format import Layout, ShardRecord


def write(folder: Path, keys: np.ndarray, values: np.ndarray, layout: Layout) -> ShardRecord:
    """Write a shard of rows (keys, ...) into a folder."""
    with open_row_buffer(folder, layout) as rows:
        rows.append(keys, values)
        ordered = rows.sorted()
        return shard_writer.write(folder, ordered.keys, ordered, layout)


def add(
    column: CacheEntry,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    provenance: Mapping[str, str] | None = None,
    rejected: Mapping[str, str] | None = None,
) -> ShardRecord:
    """Store rows (keys, ...) in a column."""
    with column.writer(values.shape[1:]) as writer:
        writer.append(keys, values)
        record = writer.finish(provenance=provenance or {}, rejected=rejected)
    assert record is not None
    return record
