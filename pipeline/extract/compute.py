"""Compute the rows that the feature cache lacks: in this process, or in several through Dask."""

from collections.abc import Callable, Iterator

from pipeline.errors import DataError, counted
from pipeline.extract import dask_run
from pipeline.extract.request import Request, remove_stale
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitInput
from pipeline.extract.worker import Worker
from pipeline.loading.samples import Reject
from pipeline.runtime import Reporter, gpus
from pipeline.text import human

LONG = 20_000  # runs with at least this many samples print a time estimate first; otherwise the bar soon shows one
FORECAST_BATCHES = 4


def compute_missing(request: Request, worker: Worker, timings: Timings, reporter: Reporter) -> list[Reject]:
    """Compute every missing row of a request into the cache; return the samples that could not be read.

    Time is added to `timings`. The reporter gets progress in samples, and a log line per stored shard.
    """

    def inputs() -> Iterator[UnitInput]:
        return (UnitInput(request.samples.take(unit.rows), unit.taps) for unit in request.plan.units)

    return compute_units(inputs, request, worker, timings, reporter)


def compute_units(
    inputs: Callable[[], Iterator[UnitInput]], request: Request, worker: Worker, timings: Timings, reporter: Reporter
) -> list[Reject]:
    """Compute units into the cache, as `compute_missing`; only a few units are in memory at a time.

    inputs: returns a new iterator of the units. request: a request with the settings of all units, whose missing rows
    serve to estimate the time.
    """
    config = request.config
    total, finished = worker.assignment.samples, 0
    if not total:
        return []

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        reporter.progress(finished, total)

    if config.run.several(gpus()):
        results = dask_run.make_units(
            worker.assignment, inputs(), gpus=gpus(), done=advance, spent=timings, reporter=reporter
        )
    else:
        worker.prepare(unit.samples for unit in inputs())
        if total >= LONG:
            reporter.message(_estimate_time(request, worker))
        results = worker.make(inputs(), done=advance, spent=timings)
    rejects = []
    for result in results:
        rejects += result.rejects
        for tap, shard in result.shards.items():
            size = f"{counted(shard.rows, 'row')}, {human(shard.bytes)}"
            progress = f"{finished:,} of {total:,} samples done"
            reporter.log(f"{request.folder(tap)}: stored shard {shard.name[:12]}, {size}; {progress}")
    remove_stale(request)  # the files of killed workers
    return rejects


def _estimate_time(request: Request, worker: Worker) -> str:
    try:
        return str(worker.forecast(request, batches=FORECAST_BATCHES).of_samples(worker.assignment.samples))
    except DataError as error:  # the run will count what cannot be read
        return str(error)
