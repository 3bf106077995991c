"""What a network costs whoever runs it: parameters, bytes of weights, multiply-adds, and time on the CPU.

The time is that of the fastest engine here that computes what torch does, of one image and of a batch, on all cores.
Networks that are compared are timed by the same engines: a small network is not left to a slower engine than a large
one. Exporting takes seconds: where torch needs less than that for `IMAGES` images of the slowest network, all are left
to torch.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pipeline.backbones.feature_extractor import Tapped
from pipeline.backbones.hooks import LOGITS
from pipeline.backbones.serialization import Backbone, freeze
from pipeline.backbones.spec import TapSpec
from pipeline.engines import create
from pipeline.engines.autotune import WORTH
from pipeline.engines.padding import unpad
from pipeline.engines.parity import compare
from pipeline.errors import EngineError
from pipeline.runtime import cores
from pipeline.settings.check import Settings

BATCHES = (1, 32)
IMAGES = 10_000  # that an engine must be worth preparing for
SECONDS = 0.2  # of timing, at least, for each network, engine and size of batches

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


def side_by_side(
    networks: Mapping[str, Network], *, images: int = IMAGES, cache: Path | None = None
) -> dict[str, Footprint]:
    """Measure networks by name on the CPU, so that they can be compared.

    `images`: so many are to be run; other engines than torch are tried if that is worth it. `cache` keeps exported
    graphs, as extraction does.
    """
    made = {name: _Measured.of(one) for name, one in networks.items()}
    latency = _latency(made, images=images, cache=cache)
    return {
        name: Footprint(
            parameters=one.parameters,
            bytes=one.bytes,
            multiply_adds=max(one.backbone.spec.taps[spec.node].multiply_adds for spec in one.specs.values()),
            threads=cores(),
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
        """Return the largest batch of random images."""
        shape = (max(BATCHES), *self.backbone.spec.input.size, self.backbone.spec.input.shape[0])
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _weights(backbone: Backbone, specs: Mapping[str, TapSpec]) -> tuple[int, int]:
    """Return how many parameters are used on the way to some taps, and the bytes of them and of the buffers used."""
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


def _latency(networks: Mapping[str, _Measured], *, images: int, cache: Path | None) -> dict[str, dict[int, Latency]]:
    pixels = {name: one.pixels() for name, one in networks.items()}
    expected = {name: one.run(pixels[name]) for name, one in networks.items()}
    slowest = max(min(_timed(one.run, pixels[name]).times) for name, one in networks.items())
    whole = slowest * images / max(BATCHES)
    engines = [name for name in ("onnxruntime", "openvino") if whole >= WORTH[name]]
    result: dict[str, dict[int, Latency]] = {name: {} for name in networks}
    for count in BATCHES:
        for name, one in networks.items():
            runs = {"torch": one.run}
            for engine in engines:
                # It may not be installed, or not be able to run this network.
                with contextlib.suppress(EngineError):
                    runs[engine] = _engine(engine, one, batch_size=count, cache=cache)
            batch = pixels[name][:count]
            right = {engine: run for engine, run in runs.items() if _agrees(expected[name], run(batch), count)}
            result[name][count] = _fastest({engine: _timed(run, batch) for engine, run in right.items()})
    return result


def _torch(backbone: Backbone, specs: Mapping[str, TapSpec]) -> Run:
    """Make an engine of eager torch on the CPU, also where there is a GPU."""
    network = Tapped(backbone, specs).eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = [value.numpy() for value in network(torch.from_numpy(pixels))]
        return unpad(values, specs, len(pixels))

    return run


def _engine(name: str, one: _Measured, *, batch_size: int, cache: Path | None) -> Run:
    engine = create(name, one.backbone, one.specs, batch_size=batch_size, cache=cache)
    return lambda pixels: engine.run({"pixels": pixels})


def _agrees(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], count: int) -> bool:
    return not any(compare(expected[tap][:count], got[tap]).problems(reduced=False) for tap in expected)


def _timed(run: Run, pixels: np.ndarray) -> Any:
    """Return torch's Measurement of a batch, in seconds."""
    builder = logging.getLogger("torch.utils.cpp_extension")
    level = builder.level
    builder.setLevel(logging.ERROR)  # the import warns where there is no CUDA, which nobody asked for
    try:
        from torch.utils.benchmark import Timer
    finally:
        builder.setLevel(level)
    timer: Any = Timer("run(pixels)", globals={"run": run, "pixels": pixels}, num_threads=cores())
    return timer.blocked_autorange(min_run_time=SECONDS)


def _fastest(times: Mapping[str, Any]) -> Latency:
    """Return the times of the engine with the least median, and the medians of the others."""
    medians = {engine: 1e3 * float(measured.median) for engine, measured in times.items()}
    best = min(medians, key=medians.__getitem__)
    low, high = (1e3 * float(value) for value in np.quantile(times[best].times, (0.25, 0.75)))
    return Latency(engine=best, median=medians.pop(best), low=low, high=high, others=medians)
