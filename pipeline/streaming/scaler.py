"""scikit-learn's StandardScaler and Normalizer, extended to row sources."""

import functools
from typing import Any, Self

import numpy as np
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline.streaming.chunks import map_chunks
from pipeline.streaming.predict import transform_rows
from pipeline.streaming.rows import blocks, is_source, validate_rows


class StreamingScaler(StandardScaler):  # type: ignore[misc]
    """StandardScaler for arrays and row sources. Sources are fitted in one pass and transformed when they are read."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to rows X."""
        if not is_source(X):
            return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]
        validate_rows(self, X, fitting=True)
        weights = np.ones(X.shape[0]) if sample_weight is None else np.asarray(sample_weight)
        scaler = functools.reduce(_merge, map_chunks(X, _fit_chunk, (weights,), (sample_weight is not None,)))
        self.mean_, self.var_, self.scale_ = None, None, None
        self.n_samples_seen_ = scaler.n_samples_seen_
        if self.with_mean or self.with_std:
            self.mean_ = scaler.mean_
        if self.with_std:
            self.var_, self.scale_ = scaler.var_, scaler.scale_
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Return (rows, width): an array of an array, a source of a source."""
        if isinstance(X, np.ndarray) or not is_source(X):
            return super().transform(X, copy)
        return transform_rows(self, X, super().transform)


class StreamingNormalizer(Normalizer):  # type: ignore[misc]
    """Normalizer for arrays and row sources: rows of a source are normalised when they are read."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Validate the shape of X; there is nothing to fit."""
        if not is_source(X):
            return super().fit(X, y)  # type: ignore[no-any-return]
        validate_rows(self, X, fitting=True)
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Return (rows, width): an array of an array, a source of a source."""
        if isinstance(X, np.ndarray) or not is_source(X):
            return super().transform(X, copy)
        return transform_rows(self, X, super().transform)


def _fit_chunk(work: tuple[Any, ...]) -> StandardScaler:
    """Fit a scaler to the rows of one piece."""
    X, weights, weighted = work
    scaler = StandardScaler()
    for rows, block in blocks(X):
        scaler.partial_fit(block, sample_weight=weights[rows] if weighted else None)
    return scaler


def _merge(first: StandardScaler, second: StandardScaler) -> StandardScaler:
    """Merge two scalers: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"."""
    first_count, other = first.n_samples_seen_, second.n_samples_seen_
    total, apart = first_count + other, second.mean_ - first.mean_
    merged = StandardScaler()
    merged.n_samples_seen_ = total
    merged.mean_ = first.mean_ + apart * (other / total)
    merged.var_ = (first_count * first.var_ + other * second.var_ + apart**2 * (first_count * other / total)) / total
    # Which features are constant is decided as scikit-learn does: by the rounding of a variance of so many rows.
    eps = np.finfo(np.float64).eps
    constant = merged.var_ <= total * eps * merged.var_ + (total * merged.mean_ * eps) ** 2
    merged.scale_ = np.where(constant, 1.0, np.sqrt(merged.var_))
    return merged
