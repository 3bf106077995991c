"""Logistic regression by passes: the optimum of scikit-learn within the gap that is said, in few passes."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.errors import HeadError
from pipeline.streaming import logistic_loss
from pipeline.streaming import rows as reading
from pipeline.streaming.logistic import StreamingLogisticRegression

NAMES = np.array(["ape", "bee", "cat", "dog", "eel"], dtype=object)


@parametrize_with_checks([StreamingLogisticRegression(), StreamingLogisticRegression(standardize=True)])
def test_scikit_learn_takes_it_for_its_own(estimator: Any, check: Any) -> None:
    check(estimator)


def problem(seed: int, *, rows: int = 120, width: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows away from the origin, and classes that overlap; each is there."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(rows, width)) @ random.normal(size=(width, width)) + random.normal(size=width)
    codes = (X @ random.normal(size=(width, classes)) + 2 * random.gumbel(size=(rows, classes))).argmax(axis=1)
    codes[:classes] = range(classes)
    return X, NAMES[codes]


def objective(head: Any, X: np.ndarray, y: np.ndarray, *, C: float, class_weight: Any) -> float:
    """What both minimise, divided by C and the sum of weights, from probabilities in float64."""
    weights = compute_sample_weight(class_weight, y)
    loss = log_loss(y, head.predict_proba(X.astype(np.float64)), sample_weight=weights)
    return float(loss + (head.coef_**2).sum() / (2 * C * weights.sum()))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 5),
    C=st.floats(-4, 3).map(lambda power: 10**power),
    intercept=st.booleans(),
    class_weight=st.sampled_from([None, "balanced"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    tol=st.sampled_from([1e-1, 1e-3, 1e-5]),
)
def test_the_objective_is_within_its_gap_of_the_optimum_of_scikit_learn(
    seed: int, classes: int, C: float, intercept: bool, class_weight: Any, dtype: Any, tol: float
) -> None:
    """Within rounding: of float32 products of rows of six, 1e-6 of an objective of about 1."""
    X, y = problem(seed, classes=classes)
    options = {"C": C, "fit_intercept": intercept, "class_weight": class_weight}
    ours = StreamingLogisticRegression(tol=tol, **options).fit(X.astype(dtype), y)
    theirs = LogisticRegression(tol=1e-9, max_iter=10_000, solver="newton-cholesky", **options).fit(X, y)
    of = {"C": C, "class_weight": class_weight}
    best = objective(theirs, X.astype(dtype), y, **of)
    found = objective(ours, X.astype(dtype), y, **of)
    assert ours.objective_ == pytest.approx(found, abs=1e-6)
    assert -1e-6 < found - best < ours.gap_ + 1e-6
    if tol == 1e-5:
        assert ours.gap_ < 1e-2
        assert found - best < 1e-6
        assert (ours.predict(X) == theirs.predict(X)).mean() > 0.98
        assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=2e-2)


def test_one_row_of_scikit_learn_and_ours_has_the_same_numbers() -> None:
    X, y = problem(0)
    ours = StreamingLogisticRegression(tol=1e-7).fit(X, y)
    theirs = LogisticRegression(tol=1e-9, max_iter=10_000).fit(X, y)
    assert np.allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert np.allclose(ours.decision_function(X) - theirs.decision_function(X), 0, atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_standardized_is_a_scaler_before_it(intercept: bool) -> None:
    X, y = problem(1)
    X = X * np.logspace(-3, 3, X.shape[1]) + 10
    ours = StreamingLogisticRegression(tol=1e-8, standardize=True, fit_intercept=intercept).fit(X, y)
    head = LogisticRegression(tol=1e-8, max_iter=10_000, fit_intercept=intercept)
    theirs = make_pipeline(StandardScaler(), head).fit(X, y)
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


def test_a_source_gives_what_the_array_gives_and_is_read_a_pass_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = problem(2, rows=500)
    X = X.astype(np.float16)
    mapped = np.memmap(tmp_path / "rows", dtype=X.dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    whole = StreamingLogisticRegression(tol=1e-5).fit(X, y)
    monkeypatch.setattr(logistic_loss, "BLOCK_BYTES", 4 * 6 * 64)
    counted = Counted(mapped)
    parts = StreamingLogisticRegression(tol=1e-5).fit(counted, y)
    assert np.allclose(parts.coef_, whole.coef_, atol=1e-3)
    assert counted.rows / 500 == pytest.approx(parts.passes_, abs=1.1)  # and the rows that moments begin with
    assert np.allclose(parts.predict_proba(mapped), parts.predict_proba(X), atol=1e-6)
    skops.io.dump(parts, tmp_path / "head.skops")
    trusted = skops.io.get_untrusted_types(file=tmp_path / "head.skops")
    assert trusted == ["pipeline.streaming.logistic.StreamingLogisticRegression"]
    loaded = skops.io.load(tmp_path / "head.skops", trusted=trusted)
    assert np.array_equal(loaded.predict(X), parts.predict(X))


def test_memory_does_not_grow_with_the_rows_beyond_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (logistic_loss, reading):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2**19)
    X, y = problem(5, rows=60_000, width=32)
    mapped = np.memmap(tmp_path / "rows", dtype=np.float32, mode="w+", shape=X.shape)
    mapped[:] = X
    peaks = []
    for count in (6_000, 60_000):
        tracemalloc.start()
        StreamingLogisticRegression(tol=0.1).fit(mapped[:count], y[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 54_000 * 100  # bytes per row, of classes and weights; a row of X in float32 has 128


class Counted:
    """A source that counts the rows that were read."""

    def __init__(self, source: np.ndarray) -> None:
        self.source, self.shape, self.dtype, self.rows = source, source.shape, source.dtype, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = np.asarray(self.source[rows])
        self.rows += len(found)
        return found


def layered(seed: int, *, rows: int = 600, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Features as of a network: positive, correlated, a few directions with most of the variance."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 30))
    classes = (x[:, :10] + random.normal(size=(rows, 10))).argmax(axis=1)
    for _ in range(3):
        x = np.maximum(x @ random.normal(size=(x.shape[1], width)) / np.sqrt(x.shape[1]), 0)
    return x.astype(np.float32), classes


def test_the_axes_save_most_of_the_passes() -> None:
    """Against the steps of scikit-learn's L-BFGS to the same gradient, each of which is a pass or more."""
    X, y = layered(0)
    ours = StreamingLogisticRegression(C=1).fit(X, y)
    theirs = LogisticRegression(C=1, max_iter=10_000).fit(X, y)
    assert ours.passes_ * 3 < theirs.n_iter_[0]


