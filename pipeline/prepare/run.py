"""Open every sample of a data set and write its manifest.

Every file, and every sample of a container, ends up in the manifest or, with a reason, in the list of excluded files.
A temporary SQLite database sorts the samples and detects duplicates on disk, so that memory does not grow with the
number of files.
"""

import csv
import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, bullets
from pipeline.files import atomic
from pipeline.manifest import FILES_SCHEMA, ManifestPaths, label_column
from pipeline.prepare import file_list
from pipeline.prepare import label_types as values
from pipeline.prepare.check_images import check_samples
from pipeline.prepare.config import SPLIT_COLUMNS, FoundSample, PrepareConfig
from pipeline.prepare.find import find, label_types
from pipeline.prepare.known_files import KnownFiles
from pipeline.prepare.labels import json_type
from pipeline.prepare.notes import NAMED, describe_labels
from pipeline.prepare.roots import Root, inspect_roots
from pipeline.runtime import SILENT, Reporter
from pipeline.sources import UNKNOWN, SampleLocation

BLOCK = 16_384


@dataclass(frozen=True)
class PrepareSummary:
    """The counts of a data set: files found = rows of the manifest + excluded files, counted by kind."""

    found: int
    rows: int
    excluded: dict[str, int]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about labels that may be mistakes."""


def prepare(
    config: PrepareConfig, paths: ManifestPaths, *, known: Path | None = None, reporter: Reporter = SILENT
) -> PrepareSummary:
    """Write the manifest of a data set; raises DataError if there are no samples or too many cannot be used.

    known: the file of `KnownFiles`; files that did not change since the last call with it are not opened.
    """
    roots = inspect_roots(config)
    notes: list[str] = []
    types = label_types(config, roots, notes.append)
    with (
        tempfile.TemporaryDirectory(prefix="icecore-prepare-") as folder,
        closing(sqlite3.connect(Path(folder) / "files.sqlite")) as database,
    ):
        database.execute(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT, container TEXT, offset INTEGER, size INTEGER,"
            " labels TEXT, place TEXT, key TEXT, kind TEXT, reason TEXT, label TEXT, domain TEXT, split TEXT)"
        )
        found = _list_files(database, config, roots, types)
        if types is None:
            values.check_columns(database, config)
        files = None if known is None else KnownFiles(known, check=config.check, max_pixels=config.max_pixels)
        with files or nullcontext():
            _inspect_all(database, config, reporter, is_list=roots[0].kind == "list", known=files)
        excluded = _resolve(database)
        _refuse_too_many(database, config, found, excluded)
        if types is None:
            types = values.types(database, config)
            notes += values.describe_mixed_types(database, config)
        notes += describe_labels(database, config, roots, types)
        _write(database, paths, {label_column(name): kind for name, kind in types.items()})
    return PrepareSummary(found=found, rows=found - sum(excluded.values()), excluded=excluded, notes=tuple(notes))


def _names_of(file: FoundSample) -> list[str | None]:
    """Return label, domain and split of a sample; None for values that are not text."""
    values = {**file.labels, **file.place}
    return [values[name] if isinstance(values.get(name), str) else None for name in NAMED]


def _list_files(
    database: sqlite3.Connection, config: PrepareConfig, roots: list[Root], types: dict[str, pa.DataType] | None
) -> int:
    rows = (
        (
            *(file.path, file.container, file.offset, file.size),
            *(json.dumps(values, sort_keys=True) for values in (file.labels, file.place)),
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


def _inspect_all(
    database: sqlite3.Connection,
    config: PrepareConfig,
    reporter: Reporter,
    *,
    is_list: bool,
    known: KnownFiles | None,
) -> None:
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


def _resolve(database: sqlite3.Connection) -> dict[str, int]:
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


def _refuse_too_many(database: sqlite3.Connection, config: PrepareConfig, found: int, excluded: dict[str, int]) -> None:
    rejected = excluded.get("unreadable", 0) + excluded.get("conflict", 0)
    checked = found - excluded.get("hidden", 0) - excluded.get("other", 0)
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


def _write(database: sqlite3.Connection, paths: ManifestPaths, types: dict[str, pa.DataType]) -> None:
    places = [
        name
        for name in SPLIT_COLUMNS
        if name in types
        or database.execute("SELECT 1 FROM files WHERE json_extract(place, ?) NOT NULL", (f"$.{name}",)).fetchone()
    ]
    labels = {name: kind for name, kind in types.items() if name not in places}
    fields = [*FILES_SCHEMA, *(pa.field(n, t) for n, t in labels.items()), *(pa.field(n, pa.string()) for n in places)]
    schema = pa.schema(fields)
    plain = pa.schema([pa.field(column.name, json_type(column.type)) for column in schema])
    with atomic(paths.excluded) as temporary, temporary.open("w", newline="", encoding="utf-8") as listed:
        writer = csv.writer(listed)
        writer.writerow(["path", "size", "kind", "reason"])
        writer.writerows(
            database.execute("SELECT path, size, kind, reason FROM files WHERE kind IS NOT NULL ORDER BY path")
        )
    columns = "key, path, size, container, offset, labels, place"
    samples = database.execute(f"SELECT {columns} FROM files WHERE kind IS NULL ORDER BY path")
    readers = values.json_readers(plain)
    with ExitStack() as stack:
        rows = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.rows)), schema))
        files = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.files)), FILES_SCHEMA))
        while block := samples.fetchmany(BLOCK):
            records = [
                {
                    **{name: readers[name](value) for name, value in json.loads(labels).items()},
                    **json.loads(place),
                    **dict(zip(FILES_SCHEMA.names, fixed, strict=True)),
                }
                for *fixed, labels, place in block
            ]
            rows.write_table(pa.Table.from_pylist(records, schema=plain).cast(schema))
            files.write_table(pa.Table.from_pylist(records, schema=FILES_SCHEMA))
