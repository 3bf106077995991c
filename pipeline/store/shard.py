"""One shard: an immutable HDF5 file with some rows of one column; `layout` says what is in it.

Written once, in one session and in row order, without times or host names: equal rows give equal bytes. Never opened
for writing again.

Opening trusts nothing. The digest is checked before HDF5 sees the file; then `examine` refuses whatever a shard has no
use for and notes where the rows lie. After that rows are read by plain file reads: no HDF5 handle is kept, so threads
and forked processes may share an open shard.
"""

import errno
import hashlib
import itertools
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
import zstandard

from pipeline.errors import StoreError
from pipeline.files import flush, publish, scratch, sha256_file
from pipeline.runtime import beside, cores
from pipeline.store import keys as key_arrays
from pipeline.store.encoding import ON_DISK, Encoded, decode
from pipeline.store.examine import examine
from pipeline.store.layout import (
    CHUNK_BYTES,
    FORMAT,
    REMEDY,
    ZSTD_FILTER,
    ZSTD_LEVEL,
    Layout,
    ShardRecord,
    path_of,
)

FULL = (errno.ENOSPC, errno.EDQUOT)
OVERHEAD_BYTES = 2**12  # of HDF5's own in a shard, at most, but for the checksums
PIECE_BYTES = 2 * CHUNK_BYTES  # of vectors: stays in the processor's cache between a copy and its checksums

# Writing -------------------------------------------------------------------------------------------------------------


def write(folder: Path, keys: np.ndarray, features: Encoded, layout: Layout) -> ShardRecord:
    """Write a shard into `folder` under the name of its content.

    `keys`: S16 (rows,), sorted. `features`: as `encode` gives them. Raises StoreError if a value is not finite (an
    overflow of float16, above 65,504, is found here, before it is stored) and if the disk is full.
    """
    _refuse_unstorable(keys, features, layout)
    first, last = key_arrays.to_hex(keys[[0, -1]])
    # Vectors only: maps shrink. HDF5 does not even close a file well that it had no room for.
    needed = features.values.nbytes + keys.nbytes + OVERHEAD_BYTES
    if not layout.chunked and (free := _free(folder)) < needed:
        raise _no_space(folder, needed, free)
    try:
        with scratch(folder, "shard") as temporary:
            digest = (_write_maps if layout.chunked else _write_vectors)(temporary, keys, features, layout)
            temporary.chmod(0o444)
            record = ShardRecord(digest, len(keys), temporary.stat().st_size, first, last)
            publish(temporary, path_of(folder, record.name))
    except (OSError, RuntimeError) as error:  # the second is what h5py makes of some errors
        if getattr(error, "errno", None) in FULL or any(f"errno = {number}," in str(error) for number in FULL):
            raise _no_space(folder, needed, _free(folder)) from None
        raise
    return record


def _refuse_unstorable(keys: np.ndarray, features: Encoded, layout: Layout) -> None:
    if not features.finite.all():
        bad = key_arrays.to_hex(keys[~features.finite])
        half = "Store this tap as `dtype: bfloat16` or `float32`."
        raise StoreError(
            f"{len(bad):,} of {len(keys):,} rows have values that {layout.dtype} cannot hold (above its largest "
            f"number, or NaN), the first of key {bad[0]}. "
            f"{half if layout.dtype == 'float16' else 'The network itself gives them: look at its weights.'}"
        )


