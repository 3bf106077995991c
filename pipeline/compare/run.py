"""Paired tests between methods on the same test rows: which differences are real.

Three families of pairs, each corrected by Holm (1979): 1) across the runs of a task, the selected methods of every two
runs; 2) within a run, the selected method and every other method with as many labels; 3) every student and its
teachers, and the same student with only labels.

Two tests. The **paired bootstrap** resamples the test rows, and the draws of the training rows where there are several,
alike for both methods; its p-value is twice the share of resamples in which the difference has the other sign.
**McNemar's test** (1947), exact, compares the numbers of rows that only one of the methods has right. The test is of
accuracy and does not know of training, so it needs accuracy as the metric and a single draw of both methods. A
difference is called real only if every test that applies has p below the significance after the correction.

The interval of a difference has the level of Holm's procedure: 1 - significance / (m - i) for the i-th smallest, from
0, of m p-values. So no interval contains 0 where the bootstrap calls the difference real.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.compare import teachers
from pipeline.compare.config import CompareConfig
from pipeline.errors import DataError
from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Method, Methods, read, subset
from pipeline.files import AnyPath, as_path, write_json
from pipeline.predictions import Predictions
from pipeline.task import Kind

COMPARED: Mapping[Kind, str] = {"regression": "mae"}
"""Metrics that are compared instead of the deciding metric: R² is not a mean over rows, the absolute error is."""


@dataclass(frozen=True)
class Tested:
    """A method of a run with its test rows, sorted by key."""

    name: str
    run: str
    method: Method
    fits: list[Predictions]
    value: float
    """The compared metric on the test rows, mean over the draws."""

    @property
    def correct(self) -> np.ndarray | None:
        """Return which rows of a classification are right, bool (rows,); None where there are several draws."""
        return self.fits[0].targets == self.fits[0].predicted if len(self.fits) == 1 else None


def compare(
    config: CompareConfig, *, task: AnyPath, predictions: AnyPath, runs: Mapping[str, Mapping[str, Any]], out: AnyPath
) -> dict[str, Any]:
    """Compare the methods of the runs of one task; write and return the comparison.

    config: significance, resamples and seed.
    task: the Parquet file of the task.
    predictions: the folder of the runs' predictions.
    runs: the tables that `evaluate` wrote (`data/plots/<run>.json`), by run.
    out: the JSON file to write.

    Raises DataError where two runs were tested on different rows.
    """
    task = as_path(task, "compare: task")
    predictions = as_path(predictions, "compare: predictions")
    out = as_path(out, "compare: out")
    selected: list[Tested] = []
    within: dict[str, list[dict[str, Any]]] = {}
    metric = ""
    for run, evaluated in runs.items():
        methods = read(predictions / f"{run}.parquet", task)
        metric = COMPARED.get(methods.file.kind, evaluated["metric"])
        candidates = [
            _tested(methods, run, row, metric)
            for row in evaluated["table"]
            if row["labels"] == evaluated["selected"]["labels"] and row[evaluated["metric"]] is not None
        ]
        best = next(tested for tested in candidates if tested.method == _method(evaluated["selected"]))
        others = [tested for tested in candidates if tested is not best]
        values = _resample(metric, [best, *others], methods.file.classes, config)
        pairs = [(best, other, values[0] - values[1 + number]) for number, other in enumerate(others)]
        within[run] = _judge(pairs, config, metric)
        selected.append(best)
        _check_same_rows(selected[0], best, task)
    # The better method of a pair comes first, as on the leaderboard.
    selected.sort(key=lambda tested: tested.value if metric in metrics.LOWER_IS_BETTER else -tested.value)
    comparisons = list(teachers.comparisons(runs, lambda run: read(predictions / f"{run}.parquet", task)))
    others = [_tested_other(comparison, metric, methods.file.classes) for comparison in comparisons]
    values = _resample(metric, [*selected, *others], methods.file.classes, config)
    pairs = [(selected[a], selected[b], values[a] - values[b]) for a, b in combinations(range(len(selected)), 2)]
    positions = {tested.run: position for position, tested in enumerate(selected)}
    student_pairs = [
        (selected[positions[comparison.student]], other, values[positions[comparison.student]] - row)
        for comparison, other, row in zip(comparisons, others, values[len(selected) :], strict=True)
    ]
    descriptions = teachers.describe_comparisons(
        comparisons,
        [student.fits for student, *_ in student_pairs],
        methods.file.kind,
        level=1 - config.significance,
        resamples=config.resamples,
        seed=config.seed,
    )
    comparison_of_task = {
        "task": task.stem,
        "kind": methods.file.kind,
        "metric": metric,
        "test_rows": len(methods.tested),
        "significance": config.significance,
        "resamples": values.shape[1],
        "across": _judge(pairs, config, metric),
        "within": within,
        "taught": [
            description | verdict
            for description, verdict in zip(descriptions, _judge(student_pairs, config, metric), strict=True)
        ],
    }
    write_json(out, comparison_of_task)
    return comparison_of_task


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


def _judge(
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


def _tested_other(comparison: teachers.Comparison, metric: str, classes: Sequence[str]) -> Tested:
    """Return the teacher or baseline of a student as a tested method, with the metric's mean over its draws."""
    fits, first = comparison.fits, comparison.fits[0]
    values = [bootstrap.metric_value(metric, fit, classes) for fit in fits]
    mean = float(np.mean([value for value in values if value is not None]))
    return Tested(comparison.name, comparison.run or "", Method(first.head, first.input, first.labels), fits, mean)


def _method(row: Mapping[str, Any]) -> Method:
    return Method(row["head"], row["input"], row["labels"])


def _tested(methods: Methods, run: str, row: Mapping[str, Any], metric: str) -> Tested:
    method = _method(row)
    name = f"{run}: {method.head} on {method.input}"
    fits = [subset(fit, np.argsort(fit.keys)) for fit in methods.test(method)]
    return Tested(name, run, method, fits, float(row[metric]))


def _resample(metric: str, methods: Sequence[Tested], classes: Sequence[str], config: CompareConfig) -> np.ndarray:
    fits = [method.fits for method in methods]
    return bootstrap.resample_metric(metric, fits, classes, resamples=config.resamples, seed=config.seed)


def _check_same_rows(first: Tested, other: Tested, task: Path) -> None:
    """Raise DataError if two runs were tested on different rows: the rows could then explain the difference."""
    keys, others = first.fits[0].keys, other.fits[0].keys
    if not np.array_equal(keys, others):
        common = len(np.intersect1d(keys, others))
        raise DataError(
            f"{task}: expected runs that were tested on the same rows, got {len(keys)} test rows of {first.run} and "
            f"{len(others)} of {other.run}, of which {common} are the same. Run `dvc repro`."
        )
