"""Heads: every name of the table is a scikit-learn classifier that fits, predicts and survives its file."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.heads.preprocessing import Scale
from pipeline.heads.saved import TRUSTED

FEW: dict[str, dict[str, Any]] = {"boosting": {"min_samples_leaf": 1, "max_iter": 10}, "forest": {"n_estimators": 5}}
SCALES = get_args(Scale)


def three_classes(rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, each far along an axis of its own: told apart at any scale, and by angle alone."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.array(["ape", "bee", "cat"], dtype=object), rows)
    return (8 * np.repeat(np.eye(3), rows, axis=0) + random.normal(size=(3 * rows, 3))).astype(np.float32), labels


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", heads.HEADS)
def test_every_head_fits_predicts_and_comes_back_from_its_file_the_same(name: str, scale: Any, tmp_path: Path) -> None:
    X, y = three_classes()
    head = heads.create(name, FEW.get(name, {}), scale=scale).fit(X, y)
    assert (head.predict(X) == y).mean() > 0.95

    skops.io.dump(head, tmp_path / "head.skops")
    untrusted = skops.io.get_untrusted_types(file=tmp_path / "head.skops")
    assert {*untrusted} <= {*TRUSTED}
    back = skops.io.load(tmp_path / "head.skops", trusted=untrusted)
    assert type(back) is type(head)
    assert [type(step) for _, step in back.steps] == [type(step) for _, step in head.steps]
    np.testing.assert_array_equal(back.predict(X), head.predict(X))


@pytest.mark.parametrize("name", heads.HEADS)
def test_fitting_a_head_twice_gives_the_same_predictions(name: str) -> None:
    random = np.random.default_rng(1)
    X, y = random.normal(size=(60, 5)), random.choice(["a", "b", "c"], size=60)
    new = random.normal(size=(200, 5))
    params = {"max_iter": 50, "tol": 1.0} if name == "mlp" else {}  # there is nothing to learn: it would go on
    once, twice = (heads.create(name, params, scale="standard").fit(X, y).predict(new) for _ in range(2))
    np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_head_has_the_parameters_of_the_table_unless_told_otherwise(name: str) -> None:
    _, defaults = heads.HEADS[name]
    assert heads.create(name, {}, scale="none")[-1].get_params().items() >= defaults.items()
    for key, value in defaults.items():
        told = 7 if isinstance(value, int) else "auto" if name == "knn" else None
        assert heads.create(name, {key: told}, scale="none")[-1].get_params()[key] == told


def test_the_scale_decides_what_stands_before_the_head() -> None:
    steps = {
        scale: [type(step).__name__ for _, step in heads.create("ridge", {}, scale=scale).steps] for scale in SCALES
    }
    assert steps == {
        "standard": ["StandardScaler", "RidgeClassifier"],
        "l2": ["Normalizer", "RidgeClassifier"],
        "none": ["RidgeClassifier"],
    }


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.sampled_from(["standard", "l2"]))
def test_a_scaled_head_does_not_care_for_the_unit_of_the_features(unit: float, scale: Any) -> None:
    X, y = three_classes()
    new = np.random.default_rng(2).normal(size=(50, 3)) * 8
    plain = heads.create("centroid", {}, scale=scale).fit(X, y).predict(new)
    scaled = heads.create("centroid", {}, scale=scale).fit(X.astype(float) * unit, y).predict(new * unit)
    # A point that lies on the border within rounding may fall to either side.
    assert (plain == scaled).mean() > 0.97


def test_heads_without_scores_are_heads() -> None:
    assert set(heads.WITHOUT_SCORES) <= set(heads.HEADS)


def test_an_unknown_head_names_near_ones() -> None:
    with pytest.raises(
        HeadError, match=r"unknown head 'logistics'\. Did you mean 'logistic'.*boosting, centroid, forest"
    ):
        heads.create("logistics", {}, scale="none")


def test_an_unknown_parameter_names_near_ones() -> None:
    message = r"head 'logistic' \(LogisticRegression\): unknown parameter 'max_iters'\. Did you mean 'max_iter'"
    with pytest.raises(HeadError, match=message):
        heads.create("logistic", {"max_iters": 5}, scale="standard")


def test_a_head_of_a_package_that_is_not_installed_is_refused() -> None:
    with pytest.raises(HeadError, match=r"head 'nobody.heads:Net': expected an installed module, got No module named"):
        heads.create("nobody.heads:Net", {}, scale="none")


@pytest.mark.parametrize("path", ["sklearn.svm:LinearSVCC", "sklearn.svm:l1_min_c", "sklearn.preprocessing:Binarizer"])
def test_an_import_path_must_lead_to_an_estimator(path: str) -> None:
    with pytest.raises(HeadError, match=r"expected a class of scikit-learn's kind with fit, predict, get_params"):
        heads.create(path, {}, scale="none")


def test_an_import_path_that_is_nearly_right_names_near_ones() -> None:
    with pytest.raises(HeadError, match=r"unknown class 'LinearSVCC'\. Did you mean 'LinearSVC'"):
        heads.create("sklearn.svm:LinearSVCC", {}, scale="none")


def test_a_class_with_parameters_that_have_no_default_is_refused() -> None:
    with pytest.raises(HeadError, match=r"expected a class whose parameters all have a default, got: .*'estimator'"):
        heads.create("sklearn.multiclass:OneVsRestClassifier", {}, scale="none")


def test_import_paths_are_told_from_names() -> None:
    assert heads.is_import_path("sklearn.svm:LinearSVC")
    assert not any(heads.is_import_path(name) for name in ("logistic", "sklearn.svm", "a:b:c", "os;x:y", ":x"))
