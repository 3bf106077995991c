"""Prepare a data set: find its files, check that each can be read, and write its manifest.

Every file ends in one of two places: the manifest, or the list of excluded files with the reason. Findings go through a
temporary SQLite database, which sorts and finds duplicates on disk: memory does not grow with the number of files.
"""

import csv
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Settings
from pipeline.errors import DataError, bullets, unknown
from pipeline.files import atomic, content_key
from pipeline.manifest import FILES_SCHEMA, FIXED, ManifestPaths
from pipeline.readers import image
from pipeline.runtime import Progress, cores, silent

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
BLOCK = 16_384


class PrepareConfig(Settings):
    """A data set: a folder of class folders, several such folders, or a list of files with their labels."""

    root: Path = Field(description="a folder, or a .csv or .parquet list")
    folders: tuple[str, ...] = Field((), description="several roots below `root`; each becomes a `domain`")
    path: str = Field("path", description="the column of a list that holds the paths")
    columns: tuple[str, ...] | None = Field(None, description="the label columns of a list to keep; all if not given")
    base: Path | None = Field(None, description="what a list's paths are relative to; the list's folder if not given")
    check: Literal["decode", "header"] = Field("decode", description="how far each image is read to see that it is one")
    max_rejected: float = Field(0.05, ge=0, le=1, description="the share of unusable files above which prepare fails")


@dataclass(frozen=True)
class Found:
    """A file before it was opened: its path and what its place, or its line in a list, says about it."""

    path: str
    labels: dict[str, Any] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What became of the files. `found` = `rows` + the sum of `excluded`."""

    found: int
    rows: int
    excluded: dict[str, int]


def prepare(config: PrepareConfig, paths: ManifestPaths, *, progress: Progress = silent) -> Prepared:
    """Write the manifest of a data set; raises DataError if there is nothing to read or too much of it is unusable."""
    types = _label_types(config)
    with (
        tempfile.TemporaryDirectory(prefix="icecore-prepare-") as folder,
        closing(sqlite3.connect(Path(folder) / "files.sqlite")) as database,
    ):
        database.execute(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT, labels TEXT, place TEXT,"
            " key TEXT, size INTEGER, kind TEXT, reason TEXT)"
        )
        found = _list_files(database, config)
        _inspect_all(database, config, found, progress)
        excluded = _resolve(database)
        _refuse_too_many(database, config, found, excluded)
        _write(database, paths, types)
    return Prepared(found=found, rows=found - sum(excluded.values()), excluded=excluded)


# Finding -------------------------------------------------------------------------------------------------------------


def find(config: PrepareConfig) -> Iterator[Found]:
    """The files of a data set in the order of their paths (or of their list), unopened."""
    if config.root.is_dir():
        for name in config.folders:
            yield from _find_in_folder(config.root / name, name)
        if not config.folders:
            yield from _find_in_folder(config.root, None)
    else:
        yield from _find_in_list(config)


def _find_in_folder(root: Path, domain: str | None) -> Iterator[Found]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. `folders` names folders below `root`.")
    tops = [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    by_split = bool(tops) and all(name in SPLIT_FOLDERS for name in tops)
    for path in _walk(root, ()):
        folders = path.relative_to(root).parts[:-1]
        place = {} if domain is None else {"domain": domain}
        if by_split and folders:
            place["split"] = SPLIT_FOLDERS[folders[0]]
            folders = folders[1:]
        yield Found(path.as_posix(), {"label": folders[0] if folders else None}, place)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """All files below a folder, sorted; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(folder / entry.name, (*above, here))
        else:
            yield folder / entry.name


def _find_in_list(config: PrepareConfig) -> Iterator[Found]:
    base = config.base or config.root.parent
    names = [config.path, *_label_types(config)]
    for batch in _list_batches(config.root):
        for row in batch.select(names).to_pylist():
            place = {name: row.pop(name) for name in ("split", "domain") if row.get(name) is not None}
            path = row.pop(config.path)
            if path is None:
                raise DataError(f"{config.root}: a row without a value in {config.path!r}, the column of paths.")
            yield Found((base / str(path)).as_posix(), row, place)


def _list_batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
    else:
        with pyarrow.csv.open_csv(path) as reader:
            yield from reader


