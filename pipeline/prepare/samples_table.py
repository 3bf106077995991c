"""The SQLite table of the samples of a data set: list them, record the answers of the check, mark duplicates.

The table is on disk, so that memory does not grow with the number of files. A row has a kind and a reason if its sample
is excluded.
"""

import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError, bullets
from pipeline.prepare import file_list
from pipeline.prepare.check_images import check_samples
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.known_files import KnownFiles
from pipeline.prepare.notes import NAMED
from pipeline.prepare.roots import Root
from pipeline.runtime import Reporter
from pipeline.sources import UNKNOWN, SampleLocation


@contextmanager
def open_table() -> Iterator[sqlite3.Connection]:
    """Yield a database with an empty table `files`; it is deleted at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="icecore-prepare-") as folder,
        closing(sqlite3.connect(Path(folder) / "files.sqlite")) as database,
    ):
        database.execute(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT, container TEXT, offset INTEGER, size INTEGER,"
            " labels TEXT, place TEXT, key TEXT, kind TEXT, reason TEXT, label TEXT, domain TEXT, split TEXT)"
        )
        yield database


def list_files(
    database: sqlite3.Connection, config: PrepareConfig, roots: list[Root], types: dict[str, pa.DataType] | None
) -> int:
    """Add every file of the roots, and every sample of a container; return their number. Raises DataError for none."""
    encode = json.JSONEncoder(sort_keys=True).encode
    rows = (
        (
            *(file.path, file.container, file.offset, file.size),
            *(encode(values) for values in (file.labels, file.place)),
            *file.refused,
            *_names_of(file),
        )
        for file in find(config, roots, types)
    )
    insert = (
        "INSERT INTO files (path, container, offset, size, labels, place, kind, reason, label, domain, split)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    result = database.executemany(insert, rows).rowcount
    if result < 1:
        raise DataError(f"{config.root}: there are no files in it. Give a folder, a list or an archive with files.")
    # An archive that was appended to can have two members with the same name, but a path must name one sample.
    database.execute(
        """
        UPDATE files SET kind = 'unreadable', reason = 'a second member of this name in its archive'
        FROM (SELECT id, row_number() OVER (PARTITION BY path ORDER BY id) AS copy
              FROM files WHERE kind IS NULL AND container IS NOT NULL) AS twin
        WHERE files.id = twin.id AND copy > 1
        """
    )
    return result


def _names_of(file: FoundSample) -> list[str | None]:
    """Return label, domain and split of a sample; None for values that are not text."""
    values = {**file.labels, **file.place}
    return [values[name] if isinstance(values.get(name), str) else None for name in NAMED]


def check_files(
    database: sqlite3.Connection,
    config: PrepareConfig,
    reporter: Reporter,
    *,
    is_list: bool,
    known: KnownFiles | None,
) -> None:
    """Check the listed samples, and add the key and size of each, or the kind and reason why it is excluded.

    is_list: whether all files are samples by a list. known: answers of earlier calls.
    """
    (total,) = database.execute("SELECT count(*) FROM files WHERE kind IS NULL").fetchone()
    columns = "id, path, container, offset, size"
    pending = database.execute(f"SELECT {columns} FROM files WHERE kind IS NULL ORDER BY id")
    rows = (
        (row, SampleLocation(path, container, offset, UNKNOWN if size is None else size))
        for row, path, container, offset, size in pending
    )
    done = 0

    def answers() -> Iterator[tuple[Any, ...]]:
        nonlocal done
        for row, answer in check_samples(
            rows,
            config.check,
            where=config.root,
            max_pixels=config.max_pixels,
            all_are_samples=is_list,
            known=known,
        ):
            done += 1
            reporter.progress(done, total)
            yield (*answer, row)

    # The answers go into a second table first: SQLite does not define what a query sees of rows updated while it runs.
    database.execute(
        "CREATE TEMPORARY TABLE answers (key TEXT, size INTEGER, kind TEXT, reason TEXT, id INTEGER PRIMARY KEY)"
    )
    database.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", answers())
    database.execute(
        """
        UPDATE files SET key = a.key, size = coalesce(a.size, files.size), kind = a.kind, reason = a.reason
        FROM answers AS a WHERE files.id = a.id
        """
    )


def mark_duplicates(database: sqlite3.Connection) -> dict[str, int]:
    """Mark duplicates (all but the first file of each content) and conflicts (all files of a content with several
    labels); return the number of excluded files by kind.
    """
    database.execute(
        """
        UPDATE files SET
          kind = iif(low = high, 'duplicate', 'conflict'),
          reason = iif(low = high, 'same content as ' || first,
                       'one content with several labels: ' || low || ' and ' || high)
        FROM (SELECT id, first_value(path) OVER twins AS first, row_number() OVER twins AS copy,
                     min(labels) OVER (PARTITION BY key) AS low, max(labels) OVER (PARTITION BY key) AS high
              FROM files WHERE kind IS NULL
              WINDOW twins AS (PARTITION BY key ORDER BY path, id)) AS twin
        WHERE files.id = twin.id AND (low != high OR copy > 1)
        """
    )
    return dict(database.execute("SELECT kind, count(*) FROM files WHERE kind IS NOT NULL GROUP BY kind ORDER BY kind"))


def refuse_too_many(database: sqlite3.Connection, config: PrepareConfig, files: int, excluded: dict[str, int]) -> None:
    """Raise DataError if no file is a sample, or if more samples are unusable than `max_rejected` allows."""
    rejected = excluded.get("unreadable", 0) + excluded.get("conflict", 0)
    checked = files - excluded.get("hidden", 0) - excluded.get("other", 0)
    if checked == 0:
        what = "hidden files" if not excluded.get("other") else "files that are no images"
        raise DataError(f"{config.root}: there are only {what} in it. Give a folder, a list or an archive with images.")
    # Compared as a quotient: in floating point, 29 / 100 equals 0.29, but 0.29 * 100 is less than 29.
    if rejected / checked <= config.max_rejected and rejected < checked:
        return
    query = "SELECT path || ': ' || reason FROM files WHERE kind IN ('unreadable', 'conflict') ORDER BY path LIMIT 5"
    title = (
        f"{config.root}: {rejected:,} of {checked:,} files cannot be used, more than the share of"
        f" {config.max_rejected:g} that `max_rejected` allows. The first of them:"
    )
    message = bullets(title, (text for (text,) in database.execute(query)))
    missing = "SELECT path FROM files WHERE reason = ? AND container IS NULL ORDER BY path LIMIT 1"
    (path,) = database.execute(missing, (os.strerror(errno.ENOENT),)).fetchone() or (None,)
    hint = None if path is None else file_list.explain_missing(path)
    raise DataError(message if hint is None else f"{message}\n{hint}")
