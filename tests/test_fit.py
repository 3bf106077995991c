"""Fitting: from a task and stored features to heads and predictions, on small real files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
from pydantic import ValidationError

from pipeline import fit as fitting
from pipeline.errors import DataError, HeadError, StoreError
from pipeline.files import content_key, sha256_file
from pipeline.fit import FitConfig, fit
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.store import index, writing
from pipeline.store import keys as key_arrays
from pipeline.store.encoding import encode
from pipeline.store.identity import address
from pipeline.store.layout import Layout
from pipeline.task import Task

TRAIN, VALIDATION, TEST = 6, 2, 3
DRAWS = 2


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes."""

    root: Path

    @property
    def task(self) -> Path:
        return self.root / "tasks" / "pets.parquet"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions" / "run.parquet"

    def fit(self, *, inputs: Sequence[Any] = ("easy",), **settings: Any) -> list[Predictions]:
        """Fit, and read back what was predicted."""
        config = FitConfig(task="pets", backbone="tiny", inputs=tuple(inputs), **settings)
        written = fit(config, task=self.task, features=self.features, models=self.models, predictions=self.predictions)
        found = list(PredictionsFile.open(self.predictions))
        assert len(found) == written
        return found

    def model(self) -> Any:
        return json.loads((self.models / "model.json").read_text())


def write_task(path: Path, classes: Sequence[str], *, splits: Mapping[str, int], draws: int = DRAWS) -> Task:
    """A task with so many rows of each class in each split; in draw d the training rows rank from the d-th on."""
    rows = []
    for target in classes:
        for split, count in splits.items():
            for number in range(count):
                key = content_key(f"{target}-{split}-{number}".encode())
                ranks = {f"draw_{d}": (number - d) % count if split == "train" else -1 for d in range(draws)}
                rows.append({"key": key, "target": target, "split": split, **ranks})
    task = Task(pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"])))
    task.write(path)
    return task


def write_features(folder: Path, keys: Sequence[str], values: np.ndarray) -> None:
    """A features folder of two shards, its rows stored in the order of the keys."""
    order = np.argsort(key_arrays.from_hex(keys))
    held, values = key_arrays.from_hex(keys)[order], values[order].astype(np.float16)
    identity = {"node": folder.name, "pool": "none", "dtype": "float16", "weights": "0" * 64}
    layout = Layout(address(identity), "float16", values.shape[1:])
    records = [
        writing.write(folder, held[part], encode(values[part], "float16"), layout)
        for part in np.array_split(np.arange(len(held)), 2)
    ]
    index.commit(
        folder,
        identity=identity,
        layout=layout,
        shards=records,
        keys=np.array_split(held, 2),
        wanted=held,
        rejected={},
    )


def make(
    root: Path,
    classes: Sequence[str] = ("ape", "bee", "cat"),
    *,
    splits: Mapping[str, int] | None = None,
    draws: int = 2,
) -> Place:
    """A task, and three taps: `easy` tells the classes apart, `hard` hardly does, `flat` never."""
    place = Place(root)
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": TEST} if splits is None else splits
    task = write_task(place.task, classes, splits=sizes, draws=draws)
    random = np.random.default_rng(0)
    numbers = np.array([list(classes).index(target) for target in task.targets])
    easy = 8 * np.eye(len(classes))[numbers] + random.normal(size=(len(task), len(classes)))
    write_features(place.features / "easy", list(task.keys), easy)
    # Maps of 2×2: a head sees them flattened.
    hard = 0.8 * numbers[:, None, None] + random.normal(size=(len(task), 2, 2))
    write_features(place.features / "hard", list(task.keys), hard)
    write_features(place.features / "flat", list(task.keys), np.ones((len(task), 2)))
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path)


def test_every_input_number_of_labels_and_draw_is_fitted_once(place: Place) -> None:
    found = place.fit(inputs=["easy", "hard", ["easy", "hard"]], labels_per_class=[1, 3])
    fits = [(one.input, one.labels, one.draw) for one in found]
    assert fits == [(i, n, d) for i in ("easy", "hard", "easy+hard") for n in (1, 3) for d in (0, 1)]
    assert {path.name for path in place.models.iterdir()} == {
        "model.json",
        *(f"{i}.n{n}-draw{d}.skops" for i, n, d in fits),
    }


def test_without_numbers_of_labels_the_whole_training_split_is_used(place: Place) -> None:
    found = place.fit(inputs=["easy", "hard"])
    assert [(one.input, one.labels, one.draw) for one in found] == [("easy", None, None), ("hard", None, None)]
    assert (place.models / "hard.all.skops").is_file()


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
    stored = fitting.Features.open(place.features / "hard")
    X = stored.load(list(task.keys)).reshape(len(task), -1).astype(np.float32)
    measured = np.concatenate([task.rows("validation"), task.rows("test")])
    expected = fitting.heads.create("knn", {"n_neighbors": 1}, scale="standard").fit(X[rows], task.targets[rows])
    np.testing.assert_array_equal(second.predicted, expected.predict(X[measured]))


