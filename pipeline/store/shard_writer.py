"""Write a shard in row order, without times or host names, so that equal rows give equal bytes.

Rows are read in pieces (`Rows`, usually a row buffer), of which only a few are in memory. A finished file gets its
name, the SHA-256 of its content, and is never opened for writing again.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import h5py
import numpy as np
import xxhash
import zstandard

from pipeline.errors import StoreError
from pipeline.files import DISK_FULL, flush, publish, scratch, sha256_file
from pipeline.runtime import free_disk, parallel_map
from pipeline.store import key_arrays
from pipeline.store.dtypes import ON_DISK, Stored
from pipeline.store.shard_format import (
    FORMAT,
    PIECE_BYTES,
    ZSTD_FILTER,
    ZSTD_LEVEL,
    Layout,
    ShardRecord,
    checksums,
    cut,
    path_of,
)

OVERHEAD_BYTES = 2**12  # limit on HDF5's own bytes in a shard, without the checksums


class Rows(Protocol):
    """Rows in the order of their keys, in the stored dtype."""

    @property
    def scale(self) -> np.ndarray | None:
        """The scale for int8, float32 (channels,); None for other dtypes."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, C-contiguous; called by several threads."""
        ...


def write(folder: Path, keys: np.ndarray, rows: Rows, layout: Layout) -> ShardRecord:
    """Write a shard to `folder`, named by its digest; return its record. `keys`: S16 (rows,), sorted.

    Raises StoreError, and leaves no file, if the disk is full.
    """
    first, last = key_arrays.to_hex(keys[[0, -1]])
    needed = shard_size_bound(len(keys), layout)
    # Not for maps, which are compressed. HDF5 cannot close a file properly when the disk is full.
    if not layout.chunked and free_disk(folder) < needed:
        raise disk_full_error(folder, needed)
    try:
        with scratch(folder, "shard") as temporary:
            digest = (_write_maps if layout.chunked else _write_vectors)(temporary, keys, rows, layout)
            temporary.chmod(0o444)
            record = ShardRecord(digest, len(keys), temporary.stat().st_size, first, last)
            publish(temporary, path_of(folder, record.name))
    except (OSError, RuntimeError) as error:  # h5py turns some OSErrors into RuntimeErrors
        if getattr(error, "errno", None) in DISK_FULL or any(
            f"errno = {number}," in str(error) for number in DISK_FULL
        ):
            raise disk_full_error(folder, needed) from None
        raise
    return record


def refuse_unstorable(keys: np.ndarray, finite: np.ndarray, stored: Stored) -> None:
    """Raise StoreError if any row is not `finite` (rows,) in its stored dtype."""
    if not finite.all():
        bad = key_arrays.to_hex(keys[~finite])
        advice = (
            "Store this tap as `dtype: bfloat16` or `float32`."
            if stored == "float16"
            else "The network computes such values: check its weights."
        )
        raise StoreError(
            f"{len(bad):,} of {len(keys):,} rows have values that {stored} cannot hold (above its largest number, or "
            f"NaN); the first key is {bad[0]}. {advice}"
        )


def shard_size_bound(rows: int, layout: Layout) -> int:
    """Return an upper bound on the bytes of a shard of `rows`, without the checksums."""
    return rows * (layout.row_bytes + key_arrays.DTYPE.itemsize) + OVERHEAD_BYTES


def disk_full_error(folder: Path, needed: int) -> StoreError:
    """Return the error for a shard of `needed` bytes that does not fit on the disk."""
    free = free_disk(folder)
    return StoreError(
        f"{folder}: no space left for a shard of up to {needed:,} bytes: {free:,} are free, {max(needed - free, 0):,} "
        "are missing. All finished shards are kept: free some space (`icecore cache prune`) and run again."
    )


