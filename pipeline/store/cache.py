"""The feature cache: columns by identity, shards by content, shared by every project and branch of a machine or a team.

    $ICECORE_CACHE/v2/<address>/identity.json
                               /<sha256>.h5       a shard
                               /<sha256>.keys     its keys, 16 bytes each: planning opens no HDF5 file
                               /<sha256>.json     its record, provenance and the keys of the same unit that can never
                                                  give features, with reasons; last: without it the shard is not
                               /rejected/<digest>.json   such keys of units that gave no shard
                               /probe.json        what the network gave for a fixed image: rows of another are refused
                               /parity/<digest>.json     what was measured of an engine that computes its rows
                               /used              touched whenever a project links the column
                  /locks/      a file for each features folder: who extracts into it
                  /jobs/       what workers are told, while an extraction runs
                  /predict/    lists of what a prediction reads, and links to its shards, while it runs
                  /onnx/       exported graphs, as large as the weights in them
                  /openvino/   the same as models of OpenVINO
                  /engines/    which engine was the fastest here
                  /batches/    sizes of batches that fit a GPU
                  /teach/      caches of their own, while logits are computed of which a teacher keeps the largest
                  /training/   checkpoints and results of trainings
                  /pixels/     decoded images that networks are trained on
                  /backbones/  models of torchvision and timm that `icecore.Backbone` froze
                  /embeddings/ features folders of `Backbone.embed` and FrozenFeatures

`maintenance.prune` removes whole columns with all that is in them, and entries of the other folders but locks and jobs.

Nothing is ever changed in place, so any number of processes may add at once, on one machine or on a shared file system,
without a lock; two that add the same rows do no harm. Another version of the layout lies in another folder.
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
    """All cached rows of one identity; it need not exist yet."""

    folder: Path
    identity: Mapping[str, Any]

    @property
    def address(self) -> str:
        """The digest of the identity."""
        return self.folder.name

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout of rows of a shape in this column."""
        return Layout(self.address, self.identity["dtype"], shape)

    def records(self) -> list[ShardRecord]:
        """Return the shards, in the order of their names; a record whose shard was removed counts for nothing."""
        return [record for record, _ in self._notes()]

    def _notes(self) -> Iterator[tuple[ShardRecord, Mapping[str, Any]]]:
        """Yield each shard's record, and all that was written with it."""
        for path in sorted(self.folder.glob("*.json")):
            if path.name != "identity.json" and path.with_suffix(".h5").is_file():
                note = read_note(path)
                yield _record(path, note), note

    def path_of(self, record: ShardRecord) -> Path:
        """Return where a shard lies."""
        return path_of(self.folder, record.name)

    def keys(self, record: ShardRecord) -> np.ndarray:
        """Return the keys of a shard, S16 (rows,); raises StoreError if they are not those of its record."""
        shard_reader.verify(self.path_of(record), record, whole=False)
        path = self.folder / f"{record.name}.keys"
        data = path.read_bytes() if path.is_file() else b""
        if sha256_bytes(data) != read_note(path.with_suffix(".json")).get("keys"):
            raise StoreError(f"{path}: damaged: it is not the file that the shard's record names. {REMEDY}")
        return np.frombuffer(data, key_arrays.DTYPE)

    def verify(self, record: ShardRecord) -> None:
        """Raise StoreError if a shard is not what its record says.

        Its bytes are read only if the file is younger than the record, which is written after it: nobody should have
        touched it since. Whoever reads the rows checks them in any case.
        """
        path = self.path_of(record)
        shard_reader.verify(path, record, whole=False)
        if path.stat().st_mtime_ns > path.with_suffix(".json").stat().st_mtime_ns:
            shard_reader.verify(path, record)

    def rejected(self) -> dict[str, str]:
        """Return the samples that were tried and can never give features: key to reason."""
        result: dict[str, str] = {}
        for _, note in self._notes():
            result |= note.get("rejected", {})
        for path in sorted((self.folder / "rejected").glob("*.json")):
            result |= read_note(path)
        return result

    @contextlib.contextmanager
    def writer(self, shape: tuple[int, ...]) -> Iterator["Writer"]:
        """Yield a writer of rows of a shape that come in batches; rows that it did not finish are dropped at the
        end.
        """
        with contextlib.ExitStack() as stack:
            yield Writer(self, self.layout(shape), stack)

    def _commit(
        self, record: ShardRecord, keys: np.ndarray, provenance: Mapping[str, Any], rejected: Mapping[str, str] | None
    ) -> None:
        """Write what lies beside a shard: its keys, and then the record with which it exists."""
        data = np.ascontiguousarray(keys).tobytes()
        with scratch(self.folder, "keys") as temporary:
            temporary.write_bytes(data)
            publish(temporary, self.folder / f"{record.name}.keys")
        # Whoever was first keeps the record: what is there is never written again.
        path = self.folder / f"{record.name}.json"
        if not path.is_file():
            note = {"shard": record.to_json(), "keys": sha256_bytes(data), "provenance": dict(provenance)}
            write_json(path, note | ({"rejected": dict(rejected)} if rejected else {}))

    def reject(self, reasons: Mapping[str, str]) -> None:
        """Remember keys whose content can never give features, where there are no rows to store with them."""
        if reasons:
            with self._writing():
                write_json(self.folder / "rejected" / f"{digest(dict(reasons))[:32]}.json", dict(reasons))

    @property
    def probe(self) -> Mapping[str, Any] | None:
        """What the network gave for its fixed image that computed the rows; None where that is not known."""
        path = self.folder / "probe.json"
        return read_note(path) if path.is_file() else None

    def keep_probe(self, probe: Mapping[str, Any]) -> None:
        """Note what the network gives for its fixed image, before it computes rows."""
        with self._writing():
            write_json(self.folder / "probe.json", dict(probe))

    def touch(self) -> None:
        """Note that the column was used now; a cache that cannot be written is used all the same."""
        try:
            (self.folder / "used").touch()
        except OSError:
            return

    def last_used(self) -> float:
        """Return when a project last linked the column, in seconds since 1970."""
        stamp = self.folder / "used"
        return (stamp if stamp.is_file() else self.folder).stat().st_mtime

    def drop(self, record: ShardRecord) -> None:
        """Remove a shard, its record first: whoever looks meanwhile sees it whole or not at all.

        DVC may have the same file under other names, and trusts what is read-only and of a time that it knows. It is
        made to look again, or it would put a damaged shard back in the place of its repaired one.
        """
        with contextlib.suppress(OSError):  # it is not there, or somebody else's
            self.path_of(record).chmod(0o644)
            os.utime(self.path_of(record))
        for suffix in (".json", ".keys", ".h5"):
            (self.folder / f"{record.name}{suffix}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the column if need be; see `writable`."""
        with writable(self.folder.parent.parent):
            path = self.folder / "identity.json"
            if not path.is_file():
                write_json(path, dict(self.identity))
            yield


class Writer:
    """Write one shard of a column from batches of rows; memory holds a batch, the keys and one checksum per row."""

    def __init__(self, column: CacheEntry, layout: Layout, stack: contextlib.ExitStack) -> None:
        self._column, self._layout, self._stack = column, layout, stack
        self._spool: RowBuffer | None = None

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Take a batch: `keys` S16 (n,) in any order, `values` float32 (n, *shape). One at a time, from any thread.

        Raises StoreError if a value cannot be stored, if the disk is full, and if the cache cannot be written.
        """
        if not len(keys):
            return
        with self._column._writing():
            if self._spool is None:
                self._spool = self._stack.enter_context(open_row_buffer(self._column.folder, self._layout))
            self._spool.append(keys, values)

    def finish(self, *, provenance: Mapping[str, Any], rejected: Mapping[str, str] | None = None) -> ShardRecord | None:
        """Store for good what was appended, and return its record; where that is nothing, reject what is rejected.

        `rejected`: the keys that were tried with the rows and can never give features, with reasons; known in the same
        instant as the rows, so that whoever goes on after a kill sees all of a unit or nothing.

        Raises StoreError if a key came twice, if the disk is full, and if the cache cannot be written.
        """
        if self._spool is None:
            self._column.reject(rejected or {})
            return None
        with self._column._writing():
            rows = self._spool.sorted()
            record = shard_writer.write(self._column.folder, rows.keys, rows, self._layout)
            self._column._commit(record, rows.keys, provenance, rejected)
        self._stack.close()
        self._spool = None
        return record


def column(root: Path, identity: Mapping[str, Any]) -> CacheEntry:
    """Return the column of an identity; raises StoreError if what lies at its address is another one."""
    folder = root / VERSION / address(dict(identity))
    path = folder / "identity.json"
    if path.is_file() and (problems := differences(dict(identity), read_note(path))):
        raise StoreError(f"{path}: the identity does not fit its address. " + " ".join(problems))
    return CacheEntry(folder, identity)


def columns(root: Path) -> Iterator[CacheEntry]:
    """Yield every column of the cache."""
    for path in sorted((root / VERSION).glob("*/identity.json")):
        if not path.parent.name.startswith("."):  # one that is being removed
            yield CacheEntry(path.parent, read_note(path))


def shards_for_keys(column: CacheEntry, wanted: np.ndarray) -> tuple[list[ShardRecord], list[np.ndarray], np.ndarray]:
    """Return the shards that hold wanted keys, each needed for at least one, their keys, and which of `wanted` they
    hold.
    """
    held = np.zeros(len(wanted), dtype=bool)
    chosen, keys = [], []
    halves = key_arrays.split_uint64(wanted)  # once, and not a shard: of many samples this is what takes long
    for record in column.records():
        own = column.keys(record)
        places = key_arrays.find_halves(*halves, own)
        places = places[places >= 0]
        if not held[places].all():
            held[places] = True
            chosen.append(record)
            keys.append(own)
    return chosen, keys, held


def _record(path: Path, note: Any) -> ShardRecord:
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
