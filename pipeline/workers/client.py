"""The connection to Dask: to processes that are started here and end with it, or to a scheduler that is there.

Processes of this machine listen on loopback alone. Each has its own cores, and its own GPU where there are any.
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

DEATHS = 2  # of workers that a task may outlive
CONNECT = 30  # seconds to wait for a scheduler


@contextlib.contextmanager
def client_of(run: WorkersConfig, *, gpus: int) -> Iterator["Client"]:
    """Join the cluster of the settings, or start one here that ends with the block."""
    with requires("cluster", what="several processes or machines"):
        import dask
        from distributed import Client

    here = run.scheduler is None
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.admin.log-format": "%(message)s"}))
        stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))  # workers may start decoders
        # Places, classes and targets of a piece of rows are some MB, and are meant to travel.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}))
        cluster = stack.enter_context(_local(run.processes(gpus), gpus)) if here else None
        try:
            where = cluster or _reached(_address(str(run.scheduler)))
            client = stack.enter_context(Client(where, timeout=CONNECT, set_as_default=False))
        except (OSError, ValueError, TypeError) as error:  # no such host, no such scheme, no TLS
            raise ClusterError(
                f"scheduler {run.scheduler}: expected a Dask scheduler there, got {error}. Start one with `dask "
                "scheduler`, and look at `run.scheduler`. For tls:// Dask reads the certificates from its own "
                "configuration, `distributed.comm.tls`: docs/cluster.md."
            ) from None
        yield client


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, out of its file where that is what was named."""
    if not Path(scheduler).is_file():
        return scheduler
    try:
        return str(read_json(Path(scheduler))["address"])
    except (KeyError, TypeError):
        raise ValueError("a file without the address of one") from None


def _reached(address: str) -> str:
    """Return the address, where somebody answers; raises what the connection does.

    It is asked first, since a client that cannot connect leaves one behind that is half made: Python may clear that
    away while the next one starts, and both would then wait for one lock.
    """
    from distributed import Security, connect

    async def ask() -> None:
        arguments = Security().get_connection_args("client")
        answer = await connect(address, timeout=CONNECT, **arguments)
        await answer.close()

    with ThreadPoolExecutor(1) as thread:  # the caller may have a loop of its own
        thread.submit(asyncio.run, ask()).result()
    return address


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
                "dashboard_address": "127.0.0.1:0",  # its plain pages have a port all the same
                "allowed_failures": DEATHS,
            },
        }
        try:
            cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        except RuntimeError as error:
            raise ClusterError(
                f"workers: expected {processes} processes on this machine, got {error.__cause__ or error}. What they "
                "say of themselves stands above. A script that starts workers is a file, and begins under "
                "`if __name__ == '__main__'`; or set `run: {workers: 1}`."
            ) from None
        with cluster:
            yield cluster


def _gpu(number: int) -> str:
    """Return the name of a GPU for CUDA_VISIBLE_DEVICES, where that may name some of them already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[number] if visible else str(number)


@contextlib.contextmanager
def scheduler_must_stay(client: "Client", *, kept: str) -> Iterator[None]:
    """Raise ClusterError where the scheduler is gone; a worker's own errors of that kind are let through.

    `kept` says what was not lost, and what to do.
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
