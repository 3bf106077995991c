"""A saved head: it comes back as it was, runs no code of its file, and takes features of its own kind alone."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.base import BaseEstimator, ClassifierMixin
from support.features import Place, make, write_features

from pipeline import heads
from pipeline.errors import HeadError, StoreError
from pipeline.heads.saved import TRUSTED, load
from pipeline.store.features import Features

FEW: dict[str, dict[str, Any]] = {"boosting": {"min_samples_leaf": 1}, "forest": {"n_estimators": 5}}


class Stranger(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A class that nobody trusts."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path, splits={"train": 8, "validation": 8, "test": 4})


def opened(place: Place, *taps: str) -> list[Features]:
    return [Features.open(place.features / tap) for tap in taps]


# A saved streaming_knn is without its training rows: tests/test_fit_streaming.py.
@pytest.mark.parametrize("head", [head for head in heads.HEADS if head != "streaming_knn"])
def test_every_head_comes_back_and_predicts_what_its_run_predicted(place: Place, head: str) -> None:
    [one] = place.fit(inputs=["hard"], head=head, params=FEW.get(head, {}))
    found = load(place.models)
    taps = opened(place, "hard")
    np.testing.assert_array_equal(found.predict(*taps, keys=list(one.keys)), one.predicted)
    np.testing.assert_array_equal(found.scores(*taps, keys=list(one.keys)), one.scores)
    assert len(found.predict(*taps)) == len(taps[0])


def test_a_calibrated_head_of_joined_taps_comes_back(place: Place) -> None:
    [one] = place.fit(
        inputs=[["hard", "easy"]], head="ridge", calibrate="temperature", scale="l2", pca={"components": 3}
    )
    found = load(place.models, "ridge.hard+easy.all.skops")
    assert found.taps == ["hard", "easy"]
    np.testing.assert_allclose(found.scores(*opened(place, *found.taps), keys=list(one.keys)), one.scores, rtol=1e-5)


def test_a_head_of_numbers_comes_back(place: Place) -> None:
    import pyarrow as pa
    from support.features import retarget

    from pipeline.task import Task

    retarget(place, pa.array(np.arange(len(Task.read(place.task)), dtype=float)), "regression")
    [one] = place.fit(inputs=["hard"], head="knn", params={"algorithm": "kd_tree", "n_neighbors": 2})
    np.testing.assert_array_equal(
        load(place.models).predict(*opened(place, "hard"), keys=list(one.keys)), one.predicted
    )


def test_features_of_other_weights_are_refused_with_the_fields_that_differ(place: Place) -> None:
    place.fit(inputs=["easy", ["easy", "hard"]])
    found = load(place.models, "logistic.easy+hard.all.skops")
    easy, hard = opened(place, "easy", "hard")
    with pytest.raises(HeadError) as told:
        found.predict(hard, easy)
    assert "the head was fitted on other features. Extract those, or fit a head on these." in str(told.value)
    assert "easy (" in str(told.value)
    assert "): node: expected 'easy', got 'hard'" in str(told.value)
    with pytest.raises(HeadError, match=r"expected the features of easy, hard, got 1 taps\."):
        found.scores(easy)
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        found.predict(easy, hard, keys=["0" * 32])


def test_features_of_another_backbone_with_the_same_tap_are_refused(place: Place) -> None:
    place.fit()
    [easy] = opened(place, "easy")
    values, keys = easy.load(), easy.keys
    write_features(place.features / "easy", keys, values, weights="1" * 64)
    with pytest.raises(HeadError, match=r"weights: expected '0{64}', got '1{64}'"):
        load(place.models).predict(*opened(place, "easy"))


def test_a_head_with_an_estimator_that_moved_since_is_to_be_fitted_again(place: Place) -> None:
    place.fit(head="streaming_ridge")
    path = place.models / "streaming_ridge.easy.all.skops"
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data.replace(b"pipeline.streaming.ridge", b"pipeline.heads.ridge"))
    wanted = (
        r"got pipeline\.heads\.ridge\.StreamingRidgeClassifier of another one\. Fit the run again: "
        "`icecore repro -f fit@"
    )
    with pytest.raises(HeadError, match=wanted):
        load(place.models)


def test_a_file_with_a_type_that_nobody_trusts_is_not_loaded(place: Place) -> None:
    place.fit()
    skops.io.dump(Stranger(), place.models / "logistic.easy.all.skops")
    with pytest.raises(HeadError, match=r"expected types that icecore trusts, got .*Stranger\. It was not loaded\."):
        load(place.models)
    name = f"{Stranger.__module__}.Stranger"
    assert isinstance(load(place.models, trusted=[name]).head, Stranger)


def test_a_file_that_is_no_head_is_refused(place: Place) -> None:
    place.fit()
    (place.models / "logistic.easy.all.skops").write_bytes(b"none")
    with pytest.raises(
        HeadError, match=r"expected a head that icecore saved, got File is not a zip file\. Fit the run"
    ):
        load(place.models)
    (place.models / "logistic.easy.all.skops").unlink()
    with pytest.raises(HeadError, match=r"expected a head that icecore saved, got .*No such file"):
        load(place.models)


def test_the_head_of_a_run_with_several_must_be_named(place: Place) -> None:
    place.fit(inputs=["easy", "hard"])
    with pytest.raises(
        HeadError, match=r"expected the file name of one of 2 heads, got none: logistic\.easy\.all\.skops, log"
    ):
        load(place.models)
    with pytest.raises(HeadError, match=r"unknown head 'logistic\.esy\.all\.skops'\. Did you mean"):
        load(place.models, "logistic.esy.all.skops")


def test_a_folder_that_is_no_run_is_refused(place: Place) -> None:
    with pytest.raises(
        HeadError, match=r"expected a run's folder with model\.json, got none\. Run `icecore repro fit@"
    ):
        load(place.models)
    place.fit()
    path = place.models / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(HeadError, match=r"expected a model\.json of format 2, got 1\. Fit the run again"):
        load(place.models)


def test_trusted_types_are_of_scikit_learn_or_of_the_project() -> None:
    assert all(name.startswith(("sklearn.", "pipeline.streaming.")) for name in TRUSTED)
    assert list(TRUSTED) == sorted(TRUSTED, key=lambda name: (not name.startswith("sklearn."), name))
