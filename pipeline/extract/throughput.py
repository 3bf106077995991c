"""Measure the rates of reading, forward pass and writing on a seeded sample of missing rows, and estimate the time.

Each part is measured separately, over several batches. On a CPU, reading and the network share the cores, so their
times add up; with a GPU, the slower part counts. The interval is Student's t interval over the batches; it is valid for
this sample and the current load of the machine. No computed rows are stored.
"""

import contextlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import serialization
from pipeline.engines import Engine
from pipeline.engines.autotune import AUTO, Job, load_choice
from pipeline.engines.batch_size import describe_sizes as text_of_sizes
from pipeline.engines.batch_size import measure_sizes
from pipeline.engines.out_of_memory import SizeTiming
from pipeline.errors import DataError, counted
from pipeline.extract.request import Request
from pipeline.extract.timing import PARTS, bottleneck
from pipeline.files import scratch
from pipeline.loading.decoders import Decoders, start_decoders
from pipeline.loading.samples import Reject, items, reading_order
from pipeline.readers import Sample
from pipeline.readers.image import ImageReader
from pipeline.runtime import gpus
from pipeline.store.cache import CacheEntry
from pipeline.text import duration

BATCHES = 8


@dataclass(frozen=True)
class Rates:
    """Measured rates.

    rates: samples per second of each part by itself.
    seconds, low, high: the estimated time for all missing rows, with its interval.
    batches: on a GPU, the speed and the memory of several batch sizes.
    """

    engine: str
    sampled: int
    unreadable: int
    samples: int
    rates: Mapping[str, float]
    bottleneck: str
    seconds: float
    low: float
    high: float
    batches: tuple[SizeTiming, ...] = ()

    def __str__(self) -> str:
        rates = ", ".join(f"{part} {self.rates[part]:,.1f}" for part in PARTS)
        unread = f", {self.unreadable} of them unreadable" if self.unreadable else ""
        sizes = f"\n{text_of_sizes(list(self.batches))}" if self.batches else ""
        return (
            f"pilot: {counted(self.sampled, 'sample')}{unread}, engine {self.engine}; samples/s: {rates}\n"
            f"the bottleneck is {self.bottleneck}; {counted(self.samples, 'sample takes', 'samples take')} about "
            f"{duration(self.seconds)} (95 %: {duration(self.low)} to {duration(self.high)}){sizes}"
        )

    def of_samples(self, samples: int) -> "Rates":
        """Return the estimate for another number of samples at the same rates."""
        factor = samples / self.samples
        seconds, low, high = (factor * value for value in (self.seconds, self.low, self.high))
        return replace(self, samples=samples, seconds=seconds, low=low, high=high)

    def to_json(self) -> dict[str, Any]:
        """Return the rates as plain values."""
        return asdict(self)


