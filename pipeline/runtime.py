"""What the machine offers: cores, threads, seeds, and the versions that a record names."""

import os
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (done, total); whoever owns the terminal draws it."""


def silent(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and make torch prefer repeatable kernels."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages, for the record of how a thing was made."""
    return {package: metadata.version(package) for package in sorted(packages)}


def beside(act: Callable[[Any], Any], items: Sequence[Any]) -> Generator[Any]:
    """`map` on all cores, in threads, where there is more than one item; only a few results wait for their reader."""
    if len(items) < 2:
        yield from map(act, items)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(min(cores(), len(items))) as pool:
        for item in items:
            waiting.append(pool.submit(act, item))
            if len(waiting) > 2 * cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
