"""Validate a file as a shard, and locate its data.

HDF5 files can refer to other files, contain types and filters that run code, and state false sizes. Shards have none of
these: links, external storage, virtual data sets, other filters, types and shapes are refused.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import StoreError
from pipeline.files import check_readable
from pipeline.store.shard_format import REMEDY, ZSTD_FILTER, Layout, ShardRecord


@dataclass(frozen=True)
class Offsets:
    """Positions of a shard's data in its file. `chunks`: (offset, bytes) of each chunk; None for contiguous rows."""

    keys: int
    features: int | None
    chunks: tuple[tuple[int, int], ...] | None
    checksums: int
    scale: np.ndarray | None


def validate_layout(path: Path, record: ShardRecord, layout: Layout) -> Offsets:
    """Return the offsets of a shard's data; raises StoreError if the file is not a valid shard."""
    expected = layout.datasets(record.rows)
    check_readable(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            if sorted(file) != sorted(expected):
                raise _error(path, f"expected {', '.join(sorted(expected))} in it, got {', '.join(sorted(file))}")
            datasets = {name: _open_dataset(path, file, name, *expected[name]) for name in expected}
            offsets = {
                name: _offset_of(path, dataset, record.bytes)
                for name, dataset in datasets.items()
                if not (layout.chunked and name == "features")
            }
            chunks = _locate_chunks(path, datasets["features"], layout, record.bytes) if layout.chunked else None
            return Offsets(
                keys=offsets["keys"],
                features=offsets.get("features"),
                chunks=chunks,
                checksums=offsets["checksums"],
                scale=datasets["scale"][:] if "scale" in datasets else None,
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        # Errors of h5py for files that are damaged or not HDF5.
        raise _error(path, f"HDF5 cannot read it: {error}") from None


def _error(path: Path, why: str) -> StoreError:
    return StoreError(f"{path}: not a shard of icecore: {why}. Nothing was read from it. {REMEDY}")


def _open_dataset(path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Return a plain data set of the expected shape and dtype; raises StoreError for others."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise _error(path, f"/{name} is a {type(link).__name__}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise _error(path, f"/{name} is a {type(dataset).__name__}")
    if dataset.is_virtual or dataset.external:
        raise _error(path, f"/{name} takes its data from other files")
    if dataset.dtype != np.dtype(dtype) or dataset.dtype.hasobject or dataset.shape != shape:
        raise _error(path, f"/{name}: expected {shape} of {dtype}, got {dataset.shape} of {dataset.dtype.str}")
    return dataset


def _offset_of(path: Path, dataset: h5py.Dataset, size: int) -> int:
    """Return the offset of a contiguous data set."""
    plist, offset = dataset.id.get_create_plist(), dataset.id.get_offset()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        raise _error(path, f"{dataset.name} is chunked or filtered")
    if offset is None or offset + dataset.nbytes > size:
        raise _error(path, f"{dataset.name} does not lie inside the file")
    return int(offset)


def _locate_chunks(path: Path, dataset: h5py.Dataset, layout: Layout, size: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, bytes) of each chunk, in the order of the rows."""
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if dataset.chunks != (layout.chunk_rows(len(dataset)), *layout.shape) or filters != [ZSTD_FILTER]:
        raise _error(path, f"{dataset.name}: chunks {dataset.chunks}, filters {filters}")
    located: dict[int, tuple[int, int]] = {}
    for number in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(number)
        if info.filter_mask or info.byte_offset + info.size > size:
            raise _error(path, f"{dataset.name}: chunk {number} is not compressed or not inside the file")
        located[info.chunk_offset[0] // layout.chunk_rows(len(dataset))] = (info.byte_offset, info.size)
    if len(located) != -(-len(dataset) // layout.block_rows):
        raise _error(path, f"{dataset.name}: chunks are missing")
    return tuple(located[number] for number in range(len(located)))
