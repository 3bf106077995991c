"""The table of files: which path, class and split each row of stored features has.

`icecore extract` and `icecore.Backbone.embed` write `files.parquet` beside the features folders of their taps. Features
of a project have no such table: the rows of several data sets and tasks share them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError, StoreError, unknown
from pipeline.files import check_readable
from pipeline.manifest import label_column, labels_in
from pipeline.store import key_arrays

NAME = "files.parquet"


def find_table(folder: Path) -> Path | None:
    """Return the table of files of a features folder; None where there is none."""
    places = (folder.parent / NAME, folder.resolve().parent / NAME)
    return next((path for path in places if path.is_file()), None)


def read_columns(folder: Path, keys: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
    """Return `path` and the label columns of some keys S16, a row per key in their order; only `names`, if given.

    Raises StoreError where the features folder has no table of files, or the table lacks one of the keys, and DataError
    where it lacks a column.
    """
    path = find_table(folder)
    if path is None:
        raise StoreError(
            f"{folder}: expected the table of files `{NAME}` in {folder.parent}, which `icecore extract` and "
            "`Backbone.embed` write there, got none. Features of a project have the paths and targets of their rows in "
            "data/tasks/TASK.parquet, which `pipeline.task.Task.read` reads."
        )
    check_readable(path)
    from pyarrow import parquet

    whole = parquet.read_table(path)
    labels = labels_in(whole)
    named = {label_column(name) if name == "path" else name: labels[name] for name in labels.column_names}
    table = pa.table({"path": whole["path"], **named})
    for name in names or ():
        if name in table.column_names:
            continue
        if table.column_names == ["path"] and len(table):
            parent, _, _ = table["path"][0].as_py().rpartition("/")
            raise DataError(
                f"{parent}: expected images in class folders, or a list with labels, got paths only: no {name!r} is "
                "known. Give `evaluate` its `labels`, a value per row."
            )
        raise DataError(f"{path}: {unknown('column', name, table.column_names)}")
    own = key_arrays.from_arrow(whole["key"].combine_chunks())
    order = np.argsort(own)
    places = key_arrays.find(own[order], keys)
    if (places < 0).any():
        missing = key_arrays.to_hex(keys[places < 0])
        raise StoreError(
            f"{path}: expected a file for each of the {len(keys):,} rows, got none for {len(missing):,}, the first is "
            f"{missing[0]}. Other images were embedded into this folder since: embed these again."
        )
    return table.select(list(names or table.column_names)).take(pa.array(order[places]))
