"""Fitting: from a task and stored features to heads and predictions, on small real files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
from pydantic import ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from support.features import TRAIN, Place, make, retarget, write_features, write_task

from pipeline import heads
from pipeline.errors import ConfigError, DataError, HeadError, StoreError
from pipeline.files import sha256_file
from pipeline.fit.config import FitConfig
from pipeline.fit.run import Summary, fit
from pipeline.predictions import PredictionsFile
from pipeline.runtime import Reporter
from pipeline.store import index
from pipeline.store.features import Features
from pipeline.store.identity import address
from pipeline.task import Task

FEW: dict[str, dict[str, Any]] = {"boosting": {"min_samples_leaf": 1}, "forest": {"n_estimators": 5}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path)


def test_every_input_number_of_labels_and_draw_is_fitted_once(place: Place) -> None:
    found = place.fit(inputs=["easy", "hard", ["easy", "hard"]], labels_per_class=[1, 3])
    fits = [(one.input, one.labels, one.draw) for one in found]
    assert fits == [(i, n, d) for i in ("easy", "hard", "easy+hard") for n in (1, 3) for d in (0, 1)]
    assert {path.name for path in place.models.iterdir()} == {
        "model.json",
        *(f"logistic.{i}.n{n}-draw{d}.skops" for i, n, d in fits),
    }


def test_without_numbers_of_labels_the_whole_training_split_is_used(place: Place) -> None:
    found = place.fit(inputs=["easy", "hard"])
    assert [(one.input, one.labels, one.draw) for one in found] == [("easy", None, None), ("hard", None, None)]
    assert (place.models / "logistic.hard.all.skops").is_file()


@pytest.mark.parametrize("labels", [(), (1, 3)])
def test_predictions_cover_validation_and_test_rows_and_no_training_row(place: Place, labels: tuple[int, ...]) -> None:
    task = Task.read(place.task)
    split = dict(zip(task.keys, task.table["split"].to_pylist(), strict=True))
    target = dict(zip(task.keys, task.targets, strict=True))
    for one in place.fit(labels_per_class=labels):
        assert sorted(one.keys) == sorted(key for key, name in split.items() if name != "train")
        assert [split[key] for key in one.keys] == list(one.splits)
        assert [target[key] for key in one.keys] == list(one.targets)


def test_a_head_learns_from_its_training_rows_alone(place: Place) -> None:
    before = place.fit(inputs=["hard"])[0]
    task = Task.read(place.task)
    # Other targets on every row that is not for training: what is predicted stays.
    targets = np.where(task.table["split"].to_numpy() == "train", task.targets, "ape")
    changed = task.table.set_column(task.table.column_names.index("target"), "target", pa.array(targets, pa.string()))
    Task(changed).write(place.task)
    after = place.fit(inputs=["hard"])[0]
    np.testing.assert_array_equal(after.predicted, before.predicted)
    np.testing.assert_array_equal(after.scores, before.scores)
    assert not np.array_equal(after.targets, before.targets)


def test_a_draw_learns_from_its_own_rows(place: Place) -> None:
    first, second = place.fit(inputs=["hard"], labels_per_class=[1], head="knn", params={"n_neighbors": 1})
    assert not np.array_equal(first.predicted, second.predicted)
    task = Task.read(place.task)
    rows = task.few(1, 1)
    assert sorted(task.targets[rows]) == task.classes
    stored = Features.open(place.features / "hard")
    X = stored.load(list(task.keys)).reshape(len(task), -1).astype(np.float32)
    measured = np.concatenate([task.rows("validation"), task.rows("test")])
    expected = heads.create("knn", {"n_neighbors": 1}, scale="standard").fit(X[rows], task.targets[rows])
    np.testing.assert_array_equal(second.predicted, expected.predict(X[measured]))


@pytest.mark.parametrize("head", heads.HEADS)
def test_every_head_predicts_separable_data_right(place: Place, head: str) -> None:
    [one] = place.fit(head=head, params=FEW.get(head, {}))
    np.testing.assert_array_equal(one.predicted, one.targets)


def test_joined_inputs_equal_their_concatenation(place: Place) -> None:
    task = Task.read(place.task)
    taps = [Features.open(place.features / name).load(list(task.keys)) for name in ("hard", "easy")]
    both = np.concatenate([values.reshape(len(task), -1) for values in taps], axis=1)
    write_features(place.features / "both", list(task.keys), both)
    joined, both_at_once = place.fit(inputs=[["hard", "easy"], "both"])
    assert joined.input == "hard+easy"
    np.testing.assert_array_equal(joined.predicted, both_at_once.predicted)
    np.testing.assert_array_equal(joined.scores, both_at_once.scores)


def test_probabilities_sum_to_one_and_the_predicted_class_has_the_largest(place: Place) -> None:
    [one] = place.fit(inputs=["hard"])
    assert PredictionsFile.open(place.predictions).scores == {"logistic": "probability"}
    np.testing.assert_allclose(one.scores.sum(axis=1), 1, atol=1e-5)
    classes = PredictionsFile.open(place.predictions).classes
    np.testing.assert_array_equal(np.array(classes)[one.scores.argmax(axis=1)], one.predicted)


def test_scores_stand_in_the_column_of_their_class_where_text_sorts_otherwise(tmp_path: Path) -> None:
    place = make(tmp_path, ("2", "9", "10"))
    [one] = place.fit()
    assert PredictionsFile.open(place.predictions).classes == ["2", "9", "10"]
    np.testing.assert_array_equal(np.array(["2", "9", "10"])[one.scores.argmax(axis=1)], one.targets)


@pytest.mark.parametrize("head", ["ridge", "svm"])
def test_decision_values_of_two_classes_have_two_columns_of_opposite_sign(tmp_path: Path, head: str) -> None:
    place = make(tmp_path, ("no", "yes"))
    [one] = place.fit(head=head)
    file = PredictionsFile.open(place.predictions)
    assert (file.scores, file.classes) == ({head: "decision"}, ["no", "yes"])
    np.testing.assert_array_equal(one.scores[:, 0], -one.scores[:, 1])
    np.testing.assert_array_equal(one.scores[:, 1] > 0, one.targets == "yes")


def test_decision_values_of_three_classes_have_a_column_a_class(place: Place) -> None:
    [one] = place.fit(head="ridge")
    np.testing.assert_array_equal(np.array(["ape", "bee", "cat"])[one.scores.argmax(axis=1)], one.predicted)


def test_the_centroid_head_gives_no_scores_even_with_one_label_a_class(place: Place) -> None:
    one, _ = place.fit(head="centroid", labels_per_class=[1])
    assert PredictionsFile.open(place.predictions).scores == {"centroid": "none"}
    assert np.isnan(one.scores).all()
    assert pq.read_table(place.predictions)["score:ape"].null_count == 2 * len(one.keys)
    np.testing.assert_array_equal(one.predicted, one.targets)
    assert place.model()["scores"] == {"centroid": "none"}


def test_a_stored_head_predicts_what_the_run_predicted(place: Place) -> None:
    [one] = place.fit(inputs=["hard"])
    head = skops.io.load(place.models / "logistic.hard.all.skops")
    X = Features.open(place.features / "hard").load(list(one.keys)).reshape(len(one.keys), -1)
    np.testing.assert_array_equal(head.predict(X.astype(np.float32)), one.predicted)


def test_model_json_names_everything_that_the_run_was_made_from(place: Place) -> None:
    place.fit(inputs=["easy", ["easy", "hard"]], params={"C": 0.5}, labels_per_class=[2])
    made = place.model()
    assert made["settings"] == {
        "task": "pets",
        "backbone": "tiny",
        "inputs": ["easy", ["easy", "hard"]],
        "head": "logistic",
        "params": {"C": 0.5},
        "scale": "standard",
        "pca": None,
        "search": "none",
        "validation": "split",
        "refit": False,
        "calibrate": None,
        "labels_per_class": [2],
        "seeds": 1,
        "device": "cpu",
        "memory_gb": None,
    }
    classes = ["ape", "bee", "cat"]
    assert made["task"] == {
        "name": "pets",
        "sha256": sha256_file(place.task),
        "kind": "classification",
        "classes": classes,
    }
    assert set(made["features"]) == {"easy", "hard"}
    for tap, of in made["features"].items():
        assert of == {"address": address(of["identity"]), "identity": index.read(place.features / tap).identity}
    assert set(made["versions"]) == {"numpy", "scikit-learn"}
    assert made["scores"] == {"logistic": "probability"}


@pytest.mark.parametrize("head", ["logistic", "forest", "svm"])
def test_two_runs_write_the_same_bytes(place: Place, head: str) -> None:
    place.fit(inputs=["hard", "easy"], head=head, params=FEW.get(head, {}), labels_per_class=[3])
    first = place.predictions.read_bytes(), (place.models / "model.json").read_bytes()
    place.fit(inputs=["hard", "easy"], head=head, params=FEW.get(head, {}), labels_per_class=[3])
    assert (place.predictions.read_bytes(), (place.models / "model.json").read_bytes()) == first


def test_progress_counts_the_fits(place: Place) -> None:
    calls: list[tuple[int, int]] = []
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy", "hard"), labels_per_class=(1,))
    fit(
        config,
        task=place.task,
        features=place.features,
        models=place.models,
        predictions=place.predictions,
        reporter=Reporter(progress=lambda done, total: calls.append((done, total))),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Several heads, seeds, what stands before a head, and what comes after ------------------------------------------------


def test_several_heads_of_a_run_predict_what_each_predicts_alone(place: Place) -> None:
    together = place.fit(inputs=["hard"], head=["logistic", "ridge", "centroid"])
    file = PredictionsFile.open(place.predictions)
    assert file.scores == {"logistic": "probability", "ridge": "decision", "centroid": "none"}
    assert {path.name for path in place.models.glob("*.skops")} == {f"{one.head}.hard.all.skops" for one in together}
    for one in together:
        [alone] = place.fit(inputs=["hard"], head=one.head)
        np.testing.assert_array_equal(one.predicted, alone.predicted)
        np.testing.assert_array_equal(one.scores, alone.scores)


def test_a_mapping_gives_each_head_its_parameters(place: Place) -> None:
    place.fit(head={"logistic": {"C": 0.5}, "ridge": None, "knn": {"n_neighbors": 2, "metric": "cosine"}})
    params = {one["head"]: one["params"] for one in place.model()["fits"]}
    assert params == {
        "logistic": {"max_iter": 1000, "C": 0.5},
        "ridge": {},
        "knn": {"algorithm": "brute", "n_neighbors": 2, "metric": "cosine"},
    }


def test_a_head_by_import_path_is_called_by_its_class(place: Place) -> None:
    [one] = place.fit(head="sklearn.svm:SVC", params={"kernel": "poly", "degree": 2})
    assert one.head == "SVC"
    np.testing.assert_array_equal(one.predicted, one.targets)
    head = skops.io.load(place.models / "SVC.easy.all.skops")
    assert (type(head[-1]).__name__, head[-1].degree) == ("SVC", 2)


def test_seeds_fit_a_random_head_each_and_others_once(place: Place) -> None:
    found = place.fit(inputs=["hard"], head={"forest": {"n_estimators": 3}, "ridge": {}}, seeds=3)
    assert [(one.head, one.draw) for one in found] == [("forest", 0), ("forest", 1), ("forest", 2), ("ridge", None)]
    assert [one["params"].get("random_state") for one in place.model()["fits"]] == [0, 1, 2, None]
    assert not np.array_equal(found[0].scores, found[1].scores)
    np.testing.assert_array_equal(
        found[0].scores, place.fit(inputs=["hard"], head="forest", params={"n_estimators": 3})[0].scores
    )


def test_a_few_shot_draw_seeds_its_head_unless_the_parameters_do(place: Place) -> None:
    place.fit(head={"forest": {"n_estimators": 2}}, labels_per_class=[2])
    assert [one["params"]["random_state"] for one in place.model()["fits"]] == [0, 1]
    place.fit(head={"forest": {"n_estimators": 2, "random_state": 7}}, labels_per_class=[2])
    assert [one["params"]["random_state"] for one in place.model()["fits"]] == [7, 7]


def test_lengths_are_taken_of_each_tap_by_itself(place: Place) -> None:
    place.fit(inputs=[["hard", "easy"]], head="ridge", scale="l2")
    head = skops.io.load(place.models / "ridge.hard+easy.all.skops")
    keys = Task.read(place.task).keys
    parts = [Features.open(place.features / tap).load(list(keys)).reshape(len(keys), -1) for tap in ("hard", "easy")]
    scaled = head[:-1].transform(np.concatenate(parts, axis=1).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(scaled[:, :4], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(scaled[:, 4:], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("components", "left"), [(2, 2), (0.5, 1)])
def test_principal_components_stand_after_the_scale(place: Place, components: float, left: int) -> None:
    place.fit(head="logistic", pca={"components": components, "whiten": True})
    head = skops.io.load(place.models / "logistic.easy.all.skops")
    assert [type(step).__name__ for _, step in head.steps] == ["StandardScaler", "PCA", "LogisticRegression"]
    assert (head[1].n_components_, head[1].whiten) == (left, True)


def test_a_refitted_head_predicts_the_test_rows_and_the_one_before_the_validation_rows(place: Place) -> None:
    [before] = place.fit(inputs=["hard"])
    [after] = place.fit(inputs=["hard"], refit=True)
    np.testing.assert_array_equal(after.keys, before.keys)
    validated = after.splits == "validation"
    np.testing.assert_array_equal(after.scores[validated], before.scores[validated])
    task = Task.read(place.task)
    X = Features.open(place.features / "hard").load(list(task.keys)).reshape(len(task), -1).astype(np.float32)
    known = task.table["split"].to_numpy() != "test"
    expected = heads.create("logistic", {}, scale="standard").fit(X[known], task.targets[known])
    np.testing.assert_allclose(after.scores[~validated], expected.predict_proba(X[task.rows("test")]), rtol=1e-5)
    saved = skops.io.load(place.models / "logistic.hard.all.skops")
    np.testing.assert_allclose(saved[-1].coef_, expected[-1].coef_, rtol=1e-5)


@pytest.mark.parametrize("head", ["logistic", "ridge", "svm", "naive_bayes"])
def test_a_temperature_makes_probabilities_and_changes_no_prediction(tmp_path: Path, head: str) -> None:
    place = make(tmp_path, splits={"train": 20, "validation": 20, "test": 20})
    [before] = place.fit(inputs=["hard"], head=head)
    [after] = place.fit(inputs=["hard"], head=head, calibrate="temperature")
    assert PredictionsFile.open(place.predictions).scores == {head: "probability"}
    np.testing.assert_array_equal(after.predicted, before.predicted)
    np.testing.assert_allclose(after.scores.sum(axis=1), 1, atol=1e-5)
    temperature = place.model()["fits"][0]["temperature"]
    logits = before.scores if head in ("ridge", "svm") else np.log(before.scores)
    expected = np.exp(logits / temperature)
    np.testing.assert_allclose(after.scores, expected / expected.sum(axis=1, keepdims=True), rtol=2e-4, atol=1e-6)

    def loss(scores: np.ndarray) -> float:
        rows = after.splits == "validation"
        right = np.searchsorted(["ape", "bee", "cat"], after.targets[rows].astype(str))
        return float(-np.log(scores[rows][np.arange(rows.sum()), right]).mean())

    for other in (temperature * 0.7, temperature * 1.4):
        worse = np.exp(logits / other)
        assert loss(after.scores) < loss(worse / worse.sum(axis=1, keepdims=True))


def test_two_classes_are_calibrated_too(tmp_path: Path) -> None:
    place = make(tmp_path, ("no", "yes"), splits={"train": 10, "validation": 10, "test": 10})
    [before] = place.fit(inputs=["hard"], head="ridge")
    [after] = place.fit(inputs=["hard"], head="ridge", calibrate="temperature")
    np.testing.assert_array_equal(after.predicted, before.predicted)
    np.testing.assert_array_equal(after.scores[:, 1] > 0.5, before.scores[:, 1] > 0)


def test_a_refitted_head_keeps_the_temperature(tmp_path: Path) -> None:
    place = make(tmp_path, splits={"train": 10, "validation": 10, "test": 10})
    place.fit(inputs=["hard"], calibrate="temperature")
    before = place.model()["fits"][0]["temperature"]
    [after] = place.fit(inputs=["hard"], calibrate="temperature", refit=True)
    assert place.model()["fits"][0]["temperature"] == before
    [plain] = place.fit(inputs=["hard"], refit=True)
    test = after.splits == "test"
    expected = plain.scores[test] ** (1 / before)
    np.testing.assert_allclose(after.scores[test], expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)


def test_a_line_says_what_was_chosen_for_each_head_and_input(place: Place) -> None:
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy", "hard"), head=("knn", "ridge"), search="sweep")
    done = place.run(config)
    assert [line.split(";")[0] for line in done.lines] == [
        "knn on easy: 1 fit",
        "ridge on easy: 1 fit",
        "knn on hard: 1 fit",
        "ridge on hard: 1 fit",
    ]
    chosen = "n_neighbors 5 of 7 values; log_loss 0.0000 on 24 held-out rows (5 folds)"
    assert done.lines[0] == f"knn on easy: 1 fit; {chosen}"
    place.root.joinpath("again").mkdir()
    few = config.model_copy(update={"search": None, "labels_per_class": (1, 2), "calibrate": "temperature"})
    lines = place.run(few.model_copy(update={"head": "ridge"})).lines
    assert lines[0].startswith("ridge on easy: 4 fits; temperature ")


# What does not go together -------------------------------------------------------------------------------------------


def test_more_labels_than_the_draws_hold_are_refused(place: Place) -> None:
    message = r"pets\.parquet: expected 7 training rows of each of 3 classes, got 18 in all\. Raise"
    with pytest.raises(DataError, match=message):
        place.fit(labels_per_class=[1, TRAIN + 1])
    assert not place.models.exists()


def test_few_labels_of_a_task_without_draws_are_refused(tmp_path: Path) -> None:
    place = make(tmp_path, draws=0)
    with pytest.raises(DataError, match=r"`labels_per_class` needs few-shot draws\. Give the task `few_shot` settings"):
        place.fit(labels_per_class=[1])


def test_a_class_without_training_rows_is_refused(place: Place) -> None:
    table = Task.read(place.task).table
    Task(table.filter((pa.compute.field("target") != "bee") | (pa.compute.field("split") != "train"))).write(place.task)
    with pytest.raises(DataError, match=r"expected training rows of every class, got none of bee: a head"):
        place.fit()


def test_a_task_without_rows_to_predict_is_refused(tmp_path: Path) -> None:
    place = make(tmp_path, splits={"train": 4})
    with pytest.raises(DataError, match=r"pets\.parquet: expected validation or test rows to predict, got none"):
        place.fit()


def test_a_missing_task_names_the_stage_that_makes_it(place: Place) -> None:
    place.task.unlink()
    with pytest.raises(DataError, match=r"pets\.parquet: no such task\. Run `icecore repro split@pets`"):
        place.fit()


def test_a_tap_that_was_not_extracted_names_near_ones(place: Place) -> None:
    with pytest.raises(HeadError, match=r"unknown tap 'eazy'\. Did you mean 'easy'.*one of: easy, flat, hard"):
        place.fit(inputs=["hard", ["hard", "eazy"]])


def test_rows_of_the_task_without_features_are_refused(place: Place) -> None:
    write_task(place.task, ("ape", "bee", "cat", "dog"), splits={"train": 2, "test": 1})
    with pytest.raises(StoreError, match=r"easy: 3 of the requested keys have no features"):
        place.fit()


def test_an_unknown_parameter_is_refused_before_anything_is_written(place: Place) -> None:
    with pytest.raises(HeadError, match=r"LogisticRegression\): unknown parameter 'c'"):
        place.fit(params={"c": 1})
    assert not place.predictions.parent.exists()


def run_of(place: Place, **settings: Any) -> Summary:
    config = FitConfig(**{"task": "pets", "backbone": "tiny", **settings})
    paths = {"models": place.models, "predictions": place.predictions}
    return fit(config, task=place.task, features=place.features, **paths)


def test_heads_that_do_not_converge_are_recorded_and_predict_and_the_others_are_kept(place: Place) -> None:
    done = run_of(place, inputs=("hard",), head={"logistic": {"max_iter": 1}, "ridge": {}}, labels_per_class=(3,))
    causes = [one["not_converged"] for one in place.model()["fits"]]
    assert (done.fits, causes[1], causes[3]) == (4, None, None)
    assert all("failed to converge" in cause for cause in (causes[0], causes[2]))
    assert any("2 did not converge (logistic.hard.n3-draw0.skops:" in line for line in done.lines)
    assert [one.head for one in PredictionsFile.open(place.predictions)] == ["logistic", "ridge"] * 2


def test_fits_that_cannot_be_made_are_recorded_with_their_cause_and_the_others_are_kept(place: Place) -> None:
    done = run_of(place, inputs=("easy",), head="knn", labels_per_class=(1, 3))
    assert (done.fits, len(place.model()["fits"])) == (2, 2)
    failed = place.model()["failed"]
    assert [(one["labels"], one["draw"]) for one in failed] == [(1, 0), (1, 1)]
    assert all("n_neighbors = 5, n_samples_fit = 3" in one["cause"] for one in failed)
    assert any(note.startswith("not fitted: knn on easy, n1-draw0: scikit-learn refuses") for note in done.notes)
    assert [one.labels for one in PredictionsFile.open(place.predictions)] == [3, 3]


def test_fits_of_any_class_that_fail_or_cannot_be_saved_cost_no_other_fit(place: Place) -> None:
    given = {"support.failing_heads:Failing": {"error": "TypeError"}, "support.failing_heads:Unsaved": {}, "ridge": {}}
    done = run_of(place, inputs=("easy",), head=given)
    assert [one.head for one in PredictionsFile.open(place.predictions)] == ["ridge"]
    causes = {one["head"]: one["cause"] for one in place.model()["failed"]}
    assert causes["Failing"] == "Failing on easy, all: TypeError: the fit ends"
    assert causes["Unsaved"].startswith(f"{place.models / 'Unsaved.easy.all.skops'}: the head cannot be saved: ")
    assert [f"not fitted: {cause}" for cause in causes.values()] == done.notes
    assert sorted(path.name for path in place.models.iterdir()) == [
        "model.json",
        "ridge.easy.all.before-refit.skops",
        "ridge.easy.all.skops",
    ]


def test_a_penalty_that_is_none_is_recorded_with_what_is_expected(place: Place) -> None:
    run_of(place, inputs=("easy",), head={"streaming_ridge": {"alpha": 0}, "ridge": {}})
    [failed] = place.model()["failed"]
    assert failed["cause"] == (
        "streaming_ridge on easy, all: ridge, `alpha`: expected a number above 0, got 0. Start with 1."
    )


@pytest.mark.parametrize("head", ["knn", "streaming_knn"])
def test_a_search_records_more_neighbours_than_training_rows_and_goes_on(place: Place, head: str) -> None:
    place.fit(head=head, search="sweep")
    search = place.model()["fits"][0]["search"]
    assert [value for value, problem in zip(search["values"], search["problems"], strict=True) if problem] == [
        *(value for value in search["values"] if value > 3 * TRAIN)
    ]


def test_a_value_that_scikit_learn_refuses_names_the_fit(place: Place) -> None:
    message = r"logistic on easy, all: scikit-learn refuses the head or its training set: .*'C' parameter"
    with pytest.raises(HeadError, match=message):
        place.fit(params={"C": -1.0})


def test_a_training_set_too_small_for_the_head_is_refused_also_where_it_shows_in_predicting(place: Place) -> None:
    with pytest.raises(
        HeadError, match=r"knn on easy, n1-draw0: scikit-learn refuses .*n_neighbors = 5, n_samples_fit = 3"
    ):
        place.fit(head="knn", labels_per_class=[1])


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_scores_that_are_no_numbers_are_refused(place: Place) -> None:
    with pytest.raises(
        HeadError, match=r"naive_bayes on flat, all: .*its scores are not finite; are the features constant\?"
    ):
        place.fit(inputs=["flat"], head="naive_bayes", scale="none")


def test_settings_name_the_heads_that_exist() -> None:
    with pytest.raises(ValidationError, match=r"unknown head 'rigde'\. Did you mean 'ridge'"):
        FitConfig(task="pets", backbone="tiny", inputs=("easy",), head="rigde")


@pytest.mark.parametrize(
    "twice", [{"inputs": ("a", ("a",))}, {"inputs": (("a", "b"), ("a", "b"))}, {"labels_per_class": (5, 1, 5)}]
)
def test_settings_refuse_the_same_fit_twice(twice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected each of them once"):
        FitConfig(**{"task": "pets", "backbone": "tiny", "inputs": ("a",), **twice})


@pytest.mark.parametrize("wrong", [{"inputs": ()}, {"inputs": ((),)}, {"labels_per_class": (0,)}, {"scale": "max"}])
def test_settings_refuse_what_means_nothing(wrong: dict[str, Any]) -> None:
    [key] = wrong
    with pytest.raises(ValidationError, match=key):
        FitConfig(**{"task": "pets", "backbone": "tiny", "inputs": ("a",), **wrong})


def test_the_taps_of_a_run_are_those_of_all_its_inputs() -> None:
    config = FitConfig(task="pets", backbone="tiny", inputs=("b", ("c", "a"), ("b", "a")))
    assert config.taps == ["a", "b", "c"]


# Bad input -----------------------------------------------------------------------------------------------------------


def test_targets_that_are_missing_are_counted(place: Place) -> None:
    names = Task.read(place.task).targets.tolist()
    retarget(place, pa.array([None, None, *names[2:]], pa.string()))
    first = Task.read(place.task).keys[0]
    with pytest.raises(DataError, match=rf"expected a class as the target of every row, got none in 2, .* {first}\."):
        place.fit()


def test_a_task_of_one_class_is_refused(tmp_path: Path) -> None:
    place = make(tmp_path, ("ape",))
    with pytest.raises(DataError, match=r"expected two classes or more to tell apart, got ape. Choose another target"):
        place.fit()


def test_a_task_without_training_rows_is_refused(tmp_path: Path) -> None:
    place = make(tmp_path, splits={"validation": 2, "test": 2})
    with pytest.raises(DataError, match="expected training rows, got none"):
        place.fit()


def test_a_class_with_one_sample_is_refused_by_the_heads_that_cannot_have_it(tmp_path: Path) -> None:
    place = make(tmp_path, splits={"train": 1, "validation": 1, "test": 1})
    with pytest.raises(HeadError, match=r"lda on easy, all: scikit-learn refuses .*more than the number of classes"):
        place.fit(head="lda")
    with pytest.raises(HeadError, match=r"mlp on easy, all: scikit-learn refuses .*The validation set is too small"):
        place.fit(head="mlp", params={"early_stopping": True})
    [one] = place.fit(head="logistic")
    np.testing.assert_array_equal(one.predicted, one.targets)


@pytest.mark.parametrize("asked", [{"search": "sweep"}, {"calibrate": "temperature"}, {"refit": True}])
def test_what_validation_rows_decide_needs_them(tmp_path: Path, asked: dict[str, Any]) -> None:
    place = make(tmp_path, splits={"train": 4, "test": 2})
    [name] = asked
    with pytest.raises(DataError, match=f"expected validation rows for `{name}`, got none, and test rows must not"):
        place.fit(**asked)


def test_a_class_without_validation_rows_does_not_move_the_temperature(place: Place) -> None:
    table = Task.read(place.task).table
    kept = (pa.compute.field("target") != "bee") | (pa.compute.field("split") != "validation")
    Task(table.filter(kept)).write(place.task)
    [before] = place.fit(inputs=["hard"])
    place.fit(inputs=["hard"], calibrate="temperature")
    rows = before.splits == "validation"
    assert "bee" not in set(before.targets[rows])
    logits = np.log(before.scores[rows].astype(np.float64))
    own = np.array([["ape", "bee", "cat"].index(name) for name in before.targets[rows]])

    def loss(log: float) -> float:
        return float(-log_softmax(logits * np.exp(-log), axis=1)[np.arange(len(own)), own].mean())

    best = np.exp(minimize_scalar(loss, bounds=(-10, 10), options={"xatol": 1e-8}).x)
    assert place.model()["fits"][0]["temperature"] == pytest.approx(best, rel=1e-2)


def test_a_head_without_scores_has_no_temperature(place: Place) -> None:
    with pytest.raises(
        HeadError, match="calibrate: expected a head with probabilities or decision values, but centroid"
    ):
        place.fit(head="centroid", calibrate="temperature")


def test_seeds_of_heads_that_do_not_start_at_random_are_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="expected a head that starts at random, got logistic, ridge: each fit would"):
        place.fit(head=["logistic", "ridge"], seeds=3)


def test_rows_that_do_not_fit_into_memory_are_refused_with_the_numbers(place: Place) -> None:
    message = r"knn, logistic: expected 33 rows that fit into 1e-06 GB of memory, got 2.51e-06 .*`memory_gb`"
    with pytest.raises(HeadError, match=message):
        place.fit(inputs=["easy", "hard"], head=["logistic", "knn"], memory_gb=1e-6)


def test_a_parameter_that_only_other_heads_have_is_refused(place: Place) -> None:
    message = r"head 'knn' \(KNeighborsClassifier\): unknown parameter 'class_weight'.* It cannot weight classes: use"
    with pytest.raises(HeadError, match=message):
        place.fit(head="knn", params={"class_weight": "balanced"})
    place.fit(head="logistic", params={"class_weight": "balanced"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": ["ridge", "logistic"], "params": {"C": 1}}, "`params` is of one head"),
        ({"head": ["ridge", "ridge"]}, "expected one head or more, each of them once"),
        ({"head": []}, "expected one head or more, each of them once"),
        ({"head": ["svm", "rigde"]}, "unknown head 'rigde'. Did you mean 'ridge'"),
        ({"refit": True, "labels_per_class": [1]}, "`refit` adds all validation rows"),
        ({"seeds": 2, "labels_per_class": [1]}, "the draws of few labels are the seeds"),
        ({"search": "swoop"}, "expected `auto`, `sweep`, `none` or a mapping of settings"),
        ({"search": {"parameter": "C"}}, "expected both `parameter` and `values`"),
        ({"search": {"parameter": "C", "values": [1, 1]}}, "expected two or more different `values`"),
        ({"pca": {"components": 1.5}}, "less than 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitConfig(**{"task": "pets", "backbone": "tiny", "inputs": ("a",), **wrong})
