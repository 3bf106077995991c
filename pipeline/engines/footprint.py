"""What a network costs whoever runs it: parameters, bytes of weights, multiply-adds, and time on the CPU.

The time is that of the fastest engine here that computes what torch does, of one image and of a batch. Networks that
are compared are timed in turn, by the same engines: a busy moment is then one of all of them, and a small network is
not left to a slower engine than a large one. Exporting takes seconds: where torch needs less than that for `IMAGES`
images of the slowest network, all are left to torch.
"""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
SECONDS = 0.2  # of timing a size of batches, for each network
ROUNDS = 7  # at least
TRIALS = 3  # of a batch by torch, the best of which says whether others are worth it

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Pixels uint8 (n, height, width, channels) to each tap."""


@dataclass(frozen=True)
class Network:
    """A network up to its logits, or what of it must run for some taps."""

    backbone: Backbone
    taps: Mapping[str, TapSpec] | None = None


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
    """Measure one network by itself; see `side_by_side`."""
    return side_by_side({"": Network(backbone, taps)}, threads=threads, images=images, cache=cache)[""]


def side_by_side(
    networks: Mapping[str, Network], *, threads: int, images: int = IMAGES, cache: Path | None = None
) -> dict[str, Footprint]:
    """Measure networks by name on the CPU, so that they can be compared.

    `threads`: at most so many, and no more than there are cores. `images`: so many are to be run; other engines than
    torch are tried if that is worth it. `cache` keeps exported graphs, as extraction does.
    """
    made = {name: _Measured.of(one) for name, one in networks.items()}
    with _on_the_cpu(threads) as used:
        latency = _latency(made, images=images, cache=cache)
    return {
        name: Footprint(
            parameters=one.parameters,
            bytes=one.bytes,
            multiply_adds=max(one.backbone.spec.taps[spec.node].multiply_adds for spec in one.specs.values()),
            threads=used,
            latency_ms=latency[name],
        )
        for name, one in made.items()
    }


@dataclass(frozen=True)
class _Measured:
    """A copy of a network on the CPU, its taps by their nodes, and what of it is used on the way to them."""

    backbone: Backbone
    specs: Mapping[str, TapSpec]
    parameters: int
    bytes: int
    run: Run

    @classmethod
    def of(cls, one: Network) -> "_Measured":
        spec = one.backbone.spec
        backbone = Backbone(spec, freeze(copy.deepcopy(one.backbone.module).cpu()))
        specs = dict(one.taps or {LOGITS: TapSpec(node=LOGITS, dtype="float32")})
        specs = {name: tap.model_copy(update={"node": spec.node(tap.node)}) for name, tap in specs.items()}
        return cls(backbone, specs, *_weights(backbone, specs), _torch(backbone, specs))

    def pixels(self) -> np.ndarray:
        """The largest batch of random images."""
        shape = (max(BATCHES), *self.backbone.spec.input.size, self.backbone.spec.input.shape[0])
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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


def _latency(networks: Mapping[str, _Measured], *, images: int, cache: Path | None) -> dict[str, dict[int, Latency]]:
    pixels = {name: one.pixels() for name, one in networks.items()}
    expected = {name: one.run(pixels[name]) for name, one in networks.items()}  # prepares kernels too
    slowest = max(min(_milliseconds(one.run, pixels[name]) for _ in range(TRIALS)) for name, one in networks.items())
    whole = slowest / 1e3 * images / max(BATCHES)
    engines = [name for name in ("onnxruntime", "openvino") if whole >= WORTH[name]]
    found: dict[str, dict[int, Latency]] = {name: {} for name in networks}
    for count in BATCHES:
        timed = []
        for name, one in networks.items():
            runs = {"torch": one.run}
            for engine in engines:
                with contextlib.suppress(EngineError):  # not installed, or it cannot run this network
                    runs[engine] = _engine(engine, one, batch_size=count, cache=cache)
            right = [
                engine for engine, run in runs.items() if _agrees(expected[name], run(pixels[name][:count]), count)
            ]
            timed.append(_Timed(name, pixels[name][:count], {engine: runs[engine] for engine in right}))
        for each, latency in zip(timed, _in_turn(timed), strict=True):
            found[each.name][count] = latency
    return found


def _torch(backbone: Backbone, specs: Mapping[str, TapSpec]) -> Run:
    """Eager torch on the CPU, where there is a GPU too."""
    network = Tapped(backbone, specs).eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = [value.numpy() for value in network(torch.from_numpy(pixels))]
        return finished(values, specs, len(pixels))

    return run


def _engine(name: str, one: _Measured, *, batch_size: int, cache: Path | None) -> Run:
    engine = create(name, one.backbone, one.specs, batch_size=batch_size, cache=cache)
    return lambda pixels: engine.run({"pixels": pixels})


def _agrees(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], count: int) -> bool:
    return not any(compare(expected[tap][:count], got[tap]).problems(Limits(), reduced=False) for tap in expected)


class _Timed(NamedTuple):
    """A network with a batch, and the engines that run it."""

    name: str
    pixels: np.ndarray
    runs: Mapping[str, Run]


def _in_turn(networks: Sequence[_Timed]) -> list[Latency]:
    """Of each network the engine with the least median: one run of each engine of each network, round after round."""
    taken: list[dict[str, list[float]]] = [{engine: [] for engine in one.runs} for one in networks]
    begin, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - begin < SECONDS * len(networks):
        for one, times in zip(networks, taken, strict=True):
            for engine, run in one.runs.items():
                times[engine].append(_milliseconds(run, one.pixels))
        rounds += 1
    return [_fastest(times) for times in taken]


def _fastest(times: Mapping[str, Sequence[float]]) -> Latency:
    medians = {engine: float(np.median(found)) for engine, found in times.items()}
    best = min(medians, key=medians.__getitem__)
    low, high = (float(value) for value in np.quantile(times[best], (0.25, 0.75)))
    return Latency(engine=best, median=medians.pop(best), low=low, high=high, others=medians)


def _milliseconds(run: Run, pixels: np.ndarray) -> float:
    start = time.perf_counter()
    run(pixels)
    return 1e3 * (time.perf_counter() - start)
