"""Looking after the feature cache: what is damaged, how large it is, what may go."""

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
from pipeline.store.use import unused


def damage(column: CacheEntry, *, whole: bool) -> Iterator[tuple[ShardRecord, str]]:
    """Yield every damaged shard of a column and what is wrong with it; sizes and keys, and if `whole` every byte."""
    for record in column.records():
        try:
            column.keys(record)
            shard_reader.verify(column.path_of(record), record, whole=whole)
        except StoreError as error:
            yield record, str(error)


def remove_stale_files(column: CacheEntry) -> int:
    """Remove what killed writers left in a column: temporary files of dead processes."""
    return remove_stale(column.folder) + remove_stale(column.folder / "rejected")


FOLDERS = ("onnx", "openvino", "engines", "batches", "teach", "training", "pixels", "backbones", "embeddings")
"""The folders of the cache beside the columns, each of entries that can be made again."""

IN_USE = 3600.0
"""Seconds since an entry of `FOLDERS` was used in which a size alone does not remove it: a job may be at work on it."""


@dataclass(frozen=True)
class Entry:
    """What the cache can do without: a column, or a file or folder of one of `FOLDERS`. `used`: seconds since 1970."""

    folder: str
    path: Path
    bytes: int
    used: float
    column: CacheEntry | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        node = "" if self.column is None else f" {self.column.identity.get('node')}"
        return f"{self.path.name[:12]}{node}" if self.column is not None else f"{self.folder}/{self.path.name[:24]}"


def entries(root: Path) -> list[Entry]:
    """Return all that the cache can do without, the longest unused first."""
    found = [Entry(VERSION, one.folder, size(one), one.last_used(), one) for one in columns(root)]
    for folder in FOLDERS:
        for path in (root / folder).glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # its owner is at work there, and removed a file
                found.append(Entry(folder, path, *_bytes_and_use(path)))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def prune(
    root: Path,
    *,
    unused_for: float | None = None,
    max_bytes: int | None = None,
    address: str | None = None,
    now: float,
) -> list[Entry]:
    """Remove what was not used for so many seconds, then the longest unused until `max_bytes` suffice for all.

    `address`: remove the columns whose address begins so. What `data/features/` of a project links stays there, and its
    bytes stay on the disk until the last link is gone. Columns and trainings that a running job holds (`use.py`) stay
    too. Returns the entries that were removed. Raises StoreError where no column has the address.
    """
    _finish_removals(root)
    there = entries(root)
    removed = [entry for entry in there if unused_for is not None and now - entry.used > unused_for]
    if address is not None:
        named = [entry for entry in there if entry.column is not None and entry.path.name.startswith(address)]
        if not named:
            raise StoreError(f"{root}: expected a column whose address begins with {address!r}, got none.")
        removed += [entry for entry in named if entry not in removed]
    kept = [entry for entry in there if entry not in removed]
    over = -1 if max_bytes is None else sum(entry.bytes for entry in kept) - max_bytes
    for entry in kept:
        is_in_use = entry.column is None and now - entry.used < IN_USE
        if over > 0 and not is_in_use:
            removed.append(entry)
            over -= entry.bytes
    return [entry for entry in removed if _remove(entry.path)]


def _remove(path: Path) -> bool:
    """Remove a part of the cache unless a running job holds it; return whether it is gone."""
    aside = temporary_path(path.parent, path.name)
    with contextlib.suppress(FileNotFoundError), unused(path) as free:  # another process may remove the same
        if not free:
            return False
        path.rename(aside)  # first: a reader sees the whole of it or none
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    return True


def _finish_removals(root: Path) -> None:
    """Remove what a prune that was killed had put aside."""
    for folder in (VERSION, *FOLDERS):
        remove_stale(root / folder)
        for path in (root / folder).glob(".*.removed"):  # of versions before
            shutil.rmtree(path, ignore_errors=True)


def _bytes_and_use(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or folder, and when anything in it was last changed or marked as used."""
    stats = [one.stat() for one in (path, *(path.rglob("*") if path.is_dir() else ()))]
    return sum(one.st_size for one in stats if stat.S_ISREG(one.st_mode)), max(one.st_mtime for one in stats)


def parse_size(text: str) -> int:
    """Return bytes, from text such as 200GB; raises StoreError if it is no size."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise StoreError(f"{text!r}: expected a size such as 500MB, 200GB or 2TB.") from None


def parse_duration(text: str) -> float:
    """Return seconds, from text such as 30d; raises StoreError if it is no duration."""
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if not found:
        raise StoreError(f"{text!r}: expected hours, days or weeks such as 12h, 30d or 8w.")
    return int(found[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[found[2]]


def size(column: CacheEntry) -> int:
    """Return bytes of a column's shards."""
    return sum(record.bytes for record in column.records())
