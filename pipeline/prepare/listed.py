"""Lists of files: a CSV or Parquet file with a column of paths and columns of labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import DataError, bullets, unknown
from pipeline.manifest import FIXED
from pipeline.prepare import PLACES, Found, PrepareConfig
from pipeline.sources import PARQUET, files


def find(config: PrepareConfig) -> Iterator[Found]:
    """The files of a list in its order, unopened; raises DataError where a row has no path."""
    base = config.base or files.parent(config.root)
    types = label_types(config)
    for batch in _list_batches(config):
        paths = pc.cast(batch[config.path], pa.string()).to_pylist()
        for path, (labels, place) in zip(paths, said(batch, types), strict=True):
            if not path:
                raise DataError(f"{config.root}: a row without a value in {config.path!r}, the column of paths.")
            yield Found(files.join(base, path), labels, place)


def said(batch: pa.RecordBatch, types: dict[str, pa.DataType]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Labels and place of each row of a batch, of the columns in `types`, as JSON can have them."""
    fields = [(name, pa.string() if name in PLACES else json_type(kind)) for name, kind in types.items()]
    columns = {name: pc.cast(batch[name], kind).to_pylist() for name, kind in fields}
    for row in range(len(batch)):
        labels = {name: values[row] for name, values in columns.items()}
        place = {name: labels.pop(name) for name in PLACES if labels.get(name) is not None}
        yield labels, place


def _list_batches(config: PrepareConfig) -> Iterator[pa.RecordBatch]:
    try:
        with files.opened(config.root) as file:
            if is_parquet(config.root):
                with pq.ParquetFile(file) as table:
                    yield from table.iter_batches()
            else:
                with _open_csv(config, file) as reader:
                    yield from reader
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{config.root}: {error}. The first rows of a CSV list say which type a column has; where a later row does "
            "not fit, write the list as Parquet."
        ) from None


def is_parquet(root: str) -> bool:
    """Whether a list is Parquet, and not CSV."""
    return PurePosixPath(root).suffix.lower() == PARQUET


def _open_csv(config: PrepareConfig, file: Any) -> Any:
    # Nothing between two commas is no value, also of a text; the word NA, for one, is a text like any other.
    options = pyarrow.csv.ConvertOptions(
        column_types={config.path: pa.string()}, null_values=[""], strings_can_be_null=True
    )
    # In one thread: several would not say in which line something is wrong.
    reading = pyarrow.csv.ReadOptions(use_threads=False)
    return pyarrow.csv.open_csv(file, read_options=reading, convert_options=options)


def label_types(config: PrepareConfig) -> dict[str, pa.DataType]:
    """The label columns that the manifest of a list will have, with their types; raises DataError for odd ones."""
    found = labels_in(_list_schema(config), config, needed=(config.path,))
    binary = "not UTF-8" if not is_parquet(config.root) else "binary"
    refuse_odd(found, where=config.root, binary=binary)
    return found


def labels_in(schema: pa.Schema, config: PrepareConfig, *, needed: Sequence[str]) -> dict[str, pa.DataType]:
    """The label columns of a schema with their types: all, or those of the settings, without the needed ones.

    Raises DataError where a column is missing, or there twice.
    """
    problems = [f"there are two columns {name!r}" for name, times in Counter(schema.names).items() if times > 1]
    problems += [
        f"{unknown('column', name, schema.names)}"
        for name in [*needed, *(config.columns or ())]
        if name not in schema.names
    ]
    if problems:
        raise DataError(bullets(f"{config.root}: the list's columns are not as expected", problems))
    wanted = config.columns if config.columns is not None else schema.names
    return {name: _value_type(schema.field(name).type) for name in wanted if name not in (*needed, *FIXED)}


def refuse_odd(types: dict[str, pa.DataType], *, where: str, binary: str = "binary") -> None:
    """Raise DataError where a column can be no label."""
    odd = [f"{name}: {binary if pa.types.is_binary(t) else t}" for name, t in types.items() if not _is_label(t)]
    if odd:
        title = (
            f"{where}: expected texts, numbers, times or truth values, or lists of texts or whole numbers; leave other "
            "columns out with `columns`"
        )
        raise DataError(bullets(title, odd))


def _list_schema(config: PrepareConfig) -> pa.Schema:
    try:
        with files.opened(config.root) as file:
            if is_parquet(config.root):
                return pq.read_schema(file)
            with _open_csv(config, file) as reader:
                return reader.schema
    except pa.ArrowInvalid as error:
        raise DataError(f"{config.root}: not a {PurePosixPath(config.root).suffix} list: {error}.") from None


def _value_type(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(_value_type(kind.value_type))
    return kind.value_type if t.is_dictionary(kind) else kind


def _is_label(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_list(kind):  # several labels; a list of floats is a vector
        inner = kind.value_type
        return any(test(inner) for test in (t.is_string, t.is_large_string, t.is_integer, t.is_boolean, t.is_null))
    plain = (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_null)
    return any(test(kind) for test in plain) or json_type(kind) != kind


def json_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a label goes through the database: a time, which JSON does not have, is a number there."""
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_decimal(kind) else kind
