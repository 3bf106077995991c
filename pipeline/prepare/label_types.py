"""The label columns of archives and their types, which only the values show: queried from the database of samples."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError, unknown
from pipeline.manifest import label_column
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.labels import given_types

MAX_COLUMNS = 1000
"""The most label columns; with more, the setting `columns` has to choose."""

EXACT = 2**53
"""The largest integer below which float64 represents every integer."""

_TYPES = {
    frozenset({"integer"}): pa.int64(),
    frozenset({"real"}): pa.float64(),
    frozenset({"integer", "real"}): pa.float64(),
    frozenset({"true"}): pa.bool_(),
    frozenset({"false"}): pa.bool_(),
    frozenset({"true", "false"}): pa.bool_(),
    frozenset({"array"}): pa.list_(pa.string()),
}


@dataclass(frozen=True)
class Kinds:
    """The JSON types of a label column's values, and its smallest and largest integer."""

    types: frozenset[str]
    low: int
    high: int

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that represents every value exactly; text where there is none."""
        exact = self.low >= -EXACT and self.high <= EXACT
        return pa.string() if len(self.types) > 1 and not exact else _TYPES.get(self.types, pa.string())


def types(database: sqlite3.Connection, config: PrepareConfig) -> dict[str, pa.DataType]:
    """Return the label columns of the included samples with their types, `label` first; mixed columns are text.

    The setting `types` overrides a type. Raises DataError where no sample has a column that `types` names.
    """
    kinds = _kinds(database)
    given = {label_column(name): kind for name, kind in given_types(config).items()}
    _refuse_unknown(config.types, kinds, config)
    return {
        name: (pa.list_(given[name]) if kind.types == {"array"} else given[name]) if name in given else kind.arrow
        for name, kind in kinds.items()
    }


def describe_mixed_types(database: sqlite3.Connection, config: PrepareConfig) -> list[str]:
    """Return a sentence for each label column that is read as text because it mixes texts with other types."""
    odd = {"text", "array", "object"}
    return [
        f"{config.root}: the values of {name!r} are of several types ({', '.join(sorted(kind.types))}): all are read "
        "as texts, so that the number 7 and the text '7' are the same label."
        for name, kind in _kinds(database).items()
        if kind.types & odd and len(kind.types) > 1 and name not in map(label_column, config.types)
    ]


def check_columns(database: sqlite3.Connection, config: PrepareConfig) -> None:
    """Raise DataError where no sample has a column that the settings name, or where there are too many columns."""
    kinds = _kinds(database)
    _refuse_unknown(config.columns or (), kinds, config)
    if len(kinds) > MAX_COLUMNS:
        raise DataError(
            f"{config.root}: expected at most {MAX_COLUMNS:,} label columns, got {len(kinds):,}. Choose some with "
            "`columns`."
        )


def json_readers(schema: pa.Schema) -> dict[str, Callable[[Any], Any]]:
    """Return a function per column that converts a JSON value to the column's type or raises DataError."""
    return {field.name: _reader(field.type, field.name) for field in schema}


def _reader(kind: pa.DataType, name: str) -> Callable[[Any], Any]:
    if pa.types.is_list(kind):
        inner = _reader(kind.value_type, name)
        return lambda value: None if value is None else [inner(item) for item in value]
    reads = _READS.get(kind)

    def read(value: Any) -> Any:
        if value is None or reads is None:
            return value
        try:
            return reads(value)
        except (ValueError, TypeError, LookupError):
            raise DataError(
                f"the label {name!r}: expected {kind}, got {value!r}. Set another type in `types`."
            ) from None

    return read


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(value)
    return number


def _as_boolean(value: Any) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[_as_text(value).lower()]


_READS: Mapping[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _as_text,
    pa.int64(): _as_integer,
    pa.float64(): float,
    pa.bool_(): _as_boolean,
}
"""How a JSON value is converted, by the type of its column."""


def _refuse_unknown(names: Any, kinds: Mapping[str, Kinds], config: PrepareConfig) -> None:
    for name in names:
        if label_column(name) not in kinds:
            raise DataError(f"{config.root}: {unknown('column', name, kinds)} None of the .json members has it.")


def _kinds(database: sqlite3.Connection) -> dict[str, Kinds]:
    """Return the JSON types of each label column, `label` first, then by name."""
    query = """
        SELECT item.key, item.type, min(item.atom), max(item.atom) FROM files, json_each(files.labels) AS item
        WHERE files.kind IS NULL GROUP BY item.key, item.type ORDER BY item.key != 'label', item.key
    """
    ranges: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name, kind, low, high in database.execute(query):
        ranges.setdefault(name, {})[kind] = (low, high)
    return {name: Kinds(frozenset(kinds), *kinds.get("integer", (0, 0))) for name, kinds in ranges.items()}
