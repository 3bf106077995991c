"""Heads: scikit-learn's estimators by name, or any other estimator by its import path.

The name of a head stands for a class per kind of task: `ridge` is a classifier or a regression. Multilabel tasks use
the class itself if it supports several labels per row, else one-vs-rest. A *streaming* head reads its rows in blocks,
which need not fit into memory.

preprocessing        transformers before a head: scaling, principal components
search, sweep        choose a parameter on held-out rows
scoring              the metrics that a search compares
regularisation_path  a head fitted with many values of a parameter
warm_start           starts for scikit-learn's logistic regression in a sweep
calibration          temperature scaling
stored_answers       estimators that return stored answers, for calibration
outputs              predictions and scores of a head in a common form
saved, knn_rows      load a head; the training rows of nearest neighbours
linear_layer         a linear head as a torch layer
gpu                  fitting on a GPU
check                validation of heads and parameters without fitting
"""

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.errors import HeadError, unknown
from pipeline.heads.preprocessing import Pca, Scale, preprocessing_steps
from pipeline.task import Kind

Entry = tuple[str, Mapping[str, Any]]

HEADS: Mapping[str, Entry] = {
    "boosting": ("sklearn.ensemble:HistGradientBoostingClassifier", {"random_state": 0}),
    "centroid": ("sklearn.neighbors:NearestCentroid", {}),
    "forest": ("sklearn.ensemble:RandomForestClassifier", {"random_state": 0}),
    "knn": ("sklearn.neighbors:KNeighborsClassifier", {"algorithm": "brute"}),
    "lda": ("sklearn.discriminant_analysis:LinearDiscriminantAnalysis", {"solver": "lsqr", "shrinkage": "auto"}),
    "logistic": ("sklearn.linear_model:LogisticRegression", {"max_iter": 1000}),
    "mlp": ("sklearn.neural_network:MLPClassifier", {"max_iter": 1000, "random_state": 0}),
    "naive_bayes": ("sklearn.naive_bayes:GaussianNB", {}),
    "prototypes": ("pipeline.streaming.centroid:StreamingCentroid", {"metric": "cosine"}),
    "ridge": ("sklearn.linear_model:RidgeClassifier", {}),
    "streaming_centroid": ("pipeline.streaming.centroid:StreamingCentroid", {}),
    "streaming_knn": ("pipeline.streaming.knn:StreamingKNeighborsClassifier", {}),
    "streaming_lda": ("pipeline.streaming.lda:StreamingLDA", {"shrinkage": "auto"}),
    "streaming_logistic": ("pipeline.streaming.logistic:StreamingLogisticRegression", {}),
    "streaming_ridge": ("pipeline.streaming.ridge:StreamingRidgeClassifier", {"alpha": 1.0}),
    "svm": ("sklearn.svm:LinearSVC", {"random_state": 0}),
}
"""{name: (class, defaults of icecore)} for classification."""

REGRESSIONS: Mapping[str, Entry] = {
    "boosting": ("sklearn.ensemble:HistGradientBoostingRegressor", {"random_state": 0}),
    "forest": ("sklearn.ensemble:RandomForestRegressor", {"random_state": 0}),
    "knn": ("sklearn.neighbors:KNeighborsRegressor", {"algorithm": "brute"}),
    "mlp": ("sklearn.neural_network:MLPRegressor", {"max_iter": 1000, "random_state": 0}),
    "ridge": ("sklearn.linear_model:Ridge", {}),
    "streaming_knn": ("pipeline.streaming.knn:StreamingKNeighborsRegressor", {}),
    "streaming_ridge": ("pipeline.streaming.ridge:StreamingRidge", {"alpha": 1.0}),
    "svm": ("sklearn.svm:LinearSVR", {"random_state": 0}),
}
"""{name: (class, defaults of icecore)} for regression."""

MULTILABEL: Mapping[str, Entry] = {"centroid": ("pipeline.streaming.centroid:StreamingCentroid", {})}
"""Heads with another class for multilabel tasks. One-vs-rest predicts by the sign of decision values, which
NearestCentroid scales by class, so that the sign does not tell the nearest mean."""

WITHOUT_SCORES = ("centroid",)
"""Heads whose scores are not used in classification: those of NearestCentroid are NaN if a class has one sample."""

STREAMING = "streaming_"  # the names of heads that read their rows in blocks

