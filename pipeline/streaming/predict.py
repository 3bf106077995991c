"""Predict and transform rows that need not fit into memory, block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.streaming.chunks import WrappedSource, take_rows
from pipeline.streaming.rows import blocks, is_source, validate_rows

BYTES = 2**23  # of a block; `function` makes copies of it in float64

Function = Callable[[np.ndarray], np.ndarray]


def apply_blocks(estimator: Any, X: Any, function: Function) -> np.ndarray:
    """Apply `function` to the rows block by block, float32 or float64; return one array.

    Raises ValueError, as scikit-learn does, for rows that the estimator was not fitted for, and the errors of
    `pipeline.streaming.rows.blocks`.
    """
    X = _validate(estimator, X)
    result = None
    for rows, block in small_blocks(X):
        part = function(block)
        if result is None:
            result = np.empty((X.shape[0], *part.shape[1:]), dtype=part.dtype)
        result[rows] = part
    return function(np.empty((0, X.shape[1]))) if result is None else result


def small_blocks(X: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield `pipeline.streaming.rows.blocks` of about 8 MiB: for work that needs several times as much memory."""
    return blocks(X, size=max(1, BYTES // (4 * max(1, X.shape[1]))))


def transform_rows(estimator: Any, X: Any, function: Function) -> Any:
    """Transform rows by `function`: arrays give arrays, sources give sources that compute rows when they are read."""
    if is_source(X) and not isinstance(X, np.ndarray):
        X = _validate(estimator, X)
        return Transformed(X, function, (X.shape[0], function(np.zeros((1, X.shape[1]))).shape[1]))
    return apply_blocks(estimator, X, function)


@dataclass(frozen=True)
class Transformed(WrappedSource):
    """A row source over another: float32 rows, computed when they are read."""

    source: Any
    function: Function
    shape: tuple[int, int]
    dtype = np.dtype(np.float32)

    def part(self, rows: slice) -> "Transformed":
        """Return some of the rows, as a source of their own."""
        own = take_rows(self.source, rows)
        return Transformed(own, self.function, (own.shape[0], self.shape[1]))

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = np.asarray(self.source[rows])
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
        return self.function(values).astype(self.dtype)


def _validate(estimator: Any, X: Any) -> Any:
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator)
    return validate_rows(estimator, X, fitting=False)
