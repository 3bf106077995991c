"""The keys of files that were opened before. A key is valid while the size, times and inode of its file are unchanged.

Keys are stored in an SQLite file, so memory does not grow with their number; a kill loses only the last few. The file
is a cache: if it is damaged, locked by another process or on a disk without locks, samples are opened again.
"""

import os
import sqlite3
import struct
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import PIL

import pipeline
from pipeline.sources import TAR, SampleLocation, filesystem, parquet

Answer = tuple[str | None, int | None, str | None, str | None]
"""Key and size of a sample; for an unusable sample, the kind of problem and the reason."""

SETTLED = 2.0
"""A file is trusted only if unchanged for this many seconds: two changes within one clock tick leave the same times."""

TOGETHER = 1024
"""Answers that are written in one transaction."""


class KnownFiles:
    """A persistent cache of answers: ask for `answer` before opening a sample, and `keep` the new answer afterwards.

    check, max_pixels: the settings of the check. Answers are valid for the same check by the same versions of icecore
    and Pillow. Unusable samples and URLs are not cached.
    """

    def __init__(self, path: Path, *, check: str, max_pixels: int) -> None:
        self._path = path
        self._check = f"{check} {max_pixels} {pipeline.__version__} {PIL.__version__}".encode()
        self._database: sqlite3.Connection | None = None
        self._states: dict[str, bytes] = {}
        self._fresh: list[tuple[str, bytes, bytes, int | None]] = []
        self._container: tuple[str, os.stat_result | None] = ("", None)

    def __enter__(self) -> Self:
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = _open(self._path)
            except sqlite3.OperationalError:  # locked or read-only
                raise
            except sqlite3.DatabaseError:  # damaged
                self._path.unlink()
                self._database = _open(self._path)
            self._database.execute("BEGIN")  # one lock for all queries: locking takes longer than a query
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._database is not None:
            self._database.close()

    def answer(self, place: SampleLocation) -> Answer | None:
        """Return the cached answer for a sample; None if it has to be opened."""
        if self._database is None or (status := self._status(place)) is None:
            return None
        size, changed = status.st_size, status.st_ctime_ns
        state = struct.pack("<Qqqqq", status.st_ino, size, status.st_mtime_ns, changed, place.offset or 0) + self._check
        try:
            query = "SELECT key, size FROM known WHERE path = ? AND state = ?"
            row = self._database.execute(query, (place.path, state)).fetchone()
        except (sqlite3.Error, UnicodeError):
            return None
        if row is not None:
            return row[0].hex(), row[1], None, None
        if time.time_ns() - changed > SETTLED * 1e9:
            self._states[place.path] = state
        return None

    def keep(self, place: SampleLocation, answer: Answer) -> None:
        """Store the answer for a sample for which `answer` returned None."""
        state = self._states.pop(place.path, None)
        key, size, kind, _ = answer
        if state is None or key is None or kind is not None:
            return
        self._fresh.append((place.path, state, bytes.fromhex(key), size))
        if len(self._fresh) >= TOGETHER:
            self._write()

    def _write(self) -> None:
        fresh, self._fresh = self._fresh, []
        if self._database is None:
            return
        with suppress(sqlite3.Error, UnicodeError), self._database:
            self._database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", fresh)

    def _status(self, place: SampleLocation) -> os.stat_result | None:
        """Return the status of a sample's local file, or of its container; None for a URL or a missing file."""
        if place.container is None:
            return _stat(place.path)
        if place.container != self._container[0]:
            is_tar = place.container.lower().endswith(TAR)
            file = place.container if is_tar else parquet.file_of(place.container)
            self._container = place.container, _stat(file)
        return self._container[1]


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=0.2)
    database.execute("PRAGMA synchronous = OFF")  # a kill does no harm; a file damaged by a power cut is deleted
    database.execute(
        "CREATE TABLE IF NOT EXISTS known (path TEXT PRIMARY KEY, state BLOB, key BLOB, size INTEGER) WITHOUT ROWID"
    )
    return database


def _stat(path: str) -> os.stat_result | None:
    where = filesystem.local(path) if filesystem.is_url(path) else path
    try:
        return None if where is None else os.stat(where)  # noqa: PTH116 - a Path takes longer than the call
    except (OSError, ValueError):
        return None
