"""Run an extraction: compute what is missing into the feature cache, then commit each tap's folder."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.spec import WIDE
from pipeline.engines.autotune import gpus
from pipeline.errors import DataError, Interrupted, bullets, counted
from pipeline.extract import dask_run, job_files, logit_check, parity_card
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_check import explain_shortage, forecast_disk
from pipeline.extract.disk_forecast import raise_if_short
from pipeline.extract.lock import exclusive_lock
from pipeline.extract.plan import Plan
from pipeline.extract.request import Request, checked, keep_probes, of_samples, refuse_other_values
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitInput
from pipeline.extract.worker import Worker, WorkerJob
from pipeline.files import AnyPath, as_path
from pipeline.loading.samples import Reject, Samples, read_samples
from pipeline.runtime import SILENT, Reporter
from pipeline.store import cache, index, key_arrays, maintenance
from pipeline.store.features import Features
from pipeline.store.links import link_or_copy
from pipeline.store.shard_format import path_of
from pipeline.store.use import in_use
from pipeline.text import human

LONG = 20_000  # samples from which on a run prints a time estimate first; of shorter runs the bar soon shows one
PILOT_BATCHES = 4


@dataclass(frozen=True)
class Extracted:
    """What an extraction did. `reasons`: how many samples have no features, by reason. `stored`: rows found, by tap.

    `seconds`: the whole extraction. `spent`: the part that went into reading, running and writing samples.
    """

    plan: Plan
    rejected: int
    reasons: Mapping[str, int]
    stored: Mapping[str, int]
    spent: Timings
    seconds: float


def extract(
    config: ExtractConfig,
    *,
    backbone: AnyPath,
    manifests: AnyPath,
    out: AnyPath,
    cache_root: AnyPath,
    samples: Samples | None = None,
    reporter: Reporter = SILENT,
) -> Extracted:
    """Extract every tap of `config` and commit `out/<tap>/`, and of each of its views `out/<tap>.view<number>/`.

    `samples`: extract only these, instead of all samples of `config.datasets`. The reporter gets messages (the forecast
    of missing rows and bytes; the engine, and why), a log line per stored shard, and the timings so far.

    Raises BackboneError for a tap that does not exist, StoreError if the features do not fit on the disk or another
    process extracts into `out`, EngineError for an engine that cannot run here or computes other values than torch
    float32, DataError if more samples than `max_rejected` gave no features, Interrupted if the user ends it: the shard
    that was being made is dropped.
    """
    begun = time.perf_counter()
    backbone, manifests = as_path(backbone, "extract: backbone"), as_path(manifests, "extract: manifests")
    out, cache_root = as_path(out, "extract: out"), as_path(cache_root, "extract: cache_root")
    spec = serialization.read_spec(backbone)
    checked(config, spec, where=str(backbone))  # before anything is written, a lock too
    with exclusive_lock(cache_root, out):
        rows_to_extract = read_samples(manifests, config.datasets) if samples is None else samples
        request = of_samples(config, backbone=backbone, spec=spec, samples=rows_to_extract, cache_root=cache_root)
        for one in request.all:
            refuse_other_values(one)
        job_files.remove_stale_jobs(cache_root)
        _sweep(request)
        found = forecast_disk(request, cache_root=cache_root, out=out)
        reporter.message(found)
        for line in wide_taps(request):
            reporter.message(line)
        message = explain_shortage(request, found, cache_root=cache_root, out=out)
        if message is not None and config.disk == "warn":
            reporter.message(message)
        else:
            raise_if_short(message)
        try:
            with contextlib.ExitStack() as held:
                for one in request.all:
                    for column in one.columns.values():
                        held.enter_context(in_use(column.folder))
                done = _extract(request, out, cache_root, found.hits, reporter)
                return replace(done, seconds=time.perf_counter() - begun)
        except KeyboardInterrupt:
            raise Interrupted(_describe_cached(request, cache_root)) from None


def _extract(request: Request, out: Path, cache_root: Path, hits: float, reporter: Reporter) -> Extracted:
    spent = Timings()
    refused: dict[str, str] = {}
    reasons: dict[str, str] = {}
    before, total = 0, sum(len(one.rows) for one in request.all)
    for one in request.all:
        keep_probes(one)

        def count(done: int, _: int, before: int = before) -> None:
            reporter.timings(f"{spent.shares}; {hits:.0%} from the cache")
            reporter.progress(before + done, total)

        assignment = WorkerJob(one.config, one.backbone, cache_root, len(one.rows), one.missing_taps, one.view)
        with contextlib.closing(Worker(assignment, reporter=reporter)) as worker:
            rejects = _compute(one, worker, spent, replace(reporter, progress=count))
            more, why = _commit_all(one, out, rejects)
            _replay(one, worker, out, reporter)
        refused, reasons, before = refused | more, reasons | why, before + len(one.rows)
    refuse_too_many(request.config.max_rejected, len(request.samples.keys), refused)
    counts = Counter(reasons[key] for key in refused)
    stored = {one.folder(tap): rows for one in request.all for tap, rows in one.stored.items()}
    return Extracted(request.whole, len(refused), dict(counts.most_common()), stored, spent, 0.0)


def wide_taps(request: Request) -> list[str]:
    """Say which taps have rows wider than `WIDE` values, and what they take."""
    result = []
    for tap, shape in request.shapes.items():
        width, size = math.prod(shape), request.columns[tap].layout(shape).row_bytes
        if width > WIDE:
            result.append(
                f"note: {tap} has {counted(width, 'value')} per sample, {human(size)} each and "
                f"{human(size * len(request.samples.keys) * len(request.all))} for all samples. If a vector is meant, "
                "set a `pool`, `project`, or the node `penultimate`"
            )
    return result


def _commit_all(request: Request, out: Path, rejects: list[Reject]) -> tuple[dict[str, str], dict[str, str]]:
    """Commit the folder of every tap; return of samples without features key to message, and key to reason."""
    failed = {reject.key: str(reject) for reject in rejects}
    reasons = {reject.key: reject.reason for reject in rejects}
    refused: dict[str, str] = {}
    for tap, column in request.columns.items():
        lasting = column.rejected()
        reasons |= lasting
        folder = out / request.folder(tap)
        refused |= commit(folder, column, request.samples.keys, request.shapes[tap], {**failed, **lasting})
    return refused, reasons


def _describe_cached(request: Request, cache_root: Path) -> str:
    """Return what an interrupted run leaves in the cache: rows of all taps together."""
    now = of_samples(
        request.config, backbone=request.backbone, spec=request.spec, samples=request.samples, cache_root=cache_root
    )
    whole = now.whole
    missing, rows = sum(whole.missing.values()), len(whole.missing) * whole.samples
    return f"{rows - missing:,} of {rows:,} rows are in the feature cache; the same command goes on from there"


def _compute(request: Request, worker: Worker, spent: Timings, reporter: Reporter) -> list[Reject]:
    config, samples = request.config, request.samples
    total, done = worker.assignment.samples, 0
    if not total:
        return []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        reporter.progress(done, total)

    works = (UnitInput(samples.take(unit.rows), unit.taps) for unit in request.plan.units)
    if config.run.several(gpus()):
        made = dask_run.make_units(worker.assignment, works, gpus=gpus(), done=advance, spent=spent, reporter=reporter)
    else:
        worker.prepare(samples.take(unit.rows) for unit in request.plan.units)
        if total >= LONG:
            reporter.message(_forecast(request, worker))
        made = worker.make(works, done=advance, spent=spent)
    rejects = []
    for stored in made:
        rejects += stored.rejects
        for tap, shard in stored.shards.items():
            what = f"{counted(shard.rows, 'row')}, {human(shard.bytes)}"
            reporter.log(
                f"{request.folder(tap)}: stored shard {shard.name[:12]}, {what}; {done:,} of {total:,} samples done"
            )
    _sweep(request)  # what workers left that were killed
    return rejects


def _sweep(request: Request) -> None:
    """Remove what dead processes have left in the columns."""
    for one in request.all:
        for column in one.columns.values():
            maintenance.remove_stale_files(column)


def _forecast(request: Request, worker: Worker) -> str:
    try:
        return str(worker.forecast(request, batches=PILOT_BATCHES))
    except DataError as error:  # the run will count what cannot be read
        return str(error)


def commit(
    folder: Path, column: cache.CacheEntry, keys: np.ndarray, shape: tuple[int, ...], rejected: Mapping[str, str]
) -> dict[str, str]:
    """Link the shards that hold the samples into `folder` and write its index; return the samples without features."""
    chosen, own, held = cache.shards_for_keys(column, keys)
    for record in chosen:
        column.verify(record)
        link_or_copy(column.path_of(record), path_of(folder, record.name))
    refused = {key: rejected[key] for key in key_arrays.to_hex(keys[~held]) if key in rejected}
    index.commit(
        folder,
        identity=column.identity,
        layout=column.layout(shape),
        shards=chosen,
        keys=own,
        wanted=keys,
        rejected=refused,
    )
    parity_card.link(column, folder)
    column.touch()
    return refused


def _replay(request: Request, worker: Worker, out: Path, reporter: Reporter) -> None:
    """Check a few rows of each penultimate tap of which rows were computed."""
    specs = request.config.taps
    for tap in (tap for tap in request.missing_taps if logit_check.replayable(specs[tap])):
        found = logit_check.check_logits(
            Features.open(out / request.folder(tap)),
            specs[tap],
            backbone=worker.backbone,
            precision=request.config.precision,
            samples=request.samples,
            runs=(unit.rows for unit in request.plan.units if tap in unit.taps),
            decoders=worker.decoders,
        )
        if found:
            reporter.message(
                f"{request.folder(tap)}: {found['rows']} stored rows through the network's own last layer give its "
                f"logits to within {found['error']:.1g} of the largest, with the same first class in "
                f"{found['agreement']:.0%}"
            )


def refuse_too_many(share: float, samples: int, refused: Mapping[str, str]) -> None:
    """Raise DataError with the first reasons where more than a share of the samples was refused."""
    if samples and len(refused) / samples > share:  # a product would round above the share
        title = (
            f"{len(refused):,} of {samples:,} samples gave no features, more than the share of "
            f"{share:g} that `max_rejected` allows. What was computed is kept. The first of them"
        )
        raise DataError(bullets(title, [f"{key}: {reason}" for key, reason in refused.items()][:5]))
