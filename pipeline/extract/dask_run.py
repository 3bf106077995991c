"""Compute units in several processes through Dask: on this machine, one per GPU, or on an existing cluster.

A task is the number of a unit and the folder of the job's files. Only a few units are submitted at a time, so the
number of tasks on the scheduler depends on the workers, not on the units. A task can be repeated: its shard gets the
same name. If a worker dies, Dask gives its task to another worker. A unit that kills several workers, and kills one
again when it runs without other tasks, is given up: its samples are rejected, and the other units continue.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError
from pipeline.extract import job_files
from pipeline.extract.dask_tasks import TOPIC, TaskResult, make_one, make_ready
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitInput, UnitResult
from pipeline.loading.samples import Reject
from pipeline.runtime import Reporter
from pipeline.store import key_arrays
from pipeline.workers.client import open_client, scheduler_must_stay

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 2  # units that are submitted for each thread of a worker
READY = 3  # units to try for the choice of the engine, since a unit may kill its worker
PATIENCE = 10.0  # seconds without a finished unit after which the number of workers is checked


def make_units(
    assignment: WorkerJob,
    works: Iterator[UnitInput],
    *,
    gpus: int,
    done: Callable[[int], None],
    spent: Timings,
    reporter: Reporter,
) -> Iterator[UnitResult]:
    """Compute all units on a cluster, as `units.make_units` does in this process; yield them as they finish.

    Raises ClusterError if the cluster cannot be reached or is lost, and the PipelineErrors of workers.
    """
    with (
        job_files.written(assignment, works) as (folder, units),
        open_client(assignment.config.run, gpus=gpus) as client,
        scheduler_must_stay(client, kept="Every shard that was finished is kept: start it, and run again."),
        _progress(client, folder, done) as counted,
        contextlib.closing(_Tasks(client, folder, reporter)) as tasks,
    ):
        reported: set[str] = set()
        for result in _results(tasks, folder, units):
            for line in result.messages:
                if line not in reported:
                    reporter.message(line)
                    reported.add(line)
            if result.error is not None:
                raise result.error
            counted(result.unit, result.spent.samples)
            spent.processes = max(spent.processes, sum(client.nthreads().values()))
            spent.add(result.spent)
            if result.stored is not None:
                yield result.stored


class _Tasks:
    """Submitted tasks and their results."""

    def __init__(self, client: "Client", folder: Path, reporter: Reporter) -> None:
        self._client, self._folder, self._reporter = client, folder, reporter
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._running: dict[Any, int] = {}

    def hand_out(self, number: int, make: Callable[[str, int], TaskResult]) -> None:
        """Submit a task for a unit."""
        key = f"{self._folder.name}-{make.__name__}-{number}-{time.monotonic_ns()}"
        future = self._client.submit(make, str(self._folder), number, key=key, pure=False, retries=1)
        self._running[future] = number
        future.add_done_callback(self._ended.put)

    def fill(self, numbers: Iterator[int]) -> None:
        """Submit tasks until every thread of the workers has `AHEAD` of them."""
        most = AHEAD * max(1, sum(self._client.nthreads().values()))
        for number in itertools.islice(numbers, max(0, most - len(self._running))):
            self.hand_out(number, make_one)

    def __len__(self) -> int:
        return len(self._running)

    def wait(self) -> tuple[int, TaskResult | None]:
        """Return the next finished task and its result; None if its workers were killed, by it or by another task."""
        from distributed.scheduler import KilledWorker

        future = self._next()
        number = self._running.pop(future)
        try:
            result: TaskResult | None = future.result()
        except KilledWorker:
            result = None
        future.release()
        return number, result

    def _next(self) -> Any:
        reported = False
        while True:
            try:
                return self._ended.get(timeout=PATIENCE)
            except Empty:
                has_workers = bool(self._client.nthreads())
            if not has_workers and not reported:
                address = self._client.scheduler.address
                self._reporter.message(
                    f"scheduler {address}: no worker is there; waiting for one (`dask worker {address}`)"
                )
            reported = not has_workers

    def close(self) -> None:
        """Cancel unfinished tasks; the scheduler may be gone."""
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._running), force=True)


def _results(tasks: _Tasks, folder: Path, units: int) -> Iterator[TaskResult]:
    """Submit units as workers become free, and yield their results.

    If a worker dies, all tasks that waited on it count a loss, and Dask gives up a task with too many losses. To find
    the unit that kills workers, each given-up unit is tried again without others.
    """
    yield _choose_engine(tasks, units)
    left, suspects = iter(range(units)), []
    tasks.fill(left)
    while len(tasks):
        number, result = tasks.wait()
        tasks.fill(left)
        if result is None:
            suspects.append(number)
        else:
            yield result
    for number in suspects:
        tasks.hand_out(number, make_one)
        yield tasks.wait()[1] or _given_up(folder, number)


def _choose_engine(tasks: _Tasks, units: int) -> TaskResult:
    """Let one worker choose the engine, on the samples of a unit; the others read its stored choice."""
    for number in range(min(units, READY)):
        tasks.hand_out(number, make_ready)
        result = tasks.wait()[1]
        if result is not None:
            return result
    raise ClusterError(
        f"workers: expected one that runs the network on the samples of one of {min(units, READY)} units, but each "
        "ended, by a kill or for want of memory. Look at their logs, and set a smaller batch_size."
    )


def _given_up(folder: Path, number: int) -> TaskResult:
    """Return the rejects of a unit that killed its workers."""
    work = job_files.read_work(folder, number)
    reason = "its shard ended every worker that it was given to, by a kill or for want of memory; look at their logs"
    pairs = zip(key_arrays.to_hex(work.samples.keys), work.samples.places(), strict=True)
    rejects = [Reject(key, place.path, reason, permanent=False) for key, place in pairs]
    return TaskResult(number, UnitResult(rejects, {}), Timings(), [f"unit {number}: {reason}"])


@contextlib.contextmanager
def _progress(client: "Client", folder: Path, done: Callable[[int], None]) -> Iterator[Callable[[int, int], None]]:
    """Count the progress that workers publish; yield a function to call with a finished unit and its samples."""
    counts: dict[int, int] = {}
    lock = threading.Lock()

    def count(unit: int, samples: int) -> None:
        with lock:
            before = counts.get(unit, 0)
            if samples > before:  # a repeated unit counts once
                counts[unit] = samples
                done(samples - before)

    def on_event(event: tuple[float, Any]) -> None:
        progress = event[1]
        if progress["job"] == folder.name:
            count(progress["unit"], progress["samples"])

    client.subscribe_topic(TOPIC, on_event)
    try:
        yield count
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.unsubscribe_topic(TOPIC)
