"""One shard: an immutable HDF5 file with some rows of one column.

    /keys        uint8 (rows, 16), sorted
    /features    (rows, ...) in the stored dtype
    /checksums   uint64 (blocks,): xxh3-64 of the bytes of each block of `block_rows` rows, before compression
    /scale       float32 (channels,), int8 only
    attributes of /: format, identity (the column's address), dtype, block_rows

Vectors are contiguous and not compressed, so that any row can be memory-mapped. Maps, rows of two axes and more, lie in
chunks of about 1 MiB, each a block and a Zstandard frame (HDF5 filter 32015). Written once, in one session and in row
order, without times or host names: equal rows give equal bytes. Never opened for writing again.

Opening trusts nothing. The digest is checked before HDF5 sees the file; then `_examine` refuses whatever a shard has no
use for (links, external storage, virtual data sets, other filters, other shapes) and notes where the rows lie. After
that rows are read by plain file reads: no HDF5 handle is kept, so threads and forked processes may share an open shard.
"""

import errno
import hashlib
import itertools
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
import zstandard

from pipeline.errors import StoreError
from pipeline.files import KEY_BYTES, publish, scratch, sha256_file
from pipeline.runtime import cores
from pipeline.store import keys as key_arrays
from pipeline.store.encoding import ON_DISK, Encoded, Stored, decode

