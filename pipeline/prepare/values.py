"""Label columns that only their values describe: which there are and of which types, looked up in the database."""

import json
import sqlite3
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError, unknown
from pipeline.prepare import PrepareConfig

MOST = 1000
"""Label columns above which the settings have to choose."""

_TYPES = {
    frozenset({"integer"}): pa.int64(),
    frozenset({"real"}): pa.float64(),
    frozenset({"integer", "real"}): pa.float64(),
    frozenset({"true"}): pa.bool_(),
    frozenset({"false"}): pa.bool_(),
    frozenset({"true", "false"}): pa.bool_(),
    frozenset({"array"}): pa.list_(pa.string()),
}


def types(database: sqlite3.Connection) -> dict[str, pa.DataType]:
    """The label columns of the files that are kept, `label` first: int64, double, bool, lists, or text where mixed."""
    return {name: _TYPES.get(kinds, pa.string()) for name, kinds in _kinds(database).items()}


def refuse_missing(database: sqlite3.Connection, config: PrepareConfig) -> None:
    """Raise DataError where no sample has a column that the settings name, and where there are too many columns."""
    there = _kinds(database)
    for name in config.columns or ():
        if name not in there:
            raise DataError(f"{config.root}: {unknown('column', name, there)} None of the .json members has it.")
    if len(there) > MOST:
        raise DataError(
            f"{config.root}: expected at most {MOST:,} label columns, got {len(there):,}. Choose some with `columns`."
        )


def fitting(labels: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """The labels of a row as the types of their columns have them: text where other rows have text."""
    found = dict(labels)
    for name, value in labels.items():
        if schema.field(name).type == pa.string():
            found[name] = _as_text(value)
        elif schema.field(name).type == pa.list_(pa.string()) and value is not None:
            found[name] = [_as_text(one) for one in value]
    return found


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kinds(database: sqlite3.Connection) -> dict[str, frozenset[str]]:
    """Which JSON types each label has, `label` first, then by name."""
    query = """
        SELECT DISTINCT one.key, one.type FROM files, json_each(files.labels) AS one
        WHERE files.kind IS NULL ORDER BY one.key != 'label', one.key
    """
    found: dict[str, set[str]] = {}
    for name, kind in database.execute(query):
        found.setdefault(name, set()).add(kind)
    return {name: frozenset(kinds) for name, kinds in found.items()}
