"""Heads by import path whose fits end as classes of other packages end: with any error, or with nothing to save."""

import builtins
from typing import Any, Self

import numpy as np
from sklearn.naive_bayes import GaussianNB

from pipeline import errors

NAMED = {**vars(builtins), **vars(errors), "LinAlgError": np.linalg.LinAlgError}


class Failing(GaussianNB):
    """Raises the error of this name in `fit` or, as `predict ValueError`, in `predict`; of the name `none` no error."""

    def __init__(self, *, error: str = "none", priors: Any = None, var_smoothing: float = 1e-9) -> None:
        super().__init__(priors=priors, var_smoothing=var_smoothing)
        self.error = error

    def fit(self, X: Any, y: Any) -> Self:
        self._end(self.error)
        return super().fit(X, y)

    def predict(self, X: Any) -> Any:
        self._end(self.error.removeprefix("predict "))
        return super().predict(X)

    def _end(self, name: str) -> None:
        if name in NAMED:
            raise NAMED[name]("the fit ends\nhere")


class Unsaved(GaussianNB):
    """Has what skops cannot save."""

    def fit(self, X: Any, y: Any) -> Self:
        super().fit(X, y)
        self.generator_ = (one for one in X)
        return self
