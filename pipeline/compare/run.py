"""Paired tests between methods on the same test rows: which differences are real.

Across the runs of a task, the selected method of each run against that of every other; within a run, every method that
it was chosen among against the selected one; and every student against its teachers, and against the same student on
labels alone. Each of these is a family of its own, corrected by Holm (1979).

Two tests. The **paired bootstrap** resamples the test rows, and the draws of the training rows where there are several,
alike for both methods; its p-value is twice the share of resamples in which the difference has the other sign.
**McNemar's test** (1947), exact, asks of the rows that one method alone has right whether either method has more of
them. It is one of accuracy and knows nothing of training, so it is made where accuracy is compared and both methods
have a single draw. A difference is called real only if every test that was made says so after the correction.

The interval of a difference has the level at which Holm's procedure judges its bootstrap, 1 - significance / (m - i) of
the i-th smallest, from 0, of m p-values. So an interval that holds 0 never stands by a bootstrap that tells apart.
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
from pipeline.evaluate.methods import Method, Methods, part, read
from pipeline.files import AnyPath, as_path, write_json
from pipeline.predictions import Predictions
from pipeline.task import Kind

COMPARED: Mapping[Kind, str] = {"regression": "mae"}
"""Where not the metric that decides is compared: errors belong to rows, R² to all of them together."""


@dataclass(frozen=True)
class Tested:
    """A method of a run with its test rows, sorted by key."""

    name: str
    run: str
    method: Method
    fits: list[Predictions]
    value: float
    """The compared metric on the test rows, mean of the draws."""

    @property
    def correct(self) -> np.ndarray | None:
        """Which rows a classification has right; None where there are several draws."""
        return self.fits[0].targets == self.fits[0].predicted if len(self.fits) == 1 else None


def compare(
    config: CompareConfig, *, task: AnyPath, predictions: AnyPath, runs: Mapping[str, Mapping[str, Any]], out: AnyPath
) -> dict[str, Any]:
    """Compare the methods of the runs of one task, and write what was found.

    `predictions` is the folder of predictions, `runs` what evaluation wrote of each run (`data/plots/<run>.json`).
    Raises DataError where two runs were tested on other rows.
    """
    task = as_path(task, "compare: task")
    predictions = as_path(predictions, "compare: predictions")
    out = as_path(out, "compare: out")
    chosen: list[Tested] = []
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
        best = next(one for one in candidates if one.method == _method(evaluated["selected"]))
        others = [one for one in candidates if one is not best]
        values = _resampled(metric, [best, *others], methods.file.classes, config)
        pairs = [(best, other, values[0] - values[1 + place]) for place, other in enumerate(others)]
        within[run] = _judged(pairs, config, metric)
        chosen.append(best)
        _same_rows(chosen[0], best, task)
    # The better one of a pair comes first, as on the leaderboard.
    chosen.sort(key=lambda one: one.value if metric in metrics.LOWER_IS_BETTER else -one.value)
    besides = list(teachers.comparisons(runs, lambda run: read(predictions / f"{run}.parquet", task)))
    others = [_other(one, metric, methods.file.classes) for one in besides]
    values = _resampled(metric, [*chosen, *others], methods.file.classes, config)
    pairs = [(chosen[a], chosen[b], values[a] - values[b]) for a, b in combinations(range(len(chosen)), 2)]
    places = {one.run: place for place, one in enumerate(chosen)}
    lessons = [
        (chosen[places[one.student]], other, values[places[one.student]] - row)
        for one, other, row in zip(besides, others, values[len(chosen) :], strict=True)
    ]
    students = [student.fits for student, *_ in lessons]
    told = teachers.describe_comparisons(
        besides,
        students,
        methods.file.kind,
        level=1 - config.significance,
        resamples=config.resamples,
        seed=config.seed,
    )
    found = {
        "task": task.stem,
        "kind": methods.file.kind,
        "metric": metric,
        "test_rows": len(methods.tested),
        "significance": config.significance,
        "resamples": values.shape[1],
        "across": _judged(pairs, config, metric),
        "within": within,
        "taught": [one | judged for one, judged in zip(told, _judged(lessons, config, metric), strict=True)],
    }
    write_json(out, found)
    return found


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, and so on."""
    order = np.argsort(values, kind="stable")
    corrected = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    found = np.empty(len(values))
    found[order] = np.minimum(np.maximum.accumulate(corrected), 1.0)
    return [float(value) for value in found]


