"""The bootstrap: a metric on test rows, and draws of the training rows, as they might have been (Efron 1979).

A resample says how often each test row counts. A metric of it is a weighted sum, so many resamples are one product of
matrices, and methods that were tested on the same rows share their resamples: differences between them are paired.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import metrics
from pipeline.predictions import Predictions

Statistic = Callable[[np.ndarray], np.ndarray]
"""Counts of rows (resamples, rows), float64, to the metric of each resample (resamples,); NaN where it has none."""

BLOCK = 2**21  # counts in memory at once
MOST: dict[str, int] = {"map": 1000}
"""Metrics that need a sum for every threshold: so many resamples at most."""


def statistic(metric: str, one: Predictions, classes: Sequence[str]) -> Statistic:
    """A metric of resampled rows, equal to scikit-learn's of the rows that the counts stand for.

    Classes that have no row in a resample are left out of balanced accuracy, macro-F1 and mean average precision.
    """
    return STATISTICS[metric](one, classes)


def value(metric: str, one: Predictions, classes: Sequence[str]) -> float | None:
    """A metric of the rows as they are; None where it has no value, or there are no rows."""
    found = float(statistic(metric, one, classes)(np.ones((1, len(one.keys))))[0]) if len(one.keys) else np.nan
    return found if np.isfinite(found) else None


def resampled(
    metric: str, methods: Sequence[Sequence[Predictions]], classes: Sequence[str], *, resamples: int, seed: int
) -> np.ndarray:
    """A metric of every method on the same resamples, float64 (methods, resamples).

    A method is its fits, one a draw, of equal rows in equal order. The metric is the mean over the draws, and draws are
    resampled too where there are several; methods with the same draws share those resamples as well.
    """
    resamples = min(resamples, MOST.get(metric, resamples))
    rows = len(methods[0][0].keys)
    statistics = [[statistic(metric, one, classes) for one in fits] for fits in methods]
    weights = [_draws([one.draw for one in fits], resamples, seed) for fits in methods]
    found, start = np.empty((len(methods), resamples)), 0
    for counts in _counts(rows, resamples, seed):
        block = slice(start, start + len(counts))
        for method, fits in enumerate(statistics):
            values = np.stack([one(counts) for one in fits], axis=1)
            found[method, block] = (values * weights[method][block]).sum(axis=1)
        start = block.stop
    return found


def interval(values: np.ndarray, level: float, *, rows: int | None = None) -> tuple[float, float] | None:
    """Percentile interval of resampled values; None where a metric has no value in any resample.

    rows: of a metric from 0 to 1, the rows that it is a share of, as `rows_behind` counts them. Where all rows are
    right, or all wrong, no resample differs, and the interval is that of `exact_interval`.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    if rows and known[0] in (0.0, 1.0) and (known == known[0]).all():
        return exact_interval(rows if known[0] else 0, rows, level)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_interval(right: int, rows: int, level: float) -> tuple[float, float]:
    """Return the interval of a share of independent rows that Clopper and Pearson 1934 invert the binomial test to.

    Of `rows` that are all right it reaches from (alpha / 2) ** (1 / rows), with alpha = 1 - level, to 1. Biometrika
    26(4), 404-413; `scipy.stats.binomtest(...).proportion_ci`.
    """
    from scipy.stats import binomtest

    found = binomtest(right, rows).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def rows_behind(metric: str, one: Predictions, classes: Sequence[str]) -> int | None:
    """Return the rows that a metric is a share of; None of a metric that is no share.

    Means over classes have those of the class with the fewest test rows: no other can be wrong as often unseen.
    """
    if metric == "accuracy":
        return len(one.keys)
    if metric not in ("balanced_accuracy", "macro_f1", "map"):
        return None
    counts = members(one, classes)[0].sum(axis=0)
    return int(min((count for count in counts if count), default=0))


