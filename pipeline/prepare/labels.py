"""The label columns of a table, their types, and the labels, domain and split of each row.

The manifest has columns of its own: `key`, `path`, `size`, `container`, `offset`. A label column of the data with such
a name, say `size`, is stored as `data:size` (`pipeline.manifest.label_column`); settings call it `size`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets, unknown
from pipeline.manifest import label_column, split_of
from pipeline.prepare.config import SPLIT_COLUMNS, PrepareConfig

Note = Callable[[str], None]
"""A function that is called with a sentence about the data for the user."""

Refused = tuple[str, str] | tuple[None, None]
"""Kind and reason of an unusable sample."""

TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
"""The types that the setting `types` can name."""

NAMELESS = ("", "__index_level_0__")
"""The column names that pandas gives to an index without a name."""


def given_types(config: PrepareConfig) -> dict[str, pa.DataType]:
    """Return the types of label columns that the setting `types` gives."""
    return {name: TYPES[kind] for name, kind in config.types.items()}


def select_label_columns(
    schema: pa.Schema, config: PrepareConfig, *, needed: Sequence[str], note: Note = lambda _: None
) -> dict[str, pa.DataType]:
    """Return the label columns of a schema with their types: those that `columns` names, or all.

    needed: columns that must exist and are not labels, such as the column of paths.
    note: is called with a sentence where a column without a name is left out.

    Raises DataError where a column is missing or occurs twice.
    """
    chosen = config.columns if config.columns is not None else tuple(dict.fromkeys(schema.names))
    wanted = [name for name in chosen if name not in needed and (config.columns is not None or name not in NAMELESS)]
    counts = Counter(schema.names)
    problems = [f"there are two columns {name!r}" for name in dict.fromkeys([*needed, *wanted]) if counts[name] > 1]
    problems += [
        f"{unknown('column', name, schema.names)}"
        for name in dict.fromkeys([*needed, *(config.columns or ()), *config.types])
        if name not in counts
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


def check_label_types(types: dict[str, pa.DataType], *, where: str) -> None:
    """Raise DataError where a column has a type that no label can have."""
    odd = [f"{name}: {'binary' if pa.types.is_binary(t) else t}" for name, t in types.items() if not _is_label(t)]
    if odd:
        title = (
            f"{where}: expected texts, numbers, times or truth values, or lists of texts or whole numbers; leave other "
            "columns out with `columns`"
        )
        raise DataError(bullets(title, odd))


def row_labels(
    batch: pa.RecordBatch, types: dict[str, pa.DataType], *, where: str
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Yield the labels and the place (domain and split) of each row of a batch, as values that JSON can store.

    types: the label columns to read, with their types. Raises DataError where a value does not fit its type, or is no
    class of its column.
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
            column = _cast(column, pa.string() if name in SPLIT_COLUMNS else kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{where}: the column {name!r}: expected {kind} in each row, got: {error}.") from None
        columns[label_column(name)] = pc.cast(column, json_type(column.type)).to_pylist()
    for row in range(len(batch)):
        labels = {name: values[row] for name, values in columns.items()}
        place = {name: labels.pop(name) for name in SPLIT_COLUMNS if labels.get(name) is not None}
        yield labels, place


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names of Hugging Face `ClassLabel` columns, from the metadata `huggingface` of the schema.

    A name that several classes share gets the class number: `crane (134)`.
    """
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {name: _distinct(names) for name in features if (names := _names_in(features[name])) is not None}
    except (ValueError, KeyError, TypeError):
        return {}


def json_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a label while it is stored as JSON, which has no times: a time is an integer there."""
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_decimal(kind) else kind


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column cast to a type; raises ArrowInvalid where a value would change, such as 2 cast to a boolean."""
    result = pc.cast(column, kind)
    if (
        pa.types.is_boolean(kind)
        and pa.types.is_integer(column.type)
        and not pc.cast(result, column.type).equals(column)
    ):
        raise pa.ArrowInvalid("numbers other than 0 and 1")
    return result


def _names_in(feature: Any) -> list[str] | None:
    """Return the class names of a ClassLabel or of a sequence of ClassLabels, as any version of `datasets` writes
    them; None for other features.
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
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _with_names(column: pa.Array, names: list[str], *, where: str) -> pa.Array:
    """Replace class numbers by class names, inside lists too; -1 is a missing label."""
    if pa.types.is_floating(column.type):  # pandas stores integers with missing values as floats
        column = pc.if_else(pc.is_nan(column), None, column)
    elif not pa.types.is_integer(column.type):
        if not pa.types.is_nested(column.type):
            return column
        rows = [None if row is None else [_name(number, names, where) for number in row] for row in column.to_pylist()]
        return pa.array(rows, pa.list_(pa.string()))
    return pa.array([_name(number, names, where) for number in column.to_pylist()], pa.string())


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
    """Return the type of a label in the manifest: as `types` sets it; text where the column has class names."""
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
    """Return the logical type of a column, whatever layout Arrow stores it in."""
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


def merge_places(*sources: Mapping[str, str]) -> tuple[dict[str, str], Refused]:
    """Merge the places (domain and split) that a sample's folder and its row or .json name.

    Also return kind and reason of an error where two sources differ.
    """
    place: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            before = place.setdefault(name, value)
            if _canonical(before) != _canonical(value):
                reason = (
                    f"its {name} is both {before!r} and {value!r}, by its folders or its own label: correct one, or "
                    "leave the label out with `columns`"
                )
                return place, ("unreadable", reason)
            place[name] = value
    return place, (None, None)


def _canonical(value: str) -> str:
    return split_of(value) or value
