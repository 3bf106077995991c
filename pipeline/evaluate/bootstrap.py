"""The bootstrap (Efron 1979): a metric on resampled test rows and resampled draws of the training rows.

A resample is the count of each test row. A metric of a resample is a weighted sum, so many resamples are one product of
matrices. Methods that were tested on the same rows share their resamples, so their differences are paired.
"""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import metrics
from pipeline.predictions import Predictions

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps counts of rows (resamples, rows), float64, to the metric of each resample (resamples,); NaN where undefined."""

BLOCK = 2**21  # counts in memory at once
MOST_KEPT = 2**23  # counts that stay in memory for the next run
MOST: dict[str, int] = {"map": 1000}
"""The largest number of resamples of metrics that need a sum for every threshold."""


def statistic(metric: str, fit: Predictions, classes: Sequence[str]) -> Statistic:
    """Return a function that computes a metric of resampled rows, with the value of scikit-learn on the repeated rows.

    Balanced accuracy, macro-F1 and mean average precision ignore classes without a row in the resample.
    """
    return STATISTICS[metric](fit, classes)


def _statistic_of_all(metric: str, fits: Sequence[Predictions], classes: Sequence[str]) -> Statistic:
    """Return a function that computes a metric of several fits of the same rows, (resamples, fits)."""
    if metric == "accuracy":  # sums of ones are exact, so one product of matrices gives the values of single products
        correct = np.stack([fit.targets == fit.predicted for fit in fits], axis=1).astype(np.float64)
        return lambda counts: counts @ correct / counts.sum(axis=1, keepdims=True)
    statistics = [statistic(metric, fit, classes) for fit in fits]
    return lambda counts: np.stack([measure(counts) for measure in statistics], axis=1)


def metric_value(metric: str, fit: Predictions, classes: Sequence[str]) -> float | None:
    """Return a metric of the original rows; None where the metric is undefined or there are no rows."""
    measured = float(statistic(metric, fit, classes)(np.ones((1, len(fit.keys))))[0]) if len(fit.keys) else np.nan
    return measured if np.isfinite(measured) else None


def resample_metric(
    metric: str, methods: Sequence[Sequence[Predictions]], classes: Sequence[str], *, resamples: int, seed: int
) -> np.ndarray:
    """Return a metric of every method on the same resamples, float64 (methods, resamples).

    methods: the fits of each method, one per draw, of equal rows in equal order. classes: of the task, in order.

    The metric is the mean over the draws. Several draws are resampled too; methods with the same draws share the
    resamples of draws.
    """
    resamples = min(resamples, MOST.get(metric, resamples))
    rows = len(methods[0][0].keys)
    measure = _statistic_of_all(metric, [fit for fits in methods for fit in fits], classes)
    stops = np.cumsum([len(fits) for fits in methods])[:-1]
    weights = [_draws([fit.draw for fit in fits], resamples, seed) for fits in methods]
    by_method, start = np.empty((len(methods), resamples)), 0
    for counts in _counts(rows, resamples, seed):
        block = slice(start, start + len(counts))
        for method, values in enumerate(np.split(measure(counts), stops, axis=1)):
            by_method[method, block] = (values * weights[method][block]).sum(axis=1)
        start = block.stop
    return by_method


def interval(values: np.ndarray, level: float, *, rows: int | None = None) -> tuple[float, float] | None:
    """Return the percentile interval of resampled values; None where the metric is undefined in every resample.

    rows: the number of rows behind a share, from `rows_behind`. If all rows are right, or all wrong, all resamples are
    equal; then the interval is that of `exact_interval`.

    >>> interval(np.array([0.0, 0.5, 1.0]), 0.5)
    (0.25, 0.75)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    if rows and known[0] in (0.0, 1.0) and (known == known[0]).all():
        return exact_interval(rows if known[0] else 0, rows, level)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_interval(right: int, rows: int, level: float) -> tuple[float, float]:
    """Return the interval of a share of independent rows by inverting the binomial test (Clopper and Pearson 1934).

    Where all `rows` are right, the interval is from (alpha / 2) ** (1 / rows), with alpha = 1 - level, to 1. Biometrika
    26(4), 404-413; `scipy.stats.binomtest(...).proportion_ci`.
    """
    from scipy.stats import binomtest

    ends = binomtest(right, rows).proportion_ci(level, method="exact")
    return float(ends.low), float(ends.high)


def rows_behind(metric: str, fit: Predictions, classes: Sequence[str]) -> int | None:
    """Return the number of rows that a metric is a share of; None for a metric that is no share.

    For a mean over classes: the rows of the class with the fewest test rows.
    """
    if metric == "accuracy":
        return len(fit.keys)
    if metric not in ("balanced_accuracy", "macro_f1", "map"):
        return None
    counts = class_membership(fit, classes)[0].sum(axis=0)
    return int(min((count for count in counts if count), default=0))


