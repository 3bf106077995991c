"""The samples of an extraction: keys and locations. The bytes of each sample are checked against its key."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest, sources
from pipeline.errors import DataError, counted
from pipeline.readers import Reader, Sample
from pipeline.readers.sample_key import KEY_BYTES, content_key
from pipeline.sources import UNKNOWN, SampleLocation
from pipeline.sources.filesystem import join
from pipeline.store import key_arrays

# Container names are stored once each; paths may have more than 2 GiB of text.
WHERE = pa.schema(
    [
        ("path", pa.large_string()),
        ("container", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), *WHERE])
"""Schema of samples in an Arrow file."""

BLOCK = 4096  # rows whose locations are converted to Python objects at a time


@dataclass(frozen=True)
class Samples:
    """Distinct keys (S16, sorted unless stated otherwise), and the location of each: columns as in `WHERE`.

    `container` and `offset` are null where a path is a file of its own; a column of nulls only may have Arrow's null
    type, which takes no memory.
    """

    keys: np.ndarray
    where: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> "Samples":
        """Return the samples of `rows`, in this order. Consecutive rows are not copied."""
        if len(rows) and (np.diff(rows) == 1).all():
            run = slice(int(rows[0]), int(rows[0]) + len(rows))
            return Samples(self.keys[run], self.where.slice(run.start, len(rows)))
        return Samples(self.keys[rows], self.where.take(pa.array(rows)))

    def places(self) -> list[SampleLocation]:
        """Return the location of every sample."""
        return [
            SampleLocation(*row) for row in zip(*(column.to_pylist() for column in self.where.columns), strict=True)
        ]

    def to_batch(self) -> pa.RecordBatch:
        """Return the samples as a record batch of SCHEMA."""
        kind = SCHEMA.field("key").type
        keys = pa.FixedSizeBinaryArray.from_buffers(kind, len(self), [None, pa.py_buffer(self.keys.tobytes())])
        return pa.record_batch([keys, *self.where.cast(WHERE).columns], schema=SCHEMA)

    @staticmethod
    def from_batch(batch: pa.RecordBatch) -> "Samples":
        """Return the samples of a record batch of SCHEMA."""
        keys = np.frombuffer(batch["key"].buffers()[1], key_arrays.DTYPE)[batch["key"].offset :][: len(batch)]
        return Samples(keys, batch.select(WHERE.names))

    @property
    def containers(self) -> np.ndarray | None:
        """The number of each sample's container, -1 for a file of its own; None if there are no containers."""
        column = self.where["container"]
        if column.null_count == len(column):
            return None
        result: np.ndarray = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return result


@dataclass(frozen=True)
class Item:
    """A sample to decode. `data`: its bytes or the error of reading them; None if they were not read yet."""

    key: str
    place: SampleLocation
    data: bytes | OSError | None = None


@dataclass(frozen=True)
class Reject:
    """A sample that gave no features. `permanent`: its content is the reason, so that reading it again cannot help."""

    key: str
    path: str
    reason: str
    permanent: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_samples(manifests: Path, datasets: tuple[str, ...]) -> Samples:
    """Return the union of data sets, with one row per distinct content: its first row.

    Columns are read one by one, so that the peak memory is that of the result and one column.
    """
    blocks = [key_arrays.from_arrow(batch["key"]) for batch in manifest.read_files(manifests, datasets, ["key"])]
    keys, first = key_arrays.distinct(np.concatenate([*blocks, np.empty(0, key_arrays.DTYPE)]))
    del blocks
    where = [_column(manifests, datasets, field, pa.array(first)) for field in WHERE]
    pa.default_memory_pool().release_unused()
    return Samples(keys, pa.record_batch(where, names=WHERE.names))


def read_parts(manifests: Path, dataset: str, rows: int) -> Iterator[Samples]:
    """Yield the samples of a data set in parts of `rows` rows of its manifest, in that order; parts are sorted by key.

    A content that occurs several times may be in several parts.
    """
    with pq.ParquetFile(manifest.ManifestPaths(manifests, dataset).files) as file:
        for batch in file.iter_batches(batch_size=rows, columns=manifest.FILES_SCHEMA.names):
            keys, first = key_arrays.distinct(key_arrays.from_arrow(batch["key"]))
            where = [_reorder([batch[field.name]], field, pa.array(first)) for field in WHERE]
            yield Samples(keys, pa.record_batch(where, names=WHERE.names))


def _column(manifests: Path, datasets: tuple[str, ...], field: pa.Field, rows: pa.Array) -> pa.Array:
    """Return a column of the manifests, reordered by `rows`."""
    batches = manifest.read_files(manifests, datasets, [field.name])
    return _reorder((batch[field.name] for batch in batches), field, rows)


