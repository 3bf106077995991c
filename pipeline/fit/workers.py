"""Compute the sums of a run's streaming heads in threads of this process, or in workers."""

import contextlib
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.errors import ClusterError
from pipeline.streaming.chunks import Apply, by_threads, run_in_worker
from pipeline.workers import WorkersConfig

if TYPE_CHECKING:
    from distributed import Client

WAIT = 60  # seconds for a scheduler's first worker


class Sums:
    """The workers of a run; they are started, or connected to, when a sum has several chunks."""

    def __init__(self, run: WorkersConfig) -> None:
        self._run, self._open = run, contextlib.ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    @property
    def started(self) -> bool:
        """Return whether workers were started."""
        return self._client is not None

    def of(self, width: int) -> Apply:
        """Return the function that applies another to chunks of rows of this width.

        It raises ClusterError if the scheduler in the settings cannot be reached or has no worker.
        """
        if not self._run.several(gpus=0):
            return by_threads(width)
        return lambda function, items: by_workers(self._connected_client(), width)(function, items)

    def _connected_client(self) -> "Client":
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> "Client":
        from pipeline.workers.client import open_client

        client = self._open.enter_context(open_client(self._run, gpus=0))
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except TimeoutError:
            address = client.scheduler.address
            raise ClusterError(
                f"scheduler {address}: expected a worker within {WAIT} seconds, got none. Start one with "
                f"`dask worker {address}`, and run again."
            ) from None
        return client


def by_workers(client: "Client", width: int) -> Apply:
    """Return a function that applies another to chunks of rows of this width, in workers."""
    from pipeline.workers.ordered_map import map_in_order

    return lambda function, items: map_in_order(client, partial(run_in_worker, function, width), items)
