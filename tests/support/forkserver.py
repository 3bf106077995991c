"""Workers of Dask that are forked from a process with the libraries, whose import takes a spawned worker seconds."""

import contextlib
import multiprocessing
from collections.abc import Iterator

import psutil

PRELOAD = ["torch", "distributed", "pipeline.extract.dask_tasks", "pipeline.fit.workers"]


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Have Dask fork the workers that this process starts in the block; it spawns them by default."""
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # which has modules of its own preloaded
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        yield


def forked_processes() -> list[int]:
    """Return the processes that were forked for this one and run."""
    this, pids = psutil.Process(), []
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.ppid() != this.pid and "multiprocessing.forkserver" in " ".join(child.cmdline()):
                pids.append(child.pid)
    return pids
