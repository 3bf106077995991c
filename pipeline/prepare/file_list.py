"""Lists of files: a CSV or Parquet file with a column of paths and columns of labels."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.prepare import delimited_text
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.labels import Note, check_label_types, row_labels, select_label_columns
from pipeline.sources import PARQUET, filesystem
from pipeline.text import normalise_lookalikes, quote_alike


def find(config: PrepareConfig, types: dict[str, pa.DataType] | None = None) -> Iterator[FoundSample]:
    """Yield the samples of a list in its order, without opening them. Raises DataError for a row without a path.

    types: the result of `label_types`, if the caller has it.
    """
    base = config.base or filesystem.parent(config.root)
    types = label_types(config) if types is None else types
    for batch in _batches(config, types):
        try:
            paths = pc.cast(batch[config.path], pa.string()).to_pylist()
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DataError(
                f"{config.root}: {config.path!r}, the column of paths: expected text, got: {error}."
            ) from None
        for path, (labels, place) in zip(paths, row_labels(batch, types, where=config.root), strict=True):
            if not path:
                raise DataError(f"{config.root}: a row without a value in {config.path!r}, the column of paths.")
            yield FoundSample(filesystem.join(base, path), labels, place)


def explain_missing(path: str) -> str | None:
    """Return how to correct the path of a missing file, if the file exists under a similar path; else None."""
    here = filesystem.local(path)
    if here is None:
        return None
    slashed = Path(str(here).replace("\\", "/"))
    if slashed != here and slashed.exists():
        return "The list has backslashes between folders, as Windows writes them. Write / in their place."
    while not here.parent.is_dir():
        here = here.parent
    wanted = normalise_lookalikes(here.name).casefold()
    there = [entry.name for entry in here.parent.iterdir()]
    names = [name for name in there if normalise_lookalikes(name).casefold() == wanted]
    if not names or here.name in names:
        return None
    return f"{here.parent} has {quote_alike(sorted(names))}, the list has {here.name!a}. Write it as the folder does."


def label_types(config: PrepareConfig, note: Note = lambda _: None) -> dict[str, pa.DataType]:
    """Return the label columns of a list with their types; raises DataError for a type that no label can have."""
    schema = _parquet_schema(config) if _is_parquet(config.root) else pa.schema(delimited_text.read_types(config))
    images = [field.name for field in schema if _is_parquet(config.root) and _holds_images(field.type)]
    if images and config.path not in schema.names:
        raise DataError(
            f"{config.root}: expected a column of paths, {config.path!r}, or `image: {images[0]}` for the images in it."
        )
    result = select_label_columns(schema, config, needed=(config.path,), note=note)
    check_label_types(result, where=config.root)
    return result


def _batches(config: PrepareConfig, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a list, with the column of paths and the label columns."""
    if not _is_parquet(config.root):
        yield from delimited_text.read_rows(config, {config.path: pa.string(), **types})
        return
    try:
        with filesystem.open_file(config.root) as file, pq.ParquetFile(file) as table:
            yield from table.iter_batches(columns=[config.path, *types])
    except pa.ArrowInvalid as error:
        raise DataError(f"{config.root}: damaged: {error}. Write the list again.") from None


def _is_parquet(root: str) -> bool:
    return PurePosixPath(root).suffix.lower() == PARQUET


def _parquet_schema(config: PrepareConfig) -> pa.Schema:
    try:
        with filesystem.open_file(config.root) as file:
            return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{config.root}: not a {PurePosixPath(config.root).suffix} list: {error}.") from None


def _holds_images(kind: pa.DataType) -> bool:
    """Return whether a column may hold images: bytes, or a struct with `bytes`, as Hugging Face writes images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
