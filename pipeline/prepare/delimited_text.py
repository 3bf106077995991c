"""Read CSV lists: with commas, semicolons, tabs or bars, in any encoding, with a type per column.

A column has a type only if each value survives a round trip: read as that type and written back, it is the same text.
A column with `007`, `1e5`, `+1` or `1.0` is text, unless the setting `types` names another type.
"""

import codecs
import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.errors import DataError
from pipeline.prepare.config import SPLIT_COLUMNS, PrepareConfig
from pipeline.prepare.labels import given_types
from pipeline.sources import filesystem, tar

DELIMITERS = (",", ";", "\t", "|")
INFERRED = (pa.int64(), pa.float64(), pa.bool_(), pa.date32())
"""The column types other than text, in the order in which they are tried."""

BLOCK = 16 * 2**20
"""Bytes that are parsed at once, and so the longest possible row."""

HEAD = 2**18
_MARKS = {  # longer marks first: the mark of UTF-32 begins with the mark of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EXCEL = re.compile(r"sep=(.)\s*")


@dataclass(frozen=True)
class Dialect:
    """How a list is written: its encoding, its delimiter, and how many lines precede the header."""

    encoding: str
    delimiter: str
    skipped: int


def detect_dialect(config: PrepareConfig) -> Dialect:
    """Detect the dialect of a list from its first bytes; raises DataError for a file that is not text.

    The delimiter is the first of `DELIMITERS` that gives a header with the column of paths.
    """
    with filesystem.open_file(config.root) as file:
        head = file.read(HEAD)
    packed = "zip (a spreadsheet?)" if head.startswith(b"PK\x03\x04") else tar.compression(head)
    if packed is not None:
        raise DataError(f"{config.root}: expected a list of text lines, got {packed}. Save it as CSV, uncompressed.")
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    encoding = marked or config.encoding or "utf-8"
    try:
        lines = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head).lstrip("\ufeff").splitlines(True)
    except UnicodeError:  # UTF-16 without a byte order mark, where `encoding` promises one
        lines = []
    if marked is None and config.encoding is None and b"\0" in head:
        raise DataError(
            f"{config.root}: zero bytes among its letters: UTF-16 without a byte order mark, or not text. Set "
            "`encoding: utf-16-le`, or save the list as UTF-8."
        )
    excel = _EXCEL.fullmatch(lines[0]) if lines else None
    if excel is not None:
        return Dialect(encoding, excel[1], 1)
    headers = {mark: next(_parse(lines, mark), []) for mark in DELIMITERS}
    with_path = [mark for mark, names in headers.items() if config.path in names]
    return Dialect(encoding, [*with_path, max(DELIMITERS, key=lambda mark: len(headers[mark]))][0], 0)


def read_types(config: PrepareConfig) -> list[tuple[str, pa.DataType]]:
    """Return the columns of a list in order, each with the type that all its values have. Reads the list once.

    Raises DataError where the list cannot be read, or where a quote that is not closed swallows rows.
    """
    how = detect_dialect(config)
    with _describe(config, how), _open_list(config, how, {}) as reader:
        names: list[str] = reader.schema.names
    texts = {name: pa.string() if _is_wanted(name, config) else pa.binary() for name in names}
    possible: list[list[pa.DataType]] = [
        list(INFERRED) if _is_inferred(name, config) else [texts[name]] for name in names
    ]
    empty = [True] * len(names)
    with _describe(config, how), _open_list(config, how, texts) as reader:
        for batch in reader:
            for at, column in enumerate(batch.columns):
                _check_open_quote(batch, at, config, how)
                if column.null_count < len(column):
                    empty[at] = False
                    possible[at] = [kind for kind in possible[at] if not _is_text(kind) and _keeps(column, kind)]
    kinds = given_types(config)
    result = []
    for at, name in enumerate(names):
        inferred = pa.null() if empty[at] else next(iter(possible[at]), texts[name])
        result.append((name, kinds.get(name, inferred if _is_inferred(name, config) else texts[name])))
    return result


