"""Compute a unit: decode its samples, run the network, store one shard per tap. Every worker runs this.

Decoding, the network and storing overlap, within and across units: while the network runs on a batch, the next batches
are decoded and the rows of the previous batch are written. Batches are dropped as soon as they are written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from pipeline.engines import Answer, Engine
from pipeline.errors import StoreError
from pipeline.extract.timing import Timings
from pipeline.loading.batches import Batch, batches
from pipeline.loading.decoders import Decoders
from pipeline.loading.samples import Reject, Samples
from pipeline.store.cache import CacheEntry, Writer
from pipeline.store.shard_format import ShardRecord


@dataclass(frozen=True)
class UnitInput:
    """The input of a unit: samples in the order of their keys, and the taps that lack them."""

    samples: Samples
    taps: tuple[str, ...]


@dataclass(frozen=True)
class TapOutput:
    """The cache entry for the rows of a tap, and the shape of a row."""

    column: CacheEntry
    shape: tuple[int, ...]


@dataclass
class _Unit:
    """A unit in progress."""

    engine: Engine
    writers: dict[str, Writer]
    open: ExitStack
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class UnitResult:
    """The result of a unit: the samples without features, and the shard of each tap, if it has rows."""

    rejects: list[Reject]
    shards: Mapping[str, ShardRecord]


def make_units(
    works: Iterable[UnitInput],
    *,
    decoders: Decoders,
    engine_of: Callable[[tuple[str, ...]], Engine],
    targets: Mapping[str, TapOutput],
    batch_size: int,
    done: Callable[[int], None],
    spent: Timings,
) -> Iterator[UnitResult]:
    """Compute and store the rows of units, one after another; yield the result of each when it is stored.

    `done` is called with the number of samples processed since the last call. Time is added to `spent`.
    """
    taps: list[tuple[str, ...]] = []

    def samples() -> Iterator[Samples]:
        for work in works:
            taps.append(work.taps)
            yield work.samples

    with ExitStack() as everything, ThreadPoolExecutor(1) as thread:
        storing = _Storing(thread, spent)
        unit: _Unit | None = None
        started: _Started | None = None
        for batch in spent.waiting(batches(samples(), decoders, batch_size=batch_size)):
            if unit is None:
                unit = _open(taps[batch.unit], engine_of, targets, everything)
            with spent.on("forward"):
                answer = unit.engine.begin(batch.arrays) if len(batch.keys) else None
            if started is not None:
                yield from storing.take(started, done)
            started = _Started(unit, batch, answer)
            unit = None if batch.last else unit
        if started is not None:
            yield from storing.take(started, done)
        yield from storing.end()


@dataclass(frozen=True)
class _Started:
    """A batch on which the network runs; `answer` is None if no sample could be read."""

    unit: _Unit
    batch: Batch
    answer: Answer | None


class _Storing:
    """Write rows in a thread while the network runs: batch by batch, then the shards of a unit after its last batch."""

    def __init__(self, thread: ThreadPoolExecutor, spent: Timings) -> None:
        self._thread, self._spent = thread, spent
        self._writing: Future[None] | None = None
        self._ending: Future[UnitResult] | None = None

    def take(self, started: _Started, done: Callable[[int], None]) -> Iterator[UnitResult]:
        """Wait for the rows of a batch and write them; after its last batch, yield the result of the previous unit."""
        unit, batch = started.unit, started.batch
        unit.rejects += batch.rejects
        if started.answer is not None:
            with self._spent.on("forward"):
                rows = started.answer()
            with self._spent.on("write"):
                _wait(self._writing)  # at most one batch waits to be written
            self._writing = self._thread.submit(_append, unit, batch.keys, rows)
        self._spent.samples += batch.rows
        done(batch.rows)
        if batch.last:
            yield from self.end()
            self._ending = self._thread.submit(_finish, unit, self._writing)

    def end(self) -> Iterator[UnitResult]:
        """Wait for the shards that are being written."""
        if self._ending is not None:
            with self._spent.on("write"):
                stored = self._ending.result()
            self._ending = None
            yield stored


def _open(
    taps: tuple[str, ...],
    engine_of: Callable[[tuple[str, ...]], Engine],
    targets: Mapping[str, TapOutput],
    everything: ExitStack,
) -> _Unit:
    own = everything.enter_context(ExitStack())
    writers = {tap: own.enter_context(targets[tap].column.writer(targets[tap].shape)) for tap in taps}
    return _Unit(engine_of(taps), writers, own)


def _append(unit: _Unit, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
    for tap, writer in unit.writers.items():
        with _named(tap):
            writer.append(keys, rows[tap])


def _finish(unit: _Unit, last: "Future[None] | None") -> UnitResult:
    _wait(last)  # all rows must be written first
    lasting = {reject.key: reject.reason for reject in unit.rejects if reject.permanent}
    shards = {}
    for tap, writer in unit.writers.items():
        with _named(tap):
            record = writer.finish(provenance=unit.engine.provenance, rejected=lasting)
        if record is not None:
            shards[tap] = record
    unit.open.close()
    return UnitResult(unit.rejects, shards)


def _wait(future: "Future[None] | None") -> None:
    if future is not None:
        future.result()


@contextmanager
def _named(tap: str) -> Iterator[None]:
    """Add the name of the tap to errors of the store."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"tap {tap!r}: {error}") from None
