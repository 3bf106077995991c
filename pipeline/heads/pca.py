"""Principal components and whitening, exact, from one pass over rows that need not fit into memory."""

from typing import Any, Self

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.extmath import svd_flip

from pipeline.errors import HeadError
from pipeline.heads.moments import moments_of
from pipeline.heads.rows import checked
from pipeline.heads.streamed import transformed
from pipeline.heads.sums import Moments


class StreamingPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn's PCA(svd_solver="covariance_eigh") over an array or a row source.

    `n_components` is a number of components, the share of the variance below 1 that they are to explain, or None for
    all. Attributes are named as there. `transform` of a source that is no np.memmap is a source, which computes rows
    when they are read, so that another streaming estimator may follow in a Pipeline.
    """

    def __init__(self, n_components: int | float | None = None, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - the signature of scikit-learn
        """Fit to rows X."""
        return self.fit_moments(moments_of(checked(self, X, fitting=True)))

    def fit_moments(self, moments: Moments) -> Self:
        """Fit to the sums of rows, of classes or not; raises HeadError for a number of components they do not have."""
        most = min(moments.rows, moments.width)
        wanted = most if self.n_components is None else self.n_components
        if isinstance(wanted, bool) or not (0 < wanted < 1 or (wanted == int(wanted) and 1 <= wanted <= most)):
            raise HeadError(
                f"principal components, `n_components`: expected 1 to {most:,}, the smaller of rows and features, or a "
                f"share of the variance below 1, got {self.n_components!r}. Ask for fewer."
            )
        if moments.rows < 2:
            raise ValueError(
                f"principal components: expected two or more rows, got n_samples={moments.rows}. Variance needs them."
            )
        values, vectors = eigh(moments.scatter(), driver="evd", overwrite_a=True, check_finite=False)
        values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
        variance = values / (moments.weight - 1)
        share = variance / variance.sum() if variance.sum() > 0 else np.zeros_like(variance)
        if wanted < 1:
            wanted = min(int(np.searchsorted(share.cumsum(), wanted, side="right")) + 1, most)
        kept = slice(0, int(wanted))
        self.n_features_in_, self.n_samples_, self.mean_ = moments.width, moments.rows, moments.mean
        self.n_components_ = int(wanted)
        self.components_ = svd_flip(None, vectors.T[kept].copy(), u_based_decision=False)[1]
        self.explained_variance_ = variance[kept]
        self.explained_variance_ratio_ = share[kept]
        self.singular_values_ = np.sqrt(values[kept])
        return self

    def transform(self, X: Any) -> Any:
        """(rows, components), float64; with `whiten` of variance 1, where it is not 0. Of a source, a source."""
        return transformed(self, X, self._project)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components_)

    def _project(self, block: np.ndarray) -> np.ndarray:
        found = (block - self.mean_) @ self.components_.T
        if self.whiten:
            deviation = np.sqrt(self.explained_variance_)
            found /= np.maximum(deviation, np.finfo(np.float64).eps)
        return np.asarray(found)
