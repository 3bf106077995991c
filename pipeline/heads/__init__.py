"""Heads: scikit-learn's own classifiers, by name. Nothing is wrapped."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import HeadError, unknown

HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "centroid": ("sklearn.neighbors:NearestCentroid", {}),
    "forest": ("sklearn.ensemble:RandomForestClassifier", {"random_state": 0}),
    "knn": ("sklearn.neighbors:KNeighborsClassifier", {}),
    "lda": ("sklearn.discriminant_analysis:LinearDiscriminantAnalysis", {"solver": "lsqr", "shrinkage": "auto"}),
    "logistic": ("sklearn.linear_model:LogisticRegression", {"max_iter": 1000}),
    "naive_bayes": ("sklearn.naive_bayes:GaussianNB", {}),
    "ridge": ("sklearn.linear_model:RidgeClassifier", {}),
    "svm": ("sklearn.svm:LinearSVC", {"random_state": 0}),
}
"""Name to class, and the parameters that icecore sets unless told otherwise."""

WITHOUT_SCORES = ("centroid",)
"""Heads whose scores are not used: NearestCentroid's are not a number where a class has a single sample."""

Scale = Literal["standard", "l2", "none"]


def create(name: str, params: Mapping[str, Any], *, scale: Scale) -> Any:
    """An unfitted scikit-learn pipeline: the scaler that was asked for, then the head.

    Raises HeadError for a name that is not in the table and for parameters that the class does not have.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    if name not in HEADS:
        raise HeadError(unknown("head", name, HEADS))
    path, defaults = HEADS[name]
    module, attribute = path.split(":")
    head = getattr(importlib.import_module(module), attribute)()
    for key in params:
        if key not in head.get_params():
            raise HeadError(f"head {name!r} ({attribute}): {unknown('parameter', key, head.get_params())}")
    head.set_params(**{**defaults, **params})
    scalers = {"standard": [StandardScaler()], "l2": [Normalizer()], "none": []}
    return make_pipeline(*scalers[scale], head)
