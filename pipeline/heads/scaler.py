"""Scalers before a streaming estimator: scikit-learn's own, which then take row sources too."""

from typing import Any, Self

import numpy as np
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline.heads.rows import blocks, checked, is_source
from pipeline.heads.streamed import transformed


class StreamingScaler(StandardScaler):  # type: ignore[misc]
    """StandardScaler; of a source it takes one pass, and what it transforms is computed when it is read."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to rows X."""
        if not is_source(X):
            return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]
        checked(self, X, fitting=True)
        self._reset()
        for rows, block in blocks(X):
            self.partial_fit(block, sample_weight=None if sample_weight is None else sample_weight[rows])
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """(rows, width): an array of an array, a source of a source."""
        if isinstance(X, np.ndarray) or not is_source(X):
            return super().transform(X, copy)
        return transformed(self, X, super().transform)


class StreamingNormalizer(Normalizer):  # type: ignore[misc]
    """Normalizer; the rows of a source get length 1 when they are read."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Look at the shape of X: nothing is fitted."""
        if not is_source(X):
            return super().fit(X, y)  # type: ignore[no-any-return]
        checked(self, X, fitting=True)
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """(rows, width): an array of an array, a source of a source."""
        if isinstance(X, np.ndarray) or not is_source(X):
            return super().transform(X, copy)
        return transformed(self, X, super().transform)
