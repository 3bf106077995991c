"""Read the features of a run: each tap once into memory, or rows in blocks for streaming heads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import heads
from pipeline.errors import HeadError, unknown
from pipeline.fit.workers import Sums
from pipeline.store.features import Features
from pipeline.streaming.accumulate import CachedMoments
from pipeline.streaming.chunks import ChunkedSource, cut_chunks
from pipeline.streaming.rows import Rows, reading_order
from pipeline.workers import WorkersConfig

GB = 1e9
COPIES = 2  # in addition to the taps: the joined input and its training rows


@dataclass(frozen=True)
class Matrix:
    """An input in memory: float32 (rows, width)."""

    X: np.ndarray

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Return the fastest order to read rows in: the given one."""
        return np.arange(len(rows))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, in this order."""
        return np.asarray(self.X[rows])


@dataclass(frozen=True)
class Stream:
    """An input on disk, for heads that read it in blocks.

    `keys`: the keys of all rows of the task, S16. Heads that take the same rows share a source, which caches the sums
    of one pass: use a Stream for one training set only.
    """

    taps: tuple[Features, ...]
    keys: np.ndarray
    sums: Sums = field(default_factory=lambda: Sums(WorkersConfig(workers=1)), repr=False)
    taken: dict[bytes, CachedMoments] = field(default_factory=dict, repr=False)
    orders: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Return the order of these rows on disk: `rows[order]` reads each shard once."""
        numbers = rows.tobytes()
        if numbers not in self.orders:
            self.orders[numbers] = reading_order(self.taps[0], self.keys[rows])
        return self.orders[numbers]

    def take(self, rows: np.ndarray) -> CachedMoments:
        """Return the rows of these numbers as a source of chunks."""
        numbers = rows.tobytes()
        if numbers not in self.taken:
            source = Rows(self.taps, self.keys[rows])
            self.taken[numbers] = CachedMoments(
                ChunkedSource(source, cut_chunks(source), self.sums.of(source.shape[1]))
            )
        return self.taken[numbers]


def open_taps(names: Sequence[str], features: Path) -> dict[str, Features]:
    """Open the taps of a run; raises HeadError for a tap that was not extracted."""
    extracted = [path.parent.name for path in features.glob("*/index.json")]
    for tap in names:
        if tap not in extracted:
            raise HeadError(f"{features}: {unknown('tap', tap, extracted)}")
    return {tap: Features.open(features / tap) for tap in names}


def width(tap: Features) -> int:
    """Return the number of values of a row."""
    return int(np.prod(tap.shape))


def load(taps: Mapping[str, Features], keys: np.ndarray) -> dict[str, np.ndarray]:
    """Load rows of every tap, flattened, float32 (rows, width)."""
    return {
        name: tap.load(list(keys)).reshape(len(keys), -1).astype(np.float32, copy=False) for name, tap in taps.items()
    }


def check_memory(
    taps: Mapping[str, Features],
    inputs: Sequence[str],
    *,
    rows: int,
    memory_gb: float | None,
    who: str,
    copies: int = 1,
) -> None:
    """Raise HeadError, with the numbers, if heads in memory would need more memory than is allowed.

    `copies`: the number of scaled training sets in memory at once, one per fold of a search.
    """
    allowed = memory_gb * GB if memory_gb is not None else available() / 2
    widest = max(sum(width(taps[tap]) for tap in name.split("+")) for name in inputs)
    needed = 4 * rows * (sum(map(width, taps.values())) + (COPIES + copies) * widest)
    if needed > allowed:
        streaming = [name for name in heads.known() if heads.is_streaming(name)]
        raise HeadError(
            f"{who}: expected {rows:,} rows that fit into {allowed / GB:.3g} GB of memory, got {needed / GB:.3g} "
            f"(taps, an input of {widest:,} values per row, its training rows). Set `memory_gb` if there is more, ask "
            f"for fewer taps, or use a head that reads blocks: {', '.join(streaming) or 'there is none'}."
        )


def available() -> int:
    """Return the bytes of memory that a process can allocate without swapping."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