def read_rows(config: PrepareConfig, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a list in order, with the columns and types of `types`."""
    how = detect_dialect(config)
    texts = {name: pa.string() for name in types}
    with _describe(config, how), _open_list(config, how, texts, only=True) as reader:
        for batch in reader:
            columns = [_cast(batch[name], kind, name, config) for name, kind in types.items()]
            yield pa.RecordBatch.from_arrays(columns, names=list(types))


def _is_wanted(name: str, config: PrepareConfig) -> bool:
    return config.columns is None or name in (config.path, *config.columns)


def _is_inferred(name: str, config: PrepareConfig) -> bool:
    return _is_wanted(name, config) and name not in (config.path, *SPLIT_COLUMNS) and name not in config.types


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _keeps(texts: pa.Array, kind: pa.DataType) -> bool:
    """Return whether each text survives a round trip through a type; `nan`, `inf` and `-0` do not."""
    try:
        values = pc.cast(texts, kind)
    except pa.ArrowInvalid:
        return False
    if pa.types.is_floating(kind):
        finite = pc.all(pc.is_finite(values)).as_py()
        if not finite or pc.any(pc.equal(texts, "-0")).as_py():  # -0 equals 0
            return False
    return bool(pc.cast(values, pa.string()).equals(texts))


def _cast(texts: pa.Array, kind: pa.DataType, name: str, config: PrepareConfig) -> pa.Array:
    if pa.types.is_null(kind):
        return pa.nulls(len(texts))
    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid as error:
        reason = str(error).partition(":")
        raise DataError(
            f"{config.root}: the column {name!r}: expected `types` to fit each value, got{reason[2] or reason[0]}. Set "
            f"another type for it, or `text`."
        ) from None


def _check_open_quote(batch: pa.RecordBatch, at: int, config: PrepareConfig, how: Dialect) -> None:
    """Raise DataError where a value contains rows of the list, because its quote is not closed."""
    several = pc.fill_null(pc.match_substring(batch.column(at), "\n"), fill_value=False)
    path_at = batch.schema.get_field_index(config.path)
    if path_at < 0 or not pc.any(several).as_py():
        return
    for row in pc.indices_nonzero(several).to_pylist():
        value, path = batch.column(at)[row].as_py(), batch.column(path_at)[row].as_py() or ""
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        suffix = PurePosixPath(path.splitlines()[0] if path else "").suffix
        for line in _parse(text.splitlines()[1:], how.delimiter):
            if len(line) == batch.num_columns and suffix and PurePosixPath(line[path_at]).suffix == suffix:
                raise DataError(
                    f"{config.root}: the value of {batch.schema.names[at]!r} in the row of {path!r} continues over "
                    f"further rows, the first with {line[path_at]!r}. Close its quote, or write a quote inside a value "
                    'as two: "".'
                )


def _parse(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the parsed rows, up to the first that Python's `csv` refuses: a row with a value above 128 KiB."""
    with contextlib.suppress(csv.Error):
        yield from csv.reader(lines, delimiter=delimiter)


@contextmanager
def _open_list(
    config: PrepareConfig, how: Dialect, types: Mapping[str, pa.DataType], *, only: bool = False
) -> Iterator[Any]:
    file: BinaryIO
    with filesystem.open_file(config.root) as file:
        # An empty cell is a missing value, in a text column too. Words such as NA are texts like any other.
        convert_options = pyarrow.csv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types) if only else [],
            null_values=[""],
            strings_can_be_null=True,
        )
        # In one thread: with several, Arrow does not say which line is wrong.
        read_options = pyarrow.csv.ReadOptions(
            use_threads=False, block_size=BLOCK, encoding=how.encoding, skip_rows=how.skipped
        )
        parse_options = pyarrow.csv.ParseOptions(delimiter=how.delimiter, newlines_in_values=True)
        with pyarrow.csv.open_csv(
            file, read_options=read_options, parse_options=parse_options, convert_options=convert_options
        ) as reader:
            yield reader


@contextmanager
def _describe(config: PrepareConfig, how: Dialect) -> Iterator[None]:
    """Translate Arrow's errors in the block into a DataError with the cause and the remedy."""
    suffix = PurePosixPath(config.root).suffix
    try:
        yield
    except UnicodeError as error:
        hint = "`encoding: cp1252` where Windows wrote it" if how.encoding == "utf-8" else "another `encoding`"
        raise DataError(f"{config.root}: not {how.encoding}: {error}. Set {hint}, or save the list as UTF-8.") from None
    except pa.ArrowInvalid as error:
        reason = str(error)
        if "invalid UTF8" in reason:
            raise DataError(
                f"{config.root}: not UTF-8: {reason}. Set `encoding: cp1252` where Windows wrote it, or another "
                "encoding, or save the list as UTF-8."
            ) from None
        if "straddl" in reason:
            raise DataError(
                f"{config.root}: a row of more than {BLOCK:,} bytes. Close the quote that is open there, or leave such "
                "values out of the list."
            ) from None
        raise DataError(f"{config.root}: not a {suffix} list: {reason}.") from None
