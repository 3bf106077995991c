"""Metrics: against numbers worked out by hand, and bounds that hold for any predictions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk

from pipeline import metrics

BINARY = ("no", "yes")


def rows(*values: float) -> np.ndarray:
    """Probabilities of two classes from those of the second."""
    second = np.array(values)
    return np.stack([1 - second, second], axis=1)


def test_accuracy_and_macro_f1_equal_those_worked_out_by_hand() -> None:
    targets = np.array(["a", "a", "a", "b"], dtype=object)
    predicted = np.array(["a", "a", "b", "b"], dtype=object)
    found = metrics.classification(targets, predicted, None, ["a", "b"]).values
    # a: precision 1, recall 2/3, F1 4/5; b: precision 1/2, recall 1, F1 2/3
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_class_without_rows_is_not_measured_in_macro_f1() -> None:
    same = np.array(["a", "b"], dtype=object)
    assert metrics.classification(same, same, None, ["a", "b", "c"]).values["macro_f1"] == 1.0
    wrong = np.array(["a", "c"], dtype=object)  # whose row is a miss of b
    assert metrics.classification(same, wrong, None, ["a", "b", "c"]).values["macro_f1"] == 0.5


def test_without_probabilities_there_is_neither_log_loss_nor_calibration_error() -> None:
    same = np.array(["no", "yes"], dtype=object)
    found = metrics.classification(same, same, None, BINARY, head="ridge")
    known = {name: value for name, value in found.values.items() if value is not None}
    assert known == {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "micro_f1": 1.0}
    assert found.degraded == {
        "auroc": "ridge gives no scores",
        "average_precision": "ridge gives no scores",
        "log_loss": "ridge gives no probabilities",
        "brier": "ridge gives no probabilities",
        "ece": "ridge gives no probabilities",
    }
    assert set(found.degraded) == set(found.values) - set(known)


def test_log_loss_equals_that_worked_out_by_hand() -> None:
    targets = np.array(["yes", "no", "yes"], dtype=object)
    found = metrics.classification(targets, targets, rows(0.9, 0.4, 0.5), BINARY).values
    assert found["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.5)) / 3)


def test_log_loss_takes_each_class_its_own_column_where_text_sorts_otherwise() -> None:
    classes = ["1", "2", "9", "10"]  # the order of a task; as text, "10" comes before "2" and "9"
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.6, 0.1], [0.2, 0.7, 0.05, 0.05]], dtype=np.float32)
    targets = np.array(["10", "9", "2"], dtype=object)
    found = metrics.classification(targets, targets, probabilities, classes).values
    assert found["log_loss"] == pytest.approx(-(math.log(0.4) + math.log(0.6) + math.log(0.7)) / 3, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.permutations(["1", "2", "9", "10"]), st.integers(0, 100))
def test_log_loss_and_calibration_do_not_depend_on_the_order_of_the_columns(order: list[str], seed: int) -> None:
    random, classes = np.random.default_rng(seed), ["1", "2", "9", "10"]
    probabilities = random.dirichlet(np.ones(4), size=20)
    targets, predicted = random.choice(classes, 20), np.array(classes)[probabilities.argmax(axis=1)]
    moved = probabilities[:, [classes.index(name) for name in order]]
    plain = metrics.classification(targets, predicted, probabilities, classes).values
    assert metrics.classification(targets, predicted, moved, order).values == pytest.approx(plain)


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
    assert metrics.classification(targets, predicted, rows(0.7, 0.7), BINARY).values["ece"] == pytest.approx(0.2)


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


# Against scikit-learn's own words for the same thing ------------------------------------------------------------------


def test_every_metric_of_three_classes_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    classes = ["b", "c", "a"]  # in another order than text has
    targets, predicted = (np.array(classes, dtype=object)[random.integers(3, size=40)] for _ in range(2))
    scores = random.dirichlet(np.ones(3), size=40)
    found = metrics.classification(targets, predicted, scores, classes)
    sorted_scores = scores[:, [2, 0, 1]]
    assert found.degraded == {}
    assert found.values == pytest.approx(
        {
            "accuracy": sk.accuracy_score(targets, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
            "macro_f1": sk.f1_score(targets, predicted, average="macro"),
            "micro_f1": sk.f1_score(targets, predicted, average="micro"),
            "auroc": sk.roc_auc_score(targets, sorted_scores, multi_class="ovr"),
            "average_precision": sk.average_precision_score(targets, sorted_scores),
            "log_loss": sk.log_loss(targets, sorted_scores),
            "brier": sk.brier_score_loss(targets, sorted_scores),
            "ece": metrics.expected_calibration_error(targets == predicted, scores.max(axis=1)),
        }
    )


def test_of_two_classes_the_second_is_the_one_that_is_looked_for() -> None:
    targets = np.array(["no", "yes", "yes", "no"], dtype=object)
    found = metrics.classification(targets, targets, rows(0.1, 0.8, 0.3, 0.4), BINARY).values
    member = [False, True, True, False]
    assert found["auroc"] == pytest.approx(3 / 4)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(member, [0.1, 0.8, 0.3, 0.4]))
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.7**2 + 0.4**2) / 4)


def test_decision_values_are_ranked_and_are_no_probabilities() -> None:
    classes = list("abcdef")
    targets = np.array(classes, dtype=object)
    scores = 10 * np.eye(6) - 5
    scores[0] = [-9, 1, 2, 3, 4, 5]  # its class comes last of six
    found = metrics.classification(targets, targets, scores, classes, given="decision", head="svm")
    assert found.values["top5"] == pytest.approx(5 / 6)
    assert found.values["auroc"] is not None
    assert set(found.degraded) == {"log_loss", "brier", "ece"}
    assert set(found.degraded.values()) == {"svm gives no probabilities"}


def test_rows_of_one_class_have_no_ranking() -> None:
    same = np.array(["yes", "yes"], dtype=object)
    found = metrics.classification(same, same, rows(0.9, 0.8), BINARY)
    assert found.values["accuracy"] == found.values["balanced_accuracy"] == 1.0
    assert found.degraded == dict.fromkeys(("auroc", "average_precision"), "all rows are of one class")


def test_classes_without_rows_are_left_out_of_balanced_accuracy_and_of_rankings() -> None:
    targets = np.array(["a", "b", "a", "b"], dtype=object)
    predicted = np.array(["a", "c", "a", "b"], dtype=object)
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    found = metrics.classification(targets, predicted, scores, list("abc"))
    assert found.values["balanced_accuracy"] == pytest.approx(3 / 4)
    assert found.values["auroc"] == pytest.approx((1 + 7 / 8) / 2)
    assert found.degraded == {}


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    targets, scores = random.uniform(size=(30, 4)) < 0.4, random.uniform(size=(30, 4))
    targets[:, 3] = False  # a class that no row has
    predicted = scores > 0.5
    found = metrics.measure("multilabel", targets, predicted, scores, list("abcd"), given="probability")
    assert found.values == pytest.approx(
        {
            "map": sk.average_precision_score(targets[:, :3], scores[:, :3]),
            "micro_f1": sk.f1_score(targets, predicted, average="micro"),
            "macro_f1": sk.f1_score(targets[:, :3], predicted[:, :3], average="macro", zero_division=0.0),
            "subset_accuracy": sk.accuracy_score(targets, predicted),
            "hamming_loss": sk.hamming_loss(targets, predicted),
            "auroc": sk.roc_auc_score(targets[:, :3], scores[:, :3]),
        }
    )
    assert found.degraded == {}


def test_several_labels_without_scores_or_without_any_label_say_what_is_lacking() -> None:
    targets, scores = np.eye(2, dtype=bool), np.full((2, 2), np.nan)
    found = metrics.multilabel(targets, targets, scores, given="none", head="tree")
    assert found.values["subset_accuracy"] == 1.0
    assert found.degraded == dict.fromkeys(("map", "auroc"), "tree gives no scores")
    nothing = metrics.multilabel(~targets & targets, targets, np.ones((2, 2)), given="decision")
    assert nothing.degraded == {
        "map": "no row has a class",
        "auroc": "no class has rows with it and rows without it",
    }


def test_metrics_of_a_regression_equal_those_worked_out_by_hand() -> None:
    targets, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 2.0, 6.0])
    found = metrics.measure("regression", targets, predicted, np.empty((4, 0)), [], given="none")
    assert found.values == pytest.approx({"r2": 1 - 2 / 14, "mae": 0.5, "rmse": math.sqrt(0.5), "spearman": 0.8})
    assert found.degraded == {}


def test_a_regression_of_one_row_or_of_equal_values_says_what_is_lacking() -> None:
    one = metrics.regression(np.array([1.0]), np.array([2.0]))
    assert one.values == {"r2": None, "mae": 1.0, "rmse": 1.0, "spearman": None}
    assert one.degraded["r2"] == "there is only one row"
    flat = metrics.regression(np.array([1.0, 2.0]), np.array([1.5, 1.5]))
    assert flat.values["r2"] == pytest.approx(0.0)
    assert flat.degraded == {"spearman": "all targets or all predictions are equal"}
