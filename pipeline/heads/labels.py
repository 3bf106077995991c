"""Targets of estimators that read row sources: checked as scikit-learn checks those that come with an array."""

from typing import Any

import numpy as np


def labels_of(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The class of each row (rows,) and all classes, sorted.

    Raises ValueError, as scikit-learn's classifiers do, where y is no list of classes, is not as long as X, or names
    one class only.
    """
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, check_consistent_length, column_or_1d

    labels = column_or_1d(_given(estimator, y), warn=True)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    check_consistent_length(X, labels)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f"training rows: expected two or more classes, got one class, {classes[0]}, with n_samples={len(labels)}. "
            "A head has nothing to tell apart there: give it rows of another class."
        )
    return labels, classes


def numbers_of(estimator: Any, X: Any, y: Any) -> np.ndarray:
    """Targets as float64, (rows,) or (rows, targets); raises ValueError as scikit-learn's regressors do."""
    from sklearn.utils.validation import check_array, check_consistent_length

    targets = check_array(_given(estimator, y), ensure_2d=False, dtype=np.float64, input_name="y", estimator=estimator)
    check_consistent_length(X, targets)
    return np.asarray(targets)


def _given(estimator: Any, y: Any) -> Any:
    if y is None:  # in the words of scikit-learn, whose checks look for them
        name = type(estimator).__name__
        raise ValueError(f"This {name} estimator requires y to be passed, but the target y is None.")
    return y
