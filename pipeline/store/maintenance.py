"""Maintenance of the feature cache: find damaged shards, measure sizes, prune."""

import contextlib
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.files import remove_stale, temporary_path
from pipeline.store import shard_reader
from pipeline.store.cache import VERSION, CacheEntry, columns
from pipeline.store.shard_format import ShardRecord
from pipeline.store.use import lock_unused


def find_damage(column: CacheEntry, *, whole: bool) -> Iterator[tuple[ShardRecord, str]]:
    """Yield the damaged shards of a column with the reason; checks sizes and keys, and if `whole` all bytes."""
    for record in column.records():
        try:
            column.keys(record)
            shard_reader.verify(column.path_of(record), record, whole=whole)
        except StoreError as error:
            yield record, str(error)


def remove_stale_files(column: CacheEntry) -> int:
    """Remove temporary files of dead processes from a column; return their number."""
    return remove_stale(column.folder) + remove_stale(column.folder / "rejected")


FOLDERS = (
    *("onnx", "openvino", "engines", "batches", "teach", "training", "pixels", "backbones", "embeddings"),
    "predict",  # the lists of killed predictions
)
"""Folders of the cache, besides the columns, whose entries can be recomputed."""

IN_USE = 3600.0
"""Seconds since the last use in which a size limit does not remove an entry of `FOLDERS`: a job may be using it."""


@dataclass(frozen=True)
class Entry:
    """An entry of the cache that may be removed: a column, or an entry of `FOLDERS`. `used`: seconds since 1970."""

    folder: str
    path: Path
    bytes: int
    used: float
    column: CacheEntry | None = None

    @property
    def name(self) -> str:
        """The name of the entry in messages."""
        node = "" if self.column is None else f" {self.column.identity.get('node')}"
        return f"{self.path.name[:12]}{node}" if self.column is not None else f"{self.folder}/{self.path.name[:24]}"


def entries(root: Path) -> list[Entry]:
    """Return all entries that may be removed, the least recently used first."""
    result = [Entry(VERSION, column.folder, size(column), column.last_used(), column) for column in columns(root)]
    for folder in FOLDERS:
        for path in (root / folder).glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # removed by its job meanwhile
                result.append(Entry(folder, path, *_size_and_last_use(path)))
    return sorted(result, key=lambda entry: (entry.used, entry.path))


def prune(
    root: Path,
    *,
    unused_for: float | None = None,
    max_bytes: int | None = None,
    address: str | None = None,
    now: float,
) -> list[Entry]:
    """Remove entries unused for `unused_for` seconds, then the least recently used until `max_bytes` suffice.

    address: remove the columns whose address begins with it. Links in a project's `data/features/` stay valid: the
    bytes stay on the disk until the last link is removed. Entries that a running job holds (`use.py`) stay too. Returns
    the removed entries. Raises StoreError if no column has the address.
    """
    _finish_removals(root)
    candidates = entries(root)
    removed = [entry for entry in candidates if unused_for is not None and now - entry.used > unused_for]
    if address is not None:
        matching = [entry for entry in candidates if entry.column is not None and entry.path.name.startswith(address)]
        if not matching:
            raise StoreError(f"{root}: expected a column whose address begins with {address!r}, got none.")
        removed += [entry for entry in matching if entry not in removed]
    remaining = [entry for entry in candidates if entry not in removed]
    over = -1 if max_bytes is None else sum(entry.bytes for entry in remaining) - max_bytes
    for entry in remaining:
        is_in_use = entry.column is None and now - entry.used < IN_USE
        if over > 0 and not is_in_use:
            removed.append(entry)
            over -= entry.bytes
    return [entry for entry in removed if _remove(entry.path)]


def _remove(path: Path) -> bool:
    """Remove a file or folder of the cache unless a running job holds it; return whether it was removed."""
    temporary = temporary_path(path.parent, path.name)
    with contextlib.suppress(FileNotFoundError), lock_unused(path) as free:  # another process may remove it too
        if not free:
            return False
        path.rename(temporary)  # first, so that readers see the complete entry or none
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
    return True


def _finish_removals(root: Path) -> None:
    """Remove entries that a killed `prune` had renamed."""
    for folder in (VERSION, *FOLDERS):
        remove_stale(root / folder)
        for path in (root / folder).glob(".*.removed"):  # names of earlier versions
            shutil.rmtree(path, ignore_errors=True)


def _size_and_last_use(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or folder, and the time of the last change or use of anything in it."""
    stats = [entry.stat() for entry in (path, *(path.rglob("*") if path.is_dir() else ()))]
    return sum(item.st_size for item in stats if stat.S_ISREG(item.st_mode)), max(item.st_mtime for item in stats)


def parse_size(text: str) -> int:
    """Parse a size such as 200GB to bytes; raises StoreError for other text."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise StoreError(f"{text!r}: expected a size such as 500MB, 200GB or 2TB.") from None


def parse_duration(text: str) -> float:
    """Parse a duration such as 30d to seconds; raises StoreError for other text."""
    match = re.fullmatch(r"(\d+)([hdw])", text)
    if not match:
        raise StoreError(f"{text!r}: expected hours, days or weeks such as 12h, 30d or 8w.")
    return int(match[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[match[2]]


def size(column: CacheEntry) -> int:
    """Return the bytes of a column's shards."""
    return sum(record.bytes for record in column.records())