def _counts(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each row is in each resample, float64 (resamples of the block, rows), block by block."""
    blocks = _draw_counts if rows * resamples > MOST_KEPT else _keep_counts
    for counts in blocks(rows, resamples, seed):
        yield counts.astype(np.float64)


@functools.lru_cache(maxsize=1)
def _keep_counts(rows: int, resamples: int, seed: int) -> list[np.ndarray]:
    """Return the blocks of `_draw_counts` in the smallest type: the runs of a task share them."""
    return [counts.astype(np.min_scalar_type(rows)) for counts in _draw_counts(rows, resamples, seed)]


def _draw_counts(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each row is in each resample, int64 (resamples of the block, rows), block by block."""
    random = np.random.default_rng(seed)
    size = max(1, BLOCK // rows)
    for start in range(0, resamples, size):
        lines = min(size, resamples - start)
        sampled = random.integers(rows, size=(lines, rows))
        sampled += rows * np.arange(lines)[:, None]  # one count for all resamples of the block
        yield np.bincount(sampled.ravel(), minlength=lines * rows).reshape(lines, rows)


def _draws(draws: Sequence[int | None], resamples: int, seed: int) -> np.ndarray:
    """Return the weight of each draw in each resample, (resamples, draws); equal draws have equal weights."""
    random = np.random.default_rng([seed, zlib.crc32(repr(list(draws)).encode())])
    sampled = random.integers(len(draws), size=(resamples, len(draws)))
    return np.asarray((sampled[:, :, None] == np.arange(len(draws))).mean(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each line over its finite values; NaN where a line has none."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _accuracy(fit: Predictions, _classes: Sequence[str]) -> Statistic:
    correct = (fit.targets == fit.predicted).astype(np.float64)
    return lambda counts: counts @ correct / counts.sum(axis=1)


def class_membership(fit: Predictions, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows have which class, by target and by prediction: two arrays, bool (rows, classes)."""
    if fit.targets.ndim == 2:
        return fit.targets, fit.predicted
    one_hot = np.eye(len(classes), dtype=bool)
    return one_hot[metrics.codes(fit.targets, classes)], one_hot[metrics.codes(fit.predicted, classes)]


def _balanced_accuracy(fit: Predictions, classes: Sequence[str]) -> Statistic:
    target, guess = class_membership(fit, classes)
    right, there = (target & guess).astype(np.float64), target.astype(np.float64)
    return lambda counts: _mean(_share(counts @ right, counts @ there))


def _macro_f1(fit: Predictions, classes: Sequence[str]) -> Statistic:
    target, guess = class_membership(fit, classes)
    both, there, either = (
        (target & guess).astype(np.float64),
        target.astype(np.float64),
        target.astype(np.float64) + guess,
    )

    def measure(counts: np.ndarray) -> np.ndarray:
        f1 = _share(2 * (counts @ both), counts @ either)
        return _mean(np.where(counts @ there > 0, f1, np.nan))

    return measure


def _map(fit: Predictions, classes: Sequence[str]) -> Statistic:
    if np.isnan(fit.scores).any():  # the head gives no scores
        return lambda counts: np.full(len(counts), np.nan)
    columns = [_Ranked.of(fit.targets[:, column], fit.scores[:, column]) for column in range(len(classes))]

    def measure(counts: np.ndarray) -> np.ndarray:
        # One line per row, so that sums over rows add whole lines; whole numbers below 2**24 are exact in float32.
        lines = np.ascontiguousarray(counts.T, dtype=np.float32)
        return _mean(np.stack([column.precision(lines) for column in columns], axis=1))

    return measure


@dataclass(frozen=True)
class _Ranked:
    """The rows of a class by score, the highest first."""

    order: np.ndarray
    true: np.ndarray
    """Positions in `order` of the rows that have the class."""
    ends: np.ndarray
    """For each of `true`, the last position in `order` with the same score: a threshold takes equal scores together."""
    last: np.ndarray
    """For each of `true`, the last index in `true` with the same end."""

    @classmethod
    def of(cls, member: np.ndarray, scores: np.ndarray) -> "_Ranked":
        order = np.argsort(-scores, kind="stable")
        stops = np.flatnonzero(np.diff(scores[order], append=np.inf))
        true = np.flatnonzero(member[order])
        ends = stops[np.searchsorted(stops, true)]
        return cls(order, true, ends, np.searchsorted(ends, ends, side="right") - 1)

    def precision(self, lines: np.ndarray) -> np.ndarray:
        """Return the average precision of each column of counts (rows, resamples)."""
        ordered = lines[self.order]
        own = ordered[self.true]
        taken = np.cumsum(ordered, axis=0)[self.ends]
        right = np.cumsum(own, axis=0)[self.last] if len(own) else own
        at_each = np.divide(right, taken, out=np.zeros_like(right), where=taken > 0)
        return _share((own * at_each).sum(axis=0, dtype=np.float64), own.sum(axis=0, dtype=np.float64))


def _r2(fit: Predictions, _classes: Sequence[str]) -> Statistic:
    # Sums of squares about the mean of all rows: about zero, they would lose their digits where the mean is large.
    centred = fit.targets - fit.targets.mean()
    squares = np.stack([(fit.targets - fit.predicted) ** 2, centred**2, centred], axis=1)

    def measure(counts: np.ndarray) -> np.ndarray:
        residual, total, sums = (counts @ squares).T
        return 1 - _share(residual, total - sums**2 / counts.sum(axis=1))

    return measure


def _mae(fit: Predictions, _classes: Sequence[str]) -> Statistic:
    errors = np.abs(fit.targets - fit.predicted)
    return lambda counts: counts @ errors / counts.sum(axis=1)


STATISTICS: dict[str, Callable[[Predictions, Sequence[str]], Statistic]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "map": _map,
    "r2": _r2,
    "mae": _mae,
}
"""The metrics that can be resampled, which are the metrics that can decide a task."""