def _label_types(config: PrepareConfig) -> dict[str, pa.DataType]:
    """The label columns that the manifest will have, with their types."""
    if config.root.is_dir():
        return {"label": pa.string()}
    if not config.root.is_file():
        raise DataError(f"{config.root}: no such folder or list. Set `root` to what holds the files.")
    if config.root.suffix not in (".csv", ".parquet"):
        raise DataError(f"{config.root}: expected a folder, a .csv or a .parquet list.")
    schema = pq.read_schema(config.root) if config.root.suffix == ".parquet" else _csv_schema(config.root)
    problems = [
        f"{unknown('column', name, schema.names)}"
        for name in [config.path, *(config.columns or ())]
        if name not in schema.names
    ]
    if problems:
        raise DataError(bullets(f"{config.root}: the list lacks columns", problems))
    wanted = config.columns if config.columns is not None else schema.names
    return {name: schema.field(name).type for name in wanted if name != config.path and name not in FIXED}


def _csv_schema(path: Path) -> pa.Schema:
    try:
        with pyarrow.csv.open_csv(path) as reader:
            return reader.schema
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a CSV list: {error}.") from None


# Opening -------------------------------------------------------------------------------------------------------------


def inspect(path: str, check: str) -> tuple[str | None, int | None, str | None, str | None]:
    """Open one file: its key, size, and, if it cannot be used, what kind of trouble and the reason."""
    if any(part.startswith(".") and part not in (".", "..") for part in Path(path).parts[-2:]):
        return None, None, "hidden", "a hidden file, or one in a hidden folder"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return None, None, "unreadable", error.strerror or str(error)
    try:
        image.check(data, whole=check == "decode")
    except DataError as error:
        return content_key(data), len(data), "unreadable", str(error)
    return content_key(data), len(data), None, None


def _list_files(database: sqlite3.Connection, config: PrepareConfig) -> int:
    rows = ((f.path, json.dumps(f.labels, sort_keys=True), json.dumps(f.place, sort_keys=True)) for f in find(config))
    found = database.executemany("INSERT INTO files (path, labels, place) VALUES (?, ?, ?)", rows).rowcount
    if found < 1:
        raise DataError(f"{config.root}: there are no files in it. Set `root` to what holds the files.")
    return found


def _inspect_all(database: sqlite3.Connection, config: PrepareConfig, found: int, progress: Progress) -> None:
    pending = iter(database.execute("SELECT id, path FROM files ORDER BY id"))
    done = 0
    with ProcessPoolExecutor(max_workers=cores(), mp_context=get_context("spawn")) as pool:
        while block := list(islice(pending, BLOCK)):
            chunk = max(1, min(64, len(block) // (4 * cores())))
            results = pool.map(inspect, [path for _, path in block], [config.check] * len(block), chunksize=chunk)
            answers = []
            for (row, _), result in zip(block, results, strict=True):
                answers.append((*result, row))
                done += 1
                progress(done, found)
            database.executemany("UPDATE files SET key = ?, size = ?, kind = ?, reason = ? WHERE id = ?", answers)


# Deciding ------------------------------------------------------------------------------------------------------------


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
    if rejected <= config.max_rejected * looked_at and rejected < looked_at:
        return
    query = "SELECT path || ': ' || reason FROM files WHERE kind IN ('unreadable', 'conflict') ORDER BY path LIMIT 5"
    title = (
        f"{config.root}: {rejected:,} of {looked_at:,} files cannot be used, more than the share of"
        f" {config.max_rejected:g} that `max_rejected` allows. The first of them:"
    )
    raise DataError(bullets(title, (text for (text,) in database.execute(query))))


# Writing -------------------------------------------------------------------------------------------------------------


def _write(database: sqlite3.Connection, paths: ManifestPaths, types: dict[str, pa.DataType]) -> None:
    places = [
        name
        for name in ("domain", "split")
        if database.execute("SELECT 1 FROM files WHERE json_extract(place, ?) LIMIT 1", (f"$.{name}",)).fetchone()
        or name in types
    ]
    labels = {name: kind for name, kind in types.items() if name not in places}
    fields = [*FILES_SCHEMA, *(pa.field(n, t) for n, t in labels.items()), *(pa.field(n, pa.string()) for n in places)]
    schema = pa.schema(fields)
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
            rows.write_table(pa.Table.from_pylist(records, schema=schema))
            files.write_table(pa.Table.from_pylist(records, schema=FILES_SCHEMA))
