"""A process that adds shards to a column, for the test that kills some; other processes import it."""

from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import shards

from pipeline.files import content_key
from pipeline.store import cache, key_arrays, maintenance


def add_eight(root: Path, first: int, ready: Connection) -> None:
    """Add eight shards, those that are not there; say when it begins."""
    column = cache.column(root, {"node": "block1", "dtype": "float32"})
    maintenance.remove_stale_files(column)
    ready.send(True)
    for turn in range(8):
        part = (first + turn) % 8
        have = {key for record in column.records() for key in key_arrays.to_hex(column.keys(record))}
        own = sorted(content_key(str(100 * part + number).encode()) for number in range(40))
        if not set(own) <= have:
            rows = np.array([[int(k[:6], 16) + c for c in range(2000)] for k in own], np.float32)
            shards.add(column, key_arrays.from_hex(own), rows, provenance={})
