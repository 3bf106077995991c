"""Run an extraction: compute missing rows into the feature cache, then commit each tap's folder."""

import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pipeline.backbones.spec import read_spec
from pipeline.errors import Interrupted
from pipeline.extract import job_files
from pipeline.extract.commit import Refusal, commit_taps, refuse_too_many
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_check import check_disk
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.request import (
    Request,
    checked,
    keep_in_use,
    keep_probes,
    of_samples,
    refuse_other_values,
    remove_stale,
)
from pipeline.extract.summary import Extracted, describe_cached
from pipeline.extract.timing import Timings
from pipeline.files import AnyPath, as_path
from pipeline.loading.samples import Samples, read_samples
from pipeline.runtime import SILENT, Reporter
from pipeline.store.lock import exclusive_lock


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
    """Extract every tap of `config` into `out/<tap>/`, and the views of each tap into `out/<tap>.view<number>/`.

    `samples`: extract these samples instead of all samples of `config.datasets`. The reporter gets messages (the
    forecast of missing rows and bytes; the engine, and the reason for it), a log line per stored shard, and timings.

    Raises BackboneError for a tap that does not exist; StoreError if the features do not fit on the disk, or another
    process extracts into `out`; EngineError for an engine that cannot run here or whose values differ from torch
    float32; DataError if more samples than `max_rejected` have no features; Interrupted if the user interrupts, which
    drops the unfinished shard.
    """
    start = time.perf_counter()
    backbone, manifests = as_path(backbone, "extract: backbone"), as_path(manifests, "extract: manifests")
    out, cache_root = as_path(out, "extract: out"), as_path(cache_root, "extract: cache_root")
    spec = read_spec(backbone)
    checked(config, spec, where=str(backbone))  # before anything is written, even a lock
    with exclusive_lock(cache_root, out):
        samples = read_samples(manifests, config.datasets) if samples is None else samples
        request = of_samples(config, backbone=backbone, spec=spec, samples=samples, cache_root=cache_root)
        refuse_other_values(request)
        job_files.remove_stale_jobs(cache_root)
        remove_stale(request)
        forecast = check_disk(request, cache_root=cache_root, out=out, reporter=reporter)
        try:
            with keep_in_use(request):
                extracted = _extract_views(request, out, cache_root, forecast.hits, reporter)
        except KeyboardInterrupt:
            raise Interrupted(describe_cached(request, cache_root)) from None
        return replace(extracted, seconds=time.perf_counter() - start)


def _extract_views(request: Request, out: Path, cache_root: Path, hits: float, reporter: Reporter) -> Extracted:
    """Compute and commit the clean samples, then each of their views; `hits`: the share of rows in the cache."""
    timings = Timings()
    refused: dict[str, Refusal] = {}
    before, total = 0, sum(len(view.rows) for view in request.all)

    def progress(done: int, total: int) -> None:
        reporter.timings(f"{timings.shares}; {hits:.0%} from the cache")
        reporter.progress(done, total)

    for view in request.all:
        refused |= _extract_view(
            view, out, cache_root, timings, replace(reporter, progress=progress).part(before, total)
        )
        before += len(view.rows)
    messages = {key: refusal.message for key, refusal in refused.items()}
    refuse_too_many(request.config.max_rejected, len(request.samples.keys), messages)
    reasons = Counter(refusal.reason for refusal in refused.values())
    stored = {view.folder(tap): rows for view in request.all for tap, rows in view.stored.items()}
    return Extracted(request.whole, len(refused), dict(reasons.most_common()), stored, timings, 0.0)


def _extract_view(
    view: Request, out: Path, cache_root: Path, timings: Timings, reporter: Reporter
) -> dict[str, Refusal]:
    """Compute the missing rows of one view, commit its taps, and check the new rows; return the refused samples."""
    if not view.missing_taps:
        return commit_taps(view, out, [])
    # Imported here, since torch takes longer than a run in which nothing is to be computed.
    from pipeline.extract.compute import compute_missing
    from pipeline.extract.logit_check import check_computed_rows
    from pipeline.extract.worker import Worker

    keep_probes(view)
    job = WorkerJob(view.config, view.backbone, cache_root, len(view.rows), view.missing_taps, view.view)
    with contextlib.closing(Worker(job, reporter=reporter)) as worker:
        rejects = compute_missing(view, worker, timings, reporter)
        refused = commit_taps(view, out, rejects)
        check_computed_rows(view, worker, out, reporter)
    return refused
