"""The methods of a comparison, each with its test rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare import teachers
from pipeline.compare.config import CompareConfig
from pipeline.errors import DataError
from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Method, Methods, subset
from pipeline.predictions import Predictions


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


def method_of(row: Mapping[str, Any]) -> Method:
    """Return the method of a row of a run's table."""
    return Method(row["head"], row["input"], row["labels"])


def build_tested(methods: Methods, run: str, row: Mapping[str, Any], metric: str) -> Tested:
    """Return the method of a row of a run's table, with its test rows and its value."""
    method = method_of(row)
    name = f"{run}: {method.head} on {method.input}"
    fits = [subset(fit, np.argsort(fit.keys)) for fit in methods.test(method)]
    return Tested(name, run, method, fits, float(row[metric]))


def build_tested_other(comparison: teachers.Comparison, metric: str, classes: Sequence[str]) -> Tested:
    """Return the teacher or baseline of a student as a tested method, with the metric's mean over its draws."""
    fits, first = comparison.fits, comparison.fits[0]
    values = [bootstrap.metric_value(metric, fit, classes) for fit in fits]
    mean = float(np.mean([value for value in values if value is not None]))
    return Tested(comparison.name, comparison.run or "", Method(first.head, first.input, first.labels), fits, mean)


def resample(metric: str, methods: Sequence[Tested], classes: Sequence[str], config: CompareConfig) -> np.ndarray:
    """Return the metric of each method in each resample of the test rows: (methods, resamples)."""
    fits = [method.fits for method in methods]
    return bootstrap.resample_metric(metric, fits, classes, resamples=config.resamples, seed=config.seed)


def check_same_rows(first: Tested, other: Tested, task: Path) -> None:
    """Raise DataError if two runs were tested on different rows: the rows could then explain the difference."""
    keys, others = first.fits[0].keys, other.fits[0].keys
    if not np.array_equal(keys, others):
        common = len(np.intersect1d(keys, others))
        raise DataError(
            f"{task}: expected runs that were tested on the same rows, got {len(keys)} test rows of {first.run} and "
            f"{len(others)} of {other.run}, of which {common} are the same. Run `icecore repro`."
        )
