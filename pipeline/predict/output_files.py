"""Write tables of predictions block by block: Parquet, CSV, JSON lines, or a table on the terminal.

A file appears under its name only after the last block is written.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.files import AnyPath, as_path, publish, remove_stale, scratch

Write = Callable[[pa.Table], None]
"""A function that takes a block of rows."""

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".parquet", ".csv", *JSON_LINES)
JOINT = "; "  # separates labels in a cell


def check_suffix(out: AnyPath) -> Path:
    """Return the output path; raises ConfigError for an unknown format and for a folder."""
    path = as_path(out, "predict: out")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = " JSON lines end with .jsonl." if suffix == ".json" else ""
        raise ConfigError(
            f"{path}: expected a file that ends with {', '.join(SUFFIXES)}, got {suffix or 'none'}.{hint}"
        )
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file to write, got a folder.")
    return path


@contextmanager
def open_writer(out: Path, schema: pa.Schema) -> Iterator[Write]:
    """Yield a function that writes blocks to a file, in the format of its suffix. The file appears on success."""
    if out.parent.is_dir():
        remove_stale(out.parent)
    with scratch(out.parent, out.name) as temporary:
        with _WRITERS[out.suffix.lower()](temporary, schema) as write:
            yield write
        publish(temporary, out)


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema) as file:
        yield file.write_table


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.names)

        def write(table: pa.Table) -> None:
            columns = [
                [JOINT.join(cell) if isinstance(cell, list) else cell for cell in _to_python(column)]
                for column in table.columns
            ]
            writer.writerows(zip(*columns, strict=True))

        yield write


@contextmanager
def _json_lines(path: Path, schema: pa.Schema) -> Iterator[Write]:  # noqa: ARG001 - each line repeats the names
    with path.open("w", encoding="utf-8") as file:
        yield lambda table: file.writelines(f"{line}\n" for line in json_lines(table))


_WRITERS: Mapping[str, Any] = {".parquet": _parquet, ".csv": _csv, **dict.fromkeys(JSON_LINES, _json_lines)}


def json_lines(table: pa.Table) -> Iterator[str]:
    """Yield each row as a line of JSON, without nulls."""
    columns = [_to_python(column) for column in table.columns]
    for row in zip(*columns, strict=True):
        values = {name: cell for name, cell in zip(table.column_names, row, strict=True) if cell is not None}
        yield json.dumps(values, ensure_ascii=False)


class TextTable:
    """Rows for the terminal. The first block sets the widths of the columns; an error replaces the cells of its row."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = [name for name in schema.names if name != "error"]
        self._widths: list[int] = []

    def lines(self, table: pa.Table) -> Iterator[str]:
        """Yield the lines of a block; the first block begins with the header."""
        columns = [[_format(cell, table[name].type) for cell in table[name].to_pylist()] for name in self._names]
        errors = table["error"].to_pylist()
        if not self._widths:
            self._widths = [max(map(len, [name, *cells])) for name, cells in zip(self._names, columns, strict=True)]
            yield self._line(self._names)
            yield "  ".join("─" * width for width in self._widths)
        for error, cells in zip(errors, zip(*columns, strict=True), strict=True):
            yield self._line(cells) if error is None else self._line([cells[0], f"error: {error}"])

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=False)).rstrip()


def _format(cell: Any, kind: pa.DataType) -> str:
    """Format a cell for the terminal; scores, which are float32, with three digits."""
    if cell is None:
        return ""
    if isinstance(cell, list):
        return JOINT.join(cell) or "none"
    if isinstance(cell, float):
        return f"{cell:.3f}" if kind == pa.float32() else f"{cell:.4g}"
    return str(cell)


def _to_python(column: pa.ChunkedArray) -> list[Any]:
    """Return a column as Python values; a float32 as the shortest number that rounds to the same float32."""
    values: list[Any] = column.to_pylist()
    if column.type != pa.float32():
        return values
    return [None if value is None else float(str(np.float32(value))) for value in values]
