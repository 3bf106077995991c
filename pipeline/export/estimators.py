"""Fitted scikit-learn estimators as torch modules: `to_module` for a head of a run, by the class of each part.

A class that is not listed is refused, with those that are: its arithmetic is not known here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import numpy as np
from torch import nn

from pipeline.errors import HeadError
from pipeline.export import layers, trees
from pipeline.predictions import Scores
from pipeline.task import Kind

Wanted = Literal["probability", "decision", "value"]

PROBABLE = ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis", "StreamingLDA",
            "StreamingLogisticRegression")  # fmt: skip
"""Linear classifiers whose probabilities are the softmax of their decision values."""

DECIDING = ("RidgeClassifier", "RidgeClassifierCV", "LinearSVC", "SGDClassifier", "Perceptron",
            "StreamingRidgeClassifier")  # fmt: skip
"""Linear classifiers of which only decision values are exported."""

REGRESSING = ("Ridge", "RidgeCV", "LinearRegression", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "BayesianRidge",
              "HuberRegressor", "LinearSVR", "SGDRegressor", "StreamingRidge")  # fmt: skip
"""Linear regressions."""

LINEAR = (*PROBABLE, *DECIDING, *REGRESSING)

CAN = "logistic, ridge, svm, lda, centroid, prototypes, naive_bayes, mlp, forest, boosting, streaming_* but knn"


def to_module(head: Any, *, kind: Kind, scores: Scores, where: str) -> nn.Module:
    """Return a module from joined rows float32 (n, width) to scores float32 (n, classes), or (n, 1) of a regression.

    head: the fitted estimator of a run. Of one that gives no scores, such as nearest centroids, decision values, whose
    largest is the prediction. The columns are in the order of the classes of the head, so that of equal scores the same
    one is the first. Raises HeadError, naming the part, for what cannot be exported.
    """
    wanted: Wanted = "value" if kind == "regression" else "probability" if scores == "probability" else "decision"
    result = nn.Sequential(_scores(head, wanted, where))
    if wanted == "decision" and kind == "classification" and len(head.classes_) == 2:
        result.append(layers.BothClasses())
    return result.eval().requires_grad_(False)


def _scores(head: Any, wanted: Wanted, where: str) -> nn.Module:
    """Return a module from rows to what is wanted of a head, in the order of its classes.

    Decision values of two classes are one column.
    """
    name = type(head).__name__
    if name == "Pipeline":
        before = [_transformer(step, where) for _, step in head.steps[:-1]]
        return nn.Sequential(*before, _scores(head[-1], wanted, where))
    if name == "FrozenEstimator":
        return _scores(head.estimator, wanted, where)
    if name not in BUILDERS or not type(head).__module__.startswith(("sklearn.", "pipeline.streaming.")):
        _refuse(head, where)
    return BUILDERS[name](head, wanted, where)


def _refuse(part: Any, where: str, why: str = "") -> NoReturn:
    if "Neighbors" in type(part).__name__:
        raise HeadError(
            f"{where}: nearest neighbours look at all training rows, which no exported file has. Heads that can be "
            f"exported: {CAN}. `icecore predict` takes this one."
        )
    reason = f" ({why})" if why else ""
    raise HeadError(
        f"{where}: {type(part).__name__}{reason} cannot be exported. Heads that can: {CAN}. Fit the "
        "run with one of them."
    )


def _transformer(step: Any, where: str) -> nn.Module:
    name = type(step).__name__
    if name in ("StandardScaler", "StreamingScaler"):
        mean = step.mean_ if step.with_mean else None
        return layers.Standardise(mean, step.scale_ if step.with_std else None)
    if name in ("Normalizer", "StreamingNormalizer") and step.norm == "l2":
        return layers.Normalise([(None, None)])
    if name == "ColumnTransformer":
        parts = [(type(one).__name__, part) for _, one, part in step.transformers_]
        if all(kind == "Normalizer" and isinstance(part, slice) for kind, part in parts):
            return layers.Normalise([(part.start, part.stop) for _, part in parts])
    if name in ("PCA", "StreamingPCA"):
        deviation = None
        if step.whiten:
            deviation = np.maximum(np.sqrt(step.explained_variance_), np.finfo(step.explained_variance_.dtype).eps)
        return layers.Components(step.mean_, step.components_, deviation)
    raise HeadError(f"{where}: the step {name} before the head cannot be exported. Set `scale` and `pca` instead.")


def _linear(head: Any, wanted: Wanted, where: str) -> nn.Module:
    name = type(head).__name__
    result = layers.Linear(head.coef_, head.intercept_)
    if wanted != "probability":
        return result
    if name not in PROBABLE:
        _refuse(head, where, "with probabilities")
    return nn.Sequential(result, layers.Likelihoods())


def _centroids(head: Any, _wanted: Wanted, where: str) -> nn.Module:
    ones, zeros = np.ones(head.n_features_in_), np.zeros(head.n_features_in_)
    if head.metric != "euclidean":
        _refuse(head, where, f"with the metric {head.metric}")
    if not np.allclose(head.class_prior_, 1 / len(head.classes_)):
        _refuse(head, where, "with priors that differ")
    return _of_two(layers.Nearness(head.centroids_, zeros, ones, cosine=False), head)


def _streaming_centroids(head: Any, _wanted: Wanted, _where: str) -> nn.Module:
    means, center, scale = head.centroids_, head.center_, head.scale_
    return _of_two(layers.Nearness(means, center, scale, cosine=head.metric == "cosine"), head)


class Difference(nn.Module):
    """The second of two columns less the first, (n, 1)."""

    def forward(self, values: Any) -> Any:
        """Subtract."""
        return values[:, 1:] - values[:, :1]


def _of_two(result: nn.Module, head: Any) -> nn.Module:
    return nn.Sequential(result, Difference()) if len(head.classes_) == 2 else result


def _naive_bayes(head: Any, _wanted: Wanted, _where: str) -> nn.Module:
    theta, var, prior = (np.asarray(one, np.float64) for one in (head.theta_, head.var_, head.class_prior_))
    result = layers.GaussianLikelihoods(theta, var, prior)
    return nn.Sequential(result, nn.Softmax(dim=1))


def _mlp(head: Any, _wanted: Wanted, where: str) -> nn.Module:
    result = layers.build_perceptron(head.coefs_, head.intercepts_, head.activation)
    if head.out_activation_ == "identity":
        return result
    if head.out_activation_ == "softmax":
        return result.append(nn.Softmax(dim=1))
    if head.out_activation_ == "logistic":
        return result.append(layers.Likelihoods() if head.n_outputs_ == 1 else nn.Sigmoid())
    _refuse(head, where, f"with the output {head.out_activation_}")


def _forest(head: Any, _wanted: Wanted, _where: str) -> nn.Module:
    labels = getattr(head, "n_outputs_", 1) > 1
    return layers.MeanOfTrees(trees.TreeValues(trees.read_forest(getattr(head, "estimators_", [head]), labels=labels)))


def _boosting(head: Any, wanted: Wanted, where: str) -> nn.Module:
    if wanted == "value" and head.loss not in ("squared_error", "absolute_error", "quantile"):
        _refuse(head, where, f"with the loss {head.loss}")
    if head.is_categorical_ is not None and np.any(head.is_categorical_):
        _refuse(head, where, "with categories")
    values = trees.TreeValues(trees.read_boosting(head._predictors))
    result = layers.SumOfTrees(values, np.asarray(head._baseline_prediction))
    return nn.Sequential(result, layers.Likelihoods()) if wanted == "probability" else result


def _one_per_label(head: Any, wanted: Wanted, where: str) -> nn.Module:
    if not head.multilabel_:
        _refuse(head, where, "of one label per row")
    names = {type(one).__name__ for one in head.estimators_}
    if names <= {*LINEAR, "_ConstantPredictor"}:
        if wanted == "probability" and not names <= {*PROBABLE, "_ConstantPredictor"}:
            _refuse(
                next(one for one in head.estimators_ if type(one).__name__ not in PROBABLE), where, "with probabilities"
            )
        width = next((one.coef_.shape[1] for one in head.estimators_ if hasattr(one, "coef_")), head.n_features_in_)
        pairs = [_coefficients(one, width, wanted) for one in head.estimators_]
        result = layers.Linear(np.concatenate([coef for coef, _ in pairs]), np.array([bias for _, bias in pairs]))
        return nn.Sequential(result, nn.Sigmoid()) if wanted == "probability" else result
    columns = [_label(one, wanted, where) for one in head.estimators_]
    return layers.Columns(columns)


def _coefficients(one: Any, width: int, wanted: Wanted) -> tuple[np.ndarray, float]:
    """Return coefficients (1, width) and the intercept of one label; of one that never changes what makes it so."""
    if hasattr(one, "coef_"):
        return np.atleast_2d(one.coef_), float(np.ravel(one.intercept_)[0])
    value = float(one.y_[0])
    return np.zeros((1, width)), value if wanted == "decision" else layers.CERTAIN * (2 * value - 1)


def _label(one: Any, wanted: Wanted, where: str) -> nn.Module:
    if type(one).__name__ == "_ConstantPredictor":
        return Constant(float(one.y_[0]))
    result = _scores(one, wanted, where)
    return nn.Sequential(result, layers.LastColumn())


class Constant(nn.Module):
    """The same value for each row (n, 1)."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, rows: Any) -> Any:
        """Map (n, width) to (n, 1)."""
        return rows[:, :1] * 0 + self.value


