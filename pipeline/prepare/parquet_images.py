"""Parquet files with a column of image bytes: one sample per row, with the other columns as labels."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.errors import DataError, bullets
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.labels import Note, check_label_types, merge_places, row_labels, select_label_columns
from pipeline.prepare.roots import Root
from pipeline.sources import parquet


def find(config: PrepareConfig, root: Root, *, labelled: bool = True) -> Iterator[FoundSample]:
    """Yield the rows of Parquet files in order, without reading the column of images.

    labelled: whether the folders of the files are read as splits.

    For a file that cannot be read to its end, the last sample has the reason. Raises DataError as `label_types` does.
    """
    column = str(config.image)
    types = label_types(config, [root])
    for shard in root.shards:
        name, row = parquet.container(shard.path, column), 0
        place = root.place(shard) if labelled else {}
        try:
            with parquet.open_parquet(shard.path) as file:
                if types:
                    for batch in file.iter_batches(columns=list(types)):
                        for labels, own in row_labels(batch, types, where=shard.path):
                            both, refused = merge_places(place, own)
                            yield FoundSample(f"{shard.path}/{row}", labels, both, refused, name, row)
                            row += 1
                else:
                    for row in range(file.metadata.num_rows):
                        yield FoundSample(f"{shard.path}/{row}", {}, place, container=name, offset=row)
        except (OSError, pa.ArrowException) as error:
            yield FoundSample(shard.path, refused=("unreadable", _reason(error, row=row)))
    yield from root.other_files()


def label_types(config: PrepareConfig, roots: Sequence[Root], note: Note = lambda _: None) -> dict[str, pa.DataType]:
    """Return the label columns with their types, which all files share. Files that cannot be opened are skipped.

    Raises DataError where files differ, where the column of image bytes is missing or of another type, or where a label
    column has a type that no label can have.
    """
    column = str(config.image)
    first: tuple[str, dict[str, pa.DataType]] | None = None
    for path in (shard.path for root in roots for shard in root.shards):
        try:
            with parquet.open_parquet(path) as file:
                schema = file.schema_arrow
        except (OSError, pa.ArrowException):
            continue  # `find` yields the reason
        where = config.model_copy(update={"root": path})
        types = select_label_columns(schema, where, needed=(column,), note=note if first is None else lambda _: None)
        if not parquet.holds_bytes(schema.field(column).type):
            kind = schema.field(column).type
            raise DataError(f"{path}: expected {column!r} to be binary, or a struct with `bytes` in it, got {kind}.")
        check_label_types(types, where=path)
        if first is None:
            first = (path, types)
        elif types != first[1]:
            differ = sorted(name for name in {*types, *first[1]} if types.get(name) != first[1].get(name))
            lines = [f"{name}: {first[1].get(name, 'not there')} and {types.get(name, 'not there')}" for name in differ]
            title = (
                f"{path}: expected the label columns of {first[0]}. Set one type for a column with `types`, or leave "
                "columns out with `columns`"
            )
            raise DataError(bullets(title, lines))
    return first[1] if first is not None else {}


def _reason(error: BaseException, *, row: int) -> str:
    """Return why a file cannot be read further: the system's message for missing permission, else damage."""
    if isinstance(error, PermissionError) and error.strerror:
        return error.strerror
    short = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"damaged Parquet file, from row {row} on: {short}"
