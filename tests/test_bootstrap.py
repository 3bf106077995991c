"""The bootstrap: resampled metrics against scikit-learn's of the same rows, and intervals against what theory says."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import metrics
from pipeline.evaluate import bootstrap
from pipeline.predictions import Predictions
from pipeline.task import Kind

KINDS: dict[str, Kind] = {
    "accuracy": "classification",
    "balanced_accuracy": "classification",
    "macro_f1": "classification",
    "map": "multilabel",
    "r2": "regression",
    "mae": "regression",
}
CLASSES = ["a", "b", "c"]


def fit(targets: Any, predicted: Any, scores: Any = None, *, draw: int | None = None) -> Predictions:
    """The predictions of one fit on test rows."""
    rows = len(targets)
    found = np.empty((rows, 0)) if scores is None else np.asarray(scores)
    keys, splits = np.arange(rows).astype(str).astype(object), np.full(rows, "test", dtype=object)
    return Predictions("head", "tap", None, draw, keys, splits, np.asarray(targets), np.asarray(predicted), found)


def hits(correct: Sequence[bool], *, draw: int | None = None) -> Predictions:
    """A classification that has these rows right."""
    return fit(np.full(len(correct), "a", dtype=object), np.where(correct, "a", "b").astype(object), draw=draw)


def interval_of(
    correct: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The interval of accuracy, of `correct` (draws, rows)."""
    fits = [hits(one, draw=number) for number, one in enumerate(correct)]
    values = bootstrap.resample_metric("accuracy", [fits], ["a", "b"], resamples=resamples, seed=seed)
    found = bootstrap.interval(values[0], level, rows=bootstrap.rows_behind("accuracy", fits[0], ["a", "b"]))
    assert found is not None
    return found


def made_up(kind: Kind, rows: int, seed: int) -> Predictions:
    """Random predictions of a kind of task, with equal scores here and there."""
    random = np.random.default_rng(seed)
    if kind == "regression":
        targets = random.normal(1000, 1, size=rows)
        return fit(targets, targets + random.normal(size=rows))
    scores = random.integers(4, size=(rows, 3)) / 4
    if kind == "multilabel":
        return fit(random.uniform(size=(rows, 3)) < 0.4, scores > 0.4, scores)
    names = np.array(CLASSES, dtype=object)
    return fit(names[random.integers(3, size=rows)], names[random.integers(3, size=rows)], scores)