@pytest.mark.parametrize("head", fitting.heads.HEADS)
def test_every_head_predicts_separable_data_right(place: Place, head: str) -> None:
    [one] = place.fit(head=head)
    np.testing.assert_array_equal(one.predicted, one.targets)


def test_joined_inputs_equal_their_concatenation(place: Place) -> None:
    task = Task.read(place.task)
    taps = [fitting.Features.open(place.features / name).load(list(task.keys)) for name in ("hard", "easy")]
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
    assert place.model()["scores"] == "none"


def test_a_stored_head_predicts_what_the_run_predicted(place: Place) -> None:
    [one] = place.fit(inputs=["hard"])
    head = skops.io.load(place.models / "hard.all.skops")
    X = fitting.Features.open(place.features / "hard").load(list(one.keys)).reshape(len(one.keys), -1)
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
        "labels_per_class": [2],
    }
    assert made["task"] == {"name": "pets", "sha256": sha256_file(place.task)}
    assert set(made["features"]) == {"easy", "hard"}
    for tap, of in made["features"].items():
        assert of == {"address": address(of["identity"]), "identity": index.read(place.features / tap).identity}
    assert set(made["versions"]) == {"numpy", "scikit-learn"}
    assert made["scores"] == "probability"


@pytest.mark.parametrize("head", ["logistic", "forest", "svm"])
def test_two_runs_write_the_same_bytes(place: Place, head: str) -> None:
    place.fit(inputs=["hard", "easy"], head=head, labels_per_class=[3])
    first = place.predictions.read_bytes(), (place.models / "model.json").read_bytes()
    place.fit(inputs=["hard", "easy"], head=head, labels_per_class=[3])
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
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


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
    with pytest.raises(DataError, match=r"expected training rows of every class, got none of bee\."):
        place.fit()


def test_a_task_without_rows_to_predict_is_refused(tmp_path: Path) -> None:
    place = make(tmp_path, splits={"train": 4})
    with pytest.raises(DataError, match=r"pets\.parquet: expected validation or test rows to predict, got none"):
        place.fit()


def test_a_missing_task_names_the_stage_that_makes_it(place: Place) -> None:
    place.task.unlink()
    with pytest.raises(DataError, match=r"pets\.parquet: no such task\. Run `dvc repro split@pets`"):
        place.fit()


def test_a_tap_that_was_not_extracted_names_near_ones(place: Place) -> None:
    with pytest.raises(HeadError, match=r"unknown tap 'eazy'\. Did you mean 'easy'.*one of: easy, flat, hard"):
        place.fit(inputs=["hard", ["hard", "eazy"]])


def test_rows_of_the_task_without_features_are_refused(place: Place) -> None:
    write_task(place.task, ("ape", "bee", "cat", "dog"), splits={"train": 2, "test": 1})
    with pytest.raises(StoreError, match=r"easy: 3 of the keys asked for have no features"):
        place.fit()


def test_an_unknown_parameter_is_refused_before_anything_is_written(place: Place) -> None:
    with pytest.raises(HeadError, match=r"LogisticRegression\): unknown parameter 'c'"):
        place.fit(params={"c": 1})
    assert not place.predictions.parent.exists()


def test_a_head_that_does_not_converge_names_the_fit_and_leaves_no_predictions(place: Place) -> None:
    message = r"(?s)hard, n3-draw0: the head did not converge: .* Raise `max_iter` in `params`"
    with pytest.raises(HeadError, match=message):
        place.fit(inputs=["hard"], params={"max_iter": 1}, labels_per_class=[3])
    assert not list(place.predictions.parent.iterdir())


def test_a_value_that_scikit_learn_refuses_names_the_fit(place: Place) -> None:
    message = r"easy, all: scikit-learn refuses the head or its training set: .*'C' parameter"
    with pytest.raises(HeadError, match=message):
        place.fit(params={"C": -1.0})


def test_a_training_set_too_small_for_the_head_is_refused_also_where_it_shows_in_predicting(place: Place) -> None:
    with pytest.raises(HeadError, match=r"easy, n1-draw0: scikit-learn refuses .*n_neighbors = 5, n_samples_fit = 3"):
        place.fit(head="knn", labels_per_class=[1])


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_scores_that_are_no_numbers_are_refused(place: Place) -> None:
    with pytest.raises(HeadError, match=r"flat, all: .*scores that are no finite numbers; are the features constant\?"):
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
