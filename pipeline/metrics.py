"""Metrics that scikit-learn lacks, and the set of numbers that a classification is described by. Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification(
    targets: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    *,
    bins: int = 15,
) -> dict[str, float | None]:
    """Accuracy, macro-F1, log loss (nats) and expected calibration error of one set of predictions.

    `targets`, `predicted`: class names (n,). `probabilities`: (n, classes) in the order of `classes`, or None: then the
    last two are None.
    """
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    found: dict[str, float | None] = {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, labels=list(classes), average="macro", zero_division=0.0)),
        "log_loss": None,
        "ece": None,
    }
    if probabilities is not None:
        # scikit-learn wants columns in sorted order of the names.
        order = np.argsort(np.asarray(classes, dtype=str))
        rows = probabilities[:, order].astype(np.float64)
        rows /= rows.sum(axis=1, keepdims=True)
        found["log_loss"] = float(log_loss(targets, rows, labels=sorted(classes)))
        found["ece"] = expected_calibration_error(targets == predicted, probabilities.max(axis=1), bins=bins)
    return found


def reliability(correct: np.ndarray, confidence: np.ndarray, *, bins: int = 15) -> list[dict[str, Any]]:
    """Equal-width bins of confidence: count, mean confidence and accuracy of each bin that is not empty."""
    places = np.clip((confidence * bins).astype(int), 0, bins - 1)
    return [
        {
            "count": int((places == place).sum()),
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(correct[places == place].mean()),
        }
        for place in np.unique(places)
    ]


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by count (Guo et al. 2017, eq. 3).

    `correct`: bool (n,). `confidence`: the probability of the predicted class (n,).
    """
    table = reliability(correct, confidence, bins=bins)
    return float(sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / len(correct))


def bootstrap_interval(
    correct: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean accuracy over draws and test rows (Efron 1979).

    `correct`: bool (draws, rows), the same rows for each draw. Rows are resampled, and draws too where there are
    several, so the interval covers both the choice of the test rows and that of the training rows.
    """
    random = np.random.default_rng(seed)
    draws, rows = correct.shape
    means = np.empty(resamples)
    for number in range(resamples):
        chosen = correct[random.integers(draws, size=draws)].mean(axis=0)
        means[number] = chosen[random.integers(rows, size=rows)].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
