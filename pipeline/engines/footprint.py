"""What a network costs whoever runs it: parameters, bytes of weights, multiply-adds, and time on the CPU.

The time is that of the fastest engine here that computes what torch does, of one image and of a batch, so that a large
network and a small one stand beside each other as they would be used. Exporting takes seconds: a network of which torch
needs less than that for `IMAGES` images is left to torch.
"""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pipeline.backbones.artefact import Backbone, freeze
from pipeline.backbones.spec import TapSpec
from pipeline.backbones.tapped import Tapped
from pipeline.backbones.taps import LOGITS
from pipeline.config import Settings
from pipeline.engines import create
from pipeline.engines.batches import finished
from pipeline.engines.parity import Limits, compare
from pipeline.engines.select import WORTH
from pipeline.errors import EngineError
from pipeline.runtime import core_numbers

BATCHES = (1, 32)
IMAGES = 10_000  # that an engine must be worth preparing for
SECONDS = 0.2  # of timing a size of batches, all engines together
ROUNDS = 7  # at least

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Pixels uint8 (n, height, width, channels) to each tap."""


class Latency(Settings):
    """Milliseconds of a batch: the median, and the quartiles around it. `others`: the medians of slower engines."""

    engine: str
    median: float
    low: float
    high: float
    others: dict[str, float] = {}


class Footprint(Settings):
    """What a network costs. `bytes`: of its weights, statistics of BatchNorm too. `latency_ms`: by size of batches."""

    parameters: int
    bytes: int
    multiply_adds: int
    threads: int
    latency_ms: dict[int, Latency]


def footprint(
    backbone: Backbone,
    *,
    threads: int,
    taps: Mapping[str, TapSpec] | None = None,
    images: int = IMAGES,
    cache: Path | None = None,
) -> Footprint:
    """Measure a network on the CPU: all of it up to its logits, or what must run for some taps.

    `threads`: at most so many, and no more than there are cores. `images`: so many are to be run; another engine than
    torch is tried if that is worth it. `cache` keeps exported graphs, as extraction does.
    """
    backbone = Backbone(backbone.spec, freeze(copy.deepcopy(backbone.module).cpu()))
    specs = dict(taps or {LOGITS: TapSpec(node=LOGITS, dtype="float32")})
    specs = {name: spec.model_copy(update={"node": backbone.spec.node(spec.node)}) for name, spec in specs.items()}
    parameters, size = _weights(backbone, specs)
    with _on_the_cpu(threads) as used:
        latency = _latency(backbone, specs, images=images, cache=cache)
    return Footprint(
        parameters=parameters,
        bytes=size,
        multiply_adds=max(backbone.spec.taps[spec.node].multiply_adds for spec in specs.values()),
        threads=used,
        latency_ms=latency,
    )


def _weights(backbone: Backbone, specs: Mapping[str, TapSpec]) -> tuple[int, int]:
    """How many parameters are used on the way to some taps, and the bytes of them and of the buffers used."""
    with _Used() as used, torch.inference_mode():
        Tapped(backbone, specs)(torch.zeros(1, *backbone.spec.input.size, backbone.spec.input.shape[0]).byte())
    parameters = [value for value in backbone.module.parameters() if id(value) in used.seen]
    buffers = [value for value in backbone.module.buffers() if id(value) in used.seen]
    return sum(value.numel() for value in parameters), sum(value.nbytes for value in (*parameters, *buffers))


class _Used(TorchFunctionMode):
    """Notes which tensors are given to torch's functions: names of modules say less, since some hand theirs on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = [args, *(kwargs or {}).values()]
        while waiting:
            one = waiting.pop()
            if isinstance(one, (tuple, list)):
                waiting.extend(one)
            elif isinstance(one, torch.Tensor):
                self.seen.add(id(one))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _on_the_cpu(threads: int) -> Iterator[int]:
    """Keep to so many cores and threads, for engines that are made meanwhile; tells how many."""
    cores, before = core_numbers(), torch.get_num_threads()
    kept = cores[: max(1, threads)]
    pins = hasattr(os, "sched_setaffinity")
    try:
        torch.set_num_threads(len(kept))
        if pins:
            os.sched_setaffinity(0, kept)
        yield len(kept)
    finally:
        if pins:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(before)


def _latency(
    backbone: Backbone, specs: Mapping[str, TapSpec], *, images: int, cache: Path | None
) -> dict[int, Latency]:
    size = max(BATCHES)
    shape = (size, *backbone.spec.input.size, backbone.spec.input.shape[0])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain = _torch(backbone, specs)
    expected = plain(pixels)  # prepares kernels too
    start = time.perf_counter()
    plain(pixels)
    whole = (time.perf_counter() - start) * images / size
    names = [name for name in ("onnxruntime", "openvino") if whole >= WORTH[name]]
    found = {}
    for count in BATCHES:
        runs = {"torch": plain}
        for name in names:
            with contextlib.suppress(EngineError):  # not installed, or it cannot run this network
                runs[name] = _engine(name, backbone, specs, batch_size=count, cache=cache)
        right = [name for name, run in runs.items() if _agrees(expected, run(pixels[:count]), count)]
        found[count] = _timed({name: runs[name] for name in right}, pixels[:count])
    return found


def _torch(backbone: Backbone, specs: Mapping[str, TapSpec]) -> Run:
    """Eager torch on the CPU, where there is a GPU too."""
    network = Tapped(backbone, specs).eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = [value.numpy() for value in network(torch.from_numpy(pixels))]
        return finished(values, specs, len(pixels))

    return run


def _engine(name: str, backbone: Backbone, specs: Mapping[str, TapSpec], *, batch_size: int, cache: Path | None) -> Run:
    engine = create(name, backbone, specs, batch_size=batch_size, cache=cache)
    return lambda pixels: engine.run({"pixels": pixels})


def _agrees(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], count: int) -> bool:
    return not any(compare(expected[tap][:count], got[tap]).problems(Limits(), reduced=False) for tap in expected)


def _timed(runs: Mapping[str, Run], pixels: np.ndarray) -> Latency:
    """The engine with the least median, all measured in turn, after each ran once."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - begin < SECONDS:
        for name, run in runs.items():
            start = time.perf_counter()
            run(pixels)
            taken[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    best = min(medians, key=medians.__getitem__)
    low, high = (float(value) for value in np.quantile(taken[best], (0.25, 0.75)))
    return Latency(engine=best, median=medians.pop(best), low=low, high=high, others=medians)
