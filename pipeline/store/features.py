"""Features: stored activations by sample key, the class through which heads and training read the store.

Rows are looked up by key; their order on disk has no meaning. Open features may be passed to other processes, forked or
spawned: each process opens the shards that it reads.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError, counted, requires
from pipeline.files import AnyPath, as_path
from pipeline.runtime import parallel_map
from pipeline.store import files_table, index, key_arrays
from pipeline.store.dtypes import ON_DISK
from pipeline.store.shard_format import path_of
from pipeline.store.shard_reader import Shard

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import torch

Keys = Sequence[str] | np.ndarray
"""Sample keys: strings of 32 hex digits, or an array of dtype S16."""

EXPORT_BYTES = 2**25  # of rows in memory during an export
ITER_ROWS = 1024  # rows that iteration reads at a time


class Features:
    """The stored features of a tap of a backbone: a row per distinct sample, sorted by key.

    `keys`, `paths`, `labels`, `to_numpy` and all other methods use this order, also after `subset`.

    >>> features = Features.open("features/penultimate")
    >>> len(features), features.shape, features.dtype
    (6, (3,), dtype('float16'))
    >>> features.load(features.keys[:2]).shape
    (2, 3)
    >>> features[4:].shape
    (2, 3)
    """

    def __init__(self, folder: AnyPath, *, check: bool = True) -> None:
        self.folder, self.check = as_path(folder, "Features.open: folder"), check
        self.index = index.read(self.folder)
        self._rows = index.open_rows(self.folder, self.index)
        self._open: dict[int, Shard] = {}

    @classmethod
    def open(cls, folder: AnyPath, *, check: bool = True) -> "Features":
        """Open a features folder; raises StoreError with the reason if it is invalid.

        The digest of a shard is checked when its first row is read, and the checksums of rows at every read, unless
        `check` is False. Shards that were opened before features are passed to another process are not checked again
        there.
        """
        return cls(folder, check=check)

    def subset(self, keys: Keys) -> "Features":
        """Return features with only the rows of `keys`, such as `task.keys_of("train")`; repeated keys count once.

        Raises StoreError as `load` does.
        """
        result = copy.copy(self)
        places = np.unique(self._places(keys))
        result._rows = np.asarray(self._rows[:, places])
        return result

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the table of all rows again; the table of a subset is pickled.
        mapped = isinstance(self._rows, np.memmap)
        return {name: value for name, value in self.__dict__.items() if not (mapped and name == "_rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_rows" not in state:
            self._rows = np.load(self.folder / self.index.rows.name, mmap_mode="r", allow_pickle=False)

    def __repr__(self) -> str:
        return f"Features({str(self.folder)!r}: {counted(len(self), 'row')} of {self.shape}, {self.dtype})"

    def __len__(self) -> int:
        return int(self._rows.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.index.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of loaded rows: float16 or float32; bfloat16 and int8 are read as float32."""
        return np.dtype("float16" if self.index.dtype == "float16" else "float32")

    @property
    def keys(self) -> list[str]:
        """All keys, sorted, as hex text."""
        return key_arrays.to_hex(self.key_array)

    @property
    def key_array(self) -> np.ndarray:
        """All keys, sorted, S16."""
        return key_arrays.join(self._rows[0], self._rows[1])

    @property
    def paths(self) -> np.ndarray:
        """The path or URL of each row's file, in the order of `keys`: strings (n,).

        If several files have the same content, the first counts. Raises StoreError if there is no table of files.
        """
        return self.column("path")

    @property
    def labels(self) -> np.ndarray:
        """The class of each row, in the order of `keys`: the column `label`, None for files without a label."""
        return self.column("label")

    def column(self, name: str) -> np.ndarray:
        """Return a column of the table of files, in the order of `keys`: `label`, `split`, or a column of a file list.

        Raises StoreError if there is no table of files, and DataError if it lacks the column.
        """
        table = files_table.read_columns(self.folder, self.key_array, [name])
        values: np.ndarray = table[name].combine_chunks().to_numpy(zero_copy_only=False)
        return values

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine the features' values."""
        return dict(self.index.identity)

    def load(self, keys: Keys | None = None) -> np.ndarray:
        """Return the rows of `keys`, in their order, or all rows in the order of `self.keys`: (n, ...) of `dtype`.

        Raises StoreError with the number of keys without features, and the known reasons.
        """
        return self.at(self._rows[2] if keys is None else self.find(keys))

    def find(self, keys: Keys) -> np.ndarray:
        """Return the positions of the rows of `keys`, for `at`; fastest if sorted. Raises StoreError as `load` does."""
        rows = self._places(keys)
        result = rows.view(np.uint64)  # the same memory: table rows are replaced by shard << 32 | row
        for start in range(0, len(rows), key_arrays.LOOKUP_BLOCK):
            part = slice(start, start + key_arrays.LOOKUP_BLOCK)
            result[part] = self._rows[2][rows[part]]
        return result

    def has(self, keys: Keys) -> np.ndarray:
        """Return which keys have rows, bool (len(keys),)."""
        result: np.ndarray = key_arrays.find_halves(self._rows[0], self._rows[1], _array(keys)) >= 0
        return result

    def at(self, places: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the rows at positions from `find`, in their order; written to `out` if given."""
        result = np.empty((len(places), *self.shape), dtype=self.dtype) if out is None else out
        places = np.asarray(places)
        # Consecutive positions are consecutive rows: each such run is read at once.
        cuts = np.flatnonzero(np.diff(places) != 1) + 1 if len(places) else np.empty(0, dtype=np.int64)
        if len(cuts) * 4 < len(places):
            runs = list(itertools.pairwise([0, *cuts.tolist(), len(places)]))
            for number in np.unique(places[[start for start, _ in runs]] >> np.uint64(32)).tolist():
                self._shard(number)  # opened here, not by several threads at once
            list(parallel_map(lambda run: self._read_run(int(places[run[0]]), result[run[0] : run[1]]), runs))
            return result
        shards, rows = (places >> np.uint64(32)).astype(np.int64), (places & np.uint64(2**32 - 1)).astype(np.int64)
        for number in np.unique(shards).tolist():
            here = np.flatnonzero(shards == number)
            result[here] = self._shard(number).rows(rows[here])
        return result

    def batches(self, size: int, *, keys: Keys | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield batches of (keys S16, rows) for `keys`, in their order, or for all; the last batch may be short."""
        known = self.key_array if keys is None else _array(keys)
        places = np.asarray(self._rows[2]) if keys is None else self.find(keys)
        for start in range(0, len(known), size):
            yield known[start : start + size], self.at(places[start : start + size])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows by a key, a list of keys, a row number, a slice, a mask or row numbers."""
        if isinstance(rows, str | int | np.integer):
            row: np.ndarray = (self.load([rows]) if isinstance(rows, str) else self[[int(rows)]])[0]
            return row
        places = rows if isinstance(rows, slice) else np.asarray(rows)
        if isinstance(places, np.ndarray) and not len(places):
            places = slice(0)
        elif isinstance(places, np.ndarray) and places.dtype.kind not in "bi":
            return self.load(places if places.dtype == key_arrays.DTYPE else places.tolist())
        return self.at(np.asarray(self._rows[2][places]))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows one by one in the order of `keys`; `batches` yields batches with keys."""
        for _, rows in self.batches(ITER_ROWS):
            yield from rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, for functions that take arrays; each call reads from the disk."""
        if copy is False:
            raise ValueError("the rows are on the disk: converting them to an array always copies.")
        return self.load() if dtype is None else self.load().astype(dtype, copy=False)

    def to_numpy(self, keys: Keys | None = None) -> np.ndarray:
        """Return the rows of `keys`, in their order, or all rows in the order of `self.keys`: (n, ...) of `dtype`."""
        return self.load(keys)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame indexed by key, with the columns `path`, the labels, and `features`.

        `features` has each row, flattened, as an array: `np.stack(frame["features"])` is the matrix. Paths and labels
        such as `label` and `split` come from the table of files, if there is one. Raises MissingExtraError without
        pandas.
        """
        with requires("pandas", what="Features.to_pandas"):
            import pandas as pd
        columns: dict[str, Any] = {}
        if files_table.find_table(self.folder) is not None:
            files = files_table.read_columns(self.folder, self.key_array)
            columns = {name: files[name].to_pandas() for name in files.column_names}
        rows = self.load().reshape(len(self), -1)
        return pd.DataFrame({**columns, "features": list(rows)}).set_index(pd.Index(self.keys, name="key"))

    def to_torch(self, keys: Keys | None = None) -> "torch.Tensor":
        """Return the rows as a CPU tensor that shares their memory; bfloat16 stays bfloat16."""
        import torch

        if self.index.dtype == "bfloat16":
            stored = (self.load(keys).view(np.uint32) >> 16).astype(np.uint16)
            return torch.from_numpy(stored).view(torch.bfloat16)
        return torch.from_numpy(self.load(keys))

    def blocks(self, *, block_rows: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield keys S16 and rows (n, width), flattened, in the order of the keys; a block has at most about 32 MiB."""
        width = int(np.prod(self.shape))
        default = max(1, min(16_384, EXPORT_BYTES // max(1, width * self.dtype.itemsize)))
        for start, stop in _ranges(len(self), block_rows or default):
            keys = key_arrays.join(self._rows[0, start:stop], self._rows[1, start:stop])
            yield keys, self._range(start, stop).reshape(stop - start, width)

    def to_arrow(self, *, block_rows: int | None = None) -> Iterator["pa.RecordBatch"]:
        """Yield batches of `key` (hex) and `features` (a flattened list of fixed size), in the order of the keys."""
        import pyarrow as pa

        for keys, rows in self.blocks(block_rows=block_rows):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            yield pa.RecordBatch.from_arrays([pa.array(key_arrays.to_hex(keys)), lists], names=["key", "features"])

    def _places(self, keys: Keys) -> np.ndarray:
        """Return the position of each key in the table of rows."""
        wanted = _array(keys)
        result = key_arrays.find_halves(self._rows[0], self._rows[1], wanted)
        if (result < 0).any():
            self._refuse(wanted[result < 0])
        return result

    def _range(self, start: int, stop: int) -> np.ndarray:
        """Return consecutive rows in the order of the keys."""
        return self.at(self._rows[2, start:stop])

    def _read_run(self, place: int, out: np.ndarray) -> None:
        shard, row = self._shard(place >> 32), place & (2**32 - 1)
        if out.dtype == ON_DISK[self.index.dtype]:
            shard.read_into(out, row)
        else:
            out[:] = shard.read(row, row + len(out))

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            record = self.index.shards[number]
            path = path_of(self.folder, record.name)
            self._open[number] = Shard(path, record, self.index.layout, check=self.check)
        return self._open[number]

    def _refuse(self, missing: np.ndarray) -> None:
        names = key_arrays.to_hex(missing)
        reasons = {item.key: item.reason for item in self.index.rejected}
        known = sorted({reasons[key] for key in names if key in reasons})
        why = f" Some were rejected: {'; '.join(known[:3])}." if known else ""
        raise StoreError(
            f"{self.folder}: {len(names):,} of the requested keys have no features; the first is {names[0]}.{why} "
            "Extract their data set (`datasets` of the extraction), or exclude them from the task."
        )


def _array(keys: Keys) -> np.ndarray:
    return keys if isinstance(keys, np.ndarray) and keys.dtype == key_arrays.DTYPE else key_arrays.from_hex(keys)


def _ranges(rows: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
