"""Rows of one shard that come in batches: kept in a file until all are there, and read back in the order of their keys.

The file lies in the column's folder under a temporary name. It has the rows in the order in which they came, in the
stored dtype; those of int8 as float32, for the scale follows from all of them. Nobody waits until the disk has it, so
each row that is read back is checked against the checksum that it had.
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
from pipeline.store.dtypes import ON_DISK, PIECE_BYTES, Unscaled, encode, largest, quantise, scale_of
from pipeline.store.shard_format import Layout, checksums, cut
from pipeline.store.shard_writer import no_space, pread, pwrite, refuse_unstorable, shard_size_bound


def row_dtype(layout: Layout) -> Unscaled:
    """Return the dtype of rows in a spool."""
    return "float32" if layout.dtype == "int8" else layout.dtype


def row_bytes(layout: Layout) -> int:
    """Return bytes of one row in a spool."""
    return int(np.prod(layout.shape)) * np.dtype(ON_DISK[row_dtype(layout)]).itemsize


class RowBuffer:
    """Rows that are appended in any order of their keys, one batch at a time, by whichever thread."""

    def __init__(self, path: Path, descriptor: int, layout: Layout) -> None:
        self.path, self._descriptor, self._layout = path, descriptor, layout
        self._kept, self._row_bytes = row_dtype(layout), row_bytes(layout)
        self._count = 0
        self._keys: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []
        self._largest = np.zeros(layout.shape[:1], dtype=np.float32)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Keep a batch: `keys` S16 (n,), `values` float32 (n, *shape).

        Raises StoreError if the shape is another one, if the stored dtype cannot hold a value, and if the disk is full.
        """
        if values.shape != (len(keys), *self._layout.shape):
            expected = (len(keys), *self._layout.shape)
            raise StoreError(
                f"{self.path.parent}: expected rows of shape {expected}, got {values.shape}. Append one row "
                "per key, of the shape that the writer was made for."
            )
        finite, sums, seen = np.ones(len(keys), dtype=bool), [], [self._largest]
        step = max(1, PIECE_BYTES // self._row_bytes)
        for start in range(0, len(keys), step):
            piece = slice(start, start + step)
            encoded = encode(values[piece], self._kept)
            finite[piece] = encoded.finite
            data = encoded.values.data.cast("B")
            self._write(data, rows=self._count + start, of=self._count + len(keys))
            sums.append(checksums(cut(data, self._row_bytes)))
            if self._layout.dtype == "int8":
                seen.append(largest(encoded.values))
        refuse_unstorable(keys, finite, self._layout.dtype)
        self._largest = np.max(seen, axis=0)
        self._keys.append(np.array(keys, dtype=key_arrays.DTYPE))
        self._sums += sums
        self._count += len(keys)

    def _write(self, data: memoryview, *, rows: int, of: int) -> None:
        try:
            pwrite(self._descriptor, data, rows * self._row_bytes)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise no_space(self.path.parent, shard_size_bound(of, self._layout)) from None
            raise

    def sorted(self) -> "BufferedRows":
        """Return all rows, at least one, in the order of their keys; raises StoreError if a key came twice."""
        came = np.concatenate(self._keys)
        order = np.argsort(came, kind="stable")
        keys = came[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            name = key_arrays.to_hex(keys[twice[:1]])[0]
            raise StoreError(
                f"{self.path.parent}: expected rows of different keys, got {len(twice):,} of {len(keys):,} twice, the "
                f"first of key {name}. Append each key once."
            )
        scale = scale_of(self._largest) if self._layout.dtype == "int8" else None
        sums = np.concatenate(self._sums)[order]
        return BufferedRows(keys, scale, self.path, self._descriptor, order, sums, self._kept, self._layout.shape)


@dataclass(frozen=True)
class BufferedRows:
    """The rows of a spool in the order of their keys, S16 (rows,); `scale` (channels,) of int8."""

    keys: np.ndarray
    scale: np.ndarray | None
    path: Path
    descriptor: int
    order: np.ndarray
    sums: np.ndarray
    kept: Unscaled
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop` as they are stored; raises StoreError if they are not those
        that came.
        """
        rows = np.empty((stop - start, *self.shape), dtype=ON_DISK[self.kept])
        view, row_bytes = rows.data.cast("B"), rows[:1].nbytes
        places = self.order[start:stop]
        # Rows that came one after another are read in one piece: mostly all of them.
        edges = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        for first, last in itertools.pairwise(edges):
            pread(self.descriptor, view[first * row_bytes : last * row_bytes], int(places[first]) * row_bytes)
        if not np.array_equal(checksums(cut(view, row_bytes)), self.sums[start:stop]):
            raise StoreError(
                f"{self.path}: rows that were kept until the shard could be written came back damaged from the disk. "
                "Nothing was stored: look at the disk, and run the extraction again."
            )
        return rows if self.scale is None else quantise(rows, self.scale)


@contextlib.contextmanager
def open_row_buffer(folder: Path, layout: Layout) -> Iterator[RowBuffer]:
    """Yield an empty spool for a shard in `folder`.

    Its file is removed at the end, and by `files.remove_stale` after a kill.
    """
    with scratch(folder, "spool") as path, path.open("x+b", buffering=0) as file:
        yield RowBuffer(path, file.fileno(), layout)
