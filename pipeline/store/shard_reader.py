"""An open shard: an immutable HDF5 file with some rows of one column. `Layout` in shard_format.py says what is in it.

Opening trusts nothing. The digest is checked before HDF5 sees the file; then `validate_layout` refuses whatever a
shard has no use for and notes where the rows lie. After that rows are read by plain file reads: no HDF5 handle is
kept, so threads and forked processes may share an open shard. Single rows are read through a map of the file; of the
open shards no more than `MAPS` have one.
"""

import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from pipeline.errors import StoreError
from pipeline.files import sha256_file
from pipeline.runtime import parallel_map
from pipeline.store import key_arrays
from pipeline.store.dtypes import ON_DISK, decode
from pipeline.store.shard_checks import validate_layout
from pipeline.store.shard_format import REMEDY, Layout, ShardRecord, checksums, cut

MAPS = 256  # at once in a process: each takes a file descriptor, of which a process has 1,024 by default
SUM = np.dtype("<u8")
OF_MAP = ("_bytes", "_dense", "_sums")


def verify(path: Path, record: ShardRecord, *, whole: bool = True) -> None:
    """Raise StoreError if a shard is missing or has not the size, and if `whole` the bytes, that its record says."""
    if not path.is_file():
        raise StoreError(f"{path}: the shard is missing. {REMEDY}")
    if (size := path.stat().st_size) != record.bytes:
        raise StoreError(f"{path}: expected {record.bytes:,} bytes, got {size:,}. {REMEDY}")
    if whole and (found := sha256_file(path)) != record.name:
        raise StoreError(f"{path}: expected SHA-256 {record.name}, got {found}: the shard is damaged. {REMEDY}")


