"""Validation of targets for estimators on row sources, as scikit-learn validates targets of arrays.

Targets are processed in blocks, so that temporary memory does not grow with the number of rows.
"""

import functools
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.streaming.moments import MAX_NAMED

BLOCK = 65_536  # labels per block


def validate_labels(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each row (rows,) and all classes, sorted.

    Raises ValueError, as scikit-learn's classifiers do, if y is not a list of classes, has another length than X, or
    has a single class.
    """
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, check_consistent_length, column_or_1d

    labels = column_or_1d(_require_target(estimator, y), warn=True)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    check_consistent_length(X, labels)
    classes = unique_classes(labels)
    if len(classes) < 2:
        raise ValueError(
            f"training rows: expected two or more classes, got one class, {classes[0]}, with n_samples={len(labels)}. "
            "Add rows of another class."
        )
    return labels, classes


def unique_classes(labels: np.ndarray) -> np.ndarray:
    """Return all classes among the labels (rows,), sorted."""
    parts = (np.unique(labels[start : start + BLOCK]) for start in range(0, max(1, len(labels)), BLOCK))
    return functools.reduce(np.union1d, parts)


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the number of each row's class among the sorted classes: (rows,) of the smallest unsigned integers.

    Raises HeadError, with their names, for labels of other classes.
    """
    places, wrong = np.empty(len(labels), dtype=np.min_scalar_type(max(0, len(classes) - 1))), set[str]()
    for start in range(0, len(labels), BLOCK):
        block = labels[start : start + BLOCK]
        numbers = np.searchsorted(classes, block).clip(max=len(classes) - 1)
        wrong.update(map(str, block[classes[numbers] != block]))
        places[start : start + BLOCK] = numbers
    if wrong:
        names = ", ".join(sorted(wrong)[:MAX_NAMED])
        raise HeadError(f"training rows: expected the classes of the task, got {names} as well. List every class.")
    return places


def sample_weights(class_weight: Any, labels: np.ndarray) -> np.ndarray | None:
    """Return the weight of each row, float64 (rows,), by scikit-learn's `class_weight`; None for equal weights."""
    from sklearn.utils.class_weight import compute_sample_weight

    if class_weight is None:
        return None
    return np.asarray(compute_sample_weight(class_weight, labels))


def validate_targets(estimator: Any, X: Any, y: Any) -> np.ndarray:
    """Return targets as float64, (rows,) or (rows, targets); raises ValueError as scikit-learn's regressors do."""
    from sklearn.utils.validation import check_array, check_consistent_length

    targets = check_array(
        _require_target(estimator, y), ensure_2d=False, dtype=np.float64, input_name="y", estimator=estimator
    )
    check_consistent_length(X, targets)
    return np.asarray(targets)


def _require_target(estimator: Any, y: Any) -> Any:
    if y is None:  # in the words of scikit-learn, whose checks look for them
        name = type(estimator).__name__
        raise ValueError(f"This {name} estimator requires y to be passed, but the target y is None.")
    return y
