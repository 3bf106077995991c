"""Prepare a data set: find its files, check that each can be read, and write its manifest.

Every file ends in one of two places: the manifest, or the list of excluded files with the reason. Findings go through a
temporary SQLite database, which sorts and finds duplicates on disk: memory does not grow with the number of files.
"""

import csv
import json
import os
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
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
# The columns that say where a row belongs: from folders or from a list, always text, and no labels.
PLACES = ("domain", "split")
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
    refused: tuple[str, str] | tuple[None, None] = (None, None)
    """Kind and reason, where it is not to be opened at all."""


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
        _inspect_all(database, config, progress)
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
    tops = [entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith(".")]
    by_split = bool(tops) and all(name in SPLIT_FOLDERS for name in tops)
    for path in _walk(root, ()):
        names = path.relative_to(root).parts
        folders = names[:-1]
        place = {} if domain is None else {"domain": domain}
        if by_split and folders and folders[0] in SPLIT_FOLDERS:
            place["split"] = SPLIT_FOLDERS[folders[0]]
            folders = folders[1:]
        yield Found(_text(path), {"label": folders[0] if folders else None}, place, _refusal(names))


def _refusal(names: tuple[str, ...]) -> tuple[str, str] | tuple[None, None]:
    """Whether a file below the root is not to be opened, going by its name and the names of its folders."""
    if any(name.startswith(".") for name in names):
        return "hidden", "a hidden file, or one in a hidden folder"
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        return "unreadable", "its name, or that of its folder, is not UTF-8: rename it"
    return None, None


def _text(path: Path) -> str:
    """A path as text; bytes that are not UTF-8 are written as \\udc.. there."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """All files below a folder, sorted; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_folder(entry):
            yield from _walk(folder / entry.name, (*above, here))
        else:
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it says so once more, and that goes into the list
        return False


def _find_in_list(config: PrepareConfig) -> Iterator[Found]:
    base = config.base or config.root.parent
    types = _label_types(config)
    texts = (config.path, *PLACES)
    names = (config.path, *types)
    schema = pa.schema([(name, pa.string() if name in texts else _json_type(types[name])) for name in names])
    for batch in _list_batches(config):
        columns = [pc.cast(batch[name], schema.field(name).type) for name in schema.names]
        for row in pa.RecordBatch.from_arrays(columns, schema=schema).to_pylist():
            place = {name: row.pop(name) for name in PLACES if row.get(name) is not None}
            path = row.pop(config.path)
            if not path:
                raise DataError(f"{config.root}: a row without a value in {config.path!r}, the column of paths.")
            yield Found((base / path).as_posix(), row, place)


def _list_batches(config: PrepareConfig) -> Iterator[pa.RecordBatch]:
    try:
        if config.root.suffix == ".parquet":
            with pq.ParquetFile(config.root) as file:
                yield from file.iter_batches()
        else:
            with _open_csv(config) as reader:
                yield from reader
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{config.root}: {error}. The first rows of a CSV list say which type a column has; where a later row does "
            "not fit, write the list as Parquet."
        ) from None


def _open_csv(config: PrepareConfig) -> Any:
    # Nothing between two commas is no value, also of a text; the word NA, for one, is a text like any other.
    options = pyarrow.csv.ConvertOptions(
        column_types={config.path: pa.string()}, null_values=[""], strings_can_be_null=True
    )
    return pyarrow.csv.open_csv(config.root, convert_options=options)


def _label_types(config: PrepareConfig) -> dict[str, pa.DataType]:
    """The label columns that the manifest will have, with their types."""
    if config.root.is_dir():
        return {"label": pa.string()}
    if not config.root.is_file():
        raise DataError(f"{config.root}: no such folder or list. Set `root` to what holds the files.")
    if config.root.suffix not in (".csv", ".parquet"):
        raise DataError(f"{config.root}: expected a folder, a .csv or a .parquet list.")
    schema = _list_schema(config)
    problems = [f"there are two columns {name!r}" for name, times in Counter(schema.names).items() if times > 1]
    problems += [
        f"{unknown('column', name, schema.names)}"
        for name in [config.path, *(config.columns or ())]
        if name not in schema.names
    ]
    if problems:
        raise DataError(bullets(f"{config.root}: the list's columns are not as expected", problems))
    wanted = config.columns if config.columns is not None else schema.names
    types = {name: _value_type(schema.field(name).type) for name in wanted if name not in (config.path, *FIXED)}
    binary = "not UTF-8" if config.root.suffix == ".csv" else "binary"
    odd = [f"{name}: {binary if pa.types.is_binary(t) else t}" for name, t in types.items() if not _is_label(t)]
    if odd:
        title = f"{config.root}: expected texts, numbers, times or truth values; leave other columns out with `columns`"
        raise DataError(bullets(title, odd))
    return types


def _list_schema(config: PrepareConfig) -> pa.Schema:
    try:
        if config.root.suffix == ".parquet":
            return pq.read_schema(config.root)
        with _open_csv(config) as reader:
            return reader.schema
    except pa.ArrowInvalid as error:
        raise DataError(f"{config.root}: not a {config.root.suffix} list: {error}.") from None


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_label(kind: pa.DataType) -> bool:
    t = pa.types
    plain = (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_null)
    return any(test(kind) for test in plain) or _json_type(kind) != kind


def _json_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a label goes through the database: a time, which JSON does not have, is a number there."""
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_decimal(kind) else kind


# Opening -------------------------------------------------------------------------------------------------------------


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
    if looked_at == 0:
        raise DataError(f"{config.root}: there are only hidden files in it. Set `root` to what holds the files.")
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
        for name in PLACES
        if name in types
        or database.execute("SELECT 1 FROM files WHERE json_extract(place, ?) NOT NULL", (f"$.{name}",)).fetchone()
    ]
    labels = {name: kind for name, kind in types.items() if name not in places}
    fields = [*FILES_SCHEMA, *(pa.field(n, t) for n, t in labels.items()), *(pa.field(n, pa.string()) for n in places)]
    schema = pa.schema(fields)
    plain = pa.schema([pa.field(one.name, _json_type(one.type)) for one in schema])
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
