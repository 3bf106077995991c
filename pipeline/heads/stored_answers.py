"""Estimators whose rows are the numbers of rows that heads have answered before: what calibration learns from."""

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class _Answers(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator whose rows are numbers of rows that were answered before."""

    def __init__(self, classes: np.ndarray, values: np.ndarray) -> None:
        self.classes, self.values = classes, values
        self.classes_ = classes

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: ARG002 - the signature of scikit-learn
        """Learn nothing."""
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class with the largest value of each row."""
        answers = self._of(X)
        return np.asarray(self.classes[(answers > 0).astype(int) if answers.ndim == 1 else answers.argmax(axis=1)])

    def _of(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(self.values[X[:, 0].astype(np.int64)])


class Decisions(_Answers):
    """Rows that were answered by decision values."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return the decision values of some rows."""
        return self._of(X)


class Probabilities(_Answers):
    """Rows that were answered by probabilities."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probabilities of some rows."""
        return self._of(X)
