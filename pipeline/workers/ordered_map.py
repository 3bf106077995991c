"""A parallel `map` over workers: a few items at a time are in progress, results come in the order of the items."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError
from pipeline.workers.client import scheduler_must_stay

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 2  # items per worker thread that are in progress, or finished and not yet yielded


def map_in_order(client: "Client", function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield `function(item)` of each item, computed by the workers; errors of `function` are raised here.

    An item whose worker dies is given to another worker. Raises ClusterError for an item that kills several workers,
    and if the scheduler is lost.
    """
    from distributed.scheduler import KilledWorker

    waiting: deque[Any] = deque()
    remaining = iter(items)
    number = 0
    try:
        with scheduler_must_stay(client, kept="No result of this run is kept: start the scheduler, and run again."):
            while True:
                for item in remaining:
                    waiting.append(client.submit(function, item, pure=False))
                    if len(waiting) >= AHEAD * max(1, sum(client.nthreads().values())):
                        break
                if not waiting:
                    return
                number += 1
                try:
                    result = waiting[0].result()
                except KilledWorker:
                    raise ClusterError(
                        f"workers: expected the result of part {number:,} of the work, but every worker that got this "
                        "part died: killed, or out of memory. Look at the workers' logs, or set fewer `workers`."
                    ) from None
                waiting.popleft().release()
                yield result
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(waiting), force=True)
