"""The manifest of a data set: its samples with keys, paths and labels.

`data/manifests/<dataset>.parquet` has one row per distinct content, sorted by path:

    key         32 hex digits, BLAKE2b-128 of the sample's bytes, wherever they lie
    path        as it is opened from the project's root, or a URL; of a sample in a container, that and its name there
    size        bytes
    container   the tar archive or Parquet file that has the sample among others; null where `path` is a file of its own
    offset      the byte, or the row, at which the sample is in its container
    ...         one column per label; a folder gives `label`, and `split` and `domain` where its layout has them
    data:size   a label column of the data whose name is one of those above: settings call it `size`, as the data do

`data/manifests/files/<dataset>.parquet` has these without labels: extraction reads this one, so that a change of labels
never touches it. `data/manifests/<dataset>.excluded.csv` accounts for all others: path, size, kind, reason.

`container` and `offset` are what `pipeline.sources.SampleLocation` has. Manifests that were written before there were
containers lack the two columns, and are read as if they were null.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, unknown
from pipeline.files import AnyPath, Paths, as_path, check_readable

FILES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("container", pa.string()),  # dictionary-encoded in the file, as Parquet does by itself with what repeats
        ("offset", pa.int64()),
    ]
)
FIXED = tuple(FILES_SCHEMA.names)
SPLIT_NAMES = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
"""Names of each split in folders and columns, in any case, also followed by `_set` or `-set`."""

IN_CONTAINERS = ("container", "offset")
"""Columns that are null without containers."""

DATA = "data:"
"""Prefix of a label column whose name is a column of the manifest itself."""


def label_column(name: str) -> str:
    """Return the manifest's name of a label column: `data:size` for `size`, which is in FIXED, and else the name."""
    return f"{DATA}{name}" if name in FIXED else name


def split_of(name: str) -> str | None:
    """Return the split that a folder or a value of a column names: train, validation or test; None for another name."""
    plain = re.sub(r"[ _-]?set$", "", name.strip().casefold())
    return next((split for split, names in SPLIT_NAMES.items() if plain in names), None)


def split_of_file(name: str) -> str | None:
    """Return the split that the file of a hub names: validation for `valid-00001-of-00002.parquet`; None for another.

    The name of the split stands at the end, or before the number of a part: `train.parquet`, `cifar10-test-0001.tar`.
    """
    words = "|".join(word for names in SPLIT_NAMES.values() for word in names)
    pattern = rf"(?:.*[^a-z])?({words})(?:[ _-]?set)?(?:[ _-]?[0-9].*)?"
    found = re.fullmatch(pattern, name.partition(".")[0].casefold())
    return split_of(found[1]) if found else None


@dataclass(frozen=True)
class ManifestPaths(Paths):
    """The paths of the three files of a data set below the manifests' folder.

    >>> ManifestPaths(Path("data/manifests"), "photos").rows.as_posix()
    'data/manifests/photos.parquet'
    """

    folder: Path
    dataset: str

    @property
    def rows(self) -> Path:
        """The file of keys, paths, sizes and labels."""
        return self.folder / f"{self.dataset}.parquet"

    @property
    def files(self) -> Path:
        """The file of keys, paths and sizes only."""
        return self.folder / "files" / f"{self.dataset}.parquet"

    @property
    def excluded(self) -> Path:
        """The list of excluded files, with reasons."""
        return self.folder / f"{self.dataset}.excluded.csv"


def read(folder: AnyPath, dataset: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a manifest, or some of its columns; raises DataError if it or a column does not exist."""
    path = ManifestPaths(as_path(folder, "manifest.read: folder"), dataset).rows
    if not path.is_file():
        raise DataError(f"{path}: no such manifest. Run `icecore repro prepare@{dataset}`.")
    check_readable(path)
    names = pq.read_schema(path).names
    if columns is None:
        return pq.read_table(path)
    for column in columns:
        if column not in (*names, *IN_CONTAINERS):
            raise DataError(f"{path}: {unknown('column', column, names)}")
    table = pq.read_table(path, columns=[name for name in columns if name in names])
    return _with_containers(table, [name for name in IN_CONTAINERS if name in columns]).select(list(columns))


def read_files(
    folder: Path, datasets: Sequence[str], columns: Sequence[str] = FILES_SCHEMA.names
) -> Iterator[pa.RecordBatch]:
    """Yield columns of FILES_SCHEMA of data sets, in blocks; the same content may occur several times."""
    for dataset in datasets:
        path = ManifestPaths(folder, dataset).files
        if not path.is_file():
            raise DataError(f"{path}: no such manifest. Run `icecore repro prepare@{dataset}`.")
        check_readable(path)
        with pq.ParquetFile(path) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=there):
                lacking = [name for name in IN_CONTAINERS if name in columns]
                yield _with_containers(batch, lacking).select(list(columns))


def labels_in(table: pa.Table) -> pa.Table:
    """Return the label columns of a manifest with their original names."""
    columns = {name: table[name] for name in table.column_names if name not in FIXED}
    return pa.table(
        {
            name.removeprefix(DATA) if label_column(name.removeprefix(DATA)) == name else name: column
            for name, column in columns.items()
        }
    )


def _with_containers(table: Any, names: Sequence[str]) -> Any:
    """Return a table or batch with these columns; null if its file was written before they existed."""
    for name in names:
        if name not in table.schema.names:
            field = FILES_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table
