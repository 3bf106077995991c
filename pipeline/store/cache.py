"""The feature cache: columns by identity, shards by content, shared by all projects and branches of a machine or team.

    $ICECORE_CACHE/v2/<address>/identity.json
                               /<sha256>.h5       a shard
                               /<sha256>.keys     its keys, 16 bytes each, so that planning opens no HDF5 file
                               /<sha256>.json     its record and provenance, and the rejected keys of the unit with
                                                  reasons; written last, it makes the shard valid
                               /rejected/<digest>.json   rejected keys of units without a shard
                               /probe.json        the network's outputs for a fixed image, which must not change
                               /parity/<digest>.json     the parity card of an engine that computed rows
                               /used              touched whenever a project links the column
                  /locks/      a lock file for each features folder that an extraction writes
                  /jobs/       job files for workers, while an extraction runs
                  /predict/    input lists and links to shards, while a prediction runs
                  /onnx/       exported graphs, as large as the weights in them
                  /openvino/   the same graphs as models of OpenVINO
                  /engines/    choices of the fastest engine
                  /batches/    batch sizes of GPUs
                  /teach/      temporary caches for logits of which a teacher keeps the largest
                  /training/   checkpoints and results of trainings
                  /pixels/     decoded images that networks are trained on
                  /backbones/  models of torchvision and timm that `icecore.Backbone` froze
                  /embeddings/ features folders of `Backbone.embed` and FrozenFeatures

`maintenance.prune` removes whole columns, and entries of the other folders except locks and jobs.

Files are never changed in place, so that any number of processes may add files at once, on one machine or on a shared
file system, without a lock; two processes that add the same rows do no harm. Each version of the layout has a folder.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.files import digest, publish, read_json, scratch, sha256_bytes, write_json
from pipeline.store import key_arrays, shard_reader, shard_writer
from pipeline.store.identity import address, differences
from pipeline.store.location import writable
from pipeline.store.row_buffer import RowBuffer, open_row_buffer
from pipeline.store.shard_format import REMEDY, Layout, ShardRecord, path_of

VERSION = "v2"


@dataclass(frozen=True)
class CacheEntry:
    """A column of the cache: all rows of an identity. It need not exist yet."""

    folder: Path
    identity: Mapping[str, Any]

    @property
    def address(self) -> str:
        """The digest of the identity."""
        return self.folder.name

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout of this column for rows of a shape."""
        return Layout(self.address, self.identity["dtype"], shape)

    def records(self) -> list[ShardRecord]:
        """Return the records of the shards, sorted by name; records whose shard was removed are ignored."""
        return [record for record, _ in self._notes()]

    def _notes(self) -> Iterator[tuple[ShardRecord, Mapping[str, Any]]]:
        """Yield each shard's record, and the content of its JSON file."""
        for path in sorted(self.folder.glob("*.json")):
            if path.name != "identity.json" and path.with_suffix(".h5").is_file():
                note = read_note(path)
                yield _parse_record(path, note), note

    def path_of(self, record: ShardRecord) -> Path:
        """Return the path of a shard."""
        return path_of(self.folder, record.name)

    def keys(self, record: ShardRecord) -> np.ndarray:
        """Return the keys of a shard, S16 (rows,); raises StoreError if they are not those of its record."""
        shard_reader.verify(self.path_of(record), record, whole=False)
        path = self.folder / f"{record.name}.keys"
        data = path.read_bytes() if path.is_file() else b""
        if sha256_bytes(data) != read_note(path.with_suffix(".json")).get("keys"):
            raise StoreError(f"{path}: damaged: its digest is not the digest in the shard's record. {REMEDY}")
        return np.frombuffer(data, key_arrays.DTYPE)

    def verify(self, record: ShardRecord) -> None:
        """Raise StoreError if a shard does not match its record.

        Its bytes are hashed only if the file is newer than its record, which is written after it: a newer file was
        modified. Rows are checked again when they are read.
        """
        path = self.path_of(record)
        shard_reader.verify(path, record, whole=False)
        if path.stat().st_mtime_ns > path.with_suffix(".json").stat().st_mtime_ns:
            shard_reader.verify(path, record)

    def rejected(self) -> dict[str, str]:
        """Return {key: reason} for the samples whose content cannot give features."""
        result: dict[str, str] = {}
        for _, note in self._notes():
            result |= note.get("rejected", {})
        for path in sorted((self.folder / "rejected").glob("*.json")):
            result |= read_note(path)
        return result

    @contextlib.contextmanager
    def writer(self, shape: tuple[int, ...]) -> Iterator["Writer"]:
        """Yield a writer for batches of rows of a shape; rows without a `finish` are dropped at the end."""
        with contextlib.ExitStack() as stack:
            yield Writer(self, self.layout(shape), stack)

    def _commit(
        self, record: ShardRecord, keys: np.ndarray, provenance: Mapping[str, Any], rejected: Mapping[str, str] | None
    ) -> None:
        """Write the keys of a shard, then its record, which makes the shard valid."""
        data = np.ascontiguousarray(keys).tobytes()
        with scratch(self.folder, "keys") as temporary:
            temporary.write_bytes(data)
            publish(temporary, self.folder / f"{record.name}.keys")
        # The first process writes the record; an existing file is never overwritten.
        path = self.folder / f"{record.name}.json"
        if not path.is_file():
            note = {"shard": record.to_json(), "keys": sha256_bytes(data), "provenance": dict(provenance)}
            write_json(path, note | ({"rejected": dict(rejected)} if rejected else {}))

    def reject(self, reasons: Mapping[str, str]) -> None:
        """Store rejected keys with reasons, if there are no rows to store with them."""
        if reasons:
            with self._writing():
                write_json(self.folder / "rejected" / f"{digest(dict(reasons))[:32]}.json", dict(reasons))

    @property
    def probe(self) -> Mapping[str, Any] | None:
        """The probe of the network that computed the rows; None if unknown."""
        path = self.folder / "probe.json"
        return read_note(path) if path.is_file() else None

    def keep_probe(self, probe: Mapping[str, Any]) -> None:
        """Store the probe of the network, before it computes rows."""
        with self._writing():
            write_json(self.folder / "probe.json", dict(probe))

    def touch(self) -> None:
        """Mark the column as used now; does nothing if the cache is read-only."""
        try:
            (self.folder / "used").touch()
        except OSError:
            return

    def last_used(self) -> float:
        """Return the time at which a project last linked the column, in seconds since 1970."""
        stamp = self.folder / "used"
        return (stamp if stamp.is_file() else self.folder).stat().st_mtime

    def drop(self, record: ShardRecord) -> None:
        """Remove a shard, its record first: other processes see the complete shard or none.

        DVC may have links to the same file, and trusts a read-only file with a known modification time. Both are
        changed, so that DVC hashes the file again instead of restoring a damaged shard.
        """
        with contextlib.suppress(OSError):  # missing, or owned by another user
            self.path_of(record).chmod(0o644)
            os.utime(self.path_of(record))
        for suffix in (".json", ".keys", ".h5"):
            (self.folder / f"{record.name}{suffix}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Create the column if it does not exist; errors as in `writable`."""
        with writable(self.folder.parent.parent):
            path = self.folder / "identity.json"
            if not path.is_file():
                write_json(path, dict(self.identity))
            yield


class Writer:
    """Writes a shard of a column from batches of rows. Memory holds a batch, the keys and a checksum per row."""

    def __init__(self, column: CacheEntry, layout: Layout, stack: contextlib.ExitStack) -> None:
        self._column, self._layout, self._stack = column, layout, stack
        self._buffer: RowBuffer | None = None

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add a batch: `keys` S16 (n,) in any order, `values` float32 (n, *shape). Not thread-safe.

        Raises StoreError if a value cannot be stored, if the disk is full, and if the cache cannot be written.
        """
        if not len(keys):
            return
        with self._column._writing():
            if self._buffer is None:
                self._buffer = self._stack.enter_context(open_row_buffer(self._column.folder, self._layout))
            self._buffer.append(keys, values)

    def finish(self, *, provenance: Mapping[str, Any], rejected: Mapping[str, str] | None = None) -> ShardRecord | None:
        """Commit the appended rows as a shard and return its record; without rows, store `rejected` and return None.

        `rejected`: keys of the same unit that cannot give features, with reasons; committed together with the rows, so
        that a restart after a kill sees all of a unit or nothing.

        Raises StoreError for a duplicate key, if the disk is full, and if the cache cannot be written.
        """
        if self._buffer is None:
            self._column.reject(rejected or {})
            return None
        with self._column._writing():
            rows = self._buffer.sorted()
            record = shard_writer.write(self._column.folder, rows.keys, rows, self._layout)
            self._column._commit(record, rows.keys, provenance, rejected)
        self._stack.close()
        self._buffer = None
        return record


def column(root: Path, identity: Mapping[str, Any]) -> CacheEntry:
    """Return the column of an identity; raises StoreError if its address holds another identity."""
    folder = root / VERSION / address(dict(identity))
    path = folder / "identity.json"
    if path.is_file() and (problems := differences(dict(identity), read_note(path))):
        raise StoreError(f"{path}: the identity does not fit its address. " + " ".join(problems))
    return CacheEntry(folder, identity)


def columns(root: Path) -> Iterator[CacheEntry]:
    """Yield all columns of the cache."""
    for path in sorted((root / VERSION).glob("*/identity.json")):
        if not path.parent.name.startswith("."):  # being removed
            yield CacheEntry(path.parent, read_note(path))


def shards_for_keys(column: CacheEntry, wanted: np.ndarray) -> tuple[list[ShardRecord], list[np.ndarray], np.ndarray]:
    """Return the shards that are needed for `wanted` keys, the keys of each, and which wanted keys they hold."""
    held = np.zeros(len(wanted), dtype=bool)
    chosen, keys = [], []
    halves = key_arrays.split_uint64(wanted)  # once, not per shard: slow for many samples
    for record in column.records():
        own = column.keys(record)
        places = key_arrays.find_halves(*halves, own)
        places = places[places >= 0]
        if not held[places].all():
            held[places] = True
            chosen.append(record)
            keys.append(own)
    return chosen, keys, held


def _parse_record(path: Path, note: Any) -> ShardRecord:
    try:
        return ShardRecord(**note["shard"])
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not a record of this version of icecore: {error}. Update icecore, or remove the file and run "
            "again."
        ) from None


def read_note(path: Path) -> Any:
    """Return the content of a JSON file of the cache; raises StoreError if it is damaged."""
    try:
        return read_json(path)
    except ValueError as error:
        raise StoreError(f"{path}: expected JSON: {error}. The file is damaged: remove it and run again.") from None
