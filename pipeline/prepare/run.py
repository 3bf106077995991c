"""Open every file of a data set and write its manifest.

Every file ends in one of two places: the manifest, or the list of excluded files with the reason. Findings go through a
temporary SQLite database, which sorts and finds duplicates on disk: memory does not grow with the number of files.
"""

import csv
import json
import sqlite3
import stat
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, bullets
from pipeline.files import atomic, content_key
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare import PLACES, PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.listed import json_type, label_types
from pipeline.readers import image
from pipeline.runtime import Progress, cores, silent

BLOCK = 16_384


@dataclass(frozen=True)
class Prepared:
    """What became of the files. `found` = `rows` + the sum of `excluded`."""

    found: int
    rows: int
    excluded: dict[str, int]


def prepare(config: PrepareConfig, paths: ManifestPaths, *, progress: Progress = silent) -> Prepared:
    """Write the manifest of a data set; raises DataError if there is nothing to read or too much of it is unusable."""
    types = label_types(config)
    with (
        tempfile.TemporaryDirectory(prefix="icecore-prepare-") as folder,
        closing(sqlite3.connect(Path(folder) / "files.sqlite")) as database,
    ):
        database.execute(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT, labels TEXT, place TEXT,"
            " key TEXT, size INTEGER, kind TEXT, reason TEXT)"
        )
        found = _list_files(database, config)
        _inspect_all(database, config, progress)
        excluded = _resolve(database)
        _refuse_too_many(database, config, found, excluded)
        _write(database, paths, types)
    return Prepared(found=found, rows=found - sum(excluded.values()), excluded=excluded)


def inspect(path: str, check: str) -> tuple[str | None, int | None, str | None, str | None]:
    """Open one file: its key, size, and, if it cannot be used, what kind of trouble and the reason."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a folder, or a pipe, which would be waited for
            return None, None, "unreadable", "not a regular file"
        data = Path(path).read_bytes()
    except OSError as error:
        return None, None, "unreadable", error.strerror or str(error)
    try:
        image.check(data, whole=check == "decode")
    except DataError as error:
        return content_key(data), len(data), "unreadable", str(error)
    return content_key(data), len(data), None, None


def _list_files(database: sqlite3.Connection, config: PrepareConfig) -> int:
    rows = (
        (file.path, json.dumps(file.labels, sort_keys=True), json.dumps(file.place, sort_keys=True), *file.refused)
        for file in find(config)
    )
    insert = "INSERT INTO files (path, labels, place, kind, reason) VALUES (?, ?, ?, ?, ?)"
    found = database.executemany(insert, rows).rowcount
    if found < 1:
        raise DataError(f"{config.root}: there are no files in it. Set `root` to what holds the files.")
    return found


def _inspect_all(database: sqlite3.Connection, config: PrepareConfig, progress: Progress) -> None:
    (total,) = database.execute("SELECT count(*) FROM files WHERE kind IS NULL").fetchone()
    pending = iter(database.execute("SELECT id, path FROM files WHERE kind IS NULL ORDER BY id"))
    done = 0
    with ProcessPoolExecutor(max_workers=cores(), mp_context=get_context("spawn")) as pool:
        while block := list(islice(pending, BLOCK)):
            chunk = max(1, min(64, len(block) // (4 * cores())))
            results = pool.map(inspect, [path for _, path in block], [config.check] * len(block), chunksize=chunk)
            answers = []
            for (row, _), result in zip(block, results, strict=True):
                answers.append((*result, row))
                done += 1
                progress(done, total)
            database.executemany("UPDATE files SET key = ?, size = ?, kind = ?, reason = ? WHERE id = ?", answers)


def _resolve(database: sqlite3.Connection) -> dict[str, int]:
    """Mark all but the first file of each content, and all files of a content with two labels; count by kind."""
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
    looked_at = found - excluded.get("hidden", 0)
    if looked_at == 0:
        raise DataError(f"{config.root}: there are only hidden files in it. Set `root` to what holds the files.")
    # A quotient: 0.29 * 100 is a little less than 29, and 29 / 100 is 0.29.
    if rejected / looked_at <= config.max_rejected and rejected < looked_at:
        return
    query = "SELECT path || ': ' || reason FROM files WHERE kind IN ('unreadable', 'conflict') ORDER BY path LIMIT 5"
    title = (
        f"{config.root}: {rejected:,} of {looked_at:,} files cannot be used, more than the share of"
        f" {config.max_rejected:g} that `max_rejected` allows. The first of them:"
    )
    raise DataError(bullets(title, (text for (text,) in database.execute(query))))


def _write(database: sqlite3.Connection, paths: ManifestPaths, types: dict[str, pa.DataType]) -> None:
    places = [
        name
        for name in PLACES
        if name in types
        or database.execute("SELECT 1 FROM files WHERE json_extract(place, ?) NOT NULL", (f"$.{name}",)).fetchone()
    ]
    labels = {name: kind for name, kind in types.items() if name not in places}
    fields = [*FILES_SCHEMA, *(pa.field(n, t) for n, t in labels.items()), *(pa.field(n, pa.string()) for n in places)]
    schema = pa.schema(fields)
    plain = pa.schema([pa.field(one.name, json_type(one.type)) for one in schema])
    with atomic(paths.excluded) as temporary, temporary.open("w", newline="", encoding="utf-8") as listed:
        writer = csv.writer(listed)
        writer.writerow(["path", "size", "kind", "reason"])
        writer.writerows(
            database.execute("SELECT path, size, kind, reason FROM files WHERE kind IS NOT NULL ORDER BY path")
        )
    kept = database.execute("SELECT key, path, size, labels, place FROM files WHERE kind IS NULL ORDER BY path")
    with ExitStack() as stack:
        rows = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.rows)), schema))
        files = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.files)), FILES_SCHEMA))
        while block := kept.fetchmany(BLOCK):
            records = [
                {"key": key, "path": path, "size": size, **json.loads(label), **json.loads(place)}
                for key, path, size, label, place in block
            ]
            rows.write_table(pa.Table.from_pylist(records, schema=plain).cast(schema))
            files.write_table(pa.Table.from_pylist(records, schema=FILES_SCHEMA))
