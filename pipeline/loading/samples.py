"""The samples of an extraction: their keys and where their bytes are; each is read and checked against its key."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import manifest, sources
from pipeline.errors import DataError
from pipeline.files import KEY_BYTES, content_key
from pipeline.readers import Reader, Sample
from pipeline.runtime import parallel_map
from pipeline.sources import SampleLocation
from pipeline.sources.filesystem import is_url
from pipeline.store import key_arrays

# A container is named once, and the paths may be more than 2 GiB of text.
WHERE = pa.schema(
    [
        ("path", pa.large_string()),
        ("container", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), *WHERE])
"""Of samples in an Arrow file."""

CONNECTIONS = 32  # to what lies behind URLs
BLOCK = 4096  # rows of which the places are looked up together


@dataclass(frozen=True)
class Samples:
    """Distinct keys (S16, sorted unless said otherwise), and where the bytes of each are: columns as in `WHERE`.

    `container` and `offset` are null where a path is a file of its own; a column that is null throughout may be of
    Arrow's type for that, which takes no memory.
    """

    keys: np.ndarray
    where: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> "Samples":
        """Return some of the samples, in the order of `rows`. A run of rows is not copied."""
        if len(rows) and (np.diff(rows) == 1).all():
            run = slice(int(rows[0]), int(rows[0]) + len(rows))
            return Samples(self.keys[run], self.where.slice(run.start, len(rows)))
        return Samples(self.keys[rows], self.where.take(pa.array(rows)))

    def places(self) -> list[SampleLocation]:
        """Return where the bytes of all of them are."""
        return [
            SampleLocation(*row) for row in zip(*(column.to_pylist() for column in self.where.columns), strict=True)
        ]

    def to_batch(self) -> pa.RecordBatch:
        """Return the samples as a record batch, for an Arrow file."""
        kind = SCHEMA.field("key").type
        keys = pa.FixedSizeBinaryArray.from_buffers(kind, len(self), [None, pa.py_buffer(self.keys.tobytes())])
        return pa.record_batch([keys, *self.where.cast(WHERE).columns], schema=SCHEMA)

    @staticmethod
    def from_batch(batch: pa.RecordBatch) -> "Samples":
        """Return samples from a record batch of an Arrow file."""
        keys = np.frombuffer(batch["key"].buffers()[1], key_arrays.DTYPE)[batch["key"].offset :][: len(batch)]
        return Samples(keys, batch.select(WHERE.names))

    @property
    def containers(self) -> np.ndarray | None:
        """A number for the container of each sample, -1 where a path is a file of its own; None where all are."""
        column = self.where["container"]
        if column.null_count == len(column):
            return None
        result: np.ndarray = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return result


@dataclass(frozen=True)
class Item:
    """A sample that is to be read. `data`: its bytes, where they were read already, or why they could not be."""

    key: str
    place: SampleLocation
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
    """Return the union of some data sets, one row per distinct content: the first of each.

    Columns are read one after another, so that the list is in memory once and one column of it twice.
    """
    blocks = [key_arrays.from_arrow(batch["key"]) for batch in manifest.read_files(manifests, datasets, ["key"])]
    keys, first = key_arrays.distinct(np.concatenate([*blocks, np.empty(0, key_arrays.DTYPE)]))
    del blocks
    where = [_column(manifests, datasets, field, pa.array(first)) for field in WHERE]
    pa.default_memory_pool().release_unused()
    return Samples(keys, pa.record_batch(where, names=WHERE.names))


def _column(manifests: Path, datasets: tuple[str, ...], field: pa.Field, rows: pa.Array) -> pa.Array:
    """Return a column of the manifests' rows, in another order."""
    is_category = pa.types.is_dictionary(field.type)
    columns = (batch[field.name] for batch in manifest.read_files(manifests, datasets, [field.name]))
    blocks = [one.dictionary_encode() if is_category else one.cast(field.type) for one in columns]
    whole = pa.chunked_array(blocks, field.type)
    if whole.null_count == len(whole):
        return pa.nulls(len(rows))
    return whole.unify_dictionaries().combine_chunks().take(rows)


def reading_order(samples: Samples) -> np.ndarray:
    """Return the rows in the order in which they are read: containers one after another, each from front to back."""
    containers = samples.containers
    if containers is None:
        return np.arange(len(samples))
    offsets = samples.where["offset"].cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    order: np.ndarray = np.lexsort((offsets, containers))
    return order


def items(samples: Samples) -> Iterator[Item]:
    """Yield what is to be read, in the order of the samples.

    What lies in containers is read here, from front to back; so is what lies behind URLs, many at once, since each of
    them is waited for. Local files are left to the decoders.
    """
    for start in range(0, len(samples), BLOCK):
        part = samples.take(np.arange(start, min(start + BLOCK, len(samples))))
        pairs = zip(key_arrays.to_hex(part.keys), part.places(), strict=True)
        for (container, far), group in itertools.groupby(pairs, key=lambda pair: _kind(pair[1])):
            here = list(group)
            if container is not None:
                found: Iterator[bytes | OSError | None] = sources.read_many(container, [place for _, place in here])
            elif far:
                found = parallel_map(_read, [place.path for _, place in here], threads=CONNECTIONS)
            else:
                found = iter([None] * len(here))
            yield from (Item(key, place, data) for (key, place), data in zip(here, found, strict=True))


def _kind(place: SampleLocation) -> tuple[str | None, bool]:
    """Return what a place is read with: its container, and whether it is a file of its own behind a URL."""
    return place.container, place.container is None and is_url(place.path)


def _read(path: str) -> bytes | OSError:
    try:
        return sources.read(path)
    except OSError as error:
        return error


def read_sample(reader: Reader, item: Item) -> Sample | Reject:
    """Read one sample, make sure that it is still the content of its key, and decode it."""
    path = item.place.path
    try:
        data = sources.read(path) if item.data is None else item.data
        if isinstance(data, OSError):
            raise data
    except OSError as error:
        return Reject(item.key, path, error.strerror or str(error), lasting=False)
    if content_key(data) != item.key:
        return Reject(item.key, path, "changed since its data set was prepared; run prepare again", lasting=False)
    try:
        return reader(data)
    except DataError as error:
        return Reject(item.key, path, str(error), lasting=True)


def stored(manifests: Path, datasets: Sequence[str], keys: np.ndarray) -> Samples:
    """Return where the samples of some keys S16 lie, sorted by key; raises DataError where data sets lack one."""
    found = read_samples(manifests, tuple(datasets))
    rows = key_arrays.find(found.keys, keys)
    if (rows < 0).any():
        missing = key_arrays.to_hex(keys[rows < 0])
        raise DataError(
            f"{manifests}: expected all samples of the task in the manifests of {', '.join(datasets)}, got "
            f"{len(missing):,} without, the first is {missing[0]}. The data sets changed: run `dvc repro`."
        )
    return found.take(np.unique(rows))
