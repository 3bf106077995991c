"""Metrics: against numbers worked out by hand, and bounds that hold for any predictions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import metrics

BINARY = ("no", "yes")


def rows(*values: float) -> np.ndarray:
    """Probabilities of two classes from those of the second."""
    second = np.array(values)
    return np.stack([1 - second, second], axis=1)


def test_accuracy_and_macro_f1_equal_those_worked_out_by_hand() -> None:
    targets = np.array(["a", "a", "a", "b"], dtype=object)
    predicted = np.array(["a", "a", "b", "b"], dtype=object)
    found = metrics.classification(targets, predicted, None, ["a", "b"])
    # a: precision 1, recall 2/3, F1 4/5; b: precision 1/2, recall 1, F1 2/3
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_class_that_is_neither_there_nor_predicted_counts_as_zero_in_macro_f1() -> None:
    same = np.array(["a", "b"], dtype=object)
    assert metrics.classification(same, same, None, ["a", "b", "c"])["macro_f1"] == pytest.approx(2 / 3)


def test_without_probabilities_there_is_neither_log_loss_nor_calibration_error() -> None:
    same = np.array(["no", "yes"], dtype=object)
    found = metrics.classification(same, same, None, BINARY)
    assert found == {"accuracy": 1.0, "macro_f1": 1.0, "log_loss": None, "ece": None}


def test_log_loss_equals_that_worked_out_by_hand() -> None:
    targets = np.array(["yes", "no", "yes"], dtype=object)
    found = metrics.classification(targets, targets, rows(0.9, 0.4, 0.5), BINARY)
    assert found["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.5)) / 3)


def test_log_loss_takes_each_class_its_own_column_where_text_sorts_otherwise() -> None:
    classes = ["1", "2", "9", "10"]  # the order of a task; as text, "10" comes before "2" and "9"
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.6, 0.1], [0.2, 0.7, 0.05, 0.05]], dtype=np.float32)
    targets = np.array(["10", "9", "2"], dtype=object)
    found = metrics.classification(targets, targets, probabilities, classes)
    assert found["log_loss"] == pytest.approx(-(math.log(0.4) + math.log(0.6) + math.log(0.7)) / 3, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.permutations(["1", "2", "9", "10"]), st.integers(0, 100))
def test_log_loss_and_calibration_do_not_depend_on_the_order_of_the_columns(order: list[str], seed: int) -> None:
    random, classes = np.random.default_rng(seed), ["1", "2", "9", "10"]
    probabilities = random.dirichlet(np.ones(4), size=20)
    targets, predicted = random.choice(classes, 20), np.array(classes)[probabilities.argmax(axis=1)]
    moved = probabilities[:, [classes.index(name) for name in order]]
    plain = metrics.classification(targets, predicted, probabilities, classes)
    assert metrics.classification(targets, predicted, moved, order) == pytest.approx(plain)


def test_calibration_error_equals_that_worked_out_by_hand() -> None:
    # Two bins: [0, 0.5) holds confidences 0.3 and 0.4, one of them right; [0.5, 1] holds 0.6, 0.8 and 1.0, all right.
    confidence, correct = np.array([0.3, 0.4, 0.6, 0.8, 1.0]), np.array([True, False, True, True, True])
    expected = 2 / 5 * abs(0.5 - 0.35) + 3 / 5 * abs(1.0 - 0.8)
    assert metrics.expected_calibration_error(correct, confidence, bins=2) == pytest.approx(expected)
    assert metrics.reliability(correct, confidence, bins=2) == [
        {"count": 2, "confidence": pytest.approx(0.35), "accuracy": 0.5},
        {"count": 3, "confidence": pytest.approx(0.8), "accuracy": 1.0},
    ]


def test_calibration_error_is_that_of_the_predicted_class() -> None:
    targets = np.array(["yes", "no"], dtype=object)
    predicted = np.array(["yes", "yes"], dtype=object)
    # Both predictions are made with confidence 0.7, one is right.
    assert metrics.classification(targets, predicted, rows(0.7, 0.7), BINARY)["ece"] == pytest.approx(0.2)


def test_a_perfectly_calibrated_head_has_no_calibration_error() -> None:
    confidence = np.repeat([0.5, 0.75, 1.0], [4, 8, 5])
    correct = np.array([True, False] * 2 + [True, True, True, False] * 2 + [True] * 5)
    assert metrics.expected_calibration_error(correct, confidence) == pytest.approx(0.0, abs=1e-12)


def test_a_head_that_is_sure_and_always_wrong_has_the_largest_calibration_error() -> None:
    assert metrics.expected_calibration_error(np.zeros(7, dtype=bool), np.ones(7)) == 1.0


correctness = arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 30)))


@settings(max_examples=50, deadline=None)
@given(correctness, st.integers(0, 5), st.integers(1, 40))
def test_calibration_error_lies_between_zero_and_one_and_its_bins_hold_every_row(
    correct: np.ndarray, seed: int, bins: int
) -> None:
    flat = correct.ravel()
    confidence = np.random.default_rng(seed).uniform(size=len(flat))
    table = metrics.reliability(flat, confidence, bins=bins)
    assert sum(row["count"] for row in table) == len(flat)
    assert sum(row["count"] * row["accuracy"] for row in table) == pytest.approx(flat.sum())
    assert all(row["count"] > 0 for row in table)
    assert 0 <= metrics.expected_calibration_error(flat, confidence, bins=bins) <= 1


@settings(max_examples=50, deadline=None)
@given(correctness, st.floats(0.8, 0.99), st.integers(0, 100))
def test_the_interval_holds_the_mean_and_stays_between_zero_and_one(
    correct: np.ndarray, level: float, seed: int
) -> None:
    low, high = metrics.bootstrap_interval(correct, level=level, resamples=400, seed=seed)
    # Quantiles of the means of resamples: rounding may move them by a bit.
    assert 0 <= low <= correct.mean() + 1e-12
    assert correct.mean() - 1e-12 <= high <= 1


@settings(max_examples=50, deadline=None)
@given(correctness, st.integers(0, 100))
def test_equal_seeds_give_equal_intervals(correct: np.ndarray, seed: int) -> None:
    once, twice = (metrics.bootstrap_interval(correct, resamples=50, seed=seed) for _ in range(2))
    assert once == twice


@settings(max_examples=50, deadline=None)
@given(correctness, st.integers(0, 100))
def test_a_higher_level_gives_an_interval_around_that_of_a_lower_one(correct: np.ndarray, seed: int) -> None:
    wide = metrics.bootstrap_interval(correct, level=0.99, resamples=100, seed=seed)
    narrow = metrics.bootstrap_interval(correct, level=0.5, resamples=100, seed=seed)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_another_seed_gives_another_interval() -> None:
    correct = np.random.default_rng(0).uniform(size=(1, 997)) < 0.7
    assert metrics.bootstrap_interval(correct, seed=0) != metrics.bootstrap_interval(correct, seed=1)


def test_the_interval_is_wider_with_fewer_rows() -> None:
    def width(rows: int) -> float:
        low, high = metrics.bootstrap_interval(np.tile([True, True, True, False], (1, rows // 4)))
        return high - low

    assert width(20) > 1.5 * width(200) > 2.25 * width(2000)


@pytest.mark.parametrize(("level", "deviations"), [(0.5, 0.6745), (0.95, 1.96)])
def test_the_interval_has_the_ends_that_theory_gives_it(level: float, deviations: float) -> None:
    low, high = metrics.bootstrap_interval(np.tile([True, False], (1, 200)), level=level, resamples=5000)
    reach = deviations * math.sqrt(0.25 / 400)
    assert (low, high) == (pytest.approx(0.5 - reach, abs=0.004), pytest.approx(0.5 + reach, abs=0.004))


def test_draws_that_differ_widen_the_interval() -> None:
    half = np.tile([True, False], 200)
    alike, apart = np.stack([half, half]), np.stack([np.ones(400, dtype=bool), np.zeros(400, dtype=bool)])
    narrow, wide = (metrics.bootstrap_interval(correct) for correct in (alike, apart))
    assert wide == (0.0, 1.0)
    assert narrow[1] - narrow[0] < 0.2


def test_where_every_row_is_right_the_interval_is_a_point() -> None:
    assert metrics.bootstrap_interval(np.ones((3, 10), dtype=bool)) == (1.0, 1.0)
