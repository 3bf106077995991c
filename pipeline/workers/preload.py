"""Set-up of a worker on this machine: Dask runs `dask_setup` in its main thread before the first task."""

import signal
from typing import Any

from pipeline.runtime import keep_to_cores


def dask_setup(worker: Any) -> None:  # noqa: ARG001 - Dask prescribes the name and the argument
    """Ignore Ctrl-C, which the main process handles, and keep to this worker's cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_to_cores()