def mcnemar(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of the rows (bool) that each of two methods has right: an even chance where they differ."""
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def p_of(differences: np.ndarray) -> float:
    """Two-sided p of a bootstrap: twice the share of resamples on the smaller side of 0; the sample itself is one more.

    The smallest p is therefore 2 / (resamples + 1).
    """
    known = differences[np.isfinite(differences)]
    below, above = (known <= 0).sum(), (known >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1)))


def _judged(
    pairs: Sequence[tuple[Tested, Tested, np.ndarray]], config: CompareConfig, metric: str
) -> list[dict[str, Any]]:
    """A row a pair of one family, with both tests and the verdict."""
    found: list[dict[str, Any]] = []
    for a, b, differences in pairs:
        right_a, right_b = (a.correct, b.correct) if metric == "accuracy" else (None, None)
        found.append(
            {
                "a": a.name,
                "b": b.name,
                "value_a": a.value,
                "value_b": b.value,
                "difference": a.value - b.value,
                "bootstrap": {"p": p_of(differences)},
                "mcnemar": mcnemar(right_a, right_b) if right_a is not None and right_b is not None else None,
            }
        )
    for test in ("bootstrap", "mcnemar"):
        made = [row[test] for row in found if row[test] is not None]
        for one, corrected in zip(made, holm([one["p"] for one in made]), strict=True):
            one["p_holm"] = corrected
    order = np.argsort([row["bootstrap"]["p"] for row in found], kind="stable")
    for place, number in enumerate(order):
        level = 1 - config.significance / (len(found) - place)
        ends = bootstrap.interval(pairs[number][2], level)
        found[number] |= {"level": level, "low": ends and ends[0], "high": ends and ends[1]}
    for row in found:
        tests = [row[test] for test in ("bootstrap", "mcnemar") if row[test] is not None]
        real = all(one["p_holm"] < config.significance for one in tests)
        lead = -row["difference"] if metric in metrics.LOWER_IS_BETTER else row["difference"]
        row["better"] = (row["a"] if lead > 0 else row["b"]) if real else None
    return found


def _other(one: teachers.Comparison, metric: str, classes: Sequence[str]) -> Tested:
    """What a student stands beside; its compared metric is the mean of its draws, as that of a run is."""
    first = one.fits[0]
    values = [bootstrap.value(metric, fit, classes) for fit in one.fits]
    value = float(np.mean([found for found in values if found is not None]))
    return Tested(one.name, one.run or "", Method(first.head, first.input, first.labels), one.fits, value)


def _method(row: Mapping[str, Any]) -> Method:
    return Method(row["head"], row["input"], row["labels"])


def _tested(methods: Methods, run: str, row: Mapping[str, Any], metric: str) -> Tested:
    method = _method(row)
    name = f"{run}: {method.head} on {method.input}"
    fits = [part(one, np.argsort(one.keys)) for one in methods.test(method)]
    return Tested(name, run, method, fits, float(row[metric]))


def _resampled(metric: str, tested: Sequence[Tested], classes: Sequence[str], config: CompareConfig) -> np.ndarray:
    fits = [one.fits for one in tested]
    return bootstrap.resampled(metric, fits, classes, resamples=config.resamples, seed=config.seed)


def _same_rows(first: Tested, other: Tested, task: Path) -> None:
    """Raise DataError if two runs were tested on other rows: their difference would be that of the rows."""
    keys, others = first.fits[0].keys, other.fits[0].keys
    if not np.array_equal(keys, others):
        common = len(np.intersect1d(keys, others))
        raise DataError(
            f"{task}: expected runs that were tested on the same rows, got {len(keys)} test rows of {first.run} and "
            f"{len(others)} of {other.run}, of which {common} are the same. Run `dvc repro`."
        )
