"""Extract samples part by part: keys and locations of one part are in memory at a time.

All rows are computed into the feature cache first, by a worker that serves all parts. Then `CachedRows.open` commits a
features folder for some samples at a time.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.backbones.spec import read_spec
from pipeline.errors import Interrupted
from pipeline.extract import disk_forecast, job_files
from pipeline.extract.commit import commit, commit_taps
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_check import describe_wide_taps
from pipeline.extract.disk_forecast import Forecast, Size
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.plan import Plan
from pipeline.extract.request import Request, keep_in_use, keep_probes, of_samples, refuse_other_values, remove_stale
from pipeline.extract.timing import Timings
from pipeline.loading.samples import Reject, Samples
from pipeline.runtime import Reporter, gpus
from pipeline.store.cache import CacheEntry
from pipeline.store.features import Features

PART_ROWS = 65_536
"""Samples of a part, whose keys and locations are in memory."""

UNIT_ROWS, UNITS = 4096, 256
"""A unit, which a kill loses, has `UNIT_ROWS` rows, or 1/`UNITS` of all samples if that is more."""

Parts = Callable[[], Iterator[Samples]]
"""A function that returns a new iterator of the parts, each sorted by key."""


@dataclass(frozen=True)
class CachedRows:
    """Rows in the feature cache.

    columns, shapes: the cache entry of each tap, and the shape of a row. rejects: the samples that could not be read.
    """

    columns: Mapping[str, CacheEntry]
    shapes: Mapping[str, tuple[int, ...]]
    rejects: list[Reject]

    def open(self, keys: np.ndarray, folder: Path) -> list[Features]:
        """Commit the features of samples into a new folder and open each tap. keys: S16, sorted, distinct."""
        read_errors = {reject.key: str(reject) for reject in self.rejects}
        for tap, column in self.columns.items():
            commit(folder / tap, column, keys, self.shapes[tap], read_errors | column.rejected())
        return [Features.open(folder / tap) for tap in self.columns]


@dataclass
class _Totals:
    """Sums over the parts. first: the first part with missing rows, or else the first part."""

    first: Request | None = None
    samples: int = 0
    rows: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        if self.first is None or (request.plan.units and not self.first.plan.units):
            self.first = request
        self.samples += len(request.samples)
        self.rows += len(request.rows)
        layouts = {tap: column.layout(request.shapes[tap]) for tap, column in request.columns.items()}
        run = request.config.run
        processes = run.processes(gpus()) if run.scheduler is None else 1
        for tap, size in disk_forecast.sizes(request.plan, layouts, processes=processes).items():
            self.missing[tap] = self.missing.get(tap, 0) + request.plan.missing[tap]
            self.sizes[tap] = self.sizes[tap] + size if tap in self.sizes else size

    def forecast(self, cache_root: Path) -> Forecast:
        written, spooled = (sum(getattr(size, name) for size in self.sizes.values()) for name in ("bytes", "spool"))
        spaces = disk_forecast.spaces(cache_root=cache_root, out=cache_root, written=written, spooled=spooled, linked=0)
        return Forecast(Plan(self.samples, self.missing, ()), self.sizes, spaces)

    @property
    def missing_taps(self) -> tuple[str, ...]:
        return tuple(tap for tap, missing in self.missing.items() if missing)


def extract_parts(
    config: ExtractConfig,
    parts: Parts,
    *,
    samples: int,
    backbone: Path,
    out: Path,
    cache_root: Path,
    reporter: Reporter,
) -> CachedRows:
    """Compute the rows of all parts that the feature cache lacks, and return them.

    samples: the number of samples in all parts, at least one. out: a folder in the cache for temporary files.
    The reporter gets what `extract` reports. Raises the errors of `extract`.
    """
    request_of = partial(
        of_samples,
        config,
        backbone=backbone,
        spec=read_spec(backbone),
        cache_root=cache_root,
        unit_rows=max(UNIT_ROWS, samples // UNITS),
    )
    job_files.remove_stale_jobs(cache_root)
    totals = _add_up(parts, request_of)
    first = totals.first
    assert first is not None, "there is at least one sample"
    refuse_other_values(first)
    remove_stale(first)
    forecast = totals.forecast(cache_root)
    _check_disk(first, forecast, reporter)
    rejects: list[Reject] = []
    try:
        with keep_in_use(first):
            if totals.missing_taps:
                rejects = _compute(parts, request_of, totals, out, cache_root, forecast.hits, reporter)
    except KeyboardInterrupt:
        now = _add_up(parts, request_of)
        rows, missing = now.samples * len(now.missing), sum(now.missing.values())
        raise Interrupted(
            f"{rows - missing:,} of {rows:,} rows are in the feature cache; the same command goes on from there"
        ) from None
    return CachedRows(first.columns, first.shapes, rejects)


def _add_up(parts: Parts, request_of: Callable[..., Request]) -> _Totals:
    totals = _Totals()
    for samples in parts():
        totals.add(request_of(samples=samples))
    return totals


def _check_disk(first: Request, forecast: Forecast, reporter: Reporter) -> None:
    """Report the forecast; raises StoreError if the features do not fit."""
    reporter.message(forecast)
    for line in describe_wide_taps(first):
        reporter.message(line)
    disk_forecast.raise_if_short(disk_forecast.shortage_message(forecast, {}))


def _compute(
    parts: Parts,
    request_of: Callable[..., Request],
    totals: _Totals,
    out: Path,
    cache_root: Path,
    hits: float,
    reporter: Reporter,
) -> list[Reject]:
    """Compute the missing rows of all parts, and check some of them; return the samples that could not be read."""
    # Imported here, since torch takes longer than a run in which nothing is to be computed.
    from pipeline.extract.compute import compute_units
    from pipeline.extract.logit_check import check_computed_rows
    from pipeline.extract.units import UnitInput
    from pipeline.extract.worker import Worker

    first, timings = totals.first, Timings()
    assert first is not None, "there are missing rows"

    def inputs() -> Iterator[UnitInput]:
        for samples in parts():
            for unit in request_of(samples=samples).plan.units:
                yield UnitInput(samples.take(unit.rows), unit.taps)

    def progress(done: int, total: int) -> None:
        reporter.timings(f"{timings.shares}; {hits:.0%} from the cache")
        reporter.progress(done, total)

    keep_probes(first)
    job = WorkerJob(first.config, first.backbone, cache_root, totals.rows, totals.missing_taps)
    with contextlib.closing(Worker(job, reporter=reporter)) as worker:
        rejects = compute_units(inputs, first, worker, timings, replace(reporter, progress=progress))
        commit_taps(first, out, rejects)
        check_computed_rows(first, worker, out, reporter)
    shutil.rmtree(out)
    return rejects
