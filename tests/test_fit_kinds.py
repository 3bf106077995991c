"""Fitting tasks of numbers and of several labels per row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from support.features import Place, make, retarget

from pipeline import heads
from pipeline.errors import DataError, HeadError
from pipeline.predictions import PredictionsFile
from pipeline.store.features import Features
from pipeline.task import Task

SPLITS = {"train": 12, "validation": 6, "test": 6}
EASY = {"forest": {"n_estimators": 5}, "boosting": {"min_samples_leaf": 2, "max_iter": 20}, "mlp": {"tol": 1e-2}}


def features_of(place: Place, tap: str) -> np.ndarray:
    task = Task.read(place.task)
    return Features.open(place.features / tap).load(list(task.keys)).reshape(len(task), -1).astype(np.float64)


@pytest.fixture
def numbers(tmp_path: Path) -> Place:
    """A task whose targets are a linear function of the tap `hard`."""
    place = make(tmp_path / "numbers", splits=SPLITS)
    retarget(place, pa.array(features_of(place, "hard") @ [1.0, -2.0, 3.0, 0.5] + 4.0), "regression")
    return place


@pytest.fixture
def labels(tmp_path: Path) -> Place:
    """A task of three labels, each there where its column of the tap `easy` is large; some rows have none, some two."""
    place = make(tmp_path / "labels", splits=SPLITS)
    seen = features_of(place, "easy") > 2
    seen[::5] = True
    seen[::5, 2] = False
    seen[::7] = False
    retarget(
        place, pa.array([[name for name, there in zip("abc", row, strict=True) if there] for row in seen]), "multilabel"
    )
    return place


@pytest.mark.parametrize("head", heads.REGRESSIONS)
def test_every_regression_head_predicts_numbers_and_has_no_scores(numbers: Place, head: str) -> None:
    params = {"mlp": {"solver": "lbfgs", "max_iter": 5000}, "svm": {"C": 100.0, "max_iter": 100_000}}.get(head)
    [one] = numbers.fit(inputs=["hard"], head=head, params=params or EASY.get(head, {}))
    file = PredictionsFile.open(numbers.predictions)
    assert (file.kind, file.classes, file.scores) == ("regression", [], {head: "none"})
    assert one.predicted.dtype == np.float64
    error = np.abs(one.predicted - one.targets).mean() / np.abs(one.targets - one.targets.mean()).mean()
    assert error < 0.7


def test_a_regression_is_searched_refitted_and_kept(numbers: Place) -> None:
    [one] = numbers.fit(inputs=["hard"], head="ridge", search="sweep", refit=True)
    [record] = numbers.model()["fits"]
    assert (record["search"]["metric"], record["search"]["parameter"]) == ("r2", "alpha")
    assert record["search"]["chosen"] < 1e-3
    np.testing.assert_allclose(one.predicted, one.targets, atol=0.05)


@pytest.mark.parametrize("head", sorted({*heads.HEADS} - {"lda"}))
def test_heads_learn_several_labels_a_row(labels: Place, head: str) -> None:
    [one] = labels.fit(head=head, params=EASY.get(head, {}))
    file = PredictionsFile.open(labels.predictions)
    decide = ("centroid", "prototypes", "ridge", "streaming_centroid", "streaming_ridge", "svm")
    wanted = "decision" if head in decide else "probability"
    assert (file.kind, file.classes, file.scores) == ("multilabel", ["a", "b", "c"], {head: wanted})
    assert (one.predicted.dtype, one.predicted.shape) == (np.dtype(bool), one.targets.shape)
    assert np.isfinite(one.scores).all()
    assert one.scores.shape == one.targets.shape
    ranked = [np.mean(np.less.outer(one.scores[~t, i], one.scores[t, i])) for i, t in enumerate(one.targets.T)]
    assert np.mean(ranked) > 0.6
    if wanted == "probability":
        assert ((one.scores > 0.5) == one.predicted).mean() > 0.95


def test_the_nearest_centroid_of_each_label_is_that_of_scikit_learn(labels: Place) -> None:
    [one] = labels.fit(inputs=["hard"], head="centroid")
    task, X = Task.read(labels.task), features_of(labels, "hard").astype(np.float32)
    train, place_of = task.rows("train"), {key: row for row, key in enumerate(task.keys)}
    X = StandardScaler().fit(X[train]).transform(X)
    rows = [place_of[key] for key in one.keys]
    expected = [NearestCentroid().fit(X[train], y[train]).predict(X[rows]) for y in task.targets.T]
    np.testing.assert_array_equal(one.predicted, np.stack(expected, axis=1))


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("given", [{}, {"alpha": 30.0}])
@pytest.mark.parametrize("pca", [None, {"components": 2, "whiten": True}])
def test_streaming_ridge_takes_the_penalty_of_ridge_and_predicts_the_same(
    numbers: Place, labels: Place, tmp_path: Path, kind: str, given: dict[str, Any], pca: Any
) -> None:
    places = {
        "classification": lambda: make(tmp_path / "c"),
        "multilabel": lambda: labels,
        "regression": lambda: numbers,
    }
    place = places[kind]()
    ours, theirs = place.fit(inputs=["hard"], head={"streaming_ridge": given, "ridge": given}, pca=pca)
    params = place.model()["fits"][0]["params"]
    assert params["alpha"] == given.get("alpha", 1.0)
    np.testing.assert_array_equal(ours.scores.shape, theirs.scores.shape)
    if kind == "regression":
        np.testing.assert_allclose(ours.predicted, theirs.predicted, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


def test_the_penalty_that_streaming_ridge_chooses_among_alphas_is_recorded(numbers: Place) -> None:
    numbers.fit(inputs=["hard"], head="streaming_ridge", params={"alphas": [1e6, 1e-3]})
    assert numbers.model()["fits"][0]["params"]["alpha"] == 1e-3


@pytest.mark.parametrize("head", ["logistic", "ridge", "knn"])
def test_several_labels_are_searched_by_log_loss_and_without_probabilities_by_mean_average_precision(
    labels: Place, head: str
) -> None:
    labels.fit(head=head, search="sweep", refit=True)
    search = labels.model()["fits"][0]["search"]
    known = [score for score in search["validation"] if score is not None]
    chosen = search["values"].index(search["chosen"])
    assert search["metric"] == ("map" if head == "ridge" else "log_loss")
    assert search["validation"][chosen] == (max(known) if head == "ridge" else min(known))


def test_log_loss_of_several_labels_is_the_mean_over_the_labels(labels: Place) -> None:
    values = {"parameter": "C", "values": [0.01, 1.0], "metric": "log_loss"}
    [one] = labels.fit(head="logistic", search=values)
    [record] = labels.model()["fits"]
    rows = one.splits == "validation"
    p, there = one.scores[rows].astype(np.float64), one.targets[rows]
    expected = -np.mean(np.where(there, np.log(p), np.log(1 - p)))
    chosen = record["search"]["values"].index(record["search"]["chosen"])
    np.testing.assert_allclose(record["search"]["validation"][chosen], expected, rtol=1e-5)


@pytest.mark.parametrize("head", ["logistic", "lda", "centroid", "naive_bayes"])
def test_a_head_that_learns_classes_alone_refuses_numbers_and_names_others(numbers: Place, head: str) -> None:
    message = f"head '{head}': it cannot learn numbers, but the task is a regression. Use boosting, forest, knn"
    with pytest.raises(HeadError, match=message):
        numbers.fit(head=head)


def test_a_class_by_import_path_must_learn_what_the_task_has(numbers: Place, tmp_path: Path) -> None:
    message = "head 'sklearn.svm:SVC': the task is a regression, expected a regressor. Use boosting"
    with pytest.raises(HeadError, match=message):
        numbers.fit(head="sklearn.svm:SVC")
    with pytest.raises(HeadError, match="the task is a classification, expected a classifier"):
        make(tmp_path / "other").fit(head="sklearn.svm:SVR")
    [one] = numbers.fit(inputs=["hard"], head="sklearn.linear_model:Lasso", params={"alpha": 0.01})
    assert one.head == "Lasso"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_target_that_is_no_finite_number_is_refused(numbers: Place, bad: float | None) -> None:
    values = Task.read(numbers.task).targets.tolist()
    task = retarget(numbers, pa.array([*values[:3], bad, *values[4:]], pa.float64()), "regression")
    message = f"expected a finite number as the target of every row, got none in 1, the first is {task.keys[3]}"
    with pytest.raises(DataError, match=message):
        numbers.fit()


def test_few_labels_a_class_need_classes(numbers: Place) -> None:
    with pytest.raises(
        DataError, match=r"`labels_per_class` needs classes, and the task is a regression. Leave it out"
    ):
        numbers.fit(labels_per_class=[1], head="ridge")


def test_a_label_that_every_training_row_has_is_refused(labels: Place) -> None:
    task = Task.read(labels.task)
    targets = [[*np.array(list("abc"))[row], "d"] for row in task.targets]
    retarget(labels, pa.array(targets), "multilabel")
    with pytest.raises(DataError, match="expected training rows without each class, got none without d"):
        labels.fit()


def test_a_label_that_no_training_row_has_is_refused(labels: Place) -> None:
    task = Task.read(labels.task)
    last = task.rows("test")[0]
    targets = [[*np.array(list("abc"))[row], *(["d"] if i == last else [])] for i, row in enumerate(task.targets)]
    retarget(labels, pa.array(targets), "multilabel")
    with pytest.raises(DataError, match="expected training rows of every class, got none of d"):
        labels.fit()


def test_only_classes_are_calibrated(numbers: Place) -> None:
    with pytest.raises(HeadError, match="calibrate: expected a classification, the task is a regression"):
        numbers.fit(head="ridge", calibrate="temperature")
