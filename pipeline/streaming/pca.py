"""Principal components and whitening, exact, from one pass over rows that need not fit into memory."""

from typing import Any, Self

import numpy as np
from scipy.linalg import eigh, svd
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.extmath import svd_flip

from pipeline.errors import HeadError
from pipeline.streaming.accumulate import compute_moments
from pipeline.streaming.moments import Moments
from pipeline.streaming.predict import transform_rows
from pipeline.streaming.row_space import is_smaller, load_rows
from pipeline.streaming.rows import validate_rows


class StreamingPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn's PCA(svd_solver="covariance_eigh") over an array or a row source.

    `n_components`: a number of components, a share of variance to explain (below 1), or None for all. Attributes have
    the same names. `transform` of a source other than an np.memmap returns a source that computes rows when they are
    read, so that another streaming estimator may follow in a Pipeline.
    """

    def __init__(self, n_components: int | float | None = None, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - the signature of scikit-learn
        """Fit to rows X."""
        X = validate_rows(self, X, fitting=True)
        if not is_smaller(X):
            return self.fit_moments(compute_moments(X))
        # Fewer rows than features take less memory than the scatter of the features, and have as many components.
        wanted = self._wanted(*X.shape)
        rows = load_rows(X)
        mean = rows.mean(axis=0)
        rows -= mean
        _, singular, vectors = svd(rows, full_matrices=False, overwrite_a=True, check_finite=False)
        return self._keep(singular**2, vectors, wanted, mean=mean, rows=X.shape[0], weight=X.shape[0])

    def fit_moments(self, moments: Moments) -> Self:
        """Fit to the sums of rows, of classes or not; raises HeadError for a number of components they do not have."""
        wanted = self._wanted(moments.rows, moments.width)
        values, vectors = eigh(moments.scatter(), driver="evd", overwrite_a=True, check_finite=False)
        values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1].T
        return self._keep(values, vectors, wanted, mean=moments.mean, rows=moments.rows, weight=moments.weight)

    def _wanted(self, rows: int, width: int) -> float:
        """Return the number of components, or their share of the variance; raises HeadError for what rows lack."""
        most = min(rows, width)
        wanted = most if self.n_components is None else self.n_components
        if isinstance(wanted, bool) or not (0 < wanted < 1 or (wanted == int(wanted) and 1 <= wanted <= most)):
            raise HeadError(
                f"principal components, `n_components`: expected 1 to {most:,}, the smaller of rows and features, or a "
                f"share of the variance below 1, got {self.n_components!r}. Set a smaller number."
            )
        if rows < 2:
            raise ValueError(
                f"principal components: expected two or more rows, got n_samples={rows}. Variance needs them."
            )
        return wanted

    def _keep(
        self, values: np.ndarray, vectors: np.ndarray, wanted: float, *, mean: np.ndarray, rows: int, weight: float
    ) -> Self:
        """Set the fitted attributes from `values`, scatters in descending order, and `vectors`, a direction per row."""
        variance = values / (weight - 1)
        share = variance / variance.sum() if variance.sum() > 0 else np.zeros_like(variance)
        if wanted < 1:
            wanted = min(int(np.searchsorted(share.cumsum(), wanted, side="right")) + 1, rows, len(mean))
        components = slice(0, int(wanted))
        self.n_features_in_, self.n_samples_, self.mean_ = len(mean), rows, mean
        self.n_components_ = int(wanted)
        self.components_ = svd_flip(None, vectors[components].copy(), u_based_decision=False)[1]
        self.explained_variance_ = variance[components]
        self.explained_variance_ratio_ = share[components]
        self.singular_values_ = np.sqrt(values[components])
        return self

    def transform(self, X: Any) -> Any:
        """Return (rows, components), float64; with `whiten` of variance 1, where it is not 0. Of a source, a source."""
        return transform_rows(self, X, self._project)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components_)

    def _project(self, block: np.ndarray) -> np.ndarray:
        rotated = (block - self.mean_) @ self.components_.T
        if self.whiten:
            deviation = np.sqrt(self.explained_variance_)
            rotated /= np.maximum(deviation, np.finfo(np.float64).eps)
        return np.asarray(rotated)
