"""Convert fitted scikit-learn estimators to torch modules: `to_module` converts the head of a run, part by part.

Only the classes in `BUILDERS` can be converted. Any other class raises an error that lists them.
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

PROBABILISTIC = ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis", "StreamingLDA",
            "StreamingLogisticRegression")  # fmt: skip
"""Linear classifiers whose probabilities are the softmax of their decision values."""

DECISION_ONLY = ("RidgeClassifier", "RidgeClassifierCV", "LinearSVC", "SGDClassifier", "Perceptron",
            "StreamingRidgeClassifier")  # fmt: skip
"""Linear classifiers that are exported with decision values only."""

REGRESSORS = ("Ridge", "RidgeCV", "LinearRegression", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "BayesianRidge",
              "HuberRegressor", "LinearSVR", "SGDRegressor", "StreamingRidge")  # fmt: skip
"""Linear regressors."""

LINEAR = (*PROBABILISTIC, *DECISION_ONLY, *REGRESSORS)

EXPORTABLE = "logistic, ridge, svm, lda, centroid, prototypes, naive_bayes, mlp, forest, boosting, streaming_* but knn"


def to_module(head: Any, *, kind: Kind, scores: Scores, where: str) -> nn.Module:
    """Return a module that maps concatenated rows, float32 (n, width), to scores, float32 (n, classes) or (n, 1).

    head: the fitted estimator of a run. scores: the scores that the head gives.

    A head without scores, such as nearest centroids, gets decision values whose largest is the prediction. The columns
    are in the order of the head's classes, so that ties are resolved as the head does. Raises HeadError with the part
    that cannot be exported.
    """
    wanted: Wanted = "value" if kind == "regression" else "probability" if scores == "probability" else "decision"
    result = nn.Sequential(_scores(head, wanted, where))
    if wanted == "decision" and kind == "classification" and len(head.classes_) == 2:
        result.append(layers.BothClasses())
    return result.eval().requires_grad_(False)


def _scores(head: Any, wanted: Wanted, where: str) -> nn.Module:
    """Return a module that maps rows to the wanted output of a head, in the order of its classes.

    Decision values of two classes are a single column.
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
            f"{where}: nearest neighbours need all training rows, which an exported file does not have. Heads that can "
            f"be exported: {EXPORTABLE}. Use `icecore predict` with this run."
        )
    reason = f" ({why})" if why else ""
    raise HeadError(
        f"{where}: {type(part).__name__}{reason} cannot be exported. Fit the run with a head that can: {EXPORTABLE}."
    )


def _transformer(step: Any, where: str) -> nn.Module:
    name = type(step).__name__
    if name in ("StandardScaler", "StreamingScaler"):
        mean = step.mean_ if step.with_mean else None
        return layers.Standardise(mean, step.scale_ if step.with_std else None)
    if name in ("Normalizer", "StreamingNormalizer") and step.norm == "l2":
        return layers.Normalise([(None, None)])
    if name == "ColumnTransformer":
        parts = [(type(transformer).__name__, part) for _, transformer, part in step.transformers_]
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
    if name not in PROBABILISTIC:
        _refuse(head, where, "with probabilities")
    return nn.Sequential(result, layers.Likelihoods())


def _centroids(head: Any, _wanted: Wanted, where: str) -> nn.Module:
    ones, zeros = np.ones(head.n_features_in_), np.zeros(head.n_features_in_)
    if head.metric != "euclidean":
        _refuse(head, where, f"with the metric {head.metric}")
    if not np.allclose(head.class_prior_, 1 / len(head.classes_)):
        _refuse(head, where, "with priors that differ")
    return _binary(layers.Nearness(head.centroids_, zeros, ones, cosine=False), head)


def _streaming_centroids(head: Any, _wanted: Wanted, _where: str) -> nn.Module:
    means, center, scale = head.centroids_, head.center_, head.scale_
    return _binary(layers.Nearness(means, center, scale, cosine=head.metric == "cosine"), head)


class Difference(nn.Module):
    """The difference of two columns, second minus first, (n, 1)."""

    def forward(self, values: Any) -> Any:
        """Map (n, 2) to (n, 1)."""
        return values[:, 1:] - values[:, :1]


def _binary(result: nn.Module, head: Any) -> nn.Module:
    """Return a module whose output for two classes is a single column, as scikit-learn's decision values are."""
    return nn.Sequential(result, Difference()) if len(head.classes_) == 2 else result


def _naive_bayes(head: Any, _wanted: Wanted, _where: str) -> nn.Module:
    theta, var, prior = (np.asarray(values, np.float64) for values in (head.theta_, head.var_, head.class_prior_))
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
    names = {type(estimator).__name__ for estimator in head.estimators_}
    if names <= {*LINEAR, "_ConstantPredictor"}:
        if wanted == "probability" and not names <= {*PROBABILISTIC, "_ConstantPredictor"}:
            without = next(item for item in head.estimators_ if type(item).__name__ not in PROBABILISTIC)
            _refuse(without, where, "with probabilities")
        widths = (item.coef_.shape[1] for item in head.estimators_ if hasattr(item, "coef_"))
        width = next(widths, head.n_features_in_)
        pairs = [_coefficients(estimator, width, wanted) for estimator in head.estimators_]
        result = layers.Linear(np.concatenate([coef for coef, _ in pairs]), np.array([bias for _, bias in pairs]))
        return nn.Sequential(result, nn.Sigmoid()) if wanted == "probability" else result
    columns = [_label(estimator, wanted, where) for estimator in head.estimators_]
    return layers.Columns(columns)


def _coefficients(estimator: Any, width: int, wanted: Wanted) -> tuple[np.ndarray, float]:
    """Return the coefficients (1, width) and the intercept of a label, or those that make a constant label."""
    if hasattr(estimator, "coef_"):
        return np.atleast_2d(estimator.coef_), float(np.ravel(estimator.intercept_)[0])
    value = float(estimator.y_[0])
    return np.zeros((1, width)), value if wanted == "decision" else layers.CERTAIN * (2 * value - 1)


def _label(estimator: Any, wanted: Wanted, where: str) -> nn.Module:
    if type(estimator).__name__ == "_ConstantPredictor":
        return Constant(float(estimator.y_[0]))
    result = _scores(estimator, wanted, where)
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
    [calibrated] = head.calibrated_classifiers_
    inner: Wanted = "decision" if hasattr(calibrated.estimator, "decision_function") else "probability"
    result = nn.Sequential(_scores(calibrated.estimator, inner, where))
    if inner == "probability":
        result.append(layers.Logarithms())
    elif len(head.classes_) == 2:
        result.append(layers.BothClasses())
    return result.append(layers.Temperature(1 / float(calibrated.calibrators[0].beta_)))


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
"""The function that builds a module, by the class name of a fitted estimator."""
