"""Measure the time of an extraction by part: reading, the forward pass, writing."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

PARTS = ("read", "forward", "write")
NAMES = {"read": "reading and decoding", "forward": "the forward pass", "write": "writing"}


@dataclass
class Timings:
    """Seconds by part, and the number of processed samples. Reading and writing count only while the network waits.

    `processes`: the number of parallel processes that spent the time.
    """

    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    processes: int = 1

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part, even if the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time spent waiting for them counts as reading."""
        rest = iter(items)
        while True:
            with self.on("read"):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    def add(self, other: "Timings") -> None:
        """Add the timings of another process."""
        self.samples += other.samples
        for part in PARTS:
            self.seconds[part] += other.seconds[part]

    @property
    def whole(self) -> float:
        """Wall-clock seconds of all parts."""
        return sum(self.seconds.values()) / self.processes

    @property
    def rate(self) -> float | None:
        """Samples per second; None without samples."""
        return self.samples / self.whole if self.samples and self.whole else None

    @property
    def shares(self) -> str:
        """The parts as shares of the whole, as text."""
        return ", ".join(f"{part} {self.seconds[part] / max(sum(self.seconds.values()), 1e-9):.0%}" for part in PARTS)

    def __str__(self) -> str:
        if self.rate is None:
            return "nothing was computed"
        return f"{self.rate:,.1f} samples/s ({self.shares}); the bottleneck is {bottleneck(self.seconds)}"


def bottleneck(seconds: dict[str, float]) -> str:
    """Return the name of the slowest part."""
    return NAMES[max(PARTS, key=lambda part: seconds[part])]


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