def _write_vectors(path: Path, keys: np.ndarray, rows: Rows, layout: Layout) -> str:
    """Write a shard of vectors; return its SHA-256.

    HDF5 creates the file with space for the rows and, after them, the checksums. Both are then written by plain writes,
    piece by piece, while a second thread reads the written file and computes the digest: it may fall behind, continues
    while the file is flushed, and needs no bytes in memory.
    """
    count = len(keys)
    with h5py.File(path, "w") as file:
        _describe(file, layout)
        start = _add_contiguous(file, "features", (count, *layout.shape), ON_DISK[layout.dtype])
        sums_start = _add_contiguous(file, "checksums", (layout.blocks(count),), "<u8")
        _add_small(file, keys, rows.scale)
    size, end = path.stat().st_size, start + count * layout.row_bytes
    written: SimpleQueue[range | None] = SimpleQueue()
    with path.open("r+b", buffering=0) as raw, ThreadPoolExecutor(1) as follower:
        digest = follower.submit(_hash_written, raw.fileno(), written.get)
        try:
            written.put(range(start))
            sums = []
            for piece in layout.pieces(0, count):
                part = rows.read(piece.start, piece.stop).data.cast("B")
                at = start + piece.start * layout.row_bytes
                pwrite(raw.fileno(), part, at)
                written.put(range(at, at + len(part)))
                sums.append(checksums(cut(part, layout.block_rows * layout.row_bytes)))
            pwrite(raw.fileno(), np.concatenate(sums).data.cast("B"), sums_start)
            written.put(range(end, size))
        finally:
            written.put(None)
        os.fsync(raw.fileno())
        return digest.result()


def _write_maps(path: Path, keys: np.ndarray, rows: Rows, layout: Layout) -> str:
    """Write a shard of maps, compressing chunks on all cores; return its SHA-256."""
    count, chunk = len(keys), layout.chunk_rows(len(keys))

    def compress(start: int) -> tuple[int, int, bytes]:
        part = rows.read(start, min(start + chunk, count))
        checksum = xxhash.xxh3_64_intdigest(part.data.cast("B"))
        if len(part) < chunk:  # HDF5 pads the last chunk
            part = np.concatenate([part, np.zeros((chunk - len(part), *layout.shape), part.dtype)])
        return start, checksum, zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(part.data.cast("B"))

    with h5py.File(path, "w") as file, closing(parallel_map(compress, range(0, count, chunk))) as frames:
        _describe(file, layout)
        dataset = _add_chunked(file, (count, *layout.shape), ON_DISK[layout.dtype], chunk)
        sums = []
        for start, checksum, frame in frames:
            sums.append(checksum)
            dataset.write_direct_chunk((start, *[0] * len(layout.shape)), frame)
        file.create_dataset("checksums", data=np.array(sums, "<u8"))
        _add_small(file, keys, rows.scale)
    with ThreadPoolExecutor(1) as other:
        digest = other.submit(sha256_file, path)
        flush(path)
        return digest.result()


def _describe(file: h5py.File, layout: Layout) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["identity"] = layout.address
    file.attrs["dtype"] = layout.dtype
    file.attrs["block_rows"] = layout.block_rows


def _add_small(file: h5py.File, keys: np.ndarray, scale: np.ndarray | None) -> None:
    file.create_dataset("keys", data=keys.view(np.uint8).reshape(len(keys), -1))
    if scale is not None:
        file.create_dataset("scale", data=scale)


def _creation_properties() -> Any:
    """Return creation properties of a data set without timestamps, which HDF5 would store."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    return plist


def _add_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Add a contiguous data set without its bytes; return their offset."""
    plist = _creation_properties()
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, plist)
    return int(dataset.get_offset())


def _add_chunked(file: h5py.File, shape: tuple[int, ...], dtype: str, chunk: int) -> Any:
    """Add /features as a chunked data set, without its chunks."""
    plist = _creation_properties()
    plist.set_chunk((chunk, *shape[1:]))
    # Optional, so that HDF5 accepts a filter that it cannot run: icecore compresses and decompresses the frames.
    plist.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_OPTIONAL, (ZSTD_LEVEL,))
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, b"features", h5py.h5t.py_create(np.dtype(dtype)), space, plist)


def _hash_written(descriptor: int, written: Callable[[], range | None]) -> str:
    """Return the SHA-256 of a file's bytes, hashed in the order of the ranges that `written` returns; None ends it."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    for span in iter(written, None):
        for start in range(span.start, span.stop, PIECE_BYTES):
            part = buffer[: min(PIECE_BYTES, span.stop - start)]
            pread(descriptor, part, start)
            total.update(part)
    return total.hexdigest()


def pwrite(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes of `data` at an offset of a file."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def pread(descriptor: int, out: memoryview, offset: int) -> int:
    """Fill `out` with the bytes at an offset of a file; return their number, smaller only at the end of the file."""
    done = 0
    while done < len(out) and (got := os.preadv(descriptor, [out[done:]], offset + done)):
        done += got
    return done
