"""A buffer for the rows of a shard: batches are appended to a temporary file, and read back sorted by key.

The file is in the column's folder. It has the rows in the order in which they were appended, in the stored dtype; for
int8 as float32, since the scale depends on all rows. The file is not flushed to the disk, so each row is checked
against its checksum when it is read back.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import StoreError
from pipeline.files import DISK_FULL, scratch
from pipeline.store import key_arrays
from pipeline.store.dtypes import ON_DISK, PIECE_BYTES, Unscaled, encode, int8_scale, largest_magnitudes, quantise
from pipeline.store.shard_format import Layout, checksums, cut
from pipeline.store.shard_writer import disk_full_error, pread, pwrite, refuse_unstorable, shard_size_bound


def row_dtype(layout: Layout) -> Unscaled:
    """Return the dtype of rows in a buffer."""
    return "float32" if layout.dtype == "int8" else layout.dtype


def row_bytes(layout: Layout) -> int:
    """Return the bytes of a row in a buffer."""
    return int(np.prod(layout.shape)) * np.dtype(ON_DISK[row_dtype(layout)]).itemsize


class RowBuffer:
    """Rows that are appended in batches, in any order of their keys; by one thread at a time."""

    def __init__(self, path: Path, descriptor: int, layout: Layout) -> None:
        self.path, self._descriptor, self._layout = path, descriptor, layout
        self._dtype, self._row_bytes = row_dtype(layout), row_bytes(layout)
        self._count = 0
        self._keys: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []
        self._largest = np.zeros(layout.shape[:1], dtype=np.float32)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Append a batch: `keys` S16 (n,), `values` float32 (n, *shape).

        Raises StoreError for another shape, for a value that the stored dtype cannot hold, and if the disk is full.
        """
        if values.shape != (len(keys), *self._layout.shape):
            expected = (len(keys), *self._layout.shape)
            raise StoreError(
                f"{self.path.parent}: expected rows of shape {expected}, got {values.shape}. Append a row "
                "per key, of the shape that the writer was created with."
            )
        finite, sums, magnitudes = np.ones(len(keys), dtype=bool), [], [self._largest]
        step = max(1, PIECE_BYTES // self._row_bytes)
        for start in range(0, len(keys), step):
            piece = slice(start, start + step)
            encoded = encode(values[piece], self._dtype)
            finite[piece] = encoded.finite
            data = encoded.values.data.cast("B")
            self._write(data, rows=self._count + start, of=self._count + len(keys))
            sums.append(checksums(cut(data, self._row_bytes)))
            if self._layout.dtype == "int8":
                magnitudes.append(largest_magnitudes(encoded.values))
        refuse_unstorable(keys, finite, self._layout.dtype)
        self._largest = np.max(magnitudes, axis=0)
        self._keys.append(np.array(keys, dtype=key_arrays.DTYPE))
        self._sums += sums
        self._count += len(keys)

    def _write(self, data: memoryview, *, rows: int, of: int) -> None:
        try:
            pwrite(self._descriptor, data, rows * self._row_bytes)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise disk_full_error(self.path.parent, shard_size_bound(of, self._layout)) from None
            raise

    def sorted(self) -> "BufferedRows":
        """Return the rows, of which there must be some, sorted by key; raises StoreError for duplicate keys."""
        appended = np.concatenate(self._keys)
        order = np.argsort(appended, kind="stable")
        keys = appended[order]
        duplicates = np.flatnonzero(keys[1:] == keys[:-1])
        if len(duplicates):
            name = key_arrays.to_hex(keys[duplicates[:1]])[0]
            raise StoreError(
                f"{self.path.parent}: expected rows of different keys, got {len(duplicates):,} of {len(keys):,} twice; "
                f"the first key is {name}. Append each key once."
            )
        scale = int8_scale(self._largest) if self._layout.dtype == "int8" else None
        sums = np.concatenate(self._sums)[order]
        return BufferedRows(keys, scale, self.path, self._descriptor, order, sums, self._dtype, self._layout.shape)


@dataclass(frozen=True)
class BufferedRows:
    """The rows of a buffer, sorted by their keys S16 (rows,); `scale` (channels,) for int8."""

    keys: np.ndarray
    scale: np.ndarray | None
    path: Path
    descriptor: int
    order: np.ndarray
    sums: np.ndarray
    dtype: Unscaled
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop` in the stored dtype; raises StoreError if they are damaged."""
        rows = np.empty((stop - start, *self.shape), dtype=ON_DISK[self.dtype])
        view, row_bytes = rows.data.cast("B"), rows[:1].nbytes
        places = self.order[start:stop]
        # Rows that were appended consecutively are read at once: usually all of them.
        edges = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        for first, last in itertools.pairwise(edges):
            pread(self.descriptor, view[first * row_bytes : last * row_bytes], int(places[first]) * row_bytes)
        if not np.array_equal(checksums(cut(view, row_bytes)), self.sums[start:stop]):
            raise StoreError(
                f"{self.path}: buffered rows of an unfinished shard were damaged on the disk. Nothing was stored: "
                "check the disk, and run the extraction again."
            )
        return rows if self.scale is None else quantise(rows, self.scale)


@contextlib.contextmanager
def open_row_buffer(folder: Path, layout: Layout) -> Iterator[RowBuffer]:
    """Yield an empty buffer for a shard in `folder`.

    Its file is removed at the end, and by `files.remove_stale` after a kill.
    """
    with scratch(folder, "spool") as path, path.open("x+b", buffering=0) as file:
        yield RowBuffer(path, file.fileno(), layout)
