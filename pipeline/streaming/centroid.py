"""Nearest class mean, from one pass over rows that need not fit into memory; a class may have a single row."""

from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.errors import HeadError, unknown
from pipeline.streaming.accumulate import compute_moments
from pipeline.streaming.moments import Moments
from pipeline.streaming.predict import apply_blocks
from pipeline.streaming.row_space import deviations, is_smaller, load_rows
from pipeline.streaming.rows import validate_rows
from pipeline.streaming.targets import validate_labels

METRICS = ("cosine", "euclidean")


class StreamingCentroid(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A nearest-centroid classifier, by distance or cosine; X is an array or a row source.

    Decision values are -|x - m|²/2, as for Gaussians of unit variance, or the cosine of x and m. For class means of
    normalised rows, put a Normalizer before it; with `standardize`, x and m are standardized. scikit-learn's
    NearestCentroid ("euclidean") predicts the same, but divides its decision values by the variance within classes,
    which is undefined if every class has a single row.

    Fitted: `centroids_` (classes, width), float64, of the original rows; `center_` and `scale_` (width,), 0 and 1
    without `standardize`.
    """

    def __init__(self, metric: Literal["euclidean", "cosine"] = "euclidean", *, standardize: bool = False) -> None:
        self.metric = metric
        self.standardize = standardize

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X and classes y (rows,)."""
        X = validate_rows(self, X, fitting=True)
        labels, classes = validate_labels(self, X, y)
        if is_smaller(X):
            return self._fit_few(load_rows(X), labels, classes)
        return self.fit_moments(compute_moments(X, labels, classes=classes))

    def _fit_few(self, rows: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Self:
        """Fit to fewer rows than features, without the products of features that moments have."""
        self._check_metric()
        self.classes_, self.n_features_in_ = classes, rows.shape[1]
        self.centroids_ = np.stack([rows[labels == name].mean(axis=0) for name in classes])
        self.center_, self.scale_ = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        if self.standardize:
            self.center_, self.scale_ = rows.mean(axis=0), deviations(rows, None)
        return self

    def _check_metric(self) -> None:
        if self.metric not in METRICS:
            raise HeadError(unknown("metric", str(self.metric), METRICS))

    def fit_moments(self, moments: Moments) -> Self:
        """Fit to moments of rows with classes; raises HeadError if they have none, or the metric is unknown."""
        self._check_metric()
        if moments.classes is None:
            raise HeadError(
                "nearest class mean: expected moments of classes, got none. Pass `classes` to compute_moments."
            )
        self.classes_, self.centroids_, self.n_features_in_ = moments.classes, moments.class_means, moments.width
        self.center_, self.scale_ = np.zeros(moments.width), np.ones(moments.width)
        if self.standardize:
            self.center_, self.scale_ = moments.mean, moments.scale
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return decision values (rows, classes), or (rows,) for two: the second less the first."""
        nearness = apply_blocks(self, X, self._nearness)
        return np.asarray(nearness[:, 1] - nearness[:, 0]) if len(self.classes_) == 2 else nearness

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each row (rows,)."""
        nearness = apply_blocks(self, X, self._nearness)
        return np.asarray(self.classes_[nearness.argmax(axis=1)])

    def _nearness(self, block: np.ndarray) -> np.ndarray:
        if self.metric == "cosine":
            x, m = (block - self.center_) / self.scale_, (self.centroids_ - self.center_) / self.scale_
            return np.asarray(_directions(x) @ _directions(m).T)
        # About the middle of the means, so that squares are of the size of distances.
        middle = self.centroids_.mean(axis=0)
        x, m = (block - middle) / self.scale_, (self.centroids_ - middle) / self.scale_
        return np.asarray(x @ m.T - (m**2).sum(axis=1) / 2 - (x**2).sum(axis=1, keepdims=True) / 2)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))
