"""The label columns of a table: which there are, their types, and the labels of each row.

A column whose name the manifest has for itself (`size`, `key`, `path`, `container`, `offset`) is a label like any
other; its place in the manifest is `data:size` (`pipeline.manifest.label_column`), and settings call it `size`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets, unknown
from pipeline.manifest import label_column
from pipeline.prepare.config import PLACES, PrepareConfig

Note = Callable[[str], None]
"""Called with a sentence about the data that the user is to read."""

TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
"""The types that `types` of the settings can name."""

NAMELESS = ("", "__index_level_0__")
"""The names under which pandas writes an index that has none."""


def given_types(config: PrepareConfig) -> dict[str, pa.DataType]:
    """Return the types that the settings give to label columns."""
    return {name: TYPES[kind] for name, kind in config.types.items()}


def labels_in(
    schema: pa.Schema, config: PrepareConfig, *, needed: Sequence[str], note: Note = lambda _: None
) -> dict[str, pa.DataType]:
    """Return the label columns of a schema with their types: all, or those of the settings, without the needed ones.

    Columns without a name are left out, with a note, where the settings do not name columns. Raises DataError where a
    column is missing, or there twice.
    """
    chosen = config.columns if config.columns is not None else tuple(dict.fromkeys(schema.names))
    wanted = [name for name in chosen if name not in needed and (config.columns is not None or name not in NAMELESS)]
    times = Counter(schema.names)
    problems = [f"there are two columns {name!r}" for name in dict.fromkeys([*needed, *wanted]) if times[name] > 1]
    problems += [
        f"{unknown('column', name, schema.names)}"
        for name in dict.fromkeys([*needed, *(config.columns or ()), *config.types])
        if name not in times
    ]
    problems += [f"{name!r} is no label column: leave it out of `types`" for name in config.types if name in needed]
    clashes = [name for name in wanted if label_column(name) != name and label_column(name) in wanted]
    problems += [f"both {name!r} and {label_column(name)!r} would be {label_column(name)!r}" for name in clashes]
    if problems:
        raise DataError(bullets(f"{config.root}: the list's columns are not as expected", problems))
    if config.columns is None and any(name in NAMELESS for name in schema.names):
        note(f"{config.root}: a column without a name is left out (pandas writes one of row numbers: `index=False`).")
    named = class_names(schema)
    return {name: _label_type(schema.field(name), config, named) for name in wanted}


def refuse_odd(types: dict[str, pa.DataType], *, where: str) -> None:
    """Raise DataError where a column can be no label."""
    odd = [f"{name}: {'binary' if pa.types.is_binary(t) else t}" for name, t in types.items() if not _is_label(t)]
    if odd:
        title = (
            f"{where}: expected texts, numbers, times or truth values, or lists of texts or whole numbers; leave other "
            "columns out with `columns`"
        )
        raise DataError(bullets(title, odd))


def labels_of(
    batch: pa.RecordBatch, types: dict[str, pa.DataType], *, where: str
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Yield labels and place of each row of a batch, of the columns in `types`, as JSON can have them.

    Raises DataError where a value does not fit its type, or is no class of its column.
    """
    named = class_names(batch.schema)
    columns = {}
    for name, kind in types.items():
        column = batch[name]
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if name in named and _is_textual(kind):
            column = _with_names(column, named[name], where=f"{where}: the column {name!r}")
        try:
            column.validate(full=True)
            column = _cast(column, pa.string() if name in PLACES else kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{where}: the column {name!r}: expected {kind} in each row, got: {error}.") from None
        columns[label_column(name)] = pc.cast(column, json_type(column.type)).to_pylist()
    for row in range(len(batch)):
        labels = {name: values[row] for name, values in columns.items()}
        place = {name: labels.pop(name) for name in PLACES if labels.get(name) is not None}
        yield labels, place


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names of columns of numbers that Hugging Face's `ClassLabel` gives, by column.

    They stand in the metadata of the schema, under `huggingface`. A name that several classes have gets their numbers:
    `crane (134)`.
    """
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {name: _distinct(found) for name in features if (found := _names_in(features[name])) is not None}
    except (ValueError, KeyError, TypeError):
        return {}


def json_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a label goes through the database: a time, which JSON does not have, is a number
    there.
    """
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_decimal(kind) else kind


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column as a type; raises ArrowInvalid where a value would be another one, as 2 would be as a truth
    value.
    """
    result = pc.cast(column, kind)
    if (
        pa.types.is_boolean(kind)
        and pa.types.is_integer(column.type)
        and not pc.cast(result, column.type).equals(column)
    ):
        raise pa.ArrowInvalid("numbers other than 0 and 1")
    return result


def _names_in(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel, or of the one that a sequence is made of, in each way that `datasets` wrote
    these.
    """
    if isinstance(feature, list):
        return _names_in(feature[0]) if len(feature) == 1 else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return [str(name) for name in names] if isinstance(names, list) and names else None
    return _names_in(feature["feature"]) if "feature" in feature else None


def _distinct(names: list[str]) -> list[str]:
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _with_names(column: pa.Array, names: list[str], *, where: str) -> pa.Array:
    """Return class names in the place of numbers, in lists too; -1 is no label."""
    if pa.types.is_floating(column.type):  # pandas writes whole numbers so where some have no value
        column = pc.if_else(pc.is_nan(column), None, column)
    elif not pa.types.is_integer(column.type):
        if not pa.types.is_nested(column.type):
            return column
        rows = [None if row is None else [_name(one, names, where) for one in row] for row in column.to_pylist()]
        return pa.array(rows, pa.list_(pa.string()))
    return pa.array([_name(one, names, where) for one in column.to_pylist()], pa.string())


def _name(number: float | None, names: list[str], where: str) -> str | None:
    if number is None or number == -1:
        return None
    if number not in range(len(names)):
        raise DataError(
            f"{where}: expected numbers of its {len(names):,} classes, 0 to {len(names) - 1}, or -1 for none, got "
            f"{number}. Correct it, or keep the numbers with `types`: integer."
        )
    return names[int(number)]


def _label_type(field: pa.Field, config: PrepareConfig, named: dict[str, list[str]]) -> pa.DataType:
    """Return the type of a label in the manifest: the one that is set; text of what has class names."""
    kind = _value_type(field.type)
    if field.name in config.types:
        given = given_types(config)[field.name]
        return pa.list_(given) if pa.types.is_list(kind) else given
    if field.name in named:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return pa.string()
        if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
            return pa.list_(pa.string())
    return kind


def _value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, whatever Arrow lays them out as."""
    t = pa.types
    if any(
        test(kind) for test in (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    ):
        return pa.list_(_value_type(kind.value_type))
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _value_type(kind.value_type)
    return pa.string() if t.is_string_view(kind) else kind


def _is_textual(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind.value_type if pa.types.is_list(kind) else kind))


def _is_label(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_list(kind):  # several labels; a list of floats is a vector
        inner = kind.value_type
        return any(test(inner) for test in (t.is_string, t.is_large_string, t.is_integer, t.is_boolean, t.is_null))
    plain = (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_null)
    return any(test(kind) for test in plain) or json_type(kind) != kind
