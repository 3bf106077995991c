"""Heads as torch modules: the scores of every head that can be exported, and what is refused."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.export.estimators import to_module
from pipeline.heads import calibration
from pipeline.heads.outputs import kind_of_scores, predictions_of, scores_of
from pipeline.heads.preprocessing import Pca
from pipeline.task import Kind

ROWS, WIDTH = 160, 10
FAST: dict[str, dict[str, Any]] = {
    "boosting": {"max_iter": 4, "min_samples_leaf": 5},
    "forest": {"n_estimators": 5},
    "mlp": {"max_iter": 20, "hidden_layer_sizes": [8]},
    "svm": {"max_iter": 200},
}
# Nearest neighbours look at rows; `prepared` below has the ways to prepare rows.
CAN = [(kind, name) for kind in ("classification", "binary", "multilabel") for name in heads.HEADS if "knn" not in name]
CAN += [("regression", name) for name in heads.REGRESSIONS if "knn" not in name]


def rows_of(kind: str) -> tuple[np.ndarray, Any]:
    """Rows with a mean of their own, and targets; classes sort otherwise as text than as numbers."""
    random = np.random.default_rng(len(kind))
    X = random.normal(5, 2, (ROWS, WIDTH)).astype(np.float32)
    if kind == "regression":
        return X, (3 * X[:, 0] - X[:, 1] + 50).astype(np.float64)
    if kind == "multilabel":
        Y = random.random((ROWS, 4)) < 0.4
        Y[:, 3] = True  # a label that every row has
        X[:, :4] += 4 * Y
        return X, Y.astype(np.int8)
    names = np.array(["10", "9"] if kind == "binary" else ["10", "9", "b"], dtype=object)
    numbers = random.integers(0, len(names), ROWS)
    X[np.arange(ROWS), numbers] += 5
    return X, names[numbers]


def fitted(kind: str, name: str, X: np.ndarray, y: Any, **how: Any) -> tuple[Any, Kind]:
    task: Kind = "classification" if kind == "binary" else kind  # type: ignore[assignment]
    head = heads.create(name, FAST.get(name, {}), kind=task, widths=(4, WIDTH - 4), **{"scale": "standard", **how})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps, and a label that every row has
        return head.fit(X, y), task


def check(head: Any, kind: Kind, X: np.ndarray, *, usable: bool = True) -> None:
    """Compare the module of a head with the head, on rows that it was not fitted to."""
    scores = kind_of_scores(head, kind) if usable else "none"
    module = to_module(head, kind=kind, scores=scores, where="run")
    got = module(torch.from_numpy(X)).numpy()
    assert got.dtype == np.float32
    if kind == "regression":
        np.testing.assert_allclose(got[:, 0], head.predict(X), rtol=1e-5, atol=1e-4)
        return
    classes = [str(number) for number in range(got.shape[1])] if kind == "multilabel" else list(head.classes_)
    expected = predictions_of(head, X, kind=kind)
    above = 0.5 if scores == "probability" else 0.0
    found = got > above if kind == "multilabel" else np.asarray(classes, dtype=object)[got.argmax(axis=1)]
    assert np.array_equal(found, expected)
    if scores != "none":
        reference = scores_of(head, X, kind=kind, scores=scores, classes=classes)
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), CAN)
def test_a_head_scores_as_scikit_learn_does(kind: str, name: str) -> None:
    X, y = rows_of(kind)
    if name in ("mlp", "forest") and kind == "multilabel":  # one head for all labels, each of which must vary
        y = y[:, :3]
    head, task = fitted(kind, name, X[:100], y[:100])
    check(head, task, X[100:], usable=heads.has_scores(name, task))


@pytest.mark.parametrize("name", ["logistic", "boosting", "streaming_ridge"])
@pytest.mark.parametrize(
    "how", [{"scale": "l2"}, {"scale": "none"}, {"scale": "l2", "pca": Pca(components=3, whiten=True)}]
)
def test_rows_are_prepared_as_for_the_head(name: str, how: dict[str, Any]) -> None:
    X, y = rows_of("classification")
    check(fitted("classification", name, X[:100], y[:100], **how)[0], "classification", X[100:])


@pytest.mark.parametrize(("name", "kind"), [("ridge", "binary"), ("svm", "classification"), ("naive_bayes", "binary")])
def test_a_temperature_is_part_of_the_module(name: str, kind: str) -> None:
    X, y = rows_of(kind)
    head, task = fitted(kind, name, X[:80], y[:80])
    calibrated = calibration.with_head(calibration.fit_temperature([(head, X[80:110], y[80:110])]), head)
    assert calibration.temperature_of(calibrated) != pytest.approx(1.0, abs=1e-3)
    check(calibrated, task, X[110:])


def refused(head: Any, kind: Kind = "classification", scores: Any = "probability") -> str:
    with pytest.raises(HeadError) as error:
        to_module(head, kind=kind, scores=scores, where="data/models/pets: mine")
    return str(error.value)


def test_what_cannot_be_exported_names_what_can() -> None:
    X, y = rows_of("classification")
    for name in ("knn", "streaming_knn"):
        message = refused(fitted("classification", name, X, y)[0])
        assert message.startswith("data/models/pets: mine: nearest neighbours need all training rows")
        assert "Heads that can be exported: logistic, ridge" in message
    message = refused(DummyClassifier().fit(X, y))
    assert "mine: DummyClassifier cannot be exported. Fit the run with a head that can: logistic, ridge" in message
    message = refused(SGDClassifier(loss="log_loss").fit(X, y))
    assert "SGDClassifier (with probabilities) cannot be exported" in message
    message = refused(NearestCentroid(metric="manhattan").fit(X, y), scores="none")
    assert "NearestCentroid (with the metric manhattan) cannot be exported" in message
    message = refused(NearestCentroid(priors=[0.5, 0.3, 0.2]).fit(X, y), scores="none")
    assert "NearestCentroid (with priors that differ) cannot be exported" in message
    message = refused(make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, y))
    assert "the step MinMaxScaler before the head cannot be exported. Set `scale` and `pca` instead." in message
    message = refused(OneVsRestClassifier(LogisticRegression()).fit(X, y))
    assert "OneVsRestClassifier (of one label per row) cannot be exported" in message
    numbers = fitted("regression", "boosting", *rows_of("regression"))[0]
    numbers[-1].loss = "poisson"
    assert "HistGradientBoostingRegressor (with the loss poisson) cannot be exported" in refused(numbers, "regression")
