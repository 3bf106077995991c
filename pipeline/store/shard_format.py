"""The format of a shard: its data sets, blocks and name.

    /features    (rows, ...) in the stored dtype
    /checksums   uint64 (blocks,): xxh3-64 of the bytes of each block of `block_rows` rows, before compression
    /keys        uint8 (rows, 16), sorted
    /scale       float32 (channels,), int8 only
    attributes of /: format, identity (the column's address), dtype, block_rows

Vectors are contiguous and not compressed, so that any row can be memory-mapped. Maps, rows with two or more axes, are
stored in chunks of about 1 MiB, each a block and a Zstandard frame (HDF5 filter 32015).
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.readers.sample_key import KEY_BYTES
from pipeline.store.dtypes import ON_DISK, Stored

FORMAT = 3
ZSTD_FILTER, ZSTD_LEVEL = 32015, 1
CHUNK_BYTES = 2**20  # of a chunk of maps
BLOCK_BYTES = 2**12  # of vectors per checksum: a memory page, so that checking a random row reads no more
PIECE_BYTES = 2 * CHUNK_BYTES  # of vectors at a time: they stay in the processor's cache between copy and checksum
REMEDY = "Run `icecore cache repair`, then the extraction again: only damaged rows are computed."


@dataclass(frozen=True)
class ShardRecord:
    """The entry of a shard in an index. `name`: SHA-256 of the file, and its name."""

    name: str
    rows: int
    bytes: int
    first: str
    last: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Layout:
    """The format of a column's rows: dtype and shape of a row."""

    address: str
    dtype: Stored
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return int(np.prod(self.shape)) * np.dtype(ON_DISK[self.dtype]).itemsize

    @property
    def chunked(self) -> bool:
        """Whether rows are maps, which are chunked and compressed."""
        return len(self.shape) > 1

    @property
    def block_rows(self) -> int:
        """Rows per checksum, and per chunk of maps."""
        return max(1, (CHUNK_BYTES if self.chunked else BLOCK_BYTES) // self.row_bytes)

    def chunk_rows(self, rows: int) -> int:
        """Return the rows per chunk in a shard of `rows`: HDF5 allows no chunk larger than the data set."""
        return min(self.block_rows, rows)

    def blocks(self, rows: int) -> int:
        """Return the number of blocks in a shard of `rows`."""
        return -(-rows // self.block_rows)

    def pieces(self, start: int, stop: int) -> Iterator[range]:
        """Split the rows from `start` to `stop` into pieces of about PIECE_BYTES that end with a block."""
        step = max(1, PIECE_BYTES // (self.block_rows * self.row_bytes)) * self.block_rows
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        return (range(first, last) for first, last in itertools.pairwise(edges) if first < last)

    def datasets(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return {data set: (shape, NumPy dtype)} of a shard of `rows`."""
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            "features": ((rows, *self.shape), ON_DISK[self.dtype]),
            "checksums": ((self.blocks(rows),), "<u8"),
            "keys": ((rows, KEY_BYTES), "|u1"),
        }
        if self.dtype == "int8":
            expected["scale"] = ((self.shape[0],), "<f4")
        return expected


def path_of(folder: Path, name: str) -> Path:
    """Return the path of a shard in a folder."""
    return folder / f"{name}.h5"


def cut(data: memoryview, size: int) -> Iterator[memoryview]:
    """Split bytes into parts of `size`; the last part may be short."""
    return (data[start : start + size] for start in range(0, len(data), size))


def checksums(blocks: Iterable[memoryview]) -> np.ndarray:
    """Return xxh3-64 of each block of bytes, uint64 (blocks,)."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, blocks), dtype="<u8")
