"""Processes of Dask that are forked from one with the libraries, whose import takes a spawned process seconds."""

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import psutil

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = [
    *("torch", "distributed", "distributed.cli.dask_scheduler", "distributed.cli.dask_worker"),
    *("pipeline.extract.dask_tasks", "pipeline.fit.workers"),
]


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Have Dask fork the workers that this process starts in the block; it spawns them by default."""
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # which has modules of its own preloaded
        CONTEXT.set_forkserver_preload(PRELOAD)
        yield


@contextlib.contextmanager
def forked_command(module: str, *arguments: str) -> Iterator[BaseProcess]:
    """Run the command line of a module in a forked process, which is killed in the end."""
    process = CONTEXT.Process(target=_run, args=(module, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run(module: str, arguments: tuple[str, ...]) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    importlib.import_module(module).main(arguments)


def forked_processes() -> list[int]:
    """Return the processes that were forked for this one and run."""
    this, pids = psutil.Process(), []
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.ppid() != this.pid and "multiprocessing.forkserver" in " ".join(child.cmdline()):
                pids.append(child.pid)
    return pids
