"""index.json and the table of rows of a features folder: its rows, and the shards that hold them.

index.json
  format, address, identity    identity of the features
  dtype, shape                 of a stored row
  samples                      number of requested samples = stored + number of rejected
  stored, rejected             number of rows; [{key, reason}, ...] of samples without features
  shards                       [{name (SHA-256), rows, bytes, first, last}, ...]
  rows                         {bytes, sha256} of the table of rows
  digest                       SHA-256 of the canonical JSON of all fields above

rows-<sha256>.npy   uint64 (3, stored), memory-mapped: upper and lower half of each key, sorted, and shard << 32 | row.
                    Opening features reads no key, and a lookup reads a few pages.

index.json is the commit: it replaces an older index atomically, before files that it does not name are removed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from pydantic import ValidationError

from pipeline.errors import StoreError, counted
from pipeline.files import digest, publish, remove_stale, scratch, sha256_file, write_json
from pipeline.settings.check import Settings
from pipeline.store import key_arrays
from pipeline.store.dtypes import Stored
from pipeline.store.shard_format import Layout, ShardRecord, path_of

NAME = "index.json"
BLOCK_KEYS = 2**20  # keys that are hashed at a time
FORMAT = 3
REMEDY = "Run the extraction again: rows in the feature cache are linked, not computed again."


class Rejected(Settings):
    """A sample without features, and the reason."""

    key: str
    reason: str


class RowsFile(Settings):
    """Size and digest of the table of rows."""

    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file name of the table."""
        return f"rows-{self.sha256[:16]}.npy"


class Index(Settings):
    """The content of index.json."""

    format: int = FORMAT
    address: str
    identity: dict[str, Any]
    dtype: Stored
    shape: tuple[int, ...]
    samples: int
    stored: int
    rejected: tuple[Rejected, ...]
    shards: tuple[ShardRecord, ...]
    rows: RowsFile

    @property
    def layout(self) -> Layout:
        """The layout of the rows."""
        return Layout(self.address, self.dtype, self.shape)


def commit(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    layout: Layout,
    shards: Sequence[ShardRecord],
    keys: Sequence[np.ndarray],
    wanted: np.ndarray,
    rejected: Mapping[str, str],
) -> Index:
    """Write the table of rows, then index.json; remove files of older commits; return the index.

    keys: an array S16 per shard, in row order. wanted: S16, sorted, the requested samples; other rows of the shards are
    omitted, and of several rows with the same key the first counts. Raises StoreError, without a commit, if requested
    samples are neither in the shards nor rejected.
    """
    halves = key_arrays.split_uint64(wanted)
    held, places = _locate(keys, *halves)
    missing = len(wanted) - int(held.sum()) - len(rejected)
    if missing:
        raise StoreError(
            f"{folder}: {counted(len(wanted), 'sample was', 'samples were')} requested, but {int(held.sum()):,} are "
            f"stored and {len(rejected):,} rejected. Nothing was committed: run the extraction again."
        )
    remove_stale(folder)
    with scratch(folder, "rows") as temporary:
        with temporary.open("wb") as file:  # as `np.save` writes it, without a copy in memory
            write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": (3, int(held.sum()))})
            for column in (*halves, places):
                file.write(column[held].data)
        rows = RowsFile(bytes=temporary.stat().st_size, sha256=sha256_file(temporary))
        publish(temporary, folder / rows.name)
    index = Index(
        address=layout.address,
        identity=dict(identity),
        dtype=layout.dtype,
        shape=layout.shape,
        samples=len(wanted),
        stored=int(held.sum()),
        rejected=tuple(Rejected(key=key, reason=reason) for key, reason in sorted(rejected.items())),
        shards=tuple(shards),
        rows=rows,
    )
    fields = index.model_dump(mode="json")
    write_json(folder / NAME, {**fields, "digest": digest(fields)})
    named = {rows.name, *(path_of(folder, record.name).name for record in shards)}
    for path in (*folder.glob("rows-*.npy"), *folder.glob("*.h5")):
        if path.name not in named:
            path.unlink()
    return index


def _locate(keys: Sequence[np.ndarray], upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which wanted keys, given by their halves, the shards hold, and their positions: shard << 32 | row."""
    held, places = np.zeros(len(upper), dtype=bool), np.zeros(len(upper), dtype="<u8")
    for number, own in enumerate(keys):
        matches = key_arrays.find_halves(upper, lower, own)
        rows = np.flatnonzero(matches >= 0)
        rows = rows[~held[matches[rows]]]
        places[matches[rows]] = (np.uint64(number) << np.uint64(32)) | rows.astype(np.uint64)
        held[matches[rows]] = True
    return held, places


def read(folder: Path) -> Index:
    """Read index.json; raises StoreError if it is missing, damaged or of another format."""
    path = folder / NAME
    if not path.is_file():
        raise StoreError(f"{folder}: not features ({NAME} is missing: the extraction has not finished). {REMEDY}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged: not an index ({error}). {REMEDY}") from None
    if version != FORMAT:
        newer = "Update icecore." if isinstance(version, int) and version > FORMAT else REMEDY
        raise StoreError(f"{path}: expected format {FORMAT}, got {version}. {newer}")
    stated = values.pop("digest", None)
    if stated != (computed := digest(values)):
        raise StoreError(f"{path}: damaged: expected the digest {stated}, got {computed}. {REMEDY}")
    try:
        return Index.model_validate(values)
    except ValidationError as error:
        raise StoreError(f"{path}: not an index of this version of icecore: {error}. {REMEDY}") from None


def contents(folder: Path) -> str:
    """Return a digest of a folder's features: address, keys of the rows, and rejected samples with reasons.

    It does not depend on shards or their order, nor on where the rows were computed. Raises StoreError as `read` and
    `open_rows` do.
    """
    index = read(folder)
    keys = hashlib.sha256()
    for half in open_rows(folder, index)[:2]:
        for start in range(0, len(half), BLOCK_KEYS):
            keys.update(half[start : start + BLOCK_KEYS].tobytes())
    rejected = [sample.model_dump() for sample in index.rejected]
    return digest({"address": index.address, "keys": keys.hexdigest(), "rejected": rejected})


def open_rows(folder: Path, index: Index) -> np.ndarray:
    """Return the table of rows, memory-mapped, uint64 (3, stored); raises StoreError if the index does not match."""
    path = folder / index.rows.name
    if not path.is_file():
        raise StoreError(f"{path}: the table of rows is missing. {REMEDY}")
    if path.stat().st_size != index.rows.bytes or sha256_file(path) != index.rows.sha256:
        raise StoreError(f"{path}: damaged: its digest is not the digest in {NAME}. {REMEDY}")
    rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype != np.dtype("<u8") or rows.shape != (3, index.stored):
        raise StoreError(f"{path}: expected uint64 (3, {index.stored}), got {rows.dtype} {rows.shape}. {REMEDY}")
    return rows
