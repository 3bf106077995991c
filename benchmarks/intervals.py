"""Bootstrap intervals from shared counts against one scikit-learn call a resample: `python benchmarks/intervals.py`.

Prints the seconds of both and their ratio, measured in turn in one run, for 10,000 test rows. scikit-learn's way, one
function on whole numbers, is timed over a few resamples and multiplied; `--rows`, `--resamples` and `--methods` change
the sizes.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, r2_score

from pipeline import metrics
from pipeline.evaluate import bootstrap
from pipeline.predictions import Predictions
from pipeline.task import Kind

CLASSES = [str(number) for number in range(10)]
KINDS: dict[str, Kind] = {
    "accuracy": "classification",
    "macro_f1": "classification",
    "map": "multilabel",
    "r2": "regression",
}
TIMED = 5  # resamples of scikit-learn's way


def made_up(kind: Kind, rows: int, random: np.random.Generator) -> Predictions:
    """Return random predictions of a kind of task."""
    keys, splits = np.arange(rows).astype(str).astype(object), np.full(rows, "test", dtype=object)
    scores = random.uniform(size=(rows, len(CLASSES)))
    if kind == "regression":
        targets = random.normal(size=rows)
        predicted = targets + random.normal(size=rows)
    elif kind == "multilabel":
        targets, predicted = scores + random.normal(0, 0.2, size=scores.shape) > 0.7, scores > 0.7
    else:
        names = np.array(CLASSES, dtype=object)
        targets, predicted = names[random.integers(10, size=rows)], names[random.integers(10, size=rows)]
    return Predictions("head", "tap", None, None, keys, splits, targets, predicted, scores)


def scikit_learn(metric: str, one: Predictions) -> tuple[np.ndarray, np.ndarray, Callable[..., Any]]:
    """Return two arrays and the function that computes the metric from them."""
    if metric == "r2":
        return one.targets, one.predicted, r2_score
    if metric == "map":
        return one.targets, one.scores, average_precision_score
    target, guess = (metrics.codes(names, CLASSES) for names in (one.targets, one.predicted))
    return target, guess, accuracy_score if metric == "accuracy" else partial(f1_score, average="macro")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--methods", type=int, default=5)
    sizes = parser.parse_args()
    random = np.random.default_rng(0)
    print(f"{sizes.rows:,} rows, {sizes.methods} methods")
    print(f"{'metric':<10} {'resamples':>9} {'counts':>9} {'calls':>9} {'ratio':>7}")
    for metric, kind in KINDS.items():
        fits = [made_up(kind, sizes.rows, random) for _ in range(sizes.methods)]
        start = time.perf_counter()
        found = bootstrap.resample_metric(metric, [[one] for one in fits], CLASSES, resamples=sizes.resamples, seed=0)
        shared = time.perf_counter() - start
        target, answer, call = scikit_learn(metric, fits[0])
        start = time.perf_counter()
        for _ in range(TIMED):
            rows = random.integers(sizes.rows, size=sizes.rows)
            call(target[rows], answer[rows])
        called = (time.perf_counter() - start) / TIMED * found.shape[1] * sizes.methods
        print(f"{metric:<10} {found.shape[1]:9,} {shared:8.2f}s {called:8.2f}s {called / shared:7.1f}")


if __name__ == "__main__":
    main()
