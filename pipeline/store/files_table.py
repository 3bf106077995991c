"""The table of files: path, class and split of each row of features.

`icecore extract` and `icecore.Backbone.embed` write `files.parquet` next to the features folders of their taps.
Features of a project have no such table, since several data sets and tasks share their rows.
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
    """Return the path of the table of files of a features folder; None if there is none."""
    candidates = (folder.parent / NAME, folder.resolve().parent / NAME)
    return next((path for path in candidates if path.is_file()), None)


def read_columns(folder: Path, keys: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
    """Return `path` and the label columns, or the columns `names`, with a row per key S16 in their order.

    Raises StoreError if the features folder has no table of files, or the table lacks a key, and DataError if it lacks
    a column.
    """
    path = find_table(folder)
    if path is None:
        raise StoreError(
            f"{folder}: expected the table of files `{NAME}` in {folder.parent}, which `icecore extract` and "
            "`Backbone.embed` write there, got none. For features of a project, paths and targets are in "
            "data/tasks/TASK.parquet, which `pipeline.task.Task.read` reads."
        )
    check_readable(path)
    from pyarrow import parquet

    files = parquet.read_table(path)
    labels = labels_in(files)
    columns = {label_column(name) if name == "path" else name: labels[name] for name in labels.column_names}
    table = pa.table({"path": files["path"], **columns})
    for name in names or ():
        if name in table.column_names:
            continue
        if table.column_names == ["path"] and len(table):
            parent, _, _ = table["path"][0].as_py().rpartition("/")
            raise DataError(
                f"{parent}: expected images in class folders, or a list with labels, got paths only: there is no "
                f"{name!r}. Pass `labels` to `evaluate`, a value per row."
            )
        raise DataError(f"{path}: {unknown('column', name, table.column_names)}")
    own = key_arrays.from_arrow(files["key"].combine_chunks())
    order = np.argsort(own)
    places = key_arrays.find(own[order], keys)
    if (places < 0).any():
        missing = key_arrays.to_hex(keys[places < 0])
        raise StoreError(
            f"{path}: expected a file for each of the {len(keys):,} rows, got none for {len(missing):,}; the first is "
            f"{missing[0]}. Other images were embedded into this folder since: embed these images again."
        )
    return table.select(list(names or table.column_names)).take(pa.array(order[places]))
