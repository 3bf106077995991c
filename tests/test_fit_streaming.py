"""Runs of streaming heads: they read blocks of rows from the store and say what heads in memory say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from support import shards
from support.features import Place, make, retarget, write_features

from pipeline import heads
from pipeline.errors import DataError, HeadError, StoreError
from pipeline.fit.config import FitConfig
from pipeline.heads.outputs import kind_of_scores, scores_of
from pipeline.heads.saved import load
from pipeline.predictions import PredictionsFile
from pipeline.store import index
from pipeline.store.features import Features
from pipeline.streaming import accumulate
from pipeline.streaming.rows import Rows
from pipeline.task import Kind, Task

SPLITS = {"train": 20, "validation": 12, "test": 10}
# The head in memory with the same answers, and the parameters with which they are the same.
TWINS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "streaming_centroid": ("centroid", {}, {}),
    "streaming_knn": ("knn", {}, {}),
    "streaming_lda": ("lda", {"shrinkage": 0.1}, {"shrinkage": 0.1}),
    "streaming_logistic": ("logistic", {"tol": 1e-6}, {"tol": 1e-6}),
    "streaming_ridge": ("ridge", {"alphas": [10.0]}, {"alpha": 10.0}),
}


# Parameters that both heads of a pair have.
SAME: list[tuple[str, dict[str, Any]]] = [
    ("centroid", {}),
    ("knn", {}),
    ("knn", {"n_neighbors": 4, "weights": "distance"}),
    ("knn", {"n_neighbors": 3, "metric": "cosine"}),
    ("lda", {"shrinkage": 0.3}),
    ("logistic", {"tol": 1e-8}),
    ("logistic", {"tol": 1e-8, "C": 0.01, "class_weight": "balanced"}),
    ("ridge", {}),
    ("ridge", {"alpha": 30.0, "class_weight": "balanced"}),
]
CLASSES = ["ape", "bee", "cat"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path, splits=SPLITS)


def test_every_streaming_head_of_classes_has_a_twin() -> None:
    assert {name for name in heads.HEADS if heads.is_streaming(name)} == set(TWINS)


@pytest.mark.parametrize("head", TWINS)
@pytest.mark.parametrize("before", [{}, {"scale": "none"}, {"pca": {"components": 2}}])
def test_a_streaming_head_says_what_its_twin_in_memory_says(place: Place, head: str, before: dict[str, Any]) -> None:
    twin, params, of_twin = TWINS[head]
    inputs = ["hard", ["easy", "hard"]]
    # Held to one billionth of a GB: nothing that loads all rows could run.
    streamed = place.fit(inputs=inputs, head=head, params=params, memory_gb=1e-9, **before)
    kinds = PredictionsFile.open(place.predictions).scores
    held = place.fit(inputs=inputs, head=twin, params=of_twin, **before)
    for one, other in zip(streamed, held, strict=True):
        assert (one.predicted == other.predicted).mean() > 0.98  # the rest lies on a border
        if head in ("streaming_knn", "streaming_logistic", "streaming_ridge"):
            np.testing.assert_allclose(one.scores, other.scores, atol=5e-3)
    assert kinds[head] != "none"


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize(("rows", "width"), [(60, 5), (31, 40)])
@pytest.mark.parametrize("scale", ["standard", "none"])
def test_with_the_same_parameters_heads_give_the_same_answers(kind: Kind, rows: int, width: int, scale: Any) -> None:
    random, number = np.random.default_rng(rows), np.arange(rows) % 7 % 3  # three rows of a class to two of others
    X = random.normal(size=(3, width))[number] + random.normal(size=(rows, width)) * np.linspace(0.5, 2, width) + 1
    X, asked = X.astype(np.float32), (1 + random.normal(size=(50, width))).astype(np.float32)
    labels = np.stack([(number == label) | (random.random(rows) < 0.2) for label in range(3)], axis=1).astype(np.int8)
    named = np.array(["ape", "bee", "cat"], dtype=object)[number]
    y = {"classification": named, "multilabel": labels, "regression": X @ np.linspace(-1, 1, width)}[kind]
    for name, params in SAME:
        if kind == "regression" and (name not in ("knn", "ridge") or "class_weight" in params):
            continue
        held = heads.create(name, params, scale=scale, kind=kind).fit(X, y)
        read = heads.create(f"streaming_{name}", params, scale=scale, kind=kind).fit(X, y)
        where = f"{name} {params}"
        if kind == "regression":
            np.testing.assert_allclose(read.predict(asked), held.predict(asked), rtol=1e-4, atol=1e-4, err_msg=where)
            continue
        np.testing.assert_array_equal(read.predict(asked), held.predict(asked), where)
        if name != "centroid":
            found, wanted = (scores_of(one, asked, kind=kind, scores=kind_of_scores(one, kind), classes=CLASSES)
                             for one in (read, held))  # fmt: skip
            np.testing.assert_allclose(found, wanted, atol=3e-3 if name == "logistic" else 1e-4, err_msg=where)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """How many rows were read from the store, by the number of rows that the source has."""
    monkeypatch.setattr(accumulate, "PIVOT_ROWS", 1)
    counted: dict[int, int] = {}
    reading = Rows.__getitem__

    def counting(self: Rows, rows: slice) -> np.ndarray:
        found = reading(self, rows)
        counted[len(self)] = counted.get(len(self), 0) + len(found)
        return found

    monkeypatch.setattr(Rows, "__getitem__", counting)
    return counted


TRAINING, HELD_OUT = 60, 66  # three classes
SUMS: dict[str, dict[str, Any]] = {
    "streaming_ridge": {},
    "streaming_lda": {"shrinkage": 0.1},
    "streaming_centroid": {},
}


@pytest.mark.parametrize("scale", ["standard", "none"])
def test_heads_of_one_training_set_share_the_pass_over_it(place: Place, read: dict[int, int], scale: str) -> None:
    """A row more is read for the pivot of the sums; predictions are a pass for each head."""
    together = place.fit(inputs=["hard"], head=SUMS, scale=scale)
    assert read == {TRAINING: TRAINING + 1, HELD_OUT: HELD_OUT * 3}
    for one in together:
        [alone] = place.fit(inputs=["hard"], head=one.head, params=SUMS[one.head], scale=scale)
        np.testing.assert_array_equal(one.scores, alone.scores)
        np.testing.assert_array_equal(one.predicted, alone.predicted)


def test_the_first_pass_of_logistic_regression_is_shared(place: Place, read: dict[int, int]) -> None:
    place.fit(inputs=["hard"], head="streaming_logistic")
    alone = read.pop(TRAINING)
    place.fit(inputs=["hard"], head=["streaming_ridge", "streaming_logistic"])
    assert read[TRAINING] == alone


def test_automatic_shrinkage_reads_once_more(place: Place, read: dict[int, int]) -> None:
    place.fit(inputs=["hard"], head=["streaming_ridge", "streaming_lda"])
    assert read[TRAINING] == 2 * TRAINING + 1


def test_all_values_of_a_sweep_share_the_pass(place: Place, read: dict[int, int]) -> None:
    values = {"parameter": "shrinkage", "values": [0.9, 0.5, 0.1]}
    place.fit(inputs=["hard"], head="streaming_lda", search=values)
    assert read[TRAINING] == TRAINING + 1


def test_a_refit_is_a_pass_that_heads_share_too(place: Place, read: dict[int, int]) -> None:
    place.fit(inputs=["hard"], head=["streaming_ridge", "streaming_centroid"], refit=True)
    assert (read[TRAINING], read[TRAINING + 36]) == (TRAINING + 1, TRAINING + 36 + 1)


def test_other_weights_and_other_training_sets_have_sums_of_their_own(place: Place, read: dict[int, int]) -> None:
    weighed = {"streaming_centroid": {}, "streaming_ridge": {"class_weight": {"ape": 2.0, "bee": 1.0, "cat": 1.0}}}
    place.fit(inputs=["hard"], head=weighed, scale="none")  # a scaler, which weighs no row, would take a pass more
    assert read[TRAINING] == 2 * (TRAINING + 1)
    place.fit(inputs=["hard"], head=["streaming_ridge", "streaming_centroid"], labels_per_class=[2])
    assert read[6] == 2 * (6 + 1)  # two draws


def test_a_run_may_mix_streaming_heads_and_others(place: Place) -> None:
    found = place.fit(inputs=["easy"], head=["logistic", "streaming_ridge", "prototypes"], calibrate="temperature")
    for one in found:
        np.testing.assert_array_equal(one.predicted, one.targets)
    assert set(PredictionsFile.open(place.predictions).scores.values()) == {"probability"}


@pytest.mark.parametrize("head", ["streaming_ridge", "streaming_logistic", "streaming_lda", "streaming_knn"])
def test_a_sweep_of_a_streaming_head_chooses_what_the_twin_would(place: Place, head: str) -> None:
    values = {
        "streaming_ridge": {"parameter": "alpha", "values": [1000.0, 10.0, 0.1]},
        "streaming_logistic": {"parameter": "C", "values": [1e-3, 0.1, 1.0]},
        "streaming_lda": {"parameter": "shrinkage", "values": [0.9, 0.5, 0.1]},
        "streaming_knn": {"parameter": "n_neighbors", "values": [20, 5, 1]},
    }[head]
    [one] = place.fit(inputs=["hard"], head=head, search=values, refit=True)
    ours = place.model()["fits"][0]["search"]
    [other] = place.fit(inputs=["hard"], head=TWINS[head][0], search=values, refit=True)
    theirs = place.model()["fits"][0]["search"]
    assert ours["chosen"] == theirs["chosen"]
    np.testing.assert_allclose(ours["validation"], theirs["validation"], atol=0.03)
    assert (one.predicted == other.predicted).mean() > 0.97


def test_streaming_regressions_are_those_in_memory(place: Place) -> None:
    task = Task.read(place.task)
    X = Features.open(place.features / "hard").load(list(task.keys)).reshape(len(task), -1).astype(np.float64)
    retarget(place, pa.array(X @ [1.0, -2.0, 3.0, 0.5] + np.random.default_rng(0).normal(size=len(X))), "regression")
    for head, params, twin, of_twin in [
        ("streaming_ridge", {"alphas": [3.0]}, "ridge", {"alpha": 3.0}),
        ("streaming_knn", {}, "knn", {}),
    ]:
        [one] = place.fit(inputs=["hard"], head=head, params=params, memory_gb=1e-9)
        [other] = place.fit(inputs=["hard"], head=twin, params=of_twin)
        np.testing.assert_allclose(one.predicted, other.predicted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["streaming_ridge", "streaming_logistic"])
def test_streaming_heads_learn_several_labels_a_row(place: Place, head: str) -> None:
    task = Task.read(place.task)
    seen = Features.open(place.features / "easy").load(list(task.keys)).astype(float) > 2
    seen[::5, 0] = ~seen[::5, 0]
    names = [[name for name, there in zip("abc", row, strict=True) if there] for row in seen]
    retarget(place, pa.array(names, pa.list_(pa.string())), "multilabel")
    [one] = place.fit(head=head, memory_gb=1e-9)
    assert (one.predicted == one.targets).mean() > 0.9


@pytest.mark.parametrize(
    "head", ["streaming_centroid", "streaming_lda", "streaming_logistic", "streaming_ridge", "prototypes"]
)
def test_saved_streaming_heads_come_back(place: Place, head: str) -> None:
    [one] = place.fit(inputs=["hard"], head=head, pca={"components": 3})
    found = load(place.models).predict(Features.open(place.features / "hard"), keys=list(one.keys))
    np.testing.assert_array_equal(found, one.predicted)


def test_saved_neighbours_want_their_training_rows_back(place: Place) -> None:
    [one] = place.fit(inputs=["hard"], head="streaming_knn", scale="none")
    hard = Features.open(place.features / "hard")
    found = load(place.models)
    with pytest.raises(HeadError, match=r"its 60 training rows, got none: .* Load it with `features`, or set them"):
        found.predict(hard)
    found.head[-1].attach(Rows([hard], Task.read(place.task).keys_of("train")))
    np.testing.assert_array_equal(found.predict(hard, keys=list(one.keys)), one.predicted)


NEIGHBOURS: list[dict[str, Any]] = [
    {"inputs": ["hard"]},
    {"inputs": [["easy", "hard"]], "pca": {"components": 3}, "refit": True},
    {"inputs": ["hard"], "scale": "l2", "params": {"metric": "cosine"}, "calibrate": "temperature", "refit": True},
    {"inputs": ["hard"], "labels_per_class": [4]},
]


@pytest.mark.parametrize("settings", NEIGHBOURS)
def test_saved_neighbours_get_their_training_rows_from_the_features(place: Place, settings: dict[str, Any]) -> None:
    scattered(place)
    for number, one in enumerate(place.fit(head="streaming_knn", **settings)):
        made = place.model()["fits"][number]
        rows = {"labels_per_class": 12, "refit": 60 + 36}
        assert made["rows"]["count"] == next((count for name, count in rows.items() if name in settings), 60)
        found = load(place.models, made["file"], features=place.features)
        taps = [Features.open(place.features / tap) for tap in found.taps]
        test = one.splits == "test"  # validation rows were predicted before the refit
        keys = list(one.keys[test])
        np.testing.assert_array_equal(found.predict(*taps, keys=keys), one.predicted[test])
        np.testing.assert_allclose(found.scores(*taps, keys=keys), one.scores[test], rtol=1e-5)


def test_neighbours_of_several_labels_get_their_training_rows_too(place: Place) -> None:
    labels = [["a"] if number % 3 else ["a", "b"][number % 2 :] for number in range(len(Task.read(place.task)))]
    retarget(place, pa.array(labels, pa.list_(pa.string())), "multilabel")
    [one] = place.fit(inputs=["hard"], head="streaming_knn")
    hard = Features.open(place.features / "hard")
    found = load(place.models, features=place.features).predict(hard, keys=list(one.keys))
    np.testing.assert_array_equal(found, one.predicted)


def test_keys_of_training_rows_that_are_not_those_are_refused(place: Place) -> None:
    place.fit(inputs=["hard"], head="streaming_knn")
    path = place.models / "streaming_knn.hard.all.keys.npy"
    keys = np.load(path)
    np.save(path, keys[::-1])
    with pytest.raises(
        HeadError, match=r"keys\.npy: expected the keys of 60 training rows with SHA-256 \w{64}, got \w{64}"
    ):
        load(place.models, features=place.features)
    path.unlink()
    with pytest.raises(HeadError, match=r"with SHA-256 \w{64}, got no such file\. Fit the run again\."):
        load(place.models, features=place.features)
    made = place.model()
    del made["fits"][0]["rows"]
    (place.models / "model.json").write_text(json.dumps(made))
    with pytest.raises(HeadError, match=r"expected the keys of the head's training rows in model\.json, got none"):
        load(place.models, features=place.features)


def test_training_rows_of_other_features_are_not_given_back(place: Place) -> None:
    place.fit(inputs=["hard"], head="streaming_knn")
    hard = Features.open(place.features / "hard")
    write_features(place.features / "hard", hard.keys, hard.load(), weights="1" * 64)
    with pytest.raises(HeadError, match=r"the head was fitted on other features(.|\n)*weights: expected '0{64}'"):
        load(place.models, features=place.features)
    write_features(place.features / "hard", hard.keys[:10], hard.load()[:10])
    with pytest.raises(StoreError, match="of the requested keys have no features"):
        load(place.models, features=place.features)


# Retrieval -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["knn", "streaming_knn"])
def test_the_accuracy_of_one_nearest_row_is_precision_at_one(place: Place, head: str) -> None:
    [one] = place.fit(inputs=["hard"], head={head: {"metric": "cosine", "n_neighbors": 1}}, scale="none")
    task = Task.read(place.task)
    rows = Features.open(place.features / "hard").load(list(task.keys)).reshape(len(task), -1).astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = task.rows("train")[(rows[task.rows("test")] @ rows[task.rows("train")].T).argmax(axis=1)]
    test = one.splits == "test"
    assert (one.predicted[test] == one.targets[test]).mean() == (
        task.targets[found] == task.targets[task.rows("test")]
    ).mean()


@pytest.mark.parametrize("head", ["knn", "streaming_knn"])
def test_classes_that_ask_and_are_not_looked_through_are_refused(place: Place, head: str) -> None:
    table = Task.read(place.task).table
    pairs = zip(table["target"].to_pylist(), table["split"].to_pylist(), strict=True)
    Task(table.filter(pa.array([pair != ("cat", "train") for pair in pairs]))).write(place.task)
    message = r"expected training rows of every class, got none of cat: .* Label some, or leave these rows out\."
    with pytest.raises(DataError, match=message):
        place.fit(head=head, params={"n_neighbors": 1})


# Where rows lie ------------------------------------------------------------------------------------------------------


def scattered(place: Place) -> None:
    """Store the rows of all taps again, dealt out to seven shards: neighbours by key lie apart."""
    for tap in ("easy", "hard"):
        before = Features.open(place.features / tap)
        keys, rows = before.key_array, before.load()
        layout = before.index.layout
        held = [keys[number::7].copy() for number in range(7)]
        records = [shards.write(place.features / tap, own, rows[number::7], layout) for number, own in enumerate(held)]
        index.commit(
            place.features / tap,
            identity=before.identity,
            layout=layout,
            shards=records,
            keys=held,
            wanted=keys,
            rejected={},
        )


@pytest.mark.parametrize("head", TWINS)
def test_training_rows_are_read_as_they_lie_and_say_the_same_in_any_order(
    place: Place, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"inputs": ["hard"], "head": head, "refit": True, "calibrate": "temperature"}
    [by_key] = place.fit(**settings)
    scattered(place)
    jumps: list[int] = []
    reading = Rows.__getitem__

    def looking(self: Rows, rows: slice) -> np.ndarray:
        jumps.append(int((np.diff(self._places[0][rows].astype(np.int64)) < 0).sum()))
        return reading(self, rows)

    monkeypatch.setattr(Rows, "__getitem__", looking)
    [as_they_lie] = place.fit(**settings)
    assert jumps
    assert not any(jumps)
    assert (as_they_lie.keys == by_key.keys).all()
    assert (as_they_lie.predicted == by_key.predicted).mean() > 0.99
    np.testing.assert_allclose(as_they_lie.scores, by_key.scores, atol=1e-5)


def test_rows_that_do_not_fit_name_the_streaming_heads(place: Place) -> None:
    message = (
        r"or use a head that reads blocks: streaming_centroid, streaming_knn, streaming_lda, streaming_logistic, s"
    )
    with pytest.raises(HeadError, match=message):
        place.fit(memory_gb=1e-6)
    place.fit(head="streaming_ridge", memory_gb=1e-6, calibrate="temperature")  # of its scores alone


def test_lengths_of_joined_taps_are_refused() -> None:
    with pytest.raises(ValidationError, match="streaming_lda cannot take the lengths of joined taps"):
        FitConfig(task="pets", backbone="tiny", inputs=(("a", "b"),), head="streaming_lda", scale="l2")