def _reorder(columns: Iterable[pa.Array], field: pa.Field, rows: pa.Array) -> pa.Array:
    is_category = pa.types.is_dictionary(field.type)
    values = pa.chunked_array(
        [column.dictionary_encode() if is_category else column.cast(field.type) for column in columns], field.type
    )
    if values.null_count == len(values):
        return pa.nulls(len(rows))
    values = values.unify_dictionaries().combine_chunks()  # under the same name, so that the blocks are freed
    return values.take(rows)


def reading_order(samples: Samples) -> np.ndarray:
    """Return the rows in the order in which they are read: container by container, each from front to back."""
    containers = samples.containers
    if containers is None:
        return np.arange(len(samples))
    offsets = samples.where["offset"].cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    order: np.ndarray = np.lexsort((offsets, containers))
    return order


def items(samples: Samples) -> Iterator[Item]:
    """Yield the items to decode, in the order of the samples.

    Containers are read here, from front to back, and files behind URLs too, many at a time to hide the latency. Local
    files are read by the decoders.
    """
    for start in range(0, len(samples), BLOCK):
        part = samples.take(np.arange(start, min(start + BLOCK, len(samples))))
        places = part.places()
        contents = sources.read_all_but_local(places)
        for key, place, data in zip(key_arrays.to_hex(part.keys), places, contents, strict=True):
            yield Item(key, place, data)


def read_sample(reader: Reader, item: Item) -> Sample | Reject:
    """Read a sample, check its content against its key, and decode it."""
    data = read_content(item)
    if isinstance(data, Reject):
        return data
    try:
        return reader(data)
    except DataError as error:
        return Reject(item.key, item.place.path, str(error), permanent=True)


def read_content(item: Item) -> bytes | Reject:
    """Read the bytes of a sample, and check them against its key."""
    path = item.place.path
    try:
        data = sources.read(path) if item.data is None else item.data
        if isinstance(data, OSError):
            raise data
    except OSError as error:
        return Reject(item.key, path, error.strerror or str(error), permanent=False)
    if content_key(data) != item.key:
        return Reject(item.key, path, "changed since its data set was prepared; run prepare again", permanent=False)
    return data


def locate_samples(manifests: Path, datasets: Sequence[str], keys: np.ndarray) -> Samples:
    """Return the samples with these keys S16, sorted by key; raises DataError for keys that the data sets lack."""
    samples = read_samples(manifests, tuple(datasets))
    rows = key_arrays.find(samples.keys, keys)
    if (rows < 0).any():
        missing = key_arrays.to_hex(keys[rows < 0])
        raise DataError(
            f"{manifests}: expected all samples of the task in the manifests of {', '.join(datasets)}, but "
            f"{counted(len(missing), 'sample is', 'samples are')} missing; the first is {missing[0]}. The data sets "
            "changed: run `icecore repro`."
        )
    return samples.take(np.unique(rows))


def find_samples(paths: Mapping[str, str], *, manifests: Path, root: str) -> Samples:
    """Return where a few samples of a project lie, in the order in which they are read.

    paths: the path of each sample by its key, 32 hex digits, as a task has it; it counts where no manifest has the key.
    manifests: their folder, of which all are looked through. root: the folder of the project, which paths are of.
    """
    rows = {key: SampleLocation(path, None, None, UNKNOWN) for key, path in paths.items()}
    wanted, missing = pa.array(rows, pa.string()), {*rows}
    datasets = sorted(path.stem for path in (manifests / "files").glob("*.parquet"))
    for batch in manifest.read_files(manifests, datasets):
        for key, path, size, container, offset in _rows_with(batch, wanted):
            if key in missing:
                rows[key] = SampleLocation(path, container, offset, size)
                missing.remove(key)
        if not missing:
            break
    keys = sorted(rows)
    columns = [
        [join(root, rows[key].path) for key in keys],
        [None if (container := rows[key].container) is None else join(root, container) for key in keys],
        [rows[key].offset for key in keys],
        [rows[key].size for key in keys],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, WHERE, strict=True)]
    found = Samples(key_arrays.from_hex(keys), pa.record_batch(arrays, names=WHERE.names))
    return found.take(reading_order(found))


def _rows_with(batch: pa.RecordBatch, keys: pa.Array) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a block of a manifest whose keys are among some."""
    import pyarrow.compute as pc  # not at the top: an extraction reads whole manifests

    few = batch.filter(pc.is_in(batch["key"], keys))
    return zip(*(few[name].to_pylist() for name in manifest.FILES_SCHEMA.names), strict=True)