SUMMED = ("streaming_centroid", "streaming_lda", "streaming_ridge")
"""Streaming heads that are solved from sums over the training rows, which workers can compute."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_import_path(name: str) -> bool:
    """Return whether a name is an import path, such as sklearn.svm:LinearSVC."""
    return _IMPORT_PATH.fullmatch(name) is not None


def known() -> list[str]:
    """Return the names of all heads."""
    return sorted({*HEADS, *REGRESSIONS})


def is_streaming(name: str) -> bool:
    """Return whether a head of the table reads its rows in blocks."""
    return name.startswith(STREAMING)


def entry(name: str, kind: Kind) -> Entry:
    """Return the import path of a head's class for this kind of task, and icecore's default parameters.

    Raises HeadError for an unknown name, and for a head that cannot learn such targets.
    """
    if is_import_path(name):
        return name, {}
    if name not in known():
        raise HeadError(unknown("head", name, known()))
    table, wants = (REGRESSIONS, "numbers") if kind == "regression" else (HEADS, "classes")
    if name not in table:
        raise HeadError(f"head {name!r}: it cannot learn {wants}, but the task is a {kind}. Use {', '.join(table)}.")
    return MULTILABEL.get(name, table[name]) if kind == "multilabel" else table[name]


def has_scores(name: str, kind: Kind) -> bool:
    """Return whether the scores of a head, if it has any, can be used for this kind of task."""
    return name not in WITHOUT_SCORES or (kind == "multilabel" and name in MULTILABEL)


def fitted_penalty(head: Any) -> dict[str, Any]:
    """Return {"alpha": penalty} that a fitted head chose among its `alphas`; {} for other heads."""
    last = getattr(head, "steps", [("", head)])[-1][1]
    return {"alpha": last.alpha_} if getattr(last, "alphas", None) is not None and hasattr(last, "alpha_") else {}


def inner_head(pipeline: Any) -> Any:
    """Return the head of a pipeline; for one-vs-rest, the estimator of each label."""
    return pipeline[-1].estimator if "estimator" in pipeline[-1].get_params() else pipeline[-1]


def is_random(name: str, kind: Kind) -> bool:
    """Return whether a head depends on `random_state`; for an import path, whether it has that parameter."""
    path, defaults = entry(name, kind)
    return "random_state" in (_estimator(name, path).get_params() if is_import_path(name) else defaults)


def may_be_random(name: str, kind: Kind) -> bool:
    """Return whether a named head has a `random_state`, without importing its class, unlike `is_random`."""
    table = REGRESSIONS if kind == "regression" else HEADS
    return "random_state" in table.get(name, ("", {}))[1]


def create(
    name: str,
    params: Mapping[str, Any],
    *,
    scale: Scale,
    kind: Kind = "classification",
    widths: Sequence[int] = (),
    pca: Pca | None = None,
) -> Any:
    """Create an unfitted scikit-learn pipeline: the preprocessing, then the head.

    widths: widths of the concatenated taps. Streaming heads with a `standardize` parameter scale by it, unless they
    weight classes. Raises HeadError for an unknown head, a head of the wrong kind, and unknown parameters.
    """
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.utils import get_tags

    path, defaults = entry(name, kind)
    head = _estimator(name, path)
    _check_kind(head, name, kind)
    given = dict(params)
    unweighted = given.get("class_weight") is None  # a scaler ignores weights, weighted moments do not
    if is_streaming(name) and scale == "standard" and pca is None and "standardize" in head.get_params() and unweighted:
        given.setdefault("standardize", True)  # without another pass over the rows
        before = []
    else:
        before = preprocessing_steps(scale, widths, pca, streaming=is_streaming(name))
    for key in given:
        if key not in head.get_params():
            what = unknown("parameter", key, head.get_params())
            raise HeadError(f"head {name!r} ({type(head).__name__}): {what}{advise_weights(key)}")
    head.set_params(**{**defaults, **given})
    if kind == "multilabel" and not get_tags(head).classifier_tags.multi_label:
        head = OneVsRestClassifier(head)
    return make_pipeline(*before, head)


def advise_weights(parameter: str) -> str:
    """Return which heads can weight classes if `parameter` is class_weight; "" for other parameters."""
    return " It cannot weight classes: use logistic, ridge, svm or forest." if parameter == "class_weight" else ""


def _estimator(name: str, path: str) -> Any:
    """Create an estimator with default parameters from the class at an import path."""
    module, attribute = path.split(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise HeadError(
            f"head {name!r}: expected an installed module, got {error}. Install it, or use a head of the table."
        ) from None
    except Exception as error:  # any error of a module's own code
        raise HeadError(
            f"head {name!r}: the module {module} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    kind = getattr(imported, attribute, None)
    wanted = ("fit", "predict", "get_params", "set_params")
    if not isinstance(kind, type) or not all(hasattr(kind, method) for method in wanted):
        available = sorted(
            attribute
            for attribute in vars(imported)
            if isinstance(getattr(imported, attribute), type) and attribute[0] != "_"
        )
        hint = "" if attribute in available else f" {unknown('class', attribute, available)}"
        raise HeadError(f"head {name!r}: expected a class of scikit-learn's kind with {', '.join(wanted)}.{hint}")
    try:
        return kind()
    except TypeError as error:
        raise HeadError(f"head {name!r}: expected a class whose parameters all have a default, got: {error}.") from None


def _check_kind(head: Any, name: str, kind: Kind) -> None:
    from sklearn.base import is_classifier, is_regressor

    wanted: Literal["classifier", "regressor"] = "regressor" if kind == "regression" else "classifier"
    if not (is_regressor(head) if kind == "regression" else is_classifier(head)):
        table = REGRESSIONS if kind == "regression" else HEADS
        raise HeadError(f"head {name!r}: the task is a {kind}, expected a {wanted}. Use {', '.join(table)}.")
