"""Heads: scikit-learn's own estimators, by name, or any other by its import path.

The name of a head means the class for the task's kind: `ridge` is a classifier or a regression. A multilabel task takes
a classifier that learns several labels per row, and one-vs-rest of any other. A head of the table that reads its rows
in blocks, and never holds them all, is called *streaming*.

preprocessing        what stands before a head: scaling, principal components
search, sweep        choose a parameter on held-out rows
scoring              the metrics that a search compares
regularisation_path  one head with many values of a parameter
warm_start           where scikit-learn's logistic regression starts in a sweep
calibration          temperature scaling
stored_answers       estimators whose rows are the numbers of stored answers, for calibration
outputs              predictions and scores of a head in one form
saved, knn_rows      a head from its file; the training rows that nearest neighbours look at
linear_layer         a linear head as one layer of torch
gpu                  fitting on a GPU
check                heads and their parameters, checked without fitting
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
"""Name to class for classes as targets, and the parameters that icecore sets unless told otherwise."""

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
"""The same for numbers as targets."""

MULTILABEL: Mapping[str, Entry] = {"centroid": ("pipeline.streaming.centroid:StreamingCentroid", {})}
"""Heads whose class is another for several labels per row. One-vs-rest predicts by decision values, and those of
NearestCentroid are scaled by class: their signs do not say which mean is the nearest."""

WITHOUT_SCORES = ("centroid",)
"""Heads whose scores a classification does not use: NearestCentroid's are no numbers where a class has one sample."""

STREAMING = "streaming_"  # the names of heads that read their rows in blocks

SUMMED = ("streaming_centroid", "streaming_lda", "streaming_ridge")
"""Those of them that are solved from sums over the training rows, which several workers can make."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_import_path(name: str) -> bool:
    """Return whether a head is named by its class, such as sklearn.svm:LinearSVC."""
    return _IMPORT_PATH.fullmatch(name) is not None


def known() -> list[str]:
    """Return every name of the table."""
    return sorted({*HEADS, *REGRESSIONS})


def is_streaming(name: str) -> bool:
    """Return whether a head of the table reads its rows in blocks."""
    return name.startswith(STREAMING)


def entry(name: str, kind: Kind) -> Entry:
    """Return the import path of a head's class for this kind of task, and icecore's parameters of it.

    Raises HeadError for a name that is not in the table, and for a head that cannot learn such targets.
    """
    if is_import_path(name):
        return name, {}
    if name not in known():
        raise HeadError(unknown("head", name, known()))
    table, wants = (REGRESSIONS, "numbers") if kind == "regression" else (HEADS, "classes")
    if name not in table:
        raise HeadError(f"head {name!r}: it cannot learn {wants}, and the task is a {kind}. Use {', '.join(table)}.")
    return MULTILABEL.get(name, table[name]) if kind == "multilabel" else table[name]


def has_scores(name: str, kind: Kind) -> bool:
    """Return whether the scores of a head can be used for this kind of task, if its class gives any."""
    return name not in WITHOUT_SCORES or (kind == "multilabel" and name in MULTILABEL)


def solved(head: Any) -> dict[str, Any]:
    """Return the penalty that a fitted pipeline of a head chose by itself among its `alphas`; empty for other heads."""
    last = getattr(head, "steps", [("", head)])[-1][1]
    return {"alpha": last.alpha_} if getattr(last, "alphas", None) is not None and hasattr(last, "alpha_") else {}


def inner(pipeline: Any) -> Any:
    """Return the head of a pipeline; of one label against the rest, that which learns each label."""
    return pipeline[-1].estimator if "estimator" in pipeline[-1].get_params() else pipeline[-1]


def is_random(name: str, kind: Kind) -> bool:
    """Return whether what a head learns depends on `random_state`; of an import path, whether it has one."""
    path, defaults = entry(name, kind)
    return "random_state" in (_estimator(name, path).get_params() if is_import_path(name) else defaults)


def may_be_random(name: str, kind: Kind) -> bool:
    """Return whether a head of the table has a `random_state`; unlike `is_random` without loading any class."""
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
    """Create an unfitted scikit-learn pipeline: the preprocessing that is asked for, then the head.

    `widths` are those of the taps side by side. Streaming heads that can standardise do so by themselves, unless they
    weigh classes. Raises
    HeadError for a head that is not there or of the wrong kind, and for parameters that the class does not have.
    """
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.utils import get_tags

    path, defaults = entry(name, kind)
    head = _estimator(name, path)
    _check_kind(head, name, kind)
    given = dict(params)
    alike = given.get("class_weight") is None  # weighted sums have other deviations than a scaler, which weighs no row
    if is_streaming(name) and scale == "standard" and pca is None and "standardize" in head.get_params() and alike:
        given.setdefault("standardize", True)  # from the pass that the head takes anyway
        before = []
    else:
        before = preprocessing_steps(scale, widths, pca, streaming=is_streaming(name))
    for key in given:
        if key not in head.get_params():
            what = unknown("parameter", key, head.get_params())
            raise HeadError(f"head {name!r} ({type(head).__name__}): {what}{say_weights(key)}")
    head.set_params(**{**defaults, **given})
    if kind == "multilabel" and not get_tags(head).classifier_tags.multi_label:
        head = OneVsRestClassifier(head)
    return make_pipeline(*before, head)


def say_weights(parameter: str) -> str:
    """Return which heads weigh classes, where that is the parameter that a head lacks; "" for another one."""
    return " It cannot weigh classes: use logistic, ridge, svm or forest." if parameter == "class_weight" else ""


def _estimator(name: str, path: str) -> Any:
    """Create an estimator of the class at an import path, with these parameters."""
    module, attribute = path.split(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise HeadError(
            f"head {name!r}: expected an installed module, got {error}. Install it, or use a head of the table."
        ) from None
    except Exception as error:  # whatever the code of a module raises
        raise HeadError(
            f"head {name!r}: the module {module} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    kind = getattr(imported, attribute, None)
    wanted = ("fit", "predict", "get_params", "set_params")
    if not isinstance(kind, type) or not all(hasattr(kind, method) for method in wanted):
        there = sorted(
            attribute
            for attribute in vars(imported)
            if isinstance(getattr(imported, attribute), type) and attribute[0] != "_"
        )
        hint = "" if attribute in there else f" {unknown('class', attribute, there)}"
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