def repeated(one: Predictions, counts: np.ndarray) -> Predictions:
    """The rows that some counts stand for."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return fit(one.targets[rows], one.predicted[rows], one.scores[rows])


def test_every_metric_that_can_decide_can_be_resampled() -> None:
    assert set(bootstrap.STATISTICS) == set(KINDS)


@pytest.mark.parametrize("metric", KINDS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(2, 12), seed=st.integers(0, 1000))
def test_a_resampled_metric_is_that_of_the_rows_that_the_counts_stand_for(metric: str, rows: int, seed: int) -> None:
    """To 1e-9: sums of at most 12 values, taken about their mean where that is a thousand times their spread.

    Mean average precision to 1e-6: its precisions are divided in float32.
    """
    kind, random, near = KINDS[metric], np.random.default_rng(seed), 1e-6 if metric == "map" else 1e-9
    one = made_up(kind, rows, seed)
    counts = np.stack([np.bincount(random.integers(rows, size=rows), minlength=rows) for _ in range(5)])
    found = bootstrap.statistic(metric, one, CLASSES)(counts.astype(np.float64))
    for value, line in zip(found, counts, strict=True):
        again = repeated(one, line)
        # Of one row many times over, scikit-learn gives an R² of 0 or 1; we have none.
        if metric == "r2" and np.ptp(again.targets) == 0:
            assert not np.isfinite(value) or abs(value) > 1
            continue
        known = metrics.measure(kind, again.targets, again.predicted, again.scores, CLASSES, given="decision")
        expected = known.values[metric]
        assert (math.isnan(value) and expected is None) or value == pytest.approx(expected, rel=near, abs=near)


def test_methods_share_their_resamples_so_that_equal_ones_never_differ() -> None:
    one = made_up("classification", 50, 0)
    values = bootstrap.resample_metric("accuracy", [[one], [one]], CLASSES, resamples=200, seed=3)
    assert np.array_equal(values[0], values[1])
    assert values[0].std() > 0


def test_draws_of_equal_number_are_resampled_together() -> None:
    good, bad = hits([True] * 10, draw=0), hits([False] * 10, draw=1)
    other_good, other_bad = hits([True] * 10, draw=7), hits([False] * 10, draw=8)
    values = bootstrap.resample_metric(
        "accuracy", [[good, bad], [good, bad], [other_good, other_bad]], ["a", "b"], resamples=200, seed=0
    )
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])
    assert set(np.unique(values)) == {0.0, 0.5, 1.0}


def test_many_rows_come_in_blocks_and_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    one = made_up("classification", 60, 1)
    whole = bootstrap.resample_metric("macro_f1", [[one]], CLASSES, resamples=50, seed=0)
    monkeypatch.setattr(bootstrap, "BLOCK", 60 * 7)
    monkeypatch.setattr(bootstrap, "MOST_KEPT", 0)
    assert np.array_equal(bootstrap.resample_metric("macro_f1", [[one]], CLASSES, resamples=50, seed=0), whole)


def test_fits_measured_together_have_the_values_of_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = [made_up("classification", 60, seed) for seed in range(3)]
    methods = [fits[:1], fits[1:]]
    together = bootstrap.resample_metric("accuracy", methods, CLASSES, resamples=50, seed=4)
    rows = np.random.default_rng(4).integers(60, size=(50, 60))
    counts = np.stack([np.bincount(sample, minlength=60) for sample in rows]).astype(np.float64)
    values = [bootstrap.statistic("accuracy", one, CLASSES)(counts) for one in fits]
    assert np.array_equal(together[0], values[0])
    assert np.all((together[1] >= np.minimum(*values[1:])) & (together[1] <= np.maximum(*values[1:])))
    monkeypatch.setattr(bootstrap, "MOST_KEPT", 0)  # the counts are drawn again
    assert np.array_equal(bootstrap.resample_metric("accuracy", methods, CLASSES, resamples=50, seed=4), together)


def test_mean_average_precision_has_fewer_resamples() -> None:
    one = made_up("multilabel", 20, 0)
    values = bootstrap.resample_metric("map", [[one]], CLASSES, resamples=5000, seed=0)
    assert values.shape == (1, bootstrap.MOST["map"])


def test_a_metric_without_a_value_in_any_resample_has_no_interval() -> None:
    assert bootstrap.interval(np.full(10, np.nan), 0.95) is None
    assert bootstrap.interval(np.array([np.nan, 1.0, 1.0]), 0.95) == (1.0, 1.0)


# Intervals of accuracy -----------------------------------------------------------------------------------------------

correctness = arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 30)))


@settings(max_examples=50, deadline=None)
@given(correctness, st.floats(0.8, 0.99), st.integers(0, 100))
def test_the_interval_holds_the_mean_and_stays_between_zero_and_one(
    correct: np.ndarray, level: float, seed: int
) -> None:
    low, high = interval_of(correct, level=level, resamples=400, seed=seed)
    # Quantiles of the means of resamples: rounding may move them by a bit.
    assert 0 <= low <= correct.mean() + 1e-12
    assert correct.mean() - 1e-12 <= high <= 1


@settings(max_examples=50, deadline=None)
@given(correctness, st.integers(0, 100))
def test_equal_seeds_give_equal_intervals(correct: np.ndarray, seed: int) -> None:
    once, twice = (interval_of(correct, resamples=50, seed=seed) for _ in range(2))
    assert once == twice


@settings(max_examples=50, deadline=None)
@given(correctness, st.integers(0, 100))
def test_a_higher_level_gives_an_interval_around_that_of_a_lower_one(correct: np.ndarray, seed: int) -> None:
    wide = interval_of(correct, level=0.99, resamples=100, seed=seed)
    narrow = interval_of(correct, level=0.5, resamples=100, seed=seed)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_another_seed_gives_another_interval() -> None:
    correct = np.random.default_rng(0).uniform(size=(1, 997)) < 0.7
    assert interval_of(correct, seed=0) != interval_of(correct, seed=1)


def test_the_interval_is_wider_with_fewer_rows() -> None:
    def width(rows: int) -> float:
        low, high = interval_of(np.tile([True, True, True, False], (1, rows // 4)))
        return high - low

    assert width(20) > 1.5 * width(200) > 2.25 * width(2000)


@pytest.mark.parametrize(("level", "deviations"), [(0.5, 0.6745), (0.95, 1.96)])
def test_the_interval_has_the_ends_that_theory_gives_it(level: float, deviations: float) -> None:
    low, high = interval_of(np.tile([True, False], (1, 200)), level=level, resamples=5000)
    reach = deviations * math.sqrt(0.25 / 400)
    assert (low, high) == (pytest.approx(0.5 - reach, abs=0.004), pytest.approx(0.5 + reach, abs=0.004))


def test_draws_that_differ_widen_the_interval() -> None:
    half = np.tile([True, False], 200)
    alike, apart = np.stack([half, half]), np.stack([np.ones(400, dtype=bool), np.zeros(400, dtype=bool)])
    narrow, wide = (interval_of(correct) for correct in (alike, apart))
    assert wide == (0.0, 1.0)
    assert narrow[1] - narrow[0] < 0.2


def test_where_every_row_is_right_or_wrong_the_interval_is_exact() -> None:
    low, high = interval_of(np.ones((3, 10), dtype=bool))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert interval_of(np.zeros((1, 10), dtype=bool)) == (0.0, pytest.approx(1 - low))
    assert interval_of(np.ones((1, 1), dtype=bool))[0] == pytest.approx(0.025)
    rare = fit(np.array(["a"] * 8 + ["b"] * 2, dtype=object), np.array(["a"] * 8 + ["b"] * 2, dtype=object))
    counted = {name: bootstrap.rows_behind(name, rare, ["a", "b", "c"]) for name in ("accuracy", "macro_f1", "mae")}
    assert counted == {"accuracy": 10, "macro_f1": 2, "mae": None}
