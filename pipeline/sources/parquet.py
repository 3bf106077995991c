"""Parquet files with a column of bytes: plain binary, or the struct of `bytes` and `path` that Hugging Face writes."""

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
    """Yield a Parquet file, local or behind a URL; raises OSError, and of Arrow's errors those for a damaged footer."""
    with filesystem.open_file(path) as file, pq.ParquetFile(file, buffer_size=BATCH_BYTES, pre_buffer=False) as table:
        yield table


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type has the bytes of samples: binary, or a struct with a field `bytes` of
    binary.
    """
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and holds_bytes(kind.field(at).type) and not pa.types.is_struct(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def container(path: str, column: str) -> str:
    """Return the name of a Parquet file and its column of bytes as one container."""
    return f"{path}#{column}"


def _parts(container: str) -> tuple[str, str]:
    """Return the path of a file and its column: the folders of the path may have `.parquet#` in their names too."""
    *_, name = re.finditer(re.escape(PARQUET) + "(?=#)", container, re.IGNORECASE | re.ASCII)
    return container[: name.end()], container[name.end() + 1 :]


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Yield the bytes of some rows, by ascending numbers; see `pipeline.sources.read_many`.

    Only the row groups that hold them are read, of these only the column of bytes, and of that a few megabytes at once,
    or a page where that is more: writers make pages of up to 1,024 rows.
    """
    path, column = _parts(container)
    done = 0
    try:
        with open_parquet(path) as file:
            for answer in _answers(file, column, places):
                yield answer
                done += 1
    except (OSError, pa.ArrowException) as error:
        for place in places[done:]:
            yield OSError(getattr(error, "errno", None) or errno.EIO, _reason(error), place.path)


def _answers(file: pq.ParquetFile, column: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    schema = file.schema_arrow
    at = schema.get_field_index(column)
    if at < 0 or not holds_bytes(schema.field(at).type):
        for place in places:
            yield OSError(errno.EIO, f"there is no column {column!r} of bytes in it any more", place.path)
        return
    leaf = f"{column}.bytes" if pa.types.is_struct(schema.field(at).type) else column
    first, next_place = 0, 0
    for group in range(file.metadata.num_row_groups):
        behind = first + file.metadata.row_group(group).num_rows
        stop = next_place
        while stop < len(places) and (places[stop].offset or 0) < behind:
            stop += 1
        if stop > next_place:
            yield from _of_group(file, group, first, column, leaf, places[next_place:stop])
        first, next_place = behind, stop
    for place in places[next_place:]:
        yield OSError(errno.EIO, f"the file has {first:,} rows: it was changed", place.path)


def _of_group(
    file: pq.ParquetFile, group: int, first: int, name: str, leaf: str, places: Sequence[SampleLocation]
) -> Iterator[bytes | OSError]:
    done = 0
    try:
        batches = file.iter_batches(_batch_rows(file, group, leaf), row_groups=[group], columns=[leaf])
        for batch in batches:
            column = batch[name]
            values = column.flatten()[0] if pa.types.is_struct(column.type) else column  # null where the struct is
            while done < len(places) and (places[done].offset or 0) < first + len(batch):
                yield _checked(values[(places[done].offset or 0) - first], places[done])
                done += 1
            first += len(batch)
            if done == len(places):
                return
        reason = "its row group ends before it"
    except (OSError, pa.ArrowException) as error:
        reason = _reason(error)
    for place in places[done:]:
        yield OSError(errno.EIO, reason, place.path)


def _batch_rows(file: pq.ParquetFile, group: int, leaf: str) -> int:
    """Return rows of a batch of a few megabytes; what the file says of itself is not believed beyond BATCH_ROWS."""
    about = file.metadata.row_group(group)
    columns = [about.column(number) for number in range(about.num_columns)]
    bytes_there = sum(one.total_uncompressed_size for one in columns if one.path_in_schema == leaf)
    rows: int = BATCH_BYTES * max(1, about.num_rows) // max(1, bytes_there)
    return max(1, min(BATCH_ROWS, rows))


def _checked(value: pa.Scalar, place: SampleLocation) -> bytes | OSError:
    if not value.is_valid:
        return OSError(errno.ENODATA, "no bytes: the column is null there", place.path)
    data: bytes = value.as_py()
    if place.size not in (UNKNOWN, len(data)) or len(data) > LIMIT:
        expected = f"expected {place.size:,} bytes" if place.size != UNKNOWN else f"expected at most {LIMIT:,} bytes"
        return OSError(errno.EIO, f"{expected}, got {len(data):,}", place.path)
    return data


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
