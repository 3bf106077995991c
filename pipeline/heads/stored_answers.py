"""Estimators that return stored answers by row number, with which calibration is fitted."""

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class _StoredAnswers(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator whose input rows are the numbers of stored answers."""

    def __init__(self, classes: np.ndarray, values: np.ndarray) -> None:
        self.classes, self.values = classes, values
        self.classes_ = classes

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: ARG002 - the signature of scikit-learn
        """Learn nothing."""
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class with the largest value of each row."""
        answers = self._lookup(X)
        return np.asarray(self.classes[(answers > 0).astype(int) if answers.ndim == 1 else answers.argmax(axis=1)])

    def _lookup(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(self.values[X[:, 0].astype(np.int64)])


class Decisions(_StoredAnswers):
    """Returns stored decision values."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return the stored decision values of rows."""
        return self._lookup(X)


class Probabilities(_StoredAnswers):
    """Returns stored probabilities."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the stored probabilities of rows."""
        return self._lookup(X)
