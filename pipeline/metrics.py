"""Compute the metrics of each kind of task: scikit-learn's, and the expected calibration error. Pure functions.

A metric that cannot be computed is None and has a reason in `degraded`; no substitute number is returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.predictions import Scores
from pipeline.task import Kind

Values = dict[str, float | None]

LOWER_IS_BETTER = frozenset({"mae", "rmse", "log_loss", "brier", "ece", "hamming_loss"})
TOP = 5
BINS = 15  # for the calibration error (Guo et al. 2017)


@dataclass(frozen=True)
class Measured:
    """The metrics of a set of predictions, and the reason for each metric that is None."""

    values: Values
    degraded: dict[str, str] = field(default_factory=dict)

    def drop(self, names: Sequence[str], reason: str) -> None:
        """Set metrics that cannot be computed to None, with the reason."""
        self.values.update(dict.fromkeys(names))
        self.degraded.update(dict.fromkeys(names, reason))


def measure(
    kind: Kind,
    targets: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    *,
    given: Scores,
    head: str = "the head",
) -> Measured:
    """Return the metrics of a kind of task; arrays as in `Predictions`. `given`: the kind of scores."""
    if kind == "regression":
        return regression(targets, predicted)
    if kind == "multilabel":
        return multilabel(targets, predicted, scores, given=given, head=head)
    return classification(targets, predicted, scores, classes, given=given, head=head)


def classification(
    targets: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray | None,
    classes: Sequence[str],
    *,
    given: Scores = "probability",
    head: str = "the head",
) -> Measured:
    """Return metrics of a classification.

    targets, predicted: class names (n,).
    scores: (n, classes) in the order of `classes`, or None, which overrides `given`.

    Balanced accuracy and macro-F1 are the mean recall and F1 of the classes that have rows; micro-F1 equals accuracy,
    since a row has one class. With two classes, AUROC and average precision are computed for the second class,
    otherwise one-vs-rest and averaged over classes that have rows. Top-5 accuracy needs more than five classes. Log
    loss is in nats; the Brier score is between 0 and 1 for two classes, and between 0 and 2 for more, as in
    scikit-learn.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    target, guess, labels = codes(targets, classes), codes(predicted, classes), np.arange(len(classes))
    _, recall, f1, _ = precision_recall_fscore_support(target, guess, labels=labels, zero_division=0.0)
    accuracy = float(accuracy_score(target, guess))
    result = Measured(
        {
            "accuracy": accuracy,
            "balanced_accuracy": float(np.mean(recall[np.unique(target)])),
            "macro_f1": float(np.mean(f1[np.unique(target)])),
            "micro_f1": accuracy,  # equal, since each row has one class
        }
    )
    given = "none" if scores is None else given
    _add_ranking_metrics(result, target, scores, len(classes), given=given, head=head)
    _add_probability_metrics(result, target, target == guess, scores, labels, given=given, head=head)
    return result


def codes(names: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the index of each name in `classes`, int64 (n,); raises KeyError for an unknown name."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _add_ranking_metrics(
    result: Measured, target: np.ndarray, scores: np.ndarray | None, classes: int, *, given: Scores, head: str
) -> None:
    """Add the ranking metrics, which need probabilities or decision values."""
    from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

    top = [f"top{TOP}"] if classes > TOP else []
    if scores is None or given == "none":
        result.drop([*top, "auroc", "average_precision"], f"{head} gives no scores")
        return
    if top:
        labels = np.arange(classes)
        result.values[top[0]] = float(top_k_accuracy_score(target, scores, k=TOP, labels=labels))
    member = target[:, None] == np.arange(classes)
    columns = np.flatnonzero(member.any(axis=0) & ~member.all(axis=0))
    if classes == 2:
        columns = columns[columns == 1]
    if not len(columns):
        result.drop(["auroc", "average_precision"], "all rows are of one class")
        return
    result.values["auroc"] = float(roc_auc_score(member[:, columns], scores[:, columns], average="macro"))
    result.values["average_precision"] = float(average_precision_score(member[:, columns], scores[:, columns]))


