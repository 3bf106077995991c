"""Targets of estimators that read row sources: checked as scikit-learn checks those that come with an array.

There may be many: what is held of each row is what is given back, and the rest of a block of them at a time.
"""

import functools
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.streaming.moments import MOST_NAMED

BLOCK = 65_536  # labels that are looked at together


def labels_of(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each row (rows,) and all classes, sorted.

    Raises ValueError, as scikit-learn's classifiers do, where y is no list of classes, is not as long as X, or names
    one class only.
    """
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, check_consistent_length, column_or_1d

    labels = column_or_1d(_given(estimator, y), warn=True)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    check_consistent_length(X, labels)
    classes = classes_of(labels)
    if len(classes) < 2:
        raise ValueError(
            f"training rows: expected two or more classes, got one class, {classes[0]}, with n_samples={len(labels)}. "
            "A head has nothing to tell apart there: give it rows of another class."
        )
    return labels, classes


def classes_of(labels: np.ndarray) -> np.ndarray:
    """Return all classes among the labels (rows,), sorted."""
    parts = (np.unique(labels[start : start + BLOCK]) for start in range(0, max(1, len(labels)), BLOCK))
    return functools.reduce(np.union1d, parts)


def numbered(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the number of each row's class among the sorted classes: (rows,) of the smallest unsigned integers.

    Raises HeadError, with their names, where there are labels of none of them.
    """
    places, wrong = np.empty(len(labels), dtype=np.min_scalar_type(max(0, len(classes) - 1))), set[str]()
    for start in range(0, len(labels), BLOCK):
        block = labels[start : start + BLOCK]
        numbers = np.searchsorted(classes, block).clip(max=len(classes) - 1)
        wrong.update(map(str, block[classes[numbers] != block]))
        places[start : start + BLOCK] = numbers
    if wrong:
        names = ", ".join(sorted(wrong)[:MOST_NAMED])
        raise HeadError(f"training rows: expected the classes of the task, got {names} as well. Name every class.")
    return places


def weights_of(class_weight: Any, labels: np.ndarray) -> np.ndarray | None:
    """Return the weight of each row, float64 (rows,), by scikit-learn's `class_weight`; None where all are equal."""
    from sklearn.utils.class_weight import compute_sample_weight

    if class_weight is None:
        return None
    return np.asarray(compute_sample_weight(class_weight, labels))


def numbers_of(estimator: Any, X: Any, y: Any) -> np.ndarray:
    """Return targets as float64, (rows,) or (rows, targets); raises ValueError as scikit-learn's regressors do."""
    from sklearn.utils.validation import check_array, check_consistent_length

    targets = check_array(_given(estimator, y), ensure_2d=False, dtype=np.float64, input_name="y", estimator=estimator)
    check_consistent_length(X, targets)
    return np.asarray(targets)


def _given(estimator: Any, y: Any) -> Any:
    if y is None:  # in the words of scikit-learn, whose checks look for them
        name = type(estimator).__name__
        raise ValueError(f"This {name} estimator requires y to be passed, but the target y is None.")
    return y
