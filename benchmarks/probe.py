"""A linear probe: the accuracy of a logistic regression on features."""

import warnings

import numpy as np
from pictures import by_class, labels
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def accuracy(features: np.ndarray, paths: list[str]) -> float:
    """Return the accuracy on the last quarter of each class, after a fit on the rest (of 80: 60 and 20).

    `features`: (images, width), in the order of `paths`, whose folders are the classes.
    """
    names = labels(paths)
    train, y = by_class(names, 0.75), np.array(names)
    X = np.asarray(features, dtype=np.float32).reshape(len(features), -1)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(X[train], y[train])
    return float(probe.score(X[~train], y[~train]))
