"""Features: stored activations by sample key. The one class through which heads and training read the store.

Rows are found by key; their order on disk means nothing. An open store may be handed to other processes, forked or
spawned: shards are opened where they are read.
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
"""Sample keys: text of 32 hex digits each, or an array of dtype S16."""

EXPORT_BYTES = 2**25  # of the rows that an export holds at once
ITERATED = 1024  # rows that are read together where they are wanted one by one


class Features:
    """The stored features of one tap of one backbone: a row per distinct sample, sorted by key.

    `keys`, `paths`, `labels`, `to_numpy` and all other methods have the rows in that one order, also after `subset`.

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
        """Open a features folder; raises StoreError with what is wrong with it.

        The digest of a shard is checked when the first of its rows is read, and rows whenever they are read;
        `check=False` leaves the second out. Shards that were opened before a store goes to another process are not
        checked again there.
        """
        return cls(folder, check=check)

    def subset(self, keys: Keys) -> "Features":
        """Return the same features with the rows of some keys only, such as those of a task's split:
        `task.keys_of("train")`.

        Raises StoreError as `load` does. Of a key that is given twice there is one row.
        """
        result = copy.copy(self)
        places = np.unique(self._places(keys))
        result._rows = np.asarray(self._rows[:, places])
        return result

    def __getstate__(self) -> dict[str, Any]:
        # The table of all rows is mapped anew in the process that needs it; that of a subset goes along.
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
        """The dtype of what `load` gives: float16 or float32; bfloat16 and int8 are read as float32."""
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
        """The path or URL of each row's file, in the order of `keys`: text (n,).

        Of a content that lies in several files there is the first. Raises StoreError where no table of files is there.
        """
        return self.column("path")

    @property
    def labels(self) -> np.ndarray:
        """The class of each row, in the order of `keys`: the column `label`, None of a file without one."""
        return self.column("label")

    def column(self, name: str) -> np.ndarray:
        """Return a column of the table of files, in the order of `keys`: `label`, `split`, or one of a list of files.

        Raises StoreError where no table of files is there, and DataError where it lacks the column.
        """
        table = files_table.read_columns(self.folder, self.key_array, [name])
        values: np.ndarray = table[name].combine_chunks().to_numpy(zero_copy_only=False)
        return values

    @property
    def identity(self) -> dict[str, Any]:
        """What shaped the features."""
        return dict(self.index.identity)

    def load(self, keys: Keys | None = None) -> np.ndarray:
        """Return the rows of some keys, in their order, or all in the order of the keys: (len(keys), ...) of `dtype`.

        Raises StoreError that counts the keys without features and gives the reasons that are known.
        """
        return self.at(self._rows[2] if keys is None else self.find(keys))

    def find(self, keys: Keys) -> np.ndarray:
        """Return where the rows of some keys lie, for `at`; sorted ones are the fastest. Raises StoreError as `load`
        does.
        """
        rows = self._places(keys)
        result = rows.view(np.uint64)  # the same memory: shard << 32 | row in the stead of the row of the table
        for start in range(0, len(rows), key_arrays.TOGETHER):
            part = slice(start, start + key_arrays.TOGETHER)
            result[part] = self._rows[2][rows[part]]
        return result

    def has(self, keys: Keys) -> np.ndarray:
        """Return which keys have rows: bool (len(keys),)."""
        result: np.ndarray = key_arrays.find_halves(self._rows[0], self._rows[1], _array(keys)) >= 0
        return result

    def at(self, places: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the rows at some places that `find` gave, in their order, into `out` where it is given."""
        result = np.empty((len(places), *self.shape), dtype=self.dtype) if out is None else out
        places = np.asarray(places)
        # Places that follow each other are rows that do: each such run is read in one piece.
        cuts = np.flatnonzero(np.diff(places) != 1) + 1 if len(places) else np.empty(0, dtype=np.int64)
        if len(cuts) * 4 < len(places):
            runs = list(itertools.pairwise([0, *cuts.tolist(), len(places)]))
            for number in np.unique(places[[start for start, _ in runs]] >> np.uint64(32)).tolist():
                self._shard(number)  # opened here, once, and not by several threads
            list(parallel_map(lambda run: self._read_run(int(places[run[0]]), result[run[0] : run[1]]), runs))
            return result
        shards, rows = (places >> np.uint64(32)).astype(np.int64), (places & np.uint64(2**32 - 1)).astype(np.int64)
        for number in np.unique(shards).tolist():
            here = np.flatnonzero(shards == number)
            result[here] = self._shard(number).rows(rows[here])
        return result

    def batches(self, size: int, *, keys: Keys | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield batches of (keys S16, rows) over some keys, in their order, or over all; the last may be short."""
        known = self.key_array if keys is None else _array(keys)
        places = np.asarray(self._rows[2]) if keys is None else self.find(keys)
        for start in range(0, len(known), size):
            yield known[start : start + size], self.at(places[start : start + size])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows as an array: those of a key or of a list of keys, of a row number, a slice, a mask or numbers."""
        if isinstance(rows, str | int | np.integer):
            one: np.ndarray = (self.load([rows]) if isinstance(rows, str) else self[[int(rows)]])[0]
            return one
        places = rows if isinstance(rows, slice) else np.asarray(rows)
        if isinstance(places, np.ndarray) and not len(places):
            places = slice(0)
        elif isinstance(places, np.ndarray) and places.dtype.kind not in "bi":
            return self.load(places if places.dtype == key_arrays.DTYPE else places.tolist())
        return self.at(np.asarray(self._rows[2][places]))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each row in the order of `keys`; `batches` yields many at a time, with their keys."""
        for _, rows in self.batches(ITERATED):
            yield from rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, for functions that take arrays; each call reads them from the disk."""
        if copy is False:
            raise ValueError("the rows lie on the disk: an array of them is always a copy.")
        return self.load() if dtype is None else self.load().astype(dtype, copy=False)

    def to_numpy(self, keys: Keys | None = None) -> np.ndarray:
        """Return the rows of some keys, in their order, or all in the order of `keys`: (n, ...) of `dtype`."""
        return self.load(keys)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame in the order of `keys`, which are its index: `path`, the labels, and `features`.

        `features` has the row of each file, flattened, as an array: `np.stack(frame["features"])` is the matrix. Paths
        and labels such as `label` and `split` are there where the table of files is. Raises MissingExtraError without
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
        fitting = max(1, min(16_384, EXPORT_BYTES // max(1, width * self.dtype.itemsize)))
        for start, stop in _ranges(len(self), block_rows or fitting):
            keys = key_arrays.join(self._rows[0, start:stop], self._rows[1, start:stop])
            yield keys, self._range(start, stop).reshape(stop - start, width)

    def to_arrow(self, *, block_rows: int | None = None) -> Iterator["pa.RecordBatch"]:
        """Yield batches of `key` (hex text) and `features` (a list of fixed size, flattened), in the order of
        the keys.
        """
        import pyarrow as pa

        for keys, rows in self.blocks(block_rows=block_rows):
            listed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            yield pa.RecordBatch.from_arrays([pa.array(key_arrays.to_hex(keys)), listed], names=["key", "features"])

    def _places(self, keys: Keys) -> np.ndarray:
        """Return the place of each key in the table of rows."""
        wanted = _array(keys)
        result = key_arrays.find_halves(self._rows[0], self._rows[1], wanted)
        if (result < 0).any():
            self._refuse(wanted[result < 0])
        return result

    def _range(self, start: int, stop: int) -> np.ndarray:
        """Return some rows in the order of the keys."""
        return self.at(self._rows[2, start:stop])

    def _read_run(self, place: int, out: np.ndarray) -> None:
        opened, row = self._shard(place >> 32), place & (2**32 - 1)
        if out.dtype == ON_DISK[self.index.dtype]:
            opened.read_into(out, row)
        else:
            out[:] = opened.read(row, row + len(out))

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
            f"{self.folder}: {len(names):,} of the keys asked for have no features, the first is {names[0]}.{why} "
            "Extract the data set they belong to (`datasets` of the extraction), or leave them out of the task."
        )


def _array(keys: Keys) -> np.ndarray:
    return keys if isinstance(keys, np.ndarray) and keys.dtype == key_arrays.DTYPE else key_arrays.from_hex(keys)


def _ranges(rows: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