def _counts(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample, float64 (some, rows), block after block."""
    random = np.random.default_rng(seed)
    size = max(1, BLOCK // rows)
    for start in range(0, resamples, size):
        lines = min(size, resamples - start)
        chosen = random.integers(rows, size=(lines, rows))
        chosen += rows * np.arange(lines)[:, None]  # one count for all resamples of the block
        yield np.bincount(chosen.ravel(), minlength=lines * rows).reshape(lines, rows).astype(np.float64)


def _draws(draws: Sequence[int | None], resamples: int, seed: int) -> np.ndarray:
    """The weight of each draw in each resample, (resamples, draws); equal draws have equal weights."""
    random = np.random.default_rng([seed, zlib.crc32(repr(list(draws)).encode())])
    chosen = random.integers(len(draws), size=(resamples, len(draws)))
    return np.asarray((chosen[:, :, None] == np.arange(len(draws))).mean(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is nothing."""
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of each line over what is no NaN; NaN where nothing is."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _accuracy(one: Predictions, _classes: Sequence[str]) -> Statistic:
    correct = (one.targets == one.predicted).astype(np.float64)
    return lambda counts: counts @ correct / counts.sum(axis=1)


def members(one: Predictions, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have which class, by target and by prediction, bool (rows, classes) twice."""
    if one.targets.ndim == 2:
        return one.targets, one.predicted
    every = np.eye(len(classes), dtype=bool)
    return every[metrics.codes(one.targets, classes)], every[metrics.codes(one.predicted, classes)]


def _balanced_accuracy(one: Predictions, classes: Sequence[str]) -> Statistic:
    target, guess = members(one, classes)
    right, there = (target & guess).astype(np.float64), target.astype(np.float64)
    return lambda counts: _mean(_share(counts @ right, counts @ there))


def _macro_f1(one: Predictions, classes: Sequence[str]) -> Statistic:
    target, guess = members(one, classes)
    both, there, either = (
        (target & guess).astype(np.float64),
        target.astype(np.float64),
        target.astype(np.float64) + guess,
    )

    def found(counts: np.ndarray) -> np.ndarray:
        f1 = _share(2 * (counts @ both), counts @ either)
        return _mean(np.where(counts @ there > 0, f1, np.nan))

    return found


def _map(one: Predictions, classes: Sequence[str]) -> Statistic:
    if np.isnan(one.scores).any():  # the head gives none
        return lambda counts: np.full(len(counts), np.nan)
    columns = [_Ranked.of(one.targets[:, place], one.scores[:, place]) for place in range(len(classes))]

    def found(counts: np.ndarray) -> np.ndarray:
        # A line a row, so that sums over rows add whole lines; whole numbers below 2**24 are exact in float32.
        lines = np.ascontiguousarray(counts.T, dtype=np.float32)
        return _mean(np.stack([column.precision(lines) for column in columns], axis=1))

    return found


@dataclass(frozen=True)
class _Ranked:
    """The rows of a class by score, the highest first."""

    order: np.ndarray
    true: np.ndarray
    """Of `order`, the places of the rows that have the class."""
    ends: np.ndarray
    """Of `order`, the last place of the equal scores that each of them has: a threshold takes all or none."""
    last: np.ndarray
    """Of `true`, the last number of those that share its end."""

    @classmethod
    def of(cls, member: np.ndarray, scores: np.ndarray) -> "_Ranked":
        order = np.argsort(-scores, kind="stable")
        stops = np.flatnonzero(np.diff(scores[order], append=np.inf))
        true = np.flatnonzero(member[order])
        ends = stops[np.searchsorted(stops, true)]
        return cls(order, true, ends, np.searchsorted(ends, ends, side="right") - 1)

    def precision(self, lines: np.ndarray) -> np.ndarray:
        """Average precision of each column of counts (rows, resamples): the mean precision at rows of the class."""
        ordered = lines[self.order]
        own = ordered[self.true]
        taken = np.cumsum(ordered, axis=0)[self.ends]
        right = np.cumsum(own, axis=0)[self.last] if len(own) else own
        at_each = np.divide(right, taken, out=np.zeros_like(right), where=taken > 0)
        return _share((own * at_each).sum(axis=0, dtype=np.float64), own.sum(axis=0, dtype=np.float64))


def _r2(one: Predictions, _classes: Sequence[str]) -> Statistic:
    # Sums of squares about the mean of all rows: about zero, they would lose their digits where the mean is large.
    centred = one.targets - one.targets.mean()
    squares = np.stack([(one.targets - one.predicted) ** 2, centred**2, centred], axis=1)

    def found(counts: np.ndarray) -> np.ndarray:
        residual, total, sums = (counts @ squares).T
        return 1 - _share(residual, total - sums**2 / counts.sum(axis=1))

    return found


def _mae(one: Predictions, _classes: Sequence[str]) -> Statistic:
    errors = np.abs(one.targets - one.predicted)
    return lambda counts: counts @ errors / counts.sum(axis=1)


STATISTICS: dict[str, Callable[[Predictions, Sequence[str]], Statistic]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "map": _map,
    "r2": _r2,
    "mae": _mae,
}
"""Metrics that can be resampled: those that a task can be decided by."""