def measure_throughput(request: Request, *, cache_root: Path, images: int = 64, seed: int = 0) -> Rates | None:
    """Measure on about `images` of the samples with missing rows, views included; None if nothing is missing.

    Raises DataError if no sample can be read, and the errors of the engine and the store.
    """
    passes = [view for view in request.all if len(view.rows)]
    if not passes:
        return None
    each = max(1, images // len(passes))
    return _together([_measure(view, cache_root=cache_root, images=each, seed=seed) for view in passes])


def _together(passes: list[Rates]) -> Rates:
    """Combine the rates of several consecutive passes over the samples: seconds and samples add up."""
    first, *others = passes
    if not others:
        return first
    seconds = {part: sum(one.samples / one.rates[part] for one in passes) for part in PARTS}
    samples = sum(one.samples for one in passes)
    return replace(
        first,
        sampled=sum(one.sampled for one in passes),
        unreadable=sum(one.unreadable for one in passes),
        samples=samples,
        rates={part: samples / max(spent, 1e-9) for part, spent in seconds.items()},
        bottleneck=bottleneck(seconds),
        seconds=sum(one.seconds for one in passes),
        low=sum(one.low for one in passes),
        high=sum(one.high for one in passes),
    )


def _measure(request: Request, *, cache_root: Path, images: int, seed: int) -> Rates:
    """Measure one pass, over the clean samples or over a view of them."""
    chosen = sample(request.rows, images, seed=seed)
    loaded = serialization.read(request.backbone)
    config = request.config
    size = min(config.batch, max(1, len(chosen) // BATCHES))
    job = Job(loaded, config.taps, config.batch, config.precision, cache_root)
    name: str = config.engine
    note = ""
    if name == AUTO:
        remembered = load_choice(job, len(request.rows))
        name, note = remembered or "torch", "" if remembered else " (auto has not measured here yet and may be faster)"
    # Engines pad short batches, so the engine gets the batch size of this sample. Its graph is not cached.
    specs = {tap: config.taps[tap] for tap in request.missing_taps}
    engine = replace(job, batch_size=size, cache=None).engine(name, specs)
    reader = ImageReader(request.spec.input.image)
    pool = start_decoders(reader, config.run.decode, sample_bytes=int(np.prod(request.spec.input.shape)))
    with contextlib.closing(pool):
        measured = rates(request, engine, pool, chosen, batch_size=size, cache_root=cache_root, note=note)
    if not gpus():
        return measured
    pixels = np.zeros((size, *request.spec.input.size, request.spec.input.shape[0]), np.uint8)
    return replace(measured, batches=tuple(measure_sizes(job, name, pixels)))


def rates(
    request: Request,
    engine: Engine,
    pool: Decoders,
    chosen: np.ndarray,
    *,
    batch_size: int,
    cache_root: Path,
    note: str = "",
) -> Rates:
    """Measure an engine and decoders on some of the rows that lack a tap; raises DataError if none can be read."""
    keys, batches, rejects, read = _read(request, chosen, pool, batch_size)
    if not batches:
        raise DataError(f"pilot: expected samples that can be read, got none of {len(chosen)}: {rejects[0]}")
    engine.run({"pixels": batches[0]})  # the first run prepares kernels
    forward, made = [], []
    for batch in batches:
        start = time.perf_counter()
        made.append(engine.run({"pixels": batch}))
        forward.append((time.perf_counter() - start) / len(batch))
    rows = sum(map(len, batches))
    values = {tap: np.concatenate([part[tap] for part in made]) for tap in request.missing_taps}
    whole = _write(request, keys, values, cache_root)
    each = max(0.0, whole - _write(request, keys, {tap: value[:1] for tap, value in values.items()}, cache_root))
    shard, row = max(0.0, whole - each), each / max(1, rows - 1)

    samples = len(request.rows)
    written = len(request.plan.units) * shard + samples * row
    shared = engine.provenance.get("device", "cpu") == "cpu"
    parts = {"read": float(np.mean(read)), "forward": float(np.mean(forward)), "write": written / samples}
    spread = samples * _spread(read, forward, shared=shared)
    running = parts["read"] + parts["forward"] if shared else max(parts["read"], parts["forward"])
    seconds = samples * running + written
    return Rates(
        engine=f"{engine.provenance['engine']}, {request.config.precision}{note}",
        sampled=len(chosen),
        unreadable=len(rejects),
        samples=samples,
        rates={part: 1 / max(time_of, 1e-9) for part, time_of in parts.items()},
        bottleneck=bottleneck(parts),
        seconds=seconds,
        low=max(written, seconds - spread),
        high=seconds + spread,
    )


def sample(rows: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return a seeded sample of the rows without replacement, in their order."""
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, len(rows)), replace=False)
    return np.sort(chosen)


def _read(
    request: Request, chosen: np.ndarray, pool: Decoders, size: int
) -> tuple[np.ndarray, list[np.ndarray], list[Reject], list[float]]:
    """Return the sorted keys, batches of pixels in their order, the rejects, and seconds per sample of each batch."""
    samples = request.samples.take(chosen)
    samples = samples.take(reading_order(samples))
    found: list[Sample | Reject] = []
    seconds = []
    pool.submit(list(items(samples.take(np.arange(1)))))()  # processes start
    waiting = items(samples)
    while True:
        begin = time.perf_counter()
        part = list(itertools.islice(waiting, size))
        if not part:
            break
        found += pool.submit(part)()
        seconds.append((time.perf_counter() - begin) / len(part))
    order = np.argsort(samples.keys, kind="stable")  # rows are stored in the order of the keys
    good = [row for row in order if isinstance(found[row], dict)]
    pixels = [item["pixels"] for row in good if isinstance(item := found[row], dict)]
    batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    return samples.keys[good], batches, [item for item in found if isinstance(item, Reject)], seconds


def _write(request: Request, keys: np.ndarray, values: Mapping[str, np.ndarray], cache_root: Path) -> float:
    """Return the seconds to store rows on the cache's file system, in a temporary folder."""
    with scratch(cache_root, "pilot") as folder:
        begin = time.perf_counter()
        for tap, rows in values.items():
            column = CacheEntry(folder / request.columns[tap].address, request.columns[tap].identity)
            with column.writer(rows.shape[1:]) as writer:
                writer.append(keys[: len(rows)], rows)
                writer.finish(provenance={})
        return time.perf_counter() - begin


def _spread(*parts: list[float], shared: bool) -> float:
    """Return half the interval of the seconds per sample: variances of shared parts add up, else the wider counts."""
    from scipy.special import stdtrit  # the quantile; scipy.stats is large, and slow to load

    halves = [  # of Student's t, two-sided 95 %
        float(stdtrit(len(part) - 1, 0.975) * np.std(part, ddof=1)) / len(part) ** 0.5
        if len(part) > 1
        else float(np.mean(part))
        for part in parts
    ]
    return sum(half**2 for half in halves) ** 0.5 if shared else max(halves)