def test_a_path_has_the_same_optima_in_fewer_passes() -> None:
    X, y = layered(1, rows=300, width=32)
    Cs = np.logspace(-6, 2, 25)
    path = list(StreamingLogisticRegression(tol=1e-5).fit_path(X, y, Cs[::-1]))
    assert [one.C for one in path] == Cs.tolist()
    cold = [StreamingLogisticRegression(tol=1e-5, C=C).fit(X, y) for C in Cs]
    for one, other in zip(path, cold, strict=True):
        assert one.objective_ == pytest.approx(other.objective_, abs=1e-5)
        assert np.allclose(one.predict_proba(X), other.predict_proba(X), atol=2e-2)
    assert sum(one.passes_ for one in path) < 0.6 * sum(one.passes_ for one in cold)


def test_a_warm_start_goes_on_from_the_last_fit() -> None:
    X, y = problem(3)
    head = StreamingLogisticRegression(warm_start=True, standardize=True, tol=1e-6).fit(X, y)
    head.fit(X, y)
    assert (head.n_iter_, head.passes_) == (0, 2)
    head.fit(X[:, :3], y)  # another width: from the beginning
    assert head.n_iter_ > 0


def test_what_does_not_converge_is_said() -> None:
    X, y = layered(2, rows=100, width=16)
    with pytest.warns(
        ConvergenceWarning, match=r"C=100: after 2 steps the gradient is .*, expected at most tol=0\.0001; "
    ):
        StreamingLogisticRegression(C=100, max_iter=2).fit(X, y)


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    X, y = problem(4)
    with pytest.raises(ValueError, match=r"training rows: expected two or more classes, got one class, ape"):
        StreamingLogisticRegression().fit(X, NAMES[np.zeros(len(X), dtype=int)])
    mapped = np.memmap(tmp_path / "rows", dtype=X.dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    mapped[77, 1] = np.inf
    with pytest.raises(HeadError, match=r"features, row 77: expected finite numbers, got inf in column 1"):
        StreamingLogisticRegression().fit(mapped, y)
