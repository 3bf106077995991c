"""The feature cache: columns by identity, shards by content, shared by every project and branch of a machine.

    $ICECORE_CACHE/v1/<address>/identity.json
                               /<sha256>.h5       a shard
                               /<sha256>.json     its record, written after it: without a record it does not exist
                               /rejected/<digest>.json   keys whose content can never give features, with reasons

Nothing is ever changed in place, so any number of processes may add at once; two that add the same rows do no harm.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from pipeline.errors import StoreError
from pipeline.files import digest, read_json, write_json
from pipeline.store import keys as key_arrays
from pipeline.store import shard
from pipeline.store.identity import address, differences
from pipeline.store.shard import ShardRecord

VERSION = "v1"


def default_root() -> Path:
    """$ICECORE_CACHE, or the user's cache directory."""
    return Path(os.environ.get("ICECORE_CACHE") or platformdirs.user_cache_path("icecore"))


@dataclass(frozen=True)
class Column:
    """All cached rows of one identity."""

    folder: Path
    identity: Mapping[str, Any]

    @property
    def address(self) -> str:
        """The digest of the identity."""
        return self.folder.name

    def records(self) -> list[ShardRecord]:
        """The shards, in the order of their names; a record whose shard was removed counts for nothing."""
        paths = sorted(path for path in self.folder.glob("*.json") if path.name != "identity.json")
        return [ShardRecord(**_read(path)["shard"]) for path in paths if path.with_suffix(".h5").is_file()]

    def path_of(self, record: ShardRecord) -> Path:
        """Where a shard lies."""
        return shard.path_of(self.folder, record.name)

    def keys(self, record: ShardRecord) -> np.ndarray:
        """The keys of a shard, S16 (rows,); raises StoreError if the file does not fit its record."""
        path = self.path_of(record)
        if not path.is_file() or path.stat().st_size != record.bytes:
            shard.verify(path, record)
        return shard.read_keys(path)

    def rejected(self) -> dict[str, str]:
        """Key to reason, of the samples that were tried and can never give features."""
        found: dict[str, str] = {}
        for path in sorted((self.folder / "rejected").glob("*.json")):
            found |= _read(path)
        return found

    def add(self, keys: np.ndarray, features: np.ndarray, *, provenance: Mapping[str, Any]) -> ShardRecord:
        """Store rows for good; see `shard.write` for shapes and errors."""
        record = shard.write(self.folder, keys, features, address=self.address)
        write_json(self.folder / f"{record.name}.json", {"shard": record.to_json(), "provenance": dict(provenance)})
        return record

    def reject(self, reasons: Mapping[str, str]) -> None:
        """Remember keys whose content can never give features."""
        if reasons:
            write_json(self.folder / "rejected" / f"{digest(dict(reasons))[:32]}.json", dict(reasons))


def column(root: Path, identity: Mapping[str, Any]) -> Column:
    """Open the column of an identity, and make it if it is new; raises StoreError if the cache cannot be written."""
    folder = root / VERSION / address(dict(identity))
    path = folder / "identity.json"
    try:
        if not path.is_file():
            write_json(path, dict(identity))
    except OSError as error:
        raise StoreError(
            f"{root}: the feature cache cannot be written: {error.strerror}. Set ICECORE_CACHE to a folder that can."
        ) from None
    if problems := differences(dict(identity), _read(path)):
        raise StoreError(f"{path}: the identity does not fit its address. " + " ".join(problems))
    return Column(folder, identity)


def covering(column: Column, wanted: np.ndarray) -> tuple[list[ShardRecord], np.ndarray]:
    """The shards that hold wanted keys, each needed for at least one, and which of `wanted` (sorted) they hold."""
    held = np.zeros(len(wanted), dtype=bool)
    chosen = []
    for record in column.records():
        places = key_arrays.find(wanted, column.keys(record))
        places = places[places >= 0]
        if not held[places].all():
            held[places] = True
            chosen.append(record)
    return chosen, held


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise StoreError(f"{path}: expected JSON: {error}. The file is damaged: remove it and run again.") from None
