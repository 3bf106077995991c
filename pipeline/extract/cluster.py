"""Units made by several processes through Dask: on this machine, one a GPU, or on a cluster that is there.

A task is the number of a unit and the folder of the job's orders. Units are handed out a few at a time, so that the
scheduler holds as many tasks as there are workers, not as there are units. A task can be made again: its shard has the
same name. Dask gives the task of a worker that died to another one; a task that ended several is given up, and
recorded, and the rest goes on.

Processes on this machine listen on loopback alone. Each has its own cores, and its own GPU where there are any.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.select import Say
from pipeline.errors import ClusterError, PipelineError
from pipeline.extract import RunConfig, orders
from pipeline.extract.clock import Spent
from pipeline.extract.samples import Reject
from pipeline.extract.work import Stored, Work
from pipeline.extract.worker import Assignment, Worker
from pipeline.runtime import CORES, core_numbers, keep_to_cores
from pipeline.store import keys as key_arrays

if TYPE_CHECKING:
    from distributed import Client

TOPIC = "icecore"
EVERY = 0.5  # seconds between two notes of progress from a worker
AHEAD = 2  # units that are handed out for each thread of a worker
DEATHS = 2  # of workers that a task may outlive


@dataclass(frozen=True)
class Made:
    """What a worker says of a unit. `said`: lines for the user; `error`: why the whole job cannot go on."""

    unit: int
    stored: Stored | None
    spent: Spent
    said: list[str]
    error: PipelineError | None = None


def make_units(
    assignment: Assignment, works: Iterator[Work], *, gpus: int, done: Callable[[int], None], spent: Spent, say: Say
) -> Iterator[Stored]:
    """Make all units on a cluster, as `work.make_units` does here; in the order in which they are ready.

    Raises ClusterError if the cluster cannot be reached, or is gone before the end; what workers raise on purpose.
    """
    with (
        orders.written(assignment, works) as (folder, units),
        client_of(assignment.config.run, gpus=gpus) as client,
        _progress(client, folder, done) as counted,
    ):
        said: set[str] = set()
        for made in _results(client, folder, units):
            for line in made.said:
                if line not in said:
                    say(line)
                    said.add(line)
            if made.error is not None:
                raise made.error
            counted(made.unit, made.spent.samples)
            spent.processes = max(spent.processes, sum(client.nthreads().values()))
            spent.add(made.spent)
            if made.stored is not None:
                yield made.stored


@contextlib.contextmanager
def client_of(run: RunConfig, *, gpus: int) -> Iterator["Client"]:
    """Join the cluster of the settings, or start one here that ends with the block."""
    import dask
    from distributed import Client
    from distributed.security import Security

    security = None
    if run.tls is not None:
        security = Security(
            tls_ca_file=str(run.tls.ca),
            tls_client_cert=str(run.tls.cert),
            tls_client_key=str(run.tls.key),
            require_encryption=True,
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.admin.log-format": "%(message)s"}))
        if run.scheduler is None:
            where: dict[str, Any] = {"address": stack.enter_context(_local(run.processes(gpus), gpus))}
        elif Path(run.scheduler).is_file():
            where = {"scheduler_file": run.scheduler}
        else:
            where = {"address": run.scheduler}
        try:
            client = stack.enter_context(Client(**where, security=security, timeout=30, set_as_default=False))
        except (OSError, ValueError, TypeError) as error:  # no such host, no such scheme, no TLS
            raise ClusterError(
                f"scheduler {run.scheduler}: expected a Dask scheduler there, got {error}. Start one with `dask "
                "scheduler`, and look at `run.scheduler` and `run.tls`."
            ) from None
        yield client


@contextlib.contextmanager
def _local(processes: int, gpus: int) -> Iterator[Any]:
    import logging

    from distributed import Nanny, Scheduler, SpecCluster

    numbers = core_numbers()
    with tempfile.TemporaryDirectory(prefix="icecore-dask-") as folder:
        workers = {}
        for number in range(processes):
            own = numbers[number::processes] or numbers
            environment = {CORES: ",".join(map(str, own)), "OMP_NUM_THREADS": str(len(own))}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = _gpu(number % gpus)
            options = {
                "nthreads": 1,
                "host": "127.0.0.1",
                "env": environment,
                "memory_limit": 0,
                "local_directory": folder,
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
            }
            workers[number] = {"cls": Nanny, "options": options}
        scheduler = {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "allowed_failures": DEATHS},
        }
        with SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster:
            yield cluster


def _gpu(number: int) -> str:
    """The name of a GPU for CUDA_VISIBLE_DEVICES, where that may name some of them already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[number] if visible else str(number)


