"""k nearest neighbours over training rows that need not fit into memory, with the results of scikit-learn."""

from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d

from pipeline.errors import HeadError
from pipeline.streaming.exact_search import Metric, nearest
from pipeline.streaming.rows import is_source, validate_rows
from pipeline.streaming.targets import encode_labels, unique_classes


class _StreamingNeighbors(BaseEstimator):  # type: ignore[misc]
    """Base of the two estimators: stores the training rows and finds the nearest.

    An array is saved with the estimator. A row source is neither copied nor saved: `attach` sets it on a loaded
    estimator.
    """

    rows_: Any
    n_samples_fit_: int
    n_features_in_: int
    _parameter_constraints: dict[str, Any] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "weights": [StrOptions({"uniform", "distance"})],
        "metric": [StrOptions({"cosine", "euclidean"})],
    }

    def __init__(self, n_neighbors: int = 5, *, weights: str = "uniform", metric: Metric = "euclidean") -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric

    def kneighbors(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances of the nearest rows, float32 (rows, n_neighbors) ascending, and their numbers, int64.

        Raises HeadError as `nearest` does, and where the training rows were a source that is not with the estimator.
        """
        check_is_fitted(self)
        X = validate_rows(self, X, fitting=False)
        if self.rows_ is None:
            raise HeadError(
                f"{type(self).__name__}: expected its {self.n_samples_fit_:,} training rows, got none: they are "
                "features, which are not saved with it. Load it with `features`, or set them with `attach`."
            )
        return nearest(X, self.rows_, self.n_neighbors, metric=self.metric)

    def attach(self, rows: Any) -> Self:
        """Set the training rows of a loaded estimator: the rows of `fit`, in their order.

        Raises HeadError for another shape; the caller checks that they are the same rows.
        """
        check_is_fitted(self)
        if tuple(rows.shape) != (expected := (self.n_samples_fit_, self.n_features_in_)):
            raise HeadError(f"{type(self).__name__}: expected the training rows {expected}, got {tuple(rows.shape)}.")
        self.rows_ = rows
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if is_source(state.get("rows_")):
            state["rows_"] = None
        return state

    def _keep(self, X: Any, y: Any) -> None:
        self._validate_params()
        check_consistent_length(X, y)
        self.rows_ = X
        self.n_samples_fit_ = int(X.shape[0])

    def _near(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of the nearest rows, summing to 1, and their numbers: both (rows, n_neighbors)."""
        distances, numbers = self.kneighbors(X)
        weights = np.ones(distances.shape)
        if self.weights == "distance":  # rows at distance 0 get all the weight
            same = distances == 0
            weights = np.where(same.any(axis=1)[:, None], same, 1 / np.where(same, 1, distances.astype(np.float64)))
        return weights / weights.sum(axis=1)[:, None], numbers


class StreamingKNeighborsClassifier(ClassifierMixin, _StreamingNeighbors):  # type: ignore[misc]
    """scikit-learn's KNeighborsClassifier, exact, for arrays and row sources; on equal votes the first class wins."""

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the training rows (rows, width) and the class of each."""
        X = validate_rows(self, X, fitting=True)
        y = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=None, input_name="y")
        check_classification_targets(y)
        self._keep(X, y)
        self.classes_ = unique_classes(y)
        self.codes_ = encode_labels(y, self.classes_)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the share of the votes of each class, float64 (rows, classes)."""
        weights, numbers = self._near(X)
        votes = np.zeros((len(weights), len(self.classes_)))
        np.add.at(votes, (np.arange(len(votes))[:, None], self.codes_[numbers]), weights)
        return votes

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class with most of the votes."""
        votes = self.predict_proba(X)
        predicted: np.ndarray = self.classes_[np.argmax(votes, axis=1)]
        return predicted


class StreamingKNeighborsRegressor(RegressorMixin, _StreamingNeighbors):  # type: ignore[misc]
    """scikit-learn's KNeighborsRegressor of one target, exact, for arrays and row sources."""

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the training rows (rows, width) and the target of each."""
        X = validate_rows(self, X, fitting=True)
        y = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=np.float64, input_name="y")
        self._keep(X, y)
        self.targets_ = y
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the mean of the nearest targets, float64 (rows,)."""
        weights, numbers = self._near(X)
        predicted: np.ndarray = np.einsum("ij,ij->i", weights, self.targets_[numbers])
        return predicted
