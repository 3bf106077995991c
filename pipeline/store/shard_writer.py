"""Writing a shard: once, in one session and in row order, without times or host names, so equal rows give equal bytes.

Rows come in pieces from wherever they are held (`Rows`), which is a spool: no more than a few pieces are held here. The
file gets its name, the SHA-256 of its content, when it is finished, and is never opened for writing again.
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

OVERHEAD_BYTES = 2**12  # of HDF5's own in a shard, at most, but for the checksums


class Rows(Protocol):
    """Rows in the order of their keys, as they are stored; of int8 with the `scale` (channels,)."""

    @property
    def scale(self) -> np.ndarray | None:
        """The scale of int8, float32 (channels,)."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, C-contiguous; may be called by several threads."""
        ...


def write(folder: Path, keys: np.ndarray, rows: Rows, layout: Layout) -> ShardRecord:
    """Write a shard into `folder` under the name of its content; `keys`: S16 (rows,), sorted.

    Raises StoreError if the disk is full; then nothing is left there.
    """
    first, last = key_arrays.to_hex(keys[[0, -1]])
    needed = shard_size_bound(len(keys), layout)
    # Vectors only: maps shrink. HDF5 does not even close a file well that it had no room for.
    if not layout.chunked and free_disk(folder) < needed:
        raise no_space(folder, needed)
    try:
        with scratch(folder, "shard") as temporary:
            digest = (_write_maps if layout.chunked else _write_vectors)(temporary, keys, rows, layout)
            temporary.chmod(0o444)
            record = ShardRecord(digest, len(keys), temporary.stat().st_size, first, last)
            publish(temporary, path_of(folder, record.name))
    except (OSError, RuntimeError) as error:  # the second is what h5py makes of some errors
        if getattr(error, "errno", None) in DISK_FULL or any(
            f"errno = {number}," in str(error) for number in DISK_FULL
        ):
            raise no_space(folder, needed) from None
        raise
    return record


def refuse_unstorable(keys: np.ndarray, finite: np.ndarray, stored: Stored) -> None:
    """Raise StoreError if some rows of the keys, those that are not `finite` (rows,), cannot be stored."""
    if not finite.all():
        bad = key_arrays.to_hex(keys[~finite])
        half = "Store this tap as `dtype: bfloat16` or `float32`."
        raise StoreError(
            f"{len(bad):,} of {len(keys):,} rows have values that {stored} cannot hold (above its largest number, or "
            f"NaN), the first of key {bad[0]}. "
            f"{half if stored == 'float16' else 'The network itself gives them: look at its weights.'}"
        )


def shard_size_bound(rows: int, layout: Layout) -> int:
    """Return the bytes of a shard of so many rows, at most, but for the checksums."""
    return rows * (layout.row_bytes + key_arrays.DTYPE.itemsize) + OVERHEAD_BYTES


def no_space(folder: Path, needed: int) -> StoreError:
    """Return the message for a shard of some bytes that does not fit on the disk."""
    room = free_disk(folder)
    return StoreError(
        f"{folder}: no space left for a shard of up to {needed:,} bytes: {room:,} are free, {max(needed - room, 0):,} "
        "are missing. Every shard that was finished is kept: make room (`icecore cache prune`) and run it again."
    )


def _write_vectors(path: Path, keys: np.ndarray, rows: Rows, layout: Layout) -> str:
    """Write the file; return its SHA-256.

    HDF5 lays the file out, with room for the rows and behind them for their checksums. Both are then written plainly,
    a piece after another, while a second thread follows through the file and works out the digest: it may fall behind
    and go on while the file is flushed, and no bytes are kept for it.
    """
    count = len(keys)
    with h5py.File(path, "w") as file:
        _describe(file, layout)
        start = _make_room(file, "features", (count, *layout.shape), ON_DISK[layout.dtype])
        sums_start = _make_room(file, "checksums", (layout.blocks(count),), "<u8")
        _add_small(file, keys, rows.scale)
    size, end = path.stat().st_size, start + count * layout.row_bytes
    written: SimpleQueue[range | None] = SimpleQueue()
    with path.open("r+b", buffering=0) as raw, ThreadPoolExecutor(1) as follower:
        digest = follower.submit(_sha256_behind, raw.fileno(), written.get)
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
    """Compress the chunks on all cores and put them into the file in their order; return its SHA-256."""
    count, chunk = len(keys), layout.chunk_rows(len(keys))

    def compress(start: int) -> tuple[int, int, bytes]:
        part = rows.read(start, min(start + chunk, count))
        checksum = xxhash.xxh3_64_intdigest(part.data.cast("B"))
        if len(part) < chunk:  # HDF5 stores the last chunk whole
            part = np.concatenate([part, np.zeros((chunk - len(part), *layout.shape), part.dtype)])
        return start, checksum, zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(part.data.cast("B"))

    with h5py.File(path, "w") as file, closing(parallel_map(compress, range(0, count, chunk))) as frames:
        _describe(file, layout)
        dataset = _make_chunked(file, (count, *layout.shape), ON_DISK[layout.dtype], chunk)
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


def _plist() -> Any:
    """Return settings of a data set without the time of its creation, which HDF5 would keep."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    return plist


def _make_room(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Add a data set without its bytes; return where they go."""
    plist = _plist()
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, plist)
    return int(dataset.get_offset())


def _make_chunked(file: h5py.File, shape: tuple[int, ...], dtype: str, chunk: int) -> Any:
    """Add /features without its chunks."""
    plist = _plist()
    plist.set_chunk((chunk, *shape[1:]))
    # Optional, so that HDF5 accepts a filter that it cannot run itself: frames are made and read here.
    plist.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_OPTIONAL, (ZSTD_LEVEL,))
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, b"features", h5py.h5t.py_create(np.dtype(dtype)), space, plist)


def _sha256_behind(descriptor: int, written: Callable[[], range | None]) -> str:
    """Return the SHA-256 of the bytes of a file in the order in which their places are given; None ends it."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    for span in iter(written, None):
        for start in range(span.start, span.stop, PIECE_BYTES):
            part = buffer[: min(PIECE_BYTES, span.stop - start)]
            pread(descriptor, part, start)
            total.update(part)
    return total.hexdigest()


def pwrite(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of some bytes to a place in a file."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def pread(descriptor: int, out: memoryview, offset: int) -> int:
    """Fill `out` with the bytes at a place in a file; return how many there were, fewer only where it ends before."""
    done = 0
    while done < len(out) and (got := os.preadv(descriptor, [out[done:]], offset + done)):
        done += got
    return done
