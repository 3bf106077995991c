"""The functions that Dask calls in a worker. Only the first call loads the network and the engine."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError, StoreError
from pipeline.extract import job_files
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitResult
from pipeline.extract.worker import Worker
from pipeline.runtime import Reporter, keep_freed_memory, keep_to_cores
from pipeline.store import maintenance

TOPIC = "icecore"  # of the progress that workers publish
EVERY = 0.5  # seconds between two reports of progress


@dataclass(frozen=True)
class TaskResult:
    """The result of a unit. `messages`: sentences for the user; `error`: why the whole job cannot continue."""

    unit: int
    stored: UnitResult | None
    spent: Timings
    messages: list[str]
    error: PipelineError | None = None


_workers: dict[str, Worker] = {}
_messages: list[str] = []
_one = threading.Lock()


def make_ready(folder: str, number: int) -> TaskResult:
    """Choose the engine for a job, on the samples of a unit."""
    return _make(folder, number, store=False)


def make_one(folder: str, number: int) -> TaskResult:
    """Compute one unit of a job."""
    return _make(folder, number, store=True)


def _make(folder: str, number: int, *, store: bool) -> TaskResult:
    """Compute one unit; a process computes one unit at a time, with all its cores and its GPU."""
    with _one:
        _messages.clear()
        spent, stored = Timings(), None
        try:
            worker = _worker(folder)
            work = job_files.read_work(Path(folder), number)
            worker.prepare([work.samples])
            if store:
                (stored,) = worker.make([work], done=_publisher(Path(folder).name, number), spent=spent)
        except PipelineError as error:  # trying again would not help
            return TaskResult(number, None, spent, list(_messages), error)
        except PermissionError as error:  # for a file of the job; an unreadable sample is a reject
            refused = StoreError(f"{error.filename}: {error.strerror}. Change its owner or mode, then run again.")
            return TaskResult(number, None, spent, list(_messages), refused)
        return TaskResult(number, stored, spent, list(_messages))


def _worker(folder: str) -> Worker:
    """Return this process's worker for a job, and close the worker of an earlier job."""
    if folder not in _workers:
        keep_to_cores()
        keep_freed_memory()
        for earlier in _workers.values():
            earlier.close()
        _workers.clear()
        worker = _workers[folder] = Worker(
            job_files.read_assignment(Path(folder)), reporter=Reporter(message=_messages.append)
        )
        for target in worker.targets.values():
            maintenance.remove_stale_files(target.column)  # of a killed worker that this one may replace
    return _workers[folder]


def _publisher(job: str, unit: int) -> Callable[[int], None]:
    from distributed import get_worker

    worker, samples, last_time = get_worker(), 0, time.monotonic()

    def publish(count: int) -> None:
        nonlocal samples, last_time
        samples += count
        if time.monotonic() - last_time > EVERY:
            last_time = time.monotonic()
            worker.log_event(TOPIC, {"job": job, "unit": unit, "samples": samples})

    return publish
