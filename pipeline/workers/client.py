"""The connection to Dask: a cluster started here, which ends with the connection, or a scheduler that is running.

Workers started here listen on the loopback interface only. Each has its own cores, and its own GPU where there are any.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError, requires
from pipeline.files import read_json
from pipeline.runtime import CORES, core_numbers
from pipeline.workers import WorkersConfig, preload

if TYPE_CHECKING:
    from distributed import Client

DEATHS = 2  # workers that may die from one task before the task fails
CONNECT = 30  # seconds to wait for a scheduler


@contextlib.contextmanager
def open_client(run: WorkersConfig, *, gpus: int) -> Iterator["Client"]:
    """Connect to the scheduler in the settings, or start a cluster here that ends with the block."""
    with requires("cluster", what="several processes or machines"):
        import dask
        from distributed import Client

    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.admin.log-format": "%(message)s"}))
        stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))  # workers may start decoders
        # The row numbers, classes and targets of a chunk are some MB, and are sent on purpose.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}))
        cluster = stack.enter_context(_start_cluster(run.processes(gpus), gpus)) if run.scheduler is None else None
        try:
            scheduler = cluster or _check_connection(_address(str(run.scheduler)))
            client = stack.enter_context(Client(scheduler, timeout=CONNECT, set_as_default=False))
        except (OSError, ValueError, TypeError) as error:  # no such host, no such scheme, no TLS
            raise ClusterError(
                f"scheduler {run.scheduler}: expected a Dask scheduler there, got {error}. Start one with `dask "
                "scheduler`, and look at `run.scheduler`. For tls:// Dask reads the certificates from its own "
                "configuration, `distributed.comm.tls`: docs/cluster.md."
            ) from None
        yield client


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, read from its file where `scheduler` names a file."""
    if not Path(scheduler).is_file():
        return scheduler
    try:
        return str(read_json(Path(scheduler))["address"])
    except (KeyError, TypeError):
        raise ValueError("a file without a scheduler's address") from None


def _check_connection(address: str) -> str:
    """Return `address` once a connection to it succeeded; raises the error of the connection otherwise.

    Called before `Client`, which leaves a half-built client behind when it cannot connect: if Python collects it while
    the next client starts, the two wait for the same lock.
    """
    from distributed import Security, connect

    async def try_to_connect() -> None:
        arguments = Security().get_connection_args("client")
        connection = await connect(address, timeout=CONNECT, **arguments)
        await connection.close()

    with ThreadPoolExecutor(1) as thread:  # the caller may be running an event loop
        thread.submit(asyncio.run, try_to_connect()).result()
    return address


@contextlib.contextmanager
def _start_cluster(processes: int, gpus: int) -> Iterator[Any]:
    import logging

    from distributed import Nanny, Scheduler, SpecCluster

    numbers = core_numbers()
    with tempfile.TemporaryDirectory(prefix="icecore-dask-") as folder, _restored_environment():
        workers = {}
        for number in range(processes):
            own = numbers[number::processes] or numbers
            environment = {CORES: ",".join(map(str, own)), "OMP_NUM_THREADS": str(len(own))}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(number % gpus)
            options = {
                "nthreads": 1,
                "host": "127.0.0.1",
                "env": environment,
                "memory_limit": 0,
                "local_directory": folder,
                "dashboard": False,
                "preload": [preload.__name__],
                "silence_logs": logging.CRITICAL,
            }
            workers[number] = {"cls": Nanny, "options": options}
        scheduler = {
            "cls": Scheduler,
            "options": {
                "host": "127.0.0.1",
                "port": 0,
                "dashboard": False,
                "dashboard_address": "127.0.0.1:0",  # without a dashboard its plain pages still need a port
                "allowed_failures": DEATHS,
            },
        }
        try:
            cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        except RuntimeError as error:
            raise ClusterError(
                f"workers: expected {processes} processes on this machine, got {error.__cause__ or error}. Their "
                "messages are above. Run a script file that starts workers under "
                "`if __name__ == '__main__':`, or set `run: {workers: 1}`."
            ) from None
        with cluster:
            yield cluster


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    """Restore the variables that Dask's nannies set in this process for their workers, such as OMP_NUM_THREADS."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _visible_gpu(number: int) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES for the GPU of this number among those visible now."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[number] if visible else str(number)


@contextlib.contextmanager
def scheduler_must_stay(client: "Client", *, kept: str) -> Iterator[None]:
    """Raise ClusterError if the scheduler is lost during the block; connection errors of a task itself pass through.

    kept: the last sentences of the message: which results are kept, and what to do.
    """
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    address = client.scheduler.address
    try:
        yield
    except (CommClosedError, FutureCancelledError, OSError) as error:
        if client.status == "running" and not isinstance(error, CommClosedError | FutureCancelledError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # Dask may add lines of advice
        raise ClusterError(
            f"scheduler {address}: expected it to be there until the end, but it is gone ({reason}). {kept}"
        ) from None
