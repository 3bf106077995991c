"""Units made by several processes through Dask: on this machine, one a GPU, or on a cluster that is there.

A task is the number of a unit and the folder of the job's orders. Units are handed out a few at a time, so that the
scheduler holds as many tasks as there are workers, not as there are units. A task can be made again: its shard has the
same name. Dask gives the task of a worker that died to another one; a task that ended several, and more while it was
alone, is given up, and recorded, and the rest goes on.
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
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitInput, UnitResult
from pipeline.extract.worker import WorkerJob
from pipeline.loading.samples import Reject
from pipeline.runtime import Reporter
from pipeline.store import key_arrays
from pipeline.workers.client import open_client, scheduler_must_stay

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 2  # units that are handed out for each thread of a worker
READY = 3  # units on which the engine may be chosen: the first of them may be what ends workers
PATIENCE = 10.0  # seconds without a finished unit, after which it is asked whether any worker is there


def make_units(
    assignment: WorkerJob,
    works: Iterator[UnitInput],
    *,
    gpus: int,
    done: Callable[[int], None],
    spent: Timings,
    reporter: Reporter,
) -> Iterator[UnitResult]:
    """Make all units on a cluster, as `units.make_units` does here; in the order in which they are ready.

    Raises ClusterError if the cluster cannot be reached, or is gone before the end; what workers raise on purpose.
    """
    with (
        job_files.written(assignment, works) as (folder, units),
        open_client(assignment.config.run, gpus=gpus) as client,
        scheduler_must_stay(client, kept="Every shard that was finished is kept: start it, and run again."),
        _progress(client, folder, done) as counted,
        contextlib.closing(_Tasks(client, folder, reporter)) as tasks,
    ):
        said: set[str] = set()
        for made in _results(tasks, folder, units):
            for line in made.said:
                if line not in said:
                    reporter.message(line)
                    said.add(line)
            if made.error is not None:
                raise made.error
            counted(made.unit, made.spent.samples)
            spent.processes = max(spent.processes, sum(client.nthreads().values()))
            spent.add(made.spent)
            if made.stored is not None:
                yield made.stored


class _Tasks:
    """Tasks that were handed out, and what becomes of them."""

    def __init__(self, client: "Client", folder: Path, reporter: Reporter) -> None:
        self._client, self._folder, self._reporter = client, folder, reporter
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._running: dict[Any, int] = {}

    def hand_out(self, number: int, make: Callable[[str, int], TaskResult]) -> None:
        """Submit one more task, for a unit."""
        key = f"{self._folder.name}-{make.__name__}-{number}-{time.monotonic_ns()}"
        future = self._client.submit(make, str(self._folder), number, key=key, pure=False, retries=1)
        self._running[future] = number
        future.add_done_callback(self._ended.put)

    def fill(self, numbers: Iterator[int]) -> None:
        """Submit as many tasks as the workers have threads for, and a few that wait."""
        most = AHEAD * max(1, sum(self._client.nthreads().values()))
        for number in itertools.islice(numbers, max(0, most - len(self._running))):
            self.hand_out(number, make_one)

    def __len__(self) -> int:
        return len(self._running)

    def wait(self) -> tuple[int, TaskResult | None]:
        """Return the next task that ended, and what its worker says; None if it ended its workers, or others did beside
        it.
        """
        from distributed.scheduler import KilledWorker

        future = self._next()
        number = self._running.pop(future)
        try:
            made: TaskResult | None = future.result()
        except KilledWorker:
            made = None
        future.release()
        return number, made

    def _next(self) -> Any:
        told = False
        while True:
            try:
                return self._ended.get(timeout=PATIENCE)
            except Empty:
                there = bool(self._client.nthreads())
            if not there and not told:
                address = self._client.scheduler.address
                self._reporter.message(
                    f"scheduler {address}: no worker is there; waiting for one (`dask worker {address}`)"
                )
            told = not there

    def close(self) -> None:
        """Take back what was not done; the scheduler may be gone."""
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._running), force=True)


def _results(tasks: _Tasks, folder: Path, units: int) -> Iterator[TaskResult]:
    """Hand units out as workers become free; what each made.

    A worker that dies takes all tasks with it that were waiting there, and Dask gives each up that lost too many. Which
    of them it was shows when each is made once more, by itself.
    """
    yield _choose_engine(tasks, units)
    left, suspects = iter(range(units)), []
    tasks.fill(left)
    while len(tasks):
        number, made = tasks.wait()
        tasks.fill(left)
        if made is None:
            suspects.append(number)
        else:
            yield made
    for number in suspects:
        tasks.hand_out(number, make_one)
        yield tasks.wait()[1] or _given_up(folder, number)


def _choose_engine(tasks: _Tasks, units: int) -> TaskResult:
    """Let one worker choose the engine, on the samples of a unit; the others read its stored choice."""
    for number in range(min(units, READY)):
        tasks.hand_out(number, make_ready)
        made = tasks.wait()[1]
        if made is not None:
            return made
    raise ClusterError(
        f"workers: expected one that runs the network on the samples of one of {min(units, READY)} units, but each "
        "ended, by a kill or for want of memory. Look at their logs, and set a smaller batch_size."
    )


def _given_up(folder: Path, number: int) -> TaskResult:
    """Return the rejects of a unit that ended its workers."""
    work = job_files.read_work(folder, number)
    reason = "its shard ended every worker that it was given to, by a kill or for want of memory; look at their logs"
    pairs = zip(key_arrays.to_hex(work.samples.keys), work.samples.places(), strict=True)
    rejects = [Reject(key, place.path, reason, permanent=False) for key, place in pairs]
    return TaskResult(number, UnitResult(rejects, {}), Timings(), [f"unit {number}: {reason}"])


@contextlib.contextmanager
def _progress(client: "Client", folder: Path, done: Callable[[int], None]) -> Iterator[Callable[[int, int], None]]:
    """Count what workers say they have done; what is yielded is called when a unit is ready, with its samples."""
    counts: dict[int, int] = {}
    lock = threading.Lock()

    def count(unit: int, samples: int) -> None:
        with lock:
            before = counts.get(unit, 0)
            if samples > before:  # a unit that was begun again counts once
                counts[unit] = samples
                done(samples - before)

    def heard(event: tuple[float, Any]) -> None:
        told = event[1]
        if told["job"] == folder.name:
            count(told["unit"], told["samples"])

    client.subscribe_topic(TOPIC, heard)
    try:
        yield count
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.unsubscribe_topic(TOPIC)