def _free(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _no_space(folder: Path, needed: int, free: int) -> StoreError:
    return StoreError(
        f"{folder}: no space left for a shard of up to {needed:,} bytes: {free:,} are free, {max(needed - free, 0):,} "
        "are missing. Every shard that was finished is kept: make room (`icecore cache prune`) and run it again."
    )


def _write_vectors(path: Path, keys: np.ndarray, features: Encoded, layout: Layout) -> str:
    """Write the file; return its SHA-256.

    HDF5 lays the file out, with room for the rows and behind them for their checksums. Both are then written plainly,
    while another thread works out the digest: no byte is copied through HDF5's buffers or read back.
    """
    rows = np.ascontiguousarray(features.values).data.cast("B")
    with h5py.File(path, "w") as file:
        _describe(file, layout)
        start = _make_room(file, "features", features.values)
        sums_start = _make_room(file, "checksums", np.empty(layout.blocks(len(keys)), "<u8"))
        _add_small(file, keys, features)
    with path.open("r+b", buffering=0) as raw, ThreadPoolExecutor(1) as beside:
        head = os.pread(raw.fileno(), start, 0)
        digest = beside.submit(_sha256, head, rows)
        sums = bytearray()
        for piece in _pieces(0, len(keys), layout):
            part = rows[piece.start * layout.row_bytes : piece.stop * layout.row_bytes]
            _pwrite(raw.fileno(), part, start + piece.start * layout.row_bytes)
            sums += np.array(_checksums(_cut(part, layout.block_rows * layout.row_bytes)), "<u8").tobytes()
        _pwrite(raw.fileno(), memoryview(sums), sums_start)
        os.fsync(raw.fileno())
        end = start + len(rows)
        tail = os.pread(raw.fileno(), path.stat().st_size - end, end)
        whole = digest.result()
        whole.update(tail)
        return whole.hexdigest()


def _write_maps(path: Path, keys: np.ndarray, features: Encoded, layout: Layout) -> str:
    """Compress the chunks beside each other and put them into the file in their order; return its SHA-256."""
    values, chunk = np.ascontiguousarray(features.values), layout.chunk_rows(len(keys))
    with h5py.File(path, "w") as file, ThreadPoolExecutor(cores()) as pool:
        _describe(file, layout)
        dataset = _make_chunked(file, values, chunk)
        starts = range(0, len(values), chunk)

        def compress(start: int) -> tuple[int, bytes]:
            rows = values[start : start + chunk]
            checksum = xxhash.xxh3_64_intdigest(rows.data.cast("B"))
            if len(rows) < chunk:  # HDF5 stores the last chunk whole
                rows = np.concatenate([rows, np.zeros((chunk - len(rows), *layout.shape), rows.dtype)])
            return checksum, zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(rows.data.cast("B"))

        sums = []
        for start, (checksum, frame) in zip(starts, pool.map(compress, starts), strict=True):
            sums.append(checksum)
            dataset.write_direct_chunk((start, *[0] * len(layout.shape)), frame)
        file.create_dataset("checksums", data=np.array(sums, "<u8"))
        _add_small(file, keys, features)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(sha256_file, path)
        flush(path)
        return digest.result()


def _describe(file: h5py.File, layout: Layout) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["identity"] = layout.address
    file.attrs["dtype"] = layout.dtype
    file.attrs["block_rows"] = layout.block_rows


def _add_small(file: h5py.File, keys: np.ndarray, features: Encoded) -> None:
    file.create_dataset("keys", data=keys.view(np.uint8).reshape(len(keys), -1))
    if features.scale is not None:
        file.create_dataset("scale", data=features.scale)


def _plist() -> Any:
    """Settings of a data set without the time of its creation, which HDF5 would keep."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    return plist


def _make_room(file: h5py.File, name: str, values: np.ndarray) -> int:
    """Add a data set like `values` without its bytes; return where they go."""
    plist = _plist()
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, plist)
    return int(dataset.get_offset())


def _make_chunked(file: h5py.File, values: np.ndarray, chunk: int) -> Any:
    """Add /features without its chunks."""
    plist = _plist()
    plist.set_chunk((chunk, *values.shape[1:]))
    # Optional, so that HDF5 accepts a filter that it cannot run itself: frames are made and read here.
    plist.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_OPTIONAL, (ZSTD_LEVEL,))
    space = h5py.h5s.create_simple(values.shape)
    return h5py.h5d.create(file.id, b"features", h5py.h5t.py_create(values.dtype), space, plist)


def _sha256(*parts: bytes | memoryview) -> "hashlib._Hash":
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total


def _pwrite(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _pieces(start: int, stop: int, layout: Layout) -> Iterator[range]:
    """Rows in pieces that end with a block: small enough to stay in the processor's cache."""
    step = max(1, PIECE_BYTES // (layout.block_rows * layout.row_bytes)) * layout.block_rows
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return (range(first, last) for first, last in itertools.pairwise(edges) if first < last)


def _cut(data: memoryview, size: int) -> Iterable[memoryview]:
    """Some bytes in parts of a size, the last of which may be short."""
    return (data[start : start + size] for start in range(0, len(data), size))


def _checksums(blocks: Iterable[memoryview]) -> list[int]:
    return [xxhash.xxh3_64_intdigest(block) for block in blocks]


# Opening -------------------------------------------------------------------------------------------------------------


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

    Raises StoreError on opening if the file is damaged (`trusted` leaves the digest out, for callers that have just
    checked or written it) or has anything in it that a shard does not have.
    """

    def __init__(
        self, path: Path, record: ShardRecord, layout: Layout, *, check: bool = True, trusted: bool = False
    ) -> None:
        self.path, self.record, self.layout, self.check = path, record, layout, check
        verify(path, record, whole=not trusted)
        self._places = examine(path, record, layout)

    def __getstate__(self) -> dict[str, Any]:
        # Maps of the file are made anew in the process that needs them.
        return {name: value for name, value in self.__dict__.items() if name not in ("_bytes", "_dense")}

    def __len__(self) -> int:
        return self.record.rows

    @property
    def keys(self) -> np.ndarray:
        """All keys, S16 (rows,)."""
        return np.frombuffer(self._bytes, key_arrays.DTYPE, count=self.record.rows, offset=self._places.keys)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, decoded (len(rows), ...); see `encoding.decode` for the dtype."""
        blocks, size = rows // self.layout.block_rows, self.layout.block_rows
        if self.layout.chunked:
            found = self._empty(len(rows))
            for block in np.unique(blocks).tolist():
                here = blocks == block
                found[here] = self._chunk(block)[rows[here] - block * size]
        else:
            found = self._dense[rows]
            if self.check and size == 1:  # the copy is what is checked, and still in the processor's cache
                self._verify(rows, _cut(found.data.cast("B"), self.layout.row_bytes))
            elif self.check:
                wanted = np.unique(blocks)
                self._verify(wanted, [self._block(number) for number in wanted.tolist()])
        return decode(found, self.layout.dtype, self._places.scale)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, decoded: what a pass over the shard calls for."""
        found = self._empty(stop - start)
        self.read_into(found, start)
        return decode(found, self.layout.dtype, self._places.scale)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, C-contiguous and of the stored dtype, with the rows from `start` on."""
        stop, blocks = start + len(out), self.layout.block_rows
        if self.layout.chunked:
            numbers = range(start // blocks, -(-stop // blocks))
            for number, whole in zip(numbers, beside(self._chunk, numbers), strict=True):
                first, last = max(start, number * blocks), min(stop, number * blocks + len(whole))
                out[first - start : last - start] = whole[first - number * blocks : last - number * blocks]
            return
        with self.path.open("rb", buffering=0) as file:

            def fill(piece: range) -> None:
                self._read_piece(file.fileno(), out[piece.start - start : piece.stop - start], piece)

            for _ in beside(fill, list(_pieces(start, stop, self.layout))):
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
        self._verify(np.arange(first, last), _cut(inside, size * row_bytes))
        edges = sorted({rows.start // size, (rows.stop - 1) // size} - set(range(first, last)))
        self._verify(np.array(edges, dtype=np.int64), map(self._block, edges))

    def _empty(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.layout.shape), dtype=ON_DISK[self.layout.dtype])

    def _chunk(self, block: int) -> np.ndarray:
        """The rows of one chunk, decompressed and checked."""
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
        """The bytes of one block of vectors, where they lie in the file."""
        assert self._places.features is not None, "vectors are contiguous"
        size, end = self.layout.block_rows * self.layout.row_bytes, len(self) * self.layout.row_bytes
        start = self._places.features
        return memoryview(self._bytes)[start + number * size : start + min((number + 1) * size, end)]

    def _verify(self, blocks: np.ndarray, data: Iterable[memoryview]) -> None:
        """Raise StoreError if the bytes of some blocks do not fit their checksums."""
        found = np.array(_checksums(data), dtype=np.uint64)
        wrong = np.flatnonzero(found != self._places.checksums[blocks])
        if len(wrong):
            raise self._damaged(int(blocks[wrong[0]]), "it does not fit its checksum")

    def _damaged(self, block: int, why: str) -> StoreError:
        first = block * self.layout.block_rows
        last = min(first + self.layout.block_rows, len(self)) - 1
        return StoreError(f"{self.path}: rows {first:,} to {last:,} are damaged: {why}. {REMEDY}")

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _dense(self) -> np.ndarray:
        assert self._places.features is not None, "vectors are contiguous"
        count = self.record.rows * int(np.prod(self.layout.shape))
        flat = np.frombuffer(self._bytes, ON_DISK[self.layout.dtype], count=count, offset=self._places.features)
        return flat.reshape(self.record.rows, *self.layout.shape)