def _calibrated(head: Any, _wanted: Wanted, where: str) -> nn.Module:
    if head.method != "temperature":
        _refuse(head, where, f"with the method {head.method}")
    [one] = head.calibrated_classifiers_
    inner: Wanted = "decision" if hasattr(one.estimator, "decision_function") else "probability"
    result = nn.Sequential(_scores(one.estimator, inner, where))
    if inner == "probability":
        result.append(layers.Logarithms())
    elif len(head.classes_) == 2:
        result.append(layers.BothClasses())
    return result.append(layers.Temperature(1 / float(one.calibrators[0].beta_)))


BUILDERS: Mapping[str, Callable[[Any, Wanted, str], nn.Module]] = {
    **dict.fromkeys(LINEAR, _linear),
    "CalibratedClassifierCV": _calibrated,
    "OneVsRestClassifier": _one_per_label,
    "NearestCentroid": _centroids,
    "StreamingCentroid": _streaming_centroids,
    "GaussianNB": _naive_bayes,
    **dict.fromkeys(("MLPClassifier", "MLPRegressor"), _mlp),
    **dict.fromkeys(("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), _boosting),
    **{
        f"{name}{kind}": _forest
        for name in ("RandomForest", "ExtraTrees", "DecisionTree", "ExtraTree")
        for kind in ("Classifier", "Regressor")
    },
}
"""The class of a fitted estimator, to what makes a module of it."""
