"""Fitting on a GPU through scikit-learn's array API: the same estimators on torch tensors.

A fitted head is moved back to the CPU: its attributes become arrays, so that it predicts and is saved like other heads.
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
    """Return the torch device for `wanted`, None for the CPU, and a note if it differs from `wanted`."""
    if wanted == "cpu":
        return None, None
    enabled = enable_array_api()  # before any import of scipy
    import torch

    if not torch.cuda.is_available():
        return None, f"device: {wanted}: torch finds no GPU here; heads are fitted on the processor."
    if not enabled:
        return None, f"device: {wanted}: scipy was loaded without SCIPY_ARRAY_API=1; heads are fitted on the processor."
    return wanted, None


def enable_array_api() -> bool:
    """Make scipy load with its array API; return False if it was loaded without."""
    if "scipy" not in sys.modules:
        os.environ["SCIPY_ARRAY_API"] = "1"
    return os.environ.get("SCIPY_ARRAY_API") == "1"


def supports_tensors(pipeline: Any) -> bool:
    """Return whether every step of a pipeline can fit tensors with string targets.

    scikit-learn 1.9's tag `array_api_support` is true for classes that refuse such targets, and false for some that
    accept them.
    """
    named = {type(step).__name__ for _, step in pipeline.steps}
    solver = pipeline[-1].get_params().get("solver")
    return named <= {*SUPPORTED} and solver in (None, "lbfgs", "auto", "svd")


def prepare_for_tensors(pipeline: Any) -> Any:
    """Set the solver of ridge heads for tensors, which scikit-learn would choose with a warning."""
    if pipeline[-1].get_params().get("solver") == "auto":
        pipeline[-1].set_params(solver="svd")
    return pipeline


@contextmanager
def accept_tensors(device: str | None) -> Iterator[None]:
    """Make scikit-learn accept tensors in this block, if there is a device."""
    if device is None:
        yield
        return
    import sklearn

    with sklearn.config_context(array_api_dispatch=True):
        yield


def to_tensor(X: np.ndarray, device: str | None) -> Any:
    """Return X as a tensor on a device; unchanged without a device."""
    if device is None:
        return X
    import torch

    return torch.as_tensor(X, device=device)


def to_arrays(value: Any) -> Any:
    """Convert the tensors of a fitted estimator and of its inner estimators to arrays, in place."""
    from sklearn.base import BaseEstimator

    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return type(value)(to_arrays(item) for item in value)
    if isinstance(value, BaseEstimator):
        for name, attribute in vars(value).items():
            setattr(value, name, to_arrays(attribute))
    return value
