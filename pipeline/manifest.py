"""The manifest: which samples a data set has, under which key, with which labels.

`data/manifests/<dataset>.parquet` has a row a distinct content, sorted by path:

    key     32 hex digits, BLAKE2b-128 of the file's bytes
    path    as it is opened from the project's root
    size    bytes
    ...     one column a label; a folder gives `label`, and `split` and `domain` where its layout has them

`data/manifests/files/<dataset>.parquet` has key, path and size alone: extraction reads this one, so that a change of
labels never touches it. `data/manifests/<dataset>.excluded.csv` accounts for all others: path, size, kind, reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, unknown

FILES_SCHEMA = pa.schema([("key", pa.string()), ("path", pa.string()), ("size", pa.int64())])
FIXED = tuple(FILES_SCHEMA.names)


@dataclass(frozen=True)
class ManifestPaths:
    """Where the three files of a data set lie below the manifests' folder."""

    folder: Path
    dataset: str

    @property
    def rows(self) -> Path:
        """Keys, paths, sizes and labels."""
        return self.folder / f"{self.dataset}.parquet"

    @property
    def files(self) -> Path:
        """Keys, paths and sizes alone."""
        return self.folder / "files" / f"{self.dataset}.parquet"

    @property
    def excluded(self) -> Path:
        """Every file that is no row, with the reason."""
        return self.folder / f"{self.dataset}.excluded.csv"


def read(folder: Path, dataset: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a manifest, or some of its columns; raises DataError if it or a column does not exist."""
    path = ManifestPaths(folder, dataset).rows
    if not path.is_file():
        raise DataError(f"{path}: no such manifest. Run `dvc repro prepare@{dataset}`.")
    names = pq.read_schema(path).names
    for column in columns or ():
        if column not in names:
            raise DataError(f"{path}: {unknown('column', column, names)}")
    return pq.read_table(path, columns=list(columns) if columns else None)


def read_files(folder: Path, datasets: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Key, path and size of every sample of several data sets, in blocks; a content may come more than once."""
    for dataset in datasets:
        path = ManifestPaths(folder, dataset).files
        if not path.is_file():
            raise DataError(f"{path}: no such manifest. Run `dvc repro prepare@{dataset}`.")
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
