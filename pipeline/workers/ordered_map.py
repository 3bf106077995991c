"""Items handed out to workers a few at a time, what they make of them in the order of the items: a `map`."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError
from pipeline.workers.client import scheduler_must_stay

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 2  # items that are under way, or made and not yet taken, for each thread of a worker


def in_order(client: "Client", function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield `function` of each item, computed by workers, which get both; errors of `function` are raised here.

    An item whose worker dies is made by another one. Raises ClusterError for an item that ends several, and where the
    scheduler is gone.
    """
    from distributed.scheduler import KilledWorker

    waiting: deque[Any] = deque()
    left = iter(items)
    number = 0
    try:
        with scheduler_must_stay(client, kept="Nothing of this run was kept: start it, and run again."):
            while True:
                for item in left:
                    waiting.append(client.submit(function, item, pure=False))
                    if len(waiting) >= AHEAD * max(1, sum(client.nthreads().values())):
                        break
                if not waiting:
                    return
                number += 1
                try:
                    made = waiting[0].result()
                except KilledWorker:
                    raise ClusterError(
                        f"workers: expected piece {number:,} of the work, but it ended every worker that it was given "
                        "to, by a kill or for want of memory. Look at their logs, or set fewer `workers`."
                    ) from None
                waiting.popleft().release()
                yield made
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(waiting), force=True)
