"""Fitting on a GPU through scikit-learn's array API: the same estimators on torch tensors.

A head that was fitted there is moved back: its attributes are arrays again, so that it predicts and is saved like any
other.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

SUPPORTED = (
    "StandardScaler",
    "Normalizer",
    "PCA",
    "LogisticRegression",
    "RidgeClassifier",
    "Ridge",
    "GaussianNB",
)


def choose_device(wanted: str) -> tuple[str | None, str | None]:
    """Return the torch device for `wanted`, None for plain arrays, and a note where that is less than wanted."""
    if wanted == "cpu":
        return None, None
    enabled = enable_array_api()  # before anything that may load scipy
    import torch

    if not torch.cuda.is_available():
        return None, f"device: {wanted}: torch finds no GPU here; heads are fitted on the processor."
    if not enabled:
        return None, f"device: {wanted}: scipy was loaded without SCIPY_ARRAY_API=1; heads are fitted on the processor."
    return wanted, None


def enable_array_api() -> bool:
    """Make scipy load with its array API; return False where it is loaded without."""
    if "scipy" not in sys.modules:
        os.environ["SCIPY_ARRAY_API"] = "1"
    return os.environ.get("SCIPY_ARRAY_API") == "1"


def supports_tensors(pipeline: Any) -> bool:
    """Return whether every step of a pipeline is known to fit tensors with targets as text.

    The tag `array_api_support` of scikit-learn 1.9 is true of classes that refuse such targets, and false of some that
    take them.
    """
    named = {type(step).__name__ for _, step in pipeline.steps}
    solver = pipeline[-1].get_params().get("solver")
    return named <= {*SUPPORTED} and solver in (None, "lbfgs", "auto", "svd")


def prepare_for_tensors(pipeline: Any) -> Any:
    """Return the pipeline with the solver for ridge heads on tensors: scikit-learn chooses it with a warning."""
    if pipeline[-1].get_params().get("solver") == "auto":
        pipeline[-1].set_params(solver="svd")
    return pipeline


@contextmanager
def accept_tensors(device: str | None) -> Iterator[None]:
    """Make scikit-learn take tensors within, where there is a device."""
    if device is None:
        yield
        return
    import sklearn

    with sklearn.config_context(array_api_dispatch=True):
        yield


def to_tensor(X: np.ndarray, device: str | None) -> Any:
    """Return X as a tensor on a device, or as it is."""
    if device is None:
        return X
    import torch

    return torch.as_tensor(X, device=device)


def to_arrays(value: Any) -> Any:
    """Make arrays of a fitted estimator's tensors, in place, and of the estimators inside it."""
    from sklearn.base import BaseEstimator

    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return type(value)(to_arrays(item) for item in value)
    if isinstance(value, BaseEstimator):
        for name, held in vars(value).items():
            setattr(value, name, to_arrays(held))
    return value
