"""Lists of files: a CSV or Parquet file with a column of paths and columns of labels."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import DataError, bullets, unknown
from pipeline.manifest import FIXED
from pipeline.prepare import PLACES, Found, PrepareConfig


def find(config: PrepareConfig) -> Iterator[Found]:
    """The files of a list in its order, unopened; raises DataError where a row has no path."""
    base = config.base or config.root.parent
    types = label_types(config)
    texts = (config.path, *PLACES)
    names = (config.path, *types)
    schema = pa.schema([(name, pa.string() if name in texts else json_type(types[name])) for name in names])
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
    # In one thread: several would not say in which line something is wrong.
    reading = pyarrow.csv.ReadOptions(use_threads=False)
    return pyarrow.csv.open_csv(config.root, read_options=reading, convert_options=options)


def label_types(config: PrepareConfig) -> dict[str, pa.DataType]:
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
    return any(test(kind) for test in plain) or json_type(kind) != kind


def json_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a label goes through the database: a time, which JSON does not have, is a number there."""
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_decimal(kind) else kind
