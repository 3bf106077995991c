"""The work of a unit: decode its samples, run the network, store one shard a tap. Every worker runs this.

Decoding, the network and storing overlap, also from one unit to the next: while the network runs on a batch, the next
ones are decoded and the rows of the last one written. Nothing is kept longer than its batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.extract.clock import Spent
from pipeline.extract.decoders import Decoders
from pipeline.extract.feed import batches
from pipeline.extract.samples import Reject, Samples
from pipeline.store.cache import Column, Writer


@dataclass(frozen=True)
class Work:
    """A unit as a worker gets it: samples, their keys sorted, and the taps that lack them."""

    samples: Samples
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """Where the rows of a tap go, and the shape of one."""

    column: Column
    shape: tuple[int, ...]


@dataclass
class _Unit:
    """A unit that is being made."""

    engine: Engine
    writers: dict[str, Writer]
    open: ExitStack
    rejects: list[Reject] = field(default_factory=list)


def make_units(
    works: Iterable[Work],
    *,
    decoders: Decoders,
    engine_of: Callable[[tuple[str, ...]], Engine],
    targets: Mapping[str, Target],
    batch_size: int,
    done: Callable[[int], None],
    spent: Spent,
) -> Iterator[list[Reject]]:
    """Compute and store the rows of units, one after another; yield what was rejected of each when it is stored.

    `done` is called with the number of samples that were dealt with since the last call. The time goes to `spent`.
    """
    taps: list[tuple[str, ...]] = []

    def samples() -> Iterator[Samples]:
        for work in works:
            taps.append(work.taps)
            yield work.samples

    unit: _Unit | None = None
    ending: Future[list[Reject]] | None = None
    with ExitStack() as everything, ThreadPoolExecutor(1) as storing:
        writing: Future[None] | None = None
        for batch in spent.waiting(batches(samples(), decoders, batch_size=batch_size)):
            if unit is None:
                unit = _begin(taps[batch.unit], engine_of, targets, everything)
            unit.rejects += batch.rejects
            if len(batch.keys):
                with spent.on("forward"):
                    found = unit.engine.run(batch.arrays)
                with spent.on("write"):
                    _wait(writing)  # one batch is written while the network runs on the next
                writing = storing.submit(_append, unit, batch.keys, found)
            spent.samples += batch.rows
            done(batch.rows)
            if batch.last:
                if ending is not None:
                    with spent.on("write"):
                        rejects = ending.result()
                    yield rejects
                ending, unit = storing.submit(_finish, unit, writing), None
        with spent.on("write"):
            _wait(writing)
            rejects = ending.result() if ending is not None else []
        if ending is not None:
            yield rejects


def _begin(
    taps: tuple[str, ...],
    engine_of: Callable[[tuple[str, ...]], Engine],
    targets: Mapping[str, Target],
    everything: ExitStack,
) -> _Unit:
    own = everything.enter_context(ExitStack())
    writers = {tap: own.enter_context(targets[tap].column.writer(targets[tap].shape)) for tap in taps}
    return _Unit(engine_of(taps), writers, own)


def _append(unit: _Unit, keys: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
    for tap, writer in unit.writers.items():
        with _named(tap):
            writer.append(keys, found[tap])


def _finish(unit: _Unit, last: "Future[None] | None") -> list[Reject]:
    _wait(last)  # nothing is finished that lacks rows
    lasting = {reject.key: reject.reason for reject in unit.rejects if reject.lasting}
    for tap, writer in unit.writers.items():
        with _named(tap):
            writer.finish(provenance=unit.engine.provenance, rejected=lasting)
    unit.open.close()
    return unit.rejects


def _wait(future: "Future[Any] | None") -> None:
    if future is not None:
        future.result()


@contextmanager
def _named(tap: str) -> Iterator[None]:
    """Errors of the store get the name of the tap."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"tap {tap!r}: {error}") from None