class Shard:
    """An open shard. Rows are checked against their checksums as they are read, unless `check` is False.

    Raises StoreError on opening if the file is damaged or has anything in it that a shard does not have.
    """

    def __init__(self, path: Path, record: ShardRecord, layout: Layout, *, check: bool = True) -> None:
        self.path, self.record, self.layout, self.check = path, record, layout, check
        verify(path, record)
        self._places = validate_layout(path, record, layout)

    def __getstate__(self) -> dict[str, Any]:
        # Maps of the file are made anew in the process that needs them.
        return {name: value for name, value in self.__dict__.items() if name not in OF_MAP}

    def __len__(self) -> int:
        return self.record.rows

    @property
    def keys(self) -> np.ndarray:
        """All keys, S16 (rows,)."""
        return np.frombuffer(self._bytes, key_arrays.DTYPE, count=self.record.rows, offset=self._places.keys)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number, decoded (len(rows), ...); see `encoding.decode` for the dtype."""
        blocks, size = rows // self.layout.block_rows, self.layout.block_rows
        if self.layout.chunked:
            found = self._empty(len(rows))
            for block in np.unique(blocks).tolist():
                here = blocks == block
                found[here] = self._chunk(block)[rows[here] - block * size]
        else:
            found = self._dense[rows]
            if self.check and size == 1:  # the copy is what is checked, and still in the processor's cache
                self._verify(rows, cut(found.data.cast("B"), self.layout.row_bytes))
            elif self.check:
                wanted = np.unique(blocks)
                self._verify(wanted, [self._block(number) for number in wanted.tolist()])
        return decode(found, self.layout.dtype, self._places.scale)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, decoded: what a pass over the shard calls for."""
        found = self._empty(stop - start)
        self.read_into(found, start)
        return decode(found, self.layout.dtype, self._places.scale)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, C-contiguous and of the stored dtype, with the rows from `start` on."""
        stop, blocks = start + len(out), self.layout.block_rows
        if self.layout.chunked:
            numbers = range(start // blocks, -(-stop // blocks))
            for number, whole in zip(numbers, parallel_map(self._chunk, numbers), strict=True):
                first, last = max(start, number * blocks), min(stop, number * blocks + len(whole))
                out[first - start : last - start] = whole[first - number * blocks : last - number * blocks]
            return
        with self.path.open("rb", buffering=0) as file:

            def fill(piece: range) -> None:
                self._read_piece(file.fileno(), out[piece.start - start : piece.stop - start], piece)

            for _ in parallel_map(fill, list(self.layout.pieces(start, stop))):
                pass

    def _read_piece(self, descriptor: int, out: np.ndarray, rows: range) -> None:
        """Read vectors, and check every block that they touch."""
        assert self._places.features is not None, "vectors are contiguous"
        view, row_bytes, size = out.data.cast("B"), self.layout.row_bytes, self.layout.block_rows
        done = 0
        while done < len(view):
            done += os.preadv(descriptor, [view[done:]], self._places.features + rows.start * row_bytes + done)
        if not self.check:
            return
        # Blocks that lie in `out` whole are checked there, those at its edges where they lie in the file.
        first, last = (
            -(-rows.start // size),
            rows.stop // size if rows.stop < len(self) else self.layout.blocks(len(self)),
        )
        inside = view[(first * size - rows.start) * row_bytes : (last * size - rows.start) * row_bytes]
        width = SUM.itemsize  # read and not mapped: pages of a map stay in memory
        sums = os.pread(descriptor, max(0, last - first) * width, self._places.checksums + first * width)
        self._verify(np.arange(first, last), cut(inside, size * row_bytes), np.frombuffer(sums, SUM))
        edges = sorted({rows.start // size, (rows.stop - 1) // size} - set(range(first, last)))
        self._verify(np.array(edges, dtype=np.int64), map(self._block, edges))

    def _empty(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.layout.shape), dtype=ON_DISK[self.layout.dtype])

    def _chunk(self, block: int) -> np.ndarray:
        """Return the rows of one chunk, decompressed and checked."""
        assert self._places.chunks is not None, "maps are chunked"
        offset, size = self._places.chunks[block]
        rows = min(self.layout.block_rows, len(self) - block * self.layout.block_rows)
        chunk = self.layout.chunk_rows(len(self))
        expected = chunk * self.layout.row_bytes
        try:
            frame = memoryview(self._bytes)[offset : offset + size]
            raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected)
        except zstandard.ZstdError as error:
            raise self._damaged(block, str(error)) from None
        if len(raw) != expected:
            raise self._damaged(block, f"it holds {len(raw):,} bytes instead of {expected:,}")
        flat = np.frombuffer(raw, dtype=ON_DISK[self.layout.dtype])
        values = flat.reshape(chunk, *self.layout.shape)[:rows]
        if self.check:
            self._verify(np.array([block]), [values.data.cast("B")])
        return values

    def _block(self, number: int) -> memoryview:
        """Return the bytes of one block of vectors, where they lie in the file."""
        assert self._places.features is not None, "vectors are contiguous"
        size, end = self.layout.block_rows * self.layout.row_bytes, len(self) * self.layout.row_bytes
        start = self._places.features
        return memoryview(self._bytes)[start + number * size : start + min((number + 1) * size, end)]

    def _verify(self, blocks: np.ndarray, data: Iterable[memoryview], sums: np.ndarray | None = None) -> None:
        """Raise StoreError if the bytes of some blocks do not fit their checksums, or those given as `sums`."""
        wrong = np.flatnonzero(checksums(data) != (self._sums[blocks] if sums is None else sums))
        if len(wrong):
            raise self._damaged(int(blocks[wrong[0]]), "it does not fit its checksum")

    def _damaged(self, block: int, why: str) -> StoreError:
        first = block * self.layout.block_rows
        last = min(first + self.layout.block_rows, len(self)) - 1
        return StoreError(f"{self.path}: rows {first:,} to {last:,} are damaged: {why}. {REMEDY}")

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            made = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _mapped.append(weakref.ref(self))
        while len(_mapped) > MAPS:
            oldest = _mapped.popleft()()
            for name in OF_MAP if oldest is not None else ():
                oldest.__dict__.pop(name, None)
        return made

    @cached_property
    def _sums(self) -> np.ndarray:
        """All checksums, where they lie in the file."""
        return np.frombuffer(self._bytes, SUM, count=self.layout.blocks(len(self)), offset=self._places.checksums)

    @cached_property
    def _dense(self) -> np.ndarray:
        assert self._places.features is not None, "vectors are contiguous"
        count = self.record.rows * int(np.prod(self.layout.shape))
        flat = np.frombuffer(self._bytes, ON_DISK[self.layout.dtype], count=count, offset=self._places.features)
        return flat.reshape(self.record.rows, *self.layout.shape)


_mapped: deque[weakref.ref[Shard]] = deque()  # those with a map of their file, the oldest first
