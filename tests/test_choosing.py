"""Defaults of a run: what is held out, what chooses, and what the last head learns from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import skops.io
from scipy.special import expit, log_expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.features import DEFAULTS, Place, make, retarget

from pipeline.evaluate import choice
from pipeline.fit.config import FitConfig
from pipeline.fit.folds import Validation, validation_of
from pipeline.heads import calibration
from pipeline.heads.calibration import apply_temperature, best_temperature, doubted_losses
from pipeline.predictions import Predictions
from pipeline.store.features import Features
from pipeline.task import Task, training_sets

CLASSES = ["ape", "bee", "cat"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path)


def rows_of(place: Place, tap: str) -> np.ndarray:
    task = Task.read(place.task)
    return Features.open(place.features / tap).load(list(task.keys)).reshape(len(task), -1).astype(np.float32)


def loss_of(one: Predictions, rows: np.ndarray) -> float:
    """The log loss of some rows."""
    scores = one.scores[rows].astype(np.float64)
    return float(log_loss(one.targets[rows], scores / scores.sum(axis=1, keepdims=True), labels=CLASSES))


def held_out(place: Place, **settings: Any) -> list[Validation]:
    """How the training sets of the task are validated, with default settings unless others are given."""
    labels = settings.get("labels_per_class", ())
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy",), **settings)
    task = Task.read(place.task)
    return [validation_of(config, task, training) for training in training_sets(task, labels, where="pets")]


def with_column(place: Place, name: str, values: Sequence[Any]) -> Task:
    """Write the task with another column."""
    task = Task(Task.read(place.task).table.append_column(name, pa.array(list(values))))
    task.write(place.task)
    return task


# What is held out ----------------------------------------------------------------------------------------------------


def test_a_run_without_settings_holds_every_row_out_once_and_learns_from_all_that_are_no_test_rows(
    place: Place,
) -> None:
    [one] = place.fit(inputs=["hard"], **DEFAULTS)
    task = Task.read(place.task)
    split = task.table["split"].to_numpy()
    held = one.splits == "validation"
    assert sorted(one.keys[held]) == sorted(task.keys[split != "test"])
    assert sorted(one.keys[~held]) == sorted(task.keys[split == "test"])
    [record] = place.model()["fits"]
    assert record["validation"] == {
        "method": "folds",
        "splitter": "StratifiedKFold",
        "folds": 5,
        "seed": 0,
        "held_rows": 24,
    }
    assert (record["refit"], record["learned_rows"]) == (True, 24)
    X, known = rows_of(place, "hard"), split != "test"
    wanted = make_pipeline(StandardScaler(), LogisticRegression(C=record["params"]["C"], max_iter=1000))
    wanted.fit(X[known], task.targets[known])
    saved, warm = skops.io.load(place.models / record["file"]), record["temperature"]
    np.testing.assert_allclose(saved.predict_proba(X), softmax(wanted.decision_function(X) / warm, axis=1), atol=2e-3)
    before = skops.io.load(place.models / record["before_refit"])
    wanted.fit(X[split == "train"], task.targets[split == "train"])
    np.testing.assert_allclose(before.predict_proba(X), softmax(wanted.decision_function(X) / warm, axis=1), atol=2e-3)
    order = [list(task.keys).index(key) for key in one.keys[held]]
    assert np.abs(one.scores[held] - saved.predict_proba(X[order])).max() > 0.01, "it learned from these rows"


def test_the_value_with_the_least_log_loss_on_held_out_rows_is_chosen(place: Place) -> None:
    [one] = place.fit(inputs=["hard"], **DEFAULTS)
    search = place.model()["fits"][0]["search"]
    assert (search["parameter"], search["metric"], search["validation_rows"]) == ("C", "log_loss", 24)
    assert search["values"][search["validation"].index(min(search["validation"]))] == search["chosen"]
    held = one.splits == "validation"
    assert loss_of(one, held) == pytest.approx(search["log_loss"][search["values"].index(search["chosen"])], rel=1e-5)
    assert search["left_out"], "values far behind the best are not tried"


def test_values_are_compared_at_their_best_temperatures_unless_a_metric_is_named(place: Place) -> None:
    values = [1e-2, 1e-1, 1.0]
    place.fit(inputs=["hard"], **DEFAULTS | {"search": {"parameter": "C", "values": values, "metric": "log_loss"}})
    [plain] = place.model()["fits"]
    assert (plain["temperature"], plain["search"]["temperatures"]) == (None, None)
    place.fit(inputs=["hard"], **DEFAULTS | {"search": {"parameter": "C", "values": values}})
    [one] = place.model()["fits"]
    search = one["search"]
    assert one["temperature"] == search["temperatures"][values.index(search["chosen"])]
    assert search["temperatures"] == sorted(search["temperatures"]), "less regularised heads are surer"
    assert all(np.array(search["log_loss"]) <= np.array(plain["search"]["validation"]) + 1e-6)
    assert search["log_loss"][0] < plain["search"]["validation"][0] - 0.05, "its scores are small, and not wrong"


def test_rows_that_are_all_right_make_no_head_surer(tmp_path: Path) -> None:
    """By log loss alone each less regularised value would be better, for ever."""
    place = make(tmp_path, splits={"train": 40, "validation": 8, "test": 4})
    place.fit(inputs=["easy"], **DEFAULTS | {"search": {"parameter": "C", "values": [1e-3, 0.1, 10.0, 1e3, 1e5]}})
    [one] = place.model()["fits"]
    assert one["search"]["log_loss"][-1] < 1e-3, "all rows are right"
    assert (one["search"]["chosen"] < 1e5, one["temperature"] <= 1) == (True, True)
    places = np.arange(30) % 3
    probabilities = np.full((30, 3), 1e-4)
    probabilities[np.arange(30), places] = 1 - 2e-4
    assert best_temperature(probabilities, places) == 1
    assert doubted_losses(probabilities, places)[0] == pytest.approx(-31 / 32 * np.log(1 - 2e-4) - np.log(1e-4) / 32)
    probabilities = np.full((30, 3), 0.15)
    probabilities[np.arange(30), places] = 0.7
    sure = apply_temperature(probabilities, best_temperature(probabilities, places))
    np.testing.assert_allclose(sure[np.arange(30), places], 31 / 32, atol=1e-3)


def test_a_temperature_of_many_rows_is_that_of_evenly_spaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    scores, places = random.normal(size=(3000, 3)), random.integers(3, size=3000)
    scores[np.arange(3000), places] += 1.5
    probabilities = softmax(2 * scores, axis=1)
    whole = best_temperature(probabilities, places)
    monkeypatch.setattr(calibration, "MAX_PROBABILITIES", probabilities.size // 10)
    assert best_temperature(probabilities, places) == pytest.approx(whole, rel=0.2)
    assert best_temperature(probabilities, places) != whole


def test_labels_share_one_temperature() -> None:
    targets = np.arange(60).reshape(20, 3) % 4 == 0
    scores = np.where(targets, 2.0, -2.0) + np.linspace(-6, 6, 60).reshape(20, 3)
    temperature = best_temperature(expit(scores), targets)
    expected = expit(scores / temperature)
    np.testing.assert_allclose(apply_temperature(expit(scores), temperature, multilabel=True), expected, atol=1e-6)

    def loss(one: float) -> float:
        return float(-log_expit(np.where(targets, scores, -scores) / one).mean())

    assert temperature > 1, "the scores are too sure, whatever is doubted"
    assert loss(temperature) < min(loss(0.97 * temperature), loss(1.03 * temperature))


@pytest.mark.parametrize("rows", [30, 400])
def test_many_validation_rows_choose_by_themselves(tmp_path: Path, rows: int) -> None:
    place = make(tmp_path, splits={"train": 12, "validation": rows, "test": 2})
    [found] = held_out(place)
    assert found.record["method"] == ("split" if 3 * rows >= 1000 else "folds")
    assert len(found.learned) == 3 * (12 + rows)


def test_rows_of_a_group_are_held_out_together(place: Place) -> None:
    task = with_column(place, "group", [f"g{number % 7}" for number in range(33)])
    [found] = held_out(place)
    groups = task.table["group"].to_numpy()
    assert found.record["splitter"] == "StratifiedGroupKFold"
    for part in found.parts:
        assert not set(groups[part.train]) & set(groups[part.held])
        assert set(task.targets[part.train]) == set(CLASSES)


def test_where_test_rows_are_of_another_domain_each_domain_is_held_out(place: Place) -> None:
    split = Task.read(place.task).table["split"].to_numpy()
    names = np.where(split == "test", "attic", np.array(["bath", "cellar", "den"])[np.arange(33) % 3])
    task = with_column(place, "domain", names)
    [found] = held_out(place)
    assert (found.record["splitter"], found.record["folds"]) == ("LeaveOneGroupOut", 3)
    domains = task.table["domain"].to_numpy()
    assert [set(domains[part.held]) for part in found.parts] == [{"bath"}, {"cellar"}, {"den"}]


def test_one_domain_in_training_is_said_to_flatter(place: Place) -> None:
    split = Task.read(place.task).table["split"].to_numpy()
    with_column(place, "domain", np.where(split == "test", "attic", "bath"))
    [found] = held_out(place)
    assert found.record["splitter"] == "StratifiedKFold"
    assert found.notes == [
        "test rows are of other domains (attic) than all held-out rows (bath), which therefore look better"
    ]


def test_few_labels_are_held_out_in_as_many_folds_as_there_are_rows_of_a_class(place: Place) -> None:
    one, *_, three, _ = held_out(place, labels_per_class=[1, 3])
    assert one.record == {"method": "split", "held_rows": 6}
    assert one.notes == ["1 label per class is too few for folds; 6 validation rows choose instead"]
    assert three.record["folds"] == 3
    assert len(three.learned) == 9
    assert sorted(np.concatenate([part.held for part in three.parts])) == sorted(three.learned)


def test_a_class_with_one_row_is_learned_from_in_every_fold_and_said(place: Place) -> None:
    table = Task.read(place.task).table
    rare = Task(table).rows("train")[np.flatnonzero(Task(table).targets[Task(table).rows("train")] == "bee")[1:]]
    rare = np.union1d(
        rare, np.flatnonzero((Task(table).targets == "bee") & (table["split"].to_numpy() == "validation"))
    )
    Task(table.take(np.setdiff1d(np.arange(len(table)), rare))).write(place.task)
    task = Task.read(place.task)
    [found] = held_out(place)
    [bee] = [row for row in task.rows("train") if task.targets[row] == "bee"]
    assert all(bee in part.train and bee not in part.held for part in found.parts)
    assert found.notes == [
        "1 of 3 classes have fewer rows than 5 folds",
        "1 row is learned from in every fold, since a class or label would else be missing",
    ]
    [one] = place.fit(inputs=["hard"], **DEFAULTS)
    assert np.isfinite(one.scores).all()


def test_labels_of_one_row_are_learned_from_in_every_fold(place: Place) -> None:
    targets = [["x"] if number == 0 else ["y", "z"][: 1 + number % 2] for number in range(33)]
    split = Task.read(place.task).table["split"].to_pylist()
    targets[0], targets[split.index("train")] = ["y"], ["x"]
    retarget(place, pa.array(targets), "multilabel")
    task = Task.read(place.task)
    [found] = held_out(place)
    for part in found.parts:
        there = task.targets[part.train]
        assert there.any(axis=0).all()
        assert not there.all(axis=0).any()


def test_numbers_are_held_out_in_folds_and_choose_by_r2(place: Place) -> None:
    X = rows_of(place, "hard")
    retarget(place, pa.array(X @ [1.0, -2.0, 3.0, 0.5] + 4.0), "regression")
    [one] = place.fit(inputs=["hard"], head="ridge", **DEFAULTS)
    [record] = place.model()["fits"]
    assert (record["validation"]["splitter"], record["search"]["metric"]) == ("KFold", "r2")
    assert np.corrcoef(one.predicted, one.targets)[0, 1] > 0.99


def test_a_head_that_no_fold_can_fit_is_fitted_without_folds(place: Place) -> None:
    first, _ = place.fit(inputs=["hard"], head="knn", labels_per_class=[2], search="auto", validation="auto")
    [record, _] = place.model()["fits"]
    assert record["validation"]["method"] == "split"
    assert "n_neighbors" in record["validation"]["folds_failed"]
    assert (first.splits == "validation").sum() == 6


@pytest.mark.parametrize(
    ("params", "search"), [({"C": 1.0}, None), ({"class_weight": "balanced"}, "log_loss"), ({}, "log_loss")]
)
def test_what_params_name_is_not_searched(place: Place, params: dict[str, Any], search: str | None) -> None:
    place.fit(params=params, **DEFAULTS)
    [record] = place.model()["fits"]
    assert (record["search"] or {}).get("metric") == search


def test_a_search_that_ends_at_its_last_value_is_said(place: Place) -> None:
    values = {"parameter": "C", "values": [1e-5, 1e-4, 1e-3]}
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy",), search=values)
    assert place.run(config).notes == [
        "logistic on easy: the best C is at the end of its values (0.001). Name further `values` in `search` to see "
        "whether they are better."
    ]


def test_the_temperature_of_folds_is_that_of_the_held_out_rows(place: Place) -> None:
    [plain] = place.fit(inputs=["hard"], params={"C": 100.0}, **DEFAULTS)
    [warm] = place.fit(inputs=["hard"], params={"C": 100.0}, calibrate="temperature", **DEFAULTS)
    temperature = place.model()["fits"][0]["temperature"]
    scores = np.log(plain.scores.astype(np.float64)) / temperature
    np.testing.assert_allclose(warm.scores, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), rtol=2e-3)
    held = plain.splits == "validation"
    assert temperature > 1
    assert loss_of(warm, held) < loss_of(plain, held)


# What chooses among methods ------------------------------------------------------------------------------------------


def test_methods_within_one_standard_error_are_named() -> None:
    rows = [
        {"head": "logistic", "input": name, "labels": None, "close": close, "validation_log_loss": loss}
        | {"validation_accuracy": right, "validation_rows": 67, "decided_by": "log_loss"}
        for name, close, loss, right in [("a", True, 0.3, 0.8), ("b", True, 0.2, 0.7), ("c", False, 0.9, 0.9)]
    ]
    best = choice.best_of(rows, "accuracy", higher=True)
    assert best["input"] == "b"
    assert choice.sentence(rows, best) == (
        "b and a are within one standard error by log loss on 67 held-out rows: validation cannot tell them apart"
    )
    assert choice.sentence(rows[1:], best) is None