def _add_probability_metrics(
    result: Measured,
    target: np.ndarray,
    correct: np.ndarray,
    scores: np.ndarray | None,
    labels: np.ndarray,
    *,
    given: Scores,
    head: str,
) -> None:
    """Add the metrics that need probabilities."""
    from sklearn.metrics import brier_score_loss, log_loss

    if scores is None or given != "probability":
        result.drop(["log_loss", "brier", "ece"], f"{head} gives no probabilities")
        return
    rows = scores.astype(np.float64)
    rows /= rows.sum(axis=1, keepdims=True)
    result.values["log_loss"] = float(log_loss(target, rows, labels=labels))
    result.values["brier"] = float(brier_score_loss(target, rows, labels=labels))
    result.values["ece"] = expected_calibration_error(correct, scores.max(axis=1))


def multilabel(
    targets: np.ndarray, predicted: np.ndarray, scores: np.ndarray, *, given: Scores, head: str = "the head"
) -> Measured:
    """Return metrics of a multilabel task: bool (n, classes) twice, and scores (n, classes).

    `map` and macro-F1 are means over the classes that have rows; AUROC is the mean over classes that have positive and
    negative rows. Subset accuracy counts the rows whose classes are all predicted correctly.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, hamming_loss, roc_auc_score

    result, present = Measured({"map": None}), targets.any(axis=0)
    f1 = f1_score(targets, predicted, average=None, zero_division=0.0)
    result.values.update(
        {
            "micro_f1": float(f1_score(targets, predicted, average="micro", zero_division=0.0)),
            "macro_f1": float(np.mean(f1[present])) if present.any() else 0.0,
            "subset_accuracy": float(accuracy_score(targets, predicted)),
            "hamming_loss": float(hamming_loss(targets, predicted)),
        }
    )
    if given == "none":
        result.drop(["map", "auroc"], f"{head} gives no scores")
        return result
    if present.any():
        result.values["map"] = float(average_precision_score(targets[:, present], scores[:, present], average="macro"))
    else:
        result.drop(["map"], "no row has a class")
    mixed = present & ~targets.all(axis=0)
    if mixed.any():
        result.values["auroc"] = float(roc_auc_score(targets[:, mixed], scores[:, mixed], average="macro"))
    else:
        result.drop(["auroc"], "no class has rows with it and rows without it")
    return result


def regression(targets: np.ndarray, predicted: np.ndarray) -> Measured:
    """Return R², mean absolute error, root mean squared error and Spearman's correlation of float64 (n,) twice."""
    from scipy.stats import spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    result = Measured({"r2": None})
    if len(targets) > 1:
        result.values["r2"] = float(r2_score(targets, predicted))
    else:
        result.drop(["r2"], "there is only one row")
    result.values["mae"] = float(mean_absolute_error(targets, predicted))
    result.values["rmse"] = float(root_mean_squared_error(targets, predicted))
    if np.ptp(targets) > 0 and np.ptp(predicted) > 0:
        result.values["spearman"] = float(spearmanr(targets, predicted).statistic)
    else:
        result.drop(["spearman"], "all targets or all predictions are equal")
    return result


def row_log_losses(kind: Kind, targets: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the log loss of each row in nats, float64 (n,); in a multilabel task, its mean over the labels.

    `scores`: probabilities (n, classes), which are clipped as in scikit-learn.
    """
    eps = np.finfo(np.float64).eps
    given = scores.astype(np.float64)
    if kind == "multilabel":
        return np.asarray(-np.log(np.where(targets, given, 1 - given).clip(eps, 1.0)).mean(axis=1))
    given /= given.sum(axis=1, keepdims=True)
    return np.asarray(-np.log(given[np.arange(len(given)), codes(targets, classes)].clip(eps, 1.0)))


def reliability(correct: np.ndarray, confidence: np.ndarray, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Return the count, mean confidence and accuracy of each non-empty bin of equal width of the confidence."""
    places = np.clip((confidence * bins).astype(int), 0, bins - 1)
    return [
        {
            "count": int((places == place).sum()),
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(correct[places == place].mean()),
        }
        for place in np.unique(places)
    ]


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, *, bins: int = BINS) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by count.

    Equation 3 of Guo et al. 2017. `correct`: bool (n,). `confidence`: the probability of the predicted class (n,).
    """
    table = reliability(correct, confidence, bins=bins)
    return float(sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / len(correct))
