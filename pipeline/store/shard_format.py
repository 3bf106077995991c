"""What a shard is made of: the shape of its rows, its blocks and its name.

    /features    (rows, ...) in the stored dtype
    /checksums   uint64 (blocks,): xxh3-64 of the bytes of each block of `block_rows` rows, before compression
    /keys        uint8 (rows, 16), sorted
    /scale       float32 (channels,), int8 only
    attributes of /: format, identity (the column's address), dtype, block_rows

Vectors are contiguous and not compressed, so that any row can be memory-mapped. Maps, rows of two axes and more, lie in
chunks of about 1 MiB, each a block and a Zstandard frame (HDF5 filter 32015).
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.files import KEY_BYTES
from pipeline.store.dtypes import ON_DISK, Stored

FORMAT = 3
ZSTD_FILTER, ZSTD_LEVEL = 32015, 1
CHUNK_BYTES = 2**20  # of a map's chunk
BLOCK_BYTES = (
    2**12
)  # that one checksum of vectors covers: what the system reads at least, so that a random row costs no more
PIECE_BYTES = 2 * CHUNK_BYTES  # of vectors: stays in the processor's cache between a copy and its checksums
REMEDY = "Run `icecore cache repair`, then the extraction again: only what is damaged is computed."


@dataclass(frozen=True)
class ShardRecord:
    """What an index says of a shard; `name` is the file's SHA-256 and so its name."""

    name: str
    rows: int
    bytes: int
    first: str
    last: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values, for an index."""
        return asdict(self)


@dataclass(frozen=True)
class Layout:
    """What the rows of a column look like: dtype and shape of one row."""

    address: str
    dtype: Stored
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return int(np.prod(self.shape)) * np.dtype(ON_DISK[self.dtype]).itemsize

    @property
    def chunked(self) -> bool:
        """Whether rows are maps, which are chunked and compressed."""
        return len(self.shape) > 1

    @property
    def block_rows(self) -> int:
        """Rows that one checksum covers, and of maps one chunk."""
        return max(1, (CHUNK_BYTES if self.chunked else BLOCK_BYTES) // self.row_bytes)

    def chunk_rows(self, rows: int) -> int:
        """Return rows of a chunk in a shard of so many: HDF5 wants no chunk larger than the whole."""
        return min(self.block_rows, rows)

    def blocks(self, rows: int) -> int:
        """Return blocks of a shard of so many rows."""
        return -(-rows // self.block_rows)

    def pieces(self, start: int, stop: int) -> Iterator[range]:
        """Return some rows in pieces of about PIECE_BYTES that end with a block."""
        step = max(1, PIECE_BYTES // (self.block_rows * self.row_bytes)) * self.block_rows
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        return (range(first, last) for first, last in itertools.pairwise(edges) if first < last)

    def datasets(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and NumPy dtype of every data set in a shard of so many rows."""
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            "features": ((rows, *self.shape), ON_DISK[self.dtype]),
            "checksums": ((self.blocks(rows),), "<u8"),
            "keys": ((rows, KEY_BYTES), "|u1"),
        }
        if self.dtype == "int8":
            expected["scale"] = ((self.shape[0],), "<f4")
        return expected


def path_of(folder: Path, name: str) -> Path:
    """Return where the shard of that name lies in a folder."""
    return folder / f"{name}.h5"


def cut(data: memoryview, size: int) -> Iterator[memoryview]:
    """Yield some bytes in parts of a size, the last of which may be short."""
    return (data[start : start + size] for start in range(0, len(data), size))


def checksums(blocks: Iterable[memoryview]) -> np.ndarray:
    """Return xxh3-64 of each block of bytes, uint64 (blocks,)."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, blocks), dtype="<u8")