FORMAT = 2
ZSTD_FILTER, ZSTD_LEVEL = 32015, 1
CHUNK_BYTES = 2**20  # of a map's chunk
BLOCK_BYTES = 2**14  # that one checksum of vectors covers: a random row costs little more, a pass hardly anything
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
        """For an index."""
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

    def chunk_rows(self, rows: int) -> int:
        """Rows of a chunk in a shard of so many: HDF5 wants no chunk larger than the whole."""
        return min(self.block_rows, rows)

    @property
    def block_rows(self) -> int:
        """Rows that one checksum covers, and of maps one chunk."""
        return max(1, (CHUNK_BYTES if self.chunked else BLOCK_BYTES) // self.row_bytes)


def path_of(folder: Path, name: str) -> Path:
    """Where the shard of that name lies in a folder."""
    return folder / f"{name}.h5"


# Writing -------------------------------------------------------------------------------------------------------------


def write(folder: Path, keys: np.ndarray, features: Encoded, layout: Layout) -> ShardRecord:
    """Write a shard into `folder` under the name of its content.

    `keys`: S16 (rows,), sorted. `features`: as `encode` gives them. Raises StoreError if a value is not finite (an
    overflow of float16, above 65,504, is found here, before it is stored) and if the disk is full.
    """
    _refuse_unstorable(keys, features, layout)
    first, last = key_arrays.to_hex(keys[[0, -1]])
    with scratch(folder, "shard") as temporary:
        try:
            size, digest = _write_file(temporary, keys, features, layout)
        except OSError as error:
            raise _out_of_space(error, folder, features.values.nbytes) from None
        temporary.chmod(0o444)
        record = ShardRecord(digest, len(keys), size, first, last)
        publish(temporary, path_of(folder, record.name))
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


def _write_file(path: Path, keys: np.ndarray, features: Encoded, layout: Layout) -> tuple[int, str]:
    """Write the file; return its size and its SHA-256.

    HDF5 lays the file out, with room for vectors at its end, and those go there by a plain write, while another thread
    works out the digest. Nothing is copied through HDF5's buffers or read back.
    """
    values = np.ascontiguousarray(features.values)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["identity"] = layout.address
        file.attrs["dtype"] = layout.dtype
        file.attrs["block_rows"] = layout.block_rows
        file.create_dataset("keys", data=keys.view(np.uint8).reshape(len(keys), KEY_BYTES))
        file.create_dataset("checksums", data=checksums(values, layout.block_rows))
        if features.scale is not None:
            file.create_dataset("scale", data=features.scale)
        if layout.chunked:
            _write_chunks(file, values, layout)
        else:
            offset = _make_room(file, values)
    if layout.chunked:
        return path.stat().st_size, sha256_file(path)
    rows = values.data.cast("B")
    with path.open("r+b") as raw, ThreadPoolExecutor(1) as beside:
        head = raw.read(offset)
        raw.seek(offset + len(rows))
        tail = raw.read()  # of small files: HDF5 rounds them up
        hashed = beside.submit(_sha256, head, rows, tail)
        written = 0
        while written < len(rows):
            written += os.pwrite(raw.fileno(), rows[written:], offset + written)
        return offset + len(rows) + len(tail), hashed.result()


def _sha256(*parts: bytes | memoryview) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _plist() -> Any:
    """Settings of a data set without the time of its creation, which HDF5 would keep."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    return plist


def _make_room(file: h5py.File, values: np.ndarray) -> int:
    """Add /features, the last thing in the file, without its bytes; return where they go."""
    plist = _plist()
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, b"features", h5py.h5t.py_create(values.dtype), space, plist)
    return int(dataset.get_offset())


def _out_of_space(error: OSError, folder: Path, needed: int) -> OSError | StoreError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    return StoreError(
        f"{folder}: no space left for a shard of {needed:,} bytes: {free:,} are free, {max(needed - free, 0):,} are "
        "missing. Every shard that was finished is kept: make room (`icecore cache prune`) and run it again."
    )


def _write_chunks(file: h5py.File, values: np.ndarray, layout: Layout) -> None:
    """Compress the chunks beside each other and put them into the file in their order."""
    chunk = layout.chunk_rows(len(values))
    plist = _plist()
    plist.set_chunk((chunk, *layout.shape))
    # Optional, so that HDF5 accepts a filter that it cannot run itself: frames are made and read here.
    plist.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_OPTIONAL, (ZSTD_LEVEL,))
    space = h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, b"features", h5py.h5t.py_create(values.dtype), space, plist)
    starts = range(0, len(values), chunk)

    def compress(start: int) -> bytes:
        rows = values[start : start + chunk]
        if len(rows) < chunk:  # HDF5 stores the last chunk whole
            rows = np.concatenate([rows, np.zeros((chunk - len(rows), *layout.shape), rows.dtype)])
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(rows.data.cast("B"))

    with ThreadPoolExecutor(cores()) as pool:
        for start, frame in zip(starts, pool.map(compress, starts), strict=True):
            dataset.write_direct_chunk((start, *[0] * len(layout.shape)), frame)


def checksums(values: np.ndarray, block_rows: int) -> np.ndarray:
    """xxh3-64 of each block of rows, uint64 (blocks,)."""
    blocks = range(0, len(values), block_rows)
    found = (xxhash.xxh3_64_intdigest(values[b : b + block_rows].data.cast("B")) for b in blocks)
    return np.fromiter(found, dtype="<u8", count=len(blocks))


# Opening -------------------------------------------------------------------------------------------------------------


def verify(path: Path, record: ShardRecord, *, whole: bool = True) -> None:
    """Raise StoreError if a shard is missing or has not the size, and if `whole` the bytes, that its record says."""
    if not path.is_file():
        raise StoreError(f"{path}: the shard is missing. {REMEDY}")
    if (size := path.stat().st_size) != record.bytes:
        raise StoreError(f"{path}: expected {record.bytes:,} bytes, got {size:,}. {REMEDY}")
    if whole and (found := sha256_file(path)) != record.name:
        raise StoreError(f"{path}: expected SHA-256 {record.name}, got {found}: the shard is damaged. {REMEDY}")


@dataclass(frozen=True)
class _Places:
    """Where things lie in the file. `chunks`: (offset, bytes) of each chunk, None where the rows are contiguous."""

    keys: int
    features: int | None
    chunks: tuple[tuple[int, int], ...] | None
    checksums: np.ndarray
    scale: np.ndarray | None


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
        self._places = _examine(path, record, layout)

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
        blocks = self.layout.block_rows
        if self.layout.chunked:
            found = self._empty(len(rows))
            for block in np.unique(rows // blocks).tolist():
                here = rows // blocks == block
                found[here] = self._chunk(block)[rows[here] - block * blocks]
        else:
            for block in np.unique(rows // blocks).tolist() if self.check else ():
                self._verify_block(block, self._dense[block * blocks : (block + 1) * blocks])
            found = self._dense[rows]
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
            with ThreadPoolExecutor(min(cores(), len(numbers))) as pool:
                for number, whole in zip(numbers, pool.map(self._chunk, numbers), strict=True):
                    first, last = max(start, number * blocks), min(stop, number * blocks + len(whole))
                    out[first - start : last - start] = whole[first - number * blocks : last - number * blocks]
            return
        # A piece is what stays in the processor's cache from the read to the check.
        step = max(1, 2 * CHUNK_BYTES // (blocks * self.layout.row_bytes)) * blocks
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        pieces = list(itertools.pairwise(edges))
        with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(min(cores(), len(pieces))) as pool:

            def fill(piece: tuple[int, int]) -> None:
                self._read_piece(file.fileno(), out[piece[0] - start : piece[1] - start], piece[0])

            list(pool.map(fill, pieces))

    def _read_piece(self, descriptor: int, out: np.ndarray, start: int) -> None:
        """Read vectors from `start` on, and check every block that they touch."""
        assert self._places.features is not None, "vectors are contiguous"
        view, offset = out.data.cast("B"), self._places.features + start * self.layout.row_bytes
        done = 0
        while done < len(view):
            done += os.preadv(descriptor, [view[done:]], offset + done)
        if not self.check:
            return
        blocks, stop = self.layout.block_rows, start + len(out)
        for block in range(start // blocks, -(-stop // blocks)):
            first, last = block * blocks, min((block + 1) * blocks, len(self))
            inside = start <= first and last <= stop
            self._verify_block(block, out[first - start : last - start] if inside else self._dense[first:last])

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
        self._verify_block(block, values)
        return values

    def _verify_block(self, block: int, values: np.ndarray) -> None:
        if self.check:
            found = xxhash.xxh3_64_intdigest(values.data.cast("B"))
            if found != int(self._places.checksums[block]):
                raise self._damaged(block, "it does not fit its checksum")

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


def _examine(path: Path, record: ShardRecord, layout: Layout) -> _Places:
    """Note where everything lies; raise StoreError for whatever a shard has no use for."""
    blocks = -(-record.rows // layout.block_rows)
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "keys": ((record.rows, KEY_BYTES), "|u1"),
        "checksums": ((blocks,), "<u8"),
        "features": ((record.rows, *layout.shape), ON_DISK[layout.dtype]),
    }
    if layout.dtype == "int8":
        expected["scale"] = ((layout.shape[0],), "<f4")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if sorted(file) != sorted(expected):
                raise _refused(path, f"expected {', '.join(sorted(expected))} in it, got {', '.join(sorted(file))}")
            datasets = {name: _dataset(path, file, name, *expected[name]) for name in expected}
            offsets = {
                name: _contiguous(path, dataset, record.bytes)
                for name, dataset in datasets.items()
                if not (layout.chunked and name == "features")
            }
            chunks = _chunks(path, datasets["features"], layout, record.bytes) if layout.chunked else None
            return _Places(
                keys=offsets["keys"],
                features=offsets.get("features"),
                chunks=chunks,
                checksums=datasets["checksums"][:],
                scale=datasets["scale"][:] if "scale" in datasets else None,
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        # What h5py raises for files that are no HDF5, or broken inside.
        raise _refused(path, f"HDF5 cannot read it: {error}") from None


def _refused(path: Path, why: str) -> StoreError:
    return StoreError(f"{path}: not a shard of icecore: {why}. Nothing was read from it. {REMEDY}")


def _dataset(path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """A plain data set of the expected shape and dtype, or a refusal."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise _refused(path, f"/{name} is a {type(link).__name__}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise _refused(path, f"/{name} is a {type(dataset).__name__}")
    if dataset.is_virtual or dataset.external:
        raise _refused(path, f"/{name} takes its data from other files")
    if dataset.dtype != np.dtype(dtype) or dataset.dtype.hasobject or dataset.shape != shape:
        raise _refused(path, f"/{name}: expected {shape} of {dtype}, got {dataset.shape} of {dataset.dtype.str}")
    return dataset


def _contiguous(path: Path, dataset: h5py.Dataset, size: int) -> int:
    """Where a contiguous data set begins."""
    plist, offset = dataset.id.get_create_plist(), dataset.id.get_offset()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        raise _refused(path, f"{dataset.name} is chunked or filtered")
    if offset is None or offset + dataset.nbytes > size:
        raise _refused(path, f"{dataset.name} does not lie inside the file")
    return int(offset)


def _chunks(path: Path, dataset: h5py.Dataset, layout: Layout, size: int) -> tuple[tuple[int, int], ...]:
    """Offset and bytes of each chunk, in the order of the rows."""
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if dataset.chunks != (layout.chunk_rows(len(dataset)), *layout.shape) or filters != [ZSTD_FILTER]:
        raise _refused(path, f"{dataset.name}: chunks {dataset.chunks}, filters {filters}")
    found: dict[int, tuple[int, int]] = {}
    for number in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(number)
        if info.filter_mask or info.byte_offset + info.size > size:
            raise _refused(path, f"{dataset.name}: chunk {number} is not compressed or not inside the file")
        found[info.chunk_offset[0] // layout.chunk_rows(len(dataset))] = (info.byte_offset, info.size)
    if len(found) != -(-len(dataset) // layout.block_rows):
        raise _refused(path, f"{dataset.name}: chunks are missing")
    return tuple(found[number] for number in range(len(found)))
