"""Tests of the difference between two methods on the same test rows, corrected for the number of pairs.

The **paired bootstrap** resamples the test rows, and the draws of the training rows where there are several,
alike for both methods; its p-value is twice the share of resamples in which the difference has the other sign.
**McNemar's test** (1947), exact, compares the numbers of rows that only one of the methods has right. The test is of
accuracy and does not know of training, so it needs accuracy as the metric and a single draw of both methods. A
difference is called real only if every test that applies has p below the significance after the correction.

The interval of a difference has the level of Holm's procedure: 1 - significance / (m - i) for the i-th smallest, from
0, of m p-values. So no interval contains 0 where the bootstrap calls the difference real.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.compare.config import CompareConfig
from pipeline.compare.tested import Tested
from pipeline.evaluate import bootstrap


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979): the smallest times n, the next times n - 1, and so on.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    order = np.argsort(values, kind="stable")
    corrected = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    in_order = np.empty(len(values))
    in_order[order] = np.minimum(np.maximum.accumulate(corrected), 1.0)
    return [float(value) for value in in_order]


def mcnemar(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Run McNemar's exact test: whether one method is right where the other is wrong more often than vice versa.

    a, b: whether each method is right, bool (rows,). Returns how many rows only a or only b has right, and the p-value.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of bootstrap differences: twice the share of resamples on the smaller side of 0.

    The original sample counts as an additional resample, so the smallest p is 2 / (resamples + 1).
    """
    known = differences[np.isfinite(differences)]
    below, above = (known <= 0).sum(), (known >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1)))


def judge_pairs(
    pairs: Sequence[tuple[Tested, Tested, np.ndarray]], config: CompareConfig, metric: str
) -> list[dict[str, Any]]:
    """Return one row per pair of a family, with both tests and the verdict."""
    rows: list[dict[str, Any]] = []
    for a, b, differences in pairs:
        right_a, right_b = (a.correct, b.correct) if metric == "accuracy" else (None, None)
        rows.append(
            {
                "a": a.name,
                "b": b.name,
                "value_a": a.value,
                "value_b": b.value,
                "difference": a.value - b.value,
                "equal": _equal_in(a, b, differences),
                "bootstrap": {"p": bootstrap_p_value(differences)},
                "mcnemar": mcnemar(right_a, right_b) if right_a is not None and right_b is not None else None,
            }
        )
    for test in ("bootstrap", "mcnemar"):
        results = [row[test] for row in rows if row[test] is not None]
        for result, corrected in zip(results, holm([result["p"] for result in results]), strict=True):
            result["p_holm"] = corrected
    order = np.argsort([row["bootstrap"]["p"] for row in rows], kind="stable")
    for rank, number in enumerate(order):
        level = 1 - config.significance / (len(rows) - rank)
        ends = bootstrap.interval(pairs[number][2], level)
        rows[number] |= {"level": level, "low": ends and ends[0], "high": ends and ends[1]}
    for row in rows:
        tests = [row[test] for test in ("bootstrap", "mcnemar") if row[test] is not None]
        real = all(test["p_holm"] < config.significance for test in tests)
        lead = -row["difference"] if metric in metrics.LOWER_IS_BETTER else row["difference"]
        row["better"] = (row["a"] if lead > 0 else row["b"]) if real else None
    return rows


def _equal_in(a: Tested, b: Tested, differences: np.ndarray) -> str | None:
    """Return `predictions` where two methods predict the same, `results` where only the resampled metric is the same.

    None where resamples differ. An interval from 0 to 0 would claim a precision that nothing measured.
    """
    if (differences != 0).any():
        return None
    same = len(a.fits) == len(b.fits) and all(
        np.array_equal(fit_a.predicted, fit_b.predicted) for fit_a, fit_b in zip(a.fits, b.fits, strict=True)
    )
    return "predictions" if same else "results"
