"""Read rows of a shard: an immutable HDF5 file with rows of a column, in the format of shard_format.py.

A file is not trusted. Its digest is checked before HDF5 opens it; then `validate_layout` refuses everything that a
shard does not need, and locates the rows. Rows are then read by plain file reads: no HDF5 handle stays open, so that
threads and forked processes may share a shard. Single rows are read through a memory map; at most `MAPS` open shards
have a map.
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

MAPS = 256  # memory maps per process: each takes a file descriptor, of which a process has 1,024 by default
CHECKSUM = np.dtype("<u8")
MAPPED = ("_bytes", "_dense", "_sums")


def verify(path: Path, record: ShardRecord, *, whole: bool = True) -> None:
    """Raise StoreError if a shard is missing, or if its size or, with `whole`, its digest differs from its record."""
    if not path.is_file():
        raise StoreError(f"{path}: the shard is missing. {REMEDY}")
    if (size := path.stat().st_size) != record.bytes:
        raise StoreError(f"{path}: expected {record.bytes:,} bytes, got {size:,}. {REMEDY}")
    if whole and (computed := sha256_file(path)) != record.name:
        raise StoreError(f"{path}: expected SHA-256 {record.name}, got {computed}: the shard is damaged. {REMEDY}")


class Shard:
    """An open shard. Rows are checked against their checksums when they are read, unless `check` is False.

    Raises StoreError on opening if the file is damaged or not a valid shard.
    """

    def __init__(self, path: Path, record: ShardRecord, layout: Layout, *, check: bool = True) -> None:
        self.path, self.record, self.layout, self.check = path, record, layout, check
        verify(path, record)
        self._offsets = validate_layout(path, record, layout)

    def __getstate__(self) -> dict[str, Any]:
        # Another process creates its own memory maps.
        return {name: value for name, value in self.__dict__.items() if name not in MAPPED}

    def __len__(self) -> int:
        return self.record.rows

    @property
    def keys(self) -> np.ndarray:
        """All keys, S16 (rows,)."""
        return np.frombuffer(self._bytes, key_arrays.DTYPE, count=self.record.rows, offset=self._offsets.keys)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number, decoded (len(rows), ...); see `dtypes.decode` for the dtype."""
        blocks, size = rows // self.layout.block_rows, self.layout.block_rows
        if self.layout.chunked:
            result = self._empty(len(rows))
            for block in np.unique(blocks).tolist():
                here = blocks == block
                result[here] = self._chunk(block)[rows[here] - block * size]
        else:
            result = self._dense[rows]
            if self.check and size == 1:  # the copy is checked, which is still in the processor's cache
                self._verify(rows, cut(result.data.cast("B"), self.layout.row_bytes))
            elif self.check:
                wanted = np.unique(blocks)
                self._verify(wanted, [self._block(number) for number in wanted.tolist()])
        return decode(result, self.layout.dtype, self._offsets.scale)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, decoded."""
        result = self._empty(stop - start)
        self.read_into(result, start)
        return decode(result, self.layout.dtype, self._offsets.scale)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, C-contiguous and of the stored dtype, with the rows from `start` on."""
        stop, blocks = start + len(out), self.layout.block_rows
        if self.layout.chunked:
            numbers = range(start // blocks, -(-stop // blocks))
            for number, chunk in zip(numbers, parallel_map(self._chunk, numbers), strict=True):
                first, last = max(start, number * blocks), min(stop, number * blocks + len(chunk))
                out[first - start : last - start] = chunk[first - number * blocks : last - number * blocks]
            return
        with self.path.open("rb", buffering=0) as file:

            def fill(piece: range) -> None:
                self._read_piece(file.fileno(), out[piece.start - start : piece.stop - start], piece)

            for _ in parallel_map(fill, list(self.layout.pieces(start, stop))):
                pass

    def _read_piece(self, descriptor: int, out: np.ndarray, rows: range) -> None:
        """Read vectors, and check every block that they overlap."""
        assert self._offsets.features is not None, "vectors are contiguous"
        view, row_bytes, size = out.data.cast("B"), self.layout.row_bytes, self.layout.block_rows
        done = 0
        while done < len(view):
            done += os.preadv(descriptor, [view[done:]], self._offsets.features + rows.start * row_bytes + done)
        if not self.check:
            return
        # Complete blocks are checked in `out`, blocks at its edges in the file.
        first, last = (
            -(-rows.start // size),
            rows.stop // size if rows.stop < len(self) else self.layout.blocks(len(self)),
        )
        inside = view[(first * size - rows.start) * row_bytes : (last * size - rows.start) * row_bytes]
        width = CHECKSUM.itemsize  # read, not mapped: mapped pages would stay in memory
        sums = os.pread(descriptor, max(0, last - first) * width, self._offsets.checksums + first * width)
        self._verify(np.arange(first, last), cut(inside, size * row_bytes), np.frombuffer(sums, CHECKSUM))
        edges = sorted({rows.start // size, (rows.stop - 1) // size} - set(range(first, last)))
        self._verify(np.array(edges, dtype=np.int64), map(self._block, edges))

    def _empty(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.layout.shape), dtype=ON_DISK[self.layout.dtype])

    def _chunk(self, block: int) -> np.ndarray:
        """Return the rows of a chunk, decompressed and checked."""
        assert self._offsets.chunks is not None, "maps are chunked"
        offset, size = self._offsets.chunks[block]
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
        """Return the bytes of a block of vectors in the mapped file."""
        assert self._offsets.features is not None, "vectors are contiguous"
        size, end = self.layout.block_rows * self.layout.row_bytes, len(self) * self.layout.row_bytes
        start = self._offsets.features
        return memoryview(self._bytes)[start + number * size : start + min((number + 1) * size, end)]

    def _verify(self, blocks: np.ndarray, data: Iterable[memoryview], sums: np.ndarray | None = None) -> None:
        """Raise StoreError if the bytes of blocks do not match their checksums, or `sums` if given."""
        wrong = np.flatnonzero(checksums(data) != (self._sums[blocks] if sums is None else sums))
        if len(wrong):
            raise self._damaged(int(blocks[wrong[0]]), "it does not match its checksum")

    def _damaged(self, block: int, why: str) -> StoreError:
        first = block * self.layout.block_rows
        last = min(first + self.layout.block_rows, len(self)) - 1
        return StoreError(f"{self.path}: rows {first:,} to {last:,} are damaged: {why}. {REMEDY}")

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _mapped.append(weakref.ref(self))
        while len(_mapped) > MAPS:
            oldest = _mapped.popleft()()
            for name in MAPPED if oldest is not None else ():
                oldest.__dict__.pop(name, None)
        return mapped

    @cached_property
    def _sums(self) -> np.ndarray:
        """All checksums, in the mapped file."""
        return np.frombuffer(self._bytes, CHECKSUM, count=self.layout.blocks(len(self)), offset=self._offsets.checksums)

    @cached_property
    def _dense(self) -> np.ndarray:
        assert self._offsets.features is not None, "vectors are contiguous"
        count = self.record.rows * int(np.prod(self.layout.shape))
        flat = np.frombuffer(self._bytes, ON_DISK[self.layout.dtype], count=count, offset=self._offsets.features)
        return flat.reshape(self.record.rows, *self.layout.shape)


_mapped: deque[weakref.ref[Shard]] = deque()  # shards with a memory map, the oldest first
