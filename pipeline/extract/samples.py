"""The samples of an extraction: their keys and where their bytes are; each is read and checked against its key."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import manifest
from pipeline.errors import DataError
from pipeline.files import KEY_BYTES, content_key
from pipeline.readers import Reader, Sample
from pipeline.store import keys as key_arrays

SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("path", pa.string())])
"""Of samples in an Arrow file."""


@dataclass(frozen=True)
class Samples:
    """Distinct keys (S16, sorted) and a path for each."""

    keys: np.ndarray
    paths: pa.Array

    def __len__(self) -> int:
        return len(self.keys)

    def paths_of(self, rows: np.ndarray) -> list[str]:
        """The paths of some rows."""
        found: list[str] = self.paths.take(pa.array(rows)).to_pylist()
        return found

    def hexes(self) -> list[str]:
        """The keys as text."""
        return key_arrays.to_hex(self.keys)

    def take(self, rows: np.ndarray) -> "Samples":
        """Some of the samples, in the order of `rows`."""
        return Samples(self.keys[rows], self.paths.take(pa.array(rows)))

    def to_batch(self) -> pa.RecordBatch:
        """For an Arrow file."""
        keys = pa.FixedSizeBinaryArray.from_buffers(
            SCHEMA.field("key").type, len(self), [None, pa.py_buffer(self.keys)]
        )
        return pa.record_batch([keys, self.paths], schema=SCHEMA)

    @staticmethod
    def from_batch(batch: pa.RecordBatch) -> "Samples":
        """From an Arrow file."""
        keys = np.frombuffer(batch["key"].buffers()[1], key_arrays.DTYPE)[batch["key"].offset :][: len(batch)]
        return Samples(keys, batch["path"])


@dataclass(frozen=True)
class Item:
    """A sample that is to be read. `data`: its bytes, where they were read already, or why they could not be."""

    key: str
    path: str
    data: bytes | OSError | None = None


@dataclass(frozen=True)
class Reject:
    """A sample that gave no features. `lasting`: its content is the reason, so trying again is of no use."""

    key: str
    path: str
    reason: str
    lasting: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_samples(manifests: Path, datasets: tuple[str, ...]) -> Samples:
    """The union of some data sets, a row a distinct content."""
    table = pa.Table.from_batches(manifest.read_files(manifests, datasets), schema=manifest.FILES_SCHEMA)
    keys, first = np.unique(key_arrays.from_hex(table["key"].to_pylist()), return_index=True)
    return Samples(keys, table["path"].combine_chunks().take(pa.array(first)))


def read_sample(reader: Reader, item: Item) -> Sample | Reject:
    """Read one sample, make sure that it is still the content of its key, and decode it."""
    try:
        data = Path(item.path).read_bytes() if item.data is None else item.data
        if isinstance(data, OSError):
            raise data
    except OSError as error:
        return Reject(item.key, item.path, error.strerror or str(error), lasting=False)
    if content_key(data) != item.key:
        return Reject(item.key, item.path, "changed since its data set was prepared; run prepare again", lasting=False)
    try:
        return reader(data)
    except DataError as error:
        return Reject(item.key, item.path, str(error), lasting=True)


def read_all(reader: Reader, items: Iterable[Item]) -> list[Sample | Reject]:
    """The same of several samples."""
    return [read_sample(reader, item) for item in items]


def items_of(samples: Samples) -> Sequence[Item]:
    """What is to be read, in the order of the samples."""
    return [Item(key, path) for key, path in zip(samples.hexes(), samples.paths.to_pylist(), strict=True)]