def _results(client: "Client", folder: Path, units: int) -> Iterator[Made]:
    """Hand units out as workers become free; what each made."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    # One worker chooses the engine, and the others take what it remembers.
    first = client.submit(make_ready, str(folder), key=f"{folder.name}-ready", pure=False)
    waiting = iter(range(units))
    running: dict[Any, int] = {}
    ready = as_completed(loop=client.loop)

    def hand_out() -> None:
        threads = sum(client.nthreads().values())
        while len(running) < AHEAD * max(1, threads):
            number = next(waiting, None)
            if number is None:
                return
            future = client.submit(make_one, str(folder), number, key=f"{folder.name}-{number}", pure=False, retries=1)
            running[future] = number
            ready.add(future)

    try:
        yield first.result()
        hand_out()
        for future in ready:
            number = running.pop(future)
            hand_out()
            try:
                yield future.result()
            except KilledWorker:
                yield _given_up(folder, number)
            future.release()
    except (CommClosedError, FutureCancelledError, TimeoutError) as error:
        raise ClusterError(
            f"scheduler {client.scheduler.address if client.scheduler else ''}: expected it to be there until the end, "
            f"but it is gone ({error}). Every shard that was finished is kept: start it, and run again."
        ) from None
    finally:
        client.cancel(list(running), force=True)


def _given_up(folder: Path, number: int) -> Made:
    """The rejects of a unit that ended its workers."""
    work = orders.read_work(folder, number)
    reason = f"its shard ended {DEATHS + 1} workers, by a kill or for want of memory; look at their logs"
    pairs = zip(key_arrays.to_hex(work.samples.keys), work.samples.places(), strict=True)
    rejects = [Reject(key, place.path, reason, lasting=False) for key, place in pairs]
    return Made(number, Stored(rejects, {}), Spent(), [f"unit {number}: {reason}"])


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


# In a worker ---------------------------------------------------------------------------------------------------------

_workers: dict[str, Worker] = {}
_said: list[str] = []
_one = threading.Lock()


def make_ready(folder: str) -> Made:
    """Choose the engine for a job."""
    return _make(folder, 0, store=False)


def make_one(folder: str, number: int) -> Made:
    """Make one unit of a job."""
    return _make(folder, number, store=True)


def _make(folder: str, number: int, *, store: bool) -> Made:
    """One at a time in a process, whose cores and GPU it has to itself."""
    with _one:
        _said.clear()
        spent, stored = Spent(), None
        try:
            worker = _worker(folder)
            work = orders.read_work(Path(folder), number)
            worker.prepare([work.samples])
            if store:
                (stored,) = worker.make([work], done=_teller(Path(folder).name, number), spent=spent)
        except PipelineError as error:  # trying again would not help
            return Made(number, None, spent, list(_said), error)
        return Made(number, stored, spent, list(_said))


def _worker(folder: str) -> Worker:
    """This process's worker for a job; that of an earlier job ends."""
    if folder not in _workers:
        keep_to_cores()
        for earlier in _workers.values():
            earlier.close()
        _workers.clear()
        _workers[folder] = Worker(orders.read_assignment(Path(folder)), say=_said.append)
    return _workers[folder]


def _teller(job: str, unit: int) -> Callable[[int], None]:
    from distributed import get_worker

    worker, samples, told = get_worker(), 0, time.monotonic()

    def tell(count: int) -> None:
        nonlocal samples, told
        samples += count
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            worker.log_event(TOPIC, {"job": job, "unit": unit, "samples": samples})

    return tell
