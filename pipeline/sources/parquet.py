"""Parquet files with a column of bytes: plain binary, or the struct of `bytes` and `path` of Hugging Face data sets."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources import LIMIT, PARQUET, UNKNOWN, SampleLocation, filesystem

BATCH_BYTES = 8 * 2**20
BATCH_ROWS = 1024


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Yield an open Parquet file, local or behind a URL; raises OSError, and Arrow's error for a damaged footer."""
    with filesystem.open_file(path) as file, pq.ParquetFile(file, buffer_size=BATCH_BYTES, pre_buffer=False) as table:
        yield table


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes: it is binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and holds_bytes(kind.field(at).type) and not pa.types.is_struct(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def container(path: str, column: str) -> str:
    """Return the container's name for a Parquet file and its column of bytes."""
    return f"{path}#{column}"


def file_of(container: str) -> str:
    """Return the path of the file of a container."""
    return _split_container(container)[0]


def _split_container(container: str) -> tuple[str, str]:
    """Split a container's name into path and column. Folders of the path may have `.parquet#` in their names too."""
    *_, name = re.finditer(re.escape(PARQUET) + "(?=#)", container, re.IGNORECASE | re.ASCII)
    return container[: name.end()], container[name.end() + 1 :]


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Yield the bytes of rows, by ascending row number; see `pipeline.sources.read_many`.

    Only row groups with requested rows are read, and of these only the column of bytes, a few megabytes at a time or
    one page where a page is larger: writers make pages of up to 1,024 rows.
    """
    path, column = _split_container(container)
    done = 0
    try:
        with open_parquet(path) as file:
            for data in _read_rows(file, column, places):
                yield data
                done += 1
    except (OSError, pa.ArrowException) as error:
        for place in places[done:]:
            yield OSError(getattr(error, "errno", None) or errno.EIO, _reason(error), place.path)


def _read_rows(file: pq.ParquetFile, column: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    schema = file.schema_arrow
    at = schema.get_field_index(column)
    if at < 0 or not holds_bytes(schema.field(at).type):
        for place in places:
            yield OSError(errno.EIO, f"the file has no column {column!r} of bytes any more", place.path)
        return
    leaf = f"{column}.bytes" if pa.types.is_struct(schema.field(at).type) else column
    first, next_place = 0, 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        stop = next_place
        while stop < len(places) and (places[stop].offset or 0) < end:
            stop += 1
        if stop > next_place:
            yield from _read_group(file, group, first, column, leaf, places[next_place:stop])
        first, next_place = end, stop
    for place in places[next_place:]:
        yield OSError(errno.EIO, f"the file has {first:,} rows: it was changed", place.path)


def _read_group(
    file: pq.ParquetFile, group: int, first: int, name: str, leaf: str, places: Sequence[SampleLocation]
) -> Iterator[bytes | OSError]:
    done = 0
    try:
        batches = file.iter_batches(_batch_rows(file, group, leaf), row_groups=[group], columns=[leaf])
        for batch in batches:
            column = batch[name]
            values = column.flatten()[0] if pa.types.is_struct(column.type) else column  # a null struct gives null
            while done < len(places) and (places[done].offset or 0) < first + len(batch):
                yield _to_bytes(values[(places[done].offset or 0) - first], places[done])
                done += 1
            first += len(batch)
            if done == len(places):
                return
        reason = "its row group ends before this row"
    except (OSError, pa.ArrowException) as error:
        reason = _reason(error)
    for place in places[done:]:
        yield OSError(errno.EIO, reason, place.path)


def _batch_rows(file: pq.ParquetFile, group: int, leaf: str) -> int:
    """Return the rows of a batch of a few megabytes, at most BATCH_ROWS whatever sizes the file's metadata claim."""
    metadata = file.metadata.row_group(group)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    column_bytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == leaf)
    rows: int = BATCH_BYTES * max(1, metadata.num_rows) // max(1, column_bytes)
    return max(1, min(BATCH_ROWS, rows))


def _to_bytes(value: pa.Scalar, place: SampleLocation) -> bytes | OSError:
    if not value.is_valid:
        return OSError(errno.ENODATA, "no bytes: the column is null in this row", place.path)
    data: bytes = value.as_py()
    if place.size not in (UNKNOWN, len(data)) or len(data) > LIMIT:
        expected = f"expected {place.size:,} bytes" if place.size != UNKNOWN else f"expected at most {LIMIT:,} bytes"
        return OSError(errno.EIO, f"{expected}, got {len(data):,}", place.path)
    return data


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
