"""Rows of features that need not fit into memory: several taps side by side, read a block at a time.

A *row source* is anything with `shape` (rows, width) and `dtype` whose `source[start:stop]` gives the array of those
rows: `Rows`, an np.memmap, an HDF5 dataset, a Dask array. Estimators that read sources take arrays as well.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.store.features import Features, Keys

BLOCK_BYTES = 2**25
"""Approximate bytes of a block of rows; two blocks are in memory while a source is read ahead."""


class Rows:
    """Taps side by side as a row source: float32 (keys, sum of the widths), each tap's row flattened.

    Row i belongs to `keys[i]`. Raises StoreError on creation for keys that a tap lacks, and on reading for damaged
    rows. `reading_order` returns the order of the keys in which a pass is fastest.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, taps: Sequence[Features], keys: Keys) -> None:
        if not taps:
            raise HeadError("rows of features: expected at least one tap, got none. List the taps of the input.")
        self.taps = tuple(taps)
        self._places = [tap.find(keys) for tap in taps]
        self._widths = [int(np.prod(tap.shape)) for tap in taps]
        self.shape = (len(keys), sum(self._widths))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        wanted = [places[rows] for places in self._places]
        values = np.empty((len(wanted[0]), self.shape[1]), dtype=self.dtype)
        column = 0
        for tap, places, width in zip(self.taps, wanted, self._widths, strict=True):
            values[:, column : column + width] = tap.at(places).reshape(len(places), width)
            column += width
        return values

    @property
    def shards(self) -> np.ndarray:
        """Return the shard number of each row in the first tap, (rows,)."""
        return np.asarray(self._places[0] >> np.uint64(32))

    def part(self, rows: slice) -> "Rows":
        """Return a part of the rows as a source, which is pickled as row numbers only."""
        part = copy.copy(self)
        part._places = [places[rows] for places in self._places]
        part.shape = (len(part._places[0]), self.shape[1])
        return part


def reading_order(tap: Features, keys: Keys) -> np.ndarray:
    """Return the order of rows on disk: `keys[order]` are read shard by shard."""
    return np.argsort(tap.find(keys), kind="stable")


def is_source(X: Any) -> bool:
    """Return whether X is a row source, read in blocks: not an array, a sparse matrix or a table.

    An np.memmap counts as a source, so that it is not copied.
    """
    if isinstance(X, np.memmap):
        return X.ndim == 2
    if isinstance(X, np.ndarray) or not all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")):
        return False
    from scipy.sparse import issparse

    return len(X.shape) == 2 and not issparse(X)


def validate_rows(estimator: Any, X: Any, *, fitting: bool) -> Any:
    """Check X as given to `fit` (`fitting`) or another method: a source unchanged, anything else as a validated array.

    Sets or compares `n_features_in_` and the names of features as scikit-learn does, and raises ValueError as it does.
    """
    from sklearn.utils.validation import validate_data

    if is_source(X):
        return validate_data(estimator, X, reset=fitting, skip_check_array=True)
    return validate_data(estimator, X, reset=fitting, dtype="numeric")


def blocks(X: Any, *, size: int | None = None, check: bool = True) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield row numbers and values: float32, or float64 for sources of float64 or integers.

    A block has `size` rows, or as many as fit into `BLOCK_BYTES`. The next block of a source is read ahead in a thread.
    Raises ValueError as scikit-learn's `check_array` for an array with values that are not finite, and HeadError with
    the row for a source; `check=False` skips the checks in later passes.
    """
    if not is_source(X):
        from sklearn.utils.validation import check_array

        array = check_array(X, dtype="numeric") if check else X
        for rows in _ranges(array.shape, size):
            yield rows, _floats(array[rows])
        return

    def read(rows: slice) -> np.ndarray:
        block = _floats(np.asarray(X[rows]))
        if check and not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0].tolist()
            raise HeadError(
                f"features, row {rows.start + row:,}: expected finite numbers, got {block[row, column]} in column "
                f"{column:,}. Leave the sample out of the task, or extract it again."
            )
        return block

    ranges = _ranges(X.shape, size)
    with ThreadPoolExecutor(1) as ahead:
        reading = [ahead.submit(read, rows) for rows in ranges[:1]]
        for number, rows in enumerate(ranges):
            block = reading.pop().result()
            reading = [ahead.submit(read, following) for following in ranges[number + 1 : number + 2]]
            yield rows, block


def _ranges(shape: tuple[int, ...], size: int | None) -> list[slice]:
    rows, width = shape
    step = size or max(1, BLOCK_BYTES // max(1, 4 * width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _floats(block: np.ndarray) -> np.ndarray:
    if block.dtype in (np.float32, np.float64):
        return block
    return block.astype(np.float32 if block.dtype == np.float16 else np.float64)
