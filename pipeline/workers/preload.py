"""What a worker of this machine does before it is told anything: Dask runs `dask_setup` in its main thread."""

import signal
from typing import Any

from pipeline.runtime import keep_to_cores


def dask_setup(worker: Any) -> None:  # noqa: ARG001 - Dask's own name and argument
    """Leave Ctrl-C, which a terminal sends to all processes, to the main one; keep to this worker's cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_to_cores()
