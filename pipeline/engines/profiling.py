"""The cost of a network at inference: parameters, bytes of weights, multiply-adds, and latency on the CPU.

The latency is that of the fastest engine that agrees with torch, for a single image and for a batch, on all cores.
Networks that are compared are timed with the same engines, so that a small network does not get a slower engine than a
large network. Exporting takes seconds: if torch needs less than that for `IMAGES` images of the slowest network, only
torch is timed.
"""

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
from pipeline.engines.autotune import MIN_JOB_SECONDS
from pipeline.engines.padding import unpad
from pipeline.engines.parity import compare
from pipeline.errors import EngineError
from pipeline.runtime import cores
from pipeline.settings.check import Settings

BATCHES = (1, 32)
IMAGES = 10_000  # size of the job for which the preparation of an engine must pay
SECONDS = 0.2  # minimum of timing for each network, engine and batch size

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Maps pixels uint8 (n, height, width, channels) to {tap: rows}."""


@dataclass(frozen=True)
class Network:
    """A network up to its logits, or up to the last of `taps`."""

    backbone: Backbone
    taps: Mapping[str, TapSpec] | None = None


class Latency(Settings):
    """Milliseconds per batch: median and quartiles. `others`: the medians of slower engines."""

    engine: str
    median: float
    low: float
    high: float
    others: dict[str, float] = {}


class Footprint(Settings):
    """The cost of a network. `bytes`: of weights and BatchNorm statistics. `latency_ms`: by batch size."""

    parameters: int
    bytes: int
    multiply_adds: int
    threads: int
    latency_ms: dict[int, Latency]


def measure_footprints(
    networks: Mapping[str, Network], *, images: int = IMAGES, cache: Path | None = None
) -> dict[str, Footprint]:
    """Return {name: footprint} of networks, measured on the CPU with the same engines.

    images: size of the job; engines other than torch are timed if it pays for their preparation. cache: folder of
    exported graphs, shared with extraction.
    """
    copies = {name: _CpuNetwork.of(network) for name, network in networks.items()}
    latency = _latency(copies, images=images, cache=cache)
    return {
        name: Footprint(
            parameters=network.parameters,
            bytes=network.bytes,
            multiply_adds=max(network.backbone.spec.taps[tap.node].multiply_adds for tap in network.specs.values()),
            threads=cores(),
            latency_ms=latency[name],
        )
        for name, network in copies.items()
    }


@dataclass(frozen=True)
class _CpuNetwork:
    """A copy of a network on the CPU, its taps, and the size of the weights that they use."""

    backbone: Backbone
    specs: Mapping[str, TapSpec]
    parameters: int
    bytes: int
    run: Run

    @classmethod
    def of(cls, network: Network) -> "_CpuNetwork":
        spec = network.backbone.spec
        backbone = Backbone(spec, freeze(copy.deepcopy(network.backbone.module).cpu()))
        specs = dict(network.taps or {LOGITS: TapSpec(node=LOGITS, dtype="float32")})
        specs = {name: tap.model_copy(update={"node": spec.node(tap.node)}) for name, tap in specs.items()}
        return cls(backbone, specs, *_weights(backbone, specs), _torch_run(backbone, specs))

    def pixels(self) -> np.ndarray:
        """Return the largest batch of random images."""
        shape = (max(BATCHES), *self.backbone.spec.input.size, self.backbone.spec.input.shape[0])
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _weights(backbone: Backbone, specs: Mapping[str, TapSpec]) -> tuple[int, int]:
    """Return the number of parameters that taps depend on, and the bytes of these parameters and buffers."""
    with _TensorRecorder() as used, torch.inference_mode():
        Tapped(backbone, specs)(torch.zeros(1, *backbone.spec.input.size, backbone.spec.input.shape[0]).byte())
    parameters = [value for value in backbone.module.parameters() if id(value) in used.seen]
    buffers = [value for value in backbone.module.buffers() if id(value) in used.seen]
    return sum(value.numel() for value in parameters), sum(value.nbytes for value in (*parameters, *buffers))


class _TensorRecorder(TorchFunctionMode):
    """Records the tensors passed to torch's functions; modules that ran are no guide, as some pass on their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = [args, *(kwargs or {}).values()]
        while waiting:
            value = waiting.pop()
            if isinstance(value, (tuple, list)):
                waiting.extend(value)
            elif isinstance(value, torch.Tensor):
                self.seen.add(id(value))
        return func(*args, **(kwargs or {}))


def _latency(networks: Mapping[str, _CpuNetwork], *, images: int, cache: Path | None) -> dict[str, dict[int, Latency]]:
    pixels = {name: network.pixels() for name, network in networks.items()}
    expected = {name: network.run(pixels[name]) for name, network in networks.items()}
    slowest = max(min(_time_run(network.run, pixels[name]).times) for name, network in networks.items())
    job_seconds = slowest * images / max(BATCHES)
    engines = [name for name in ("onnxruntime", "openvino") if job_seconds >= MIN_JOB_SECONDS[name]]
    result: dict[str, dict[int, Latency]] = {name: {} for name in networks}
    failed: set[tuple[str, str]] = set()  # an export that fails takes seconds: it is not tried for the next batch size
    for count in BATCHES:
        for name, network in networks.items():
            runs = {"torch": network.run}
            for engine in engines:
                if (name, engine) in failed:
                    continue
                try:
                    runs[engine] = _engine_run(engine, network, batch_size=count, cache=cache)
                except EngineError:  # the engine is not installed, or does not support this network
                    failed.add((name, engine))
            batch = pixels[name][:count]
            correct = {engine: run for engine, run in runs.items() if _agrees(expected[name], run(batch), count)}
            result[name][count] = _summarise({engine: _time_run(run, batch) for engine, run in correct.items()})
    return result


def _torch_run(backbone: Backbone, specs: Mapping[str, TapSpec]) -> Run:
    """Return a function that runs eager torch on the CPU, even if there is a GPU."""
    network = Tapped(backbone, specs).eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = [value.numpy() for value in network(torch.from_numpy(pixels))]
        return unpad(values, specs, len(pixels))

    return run


def _engine_run(name: str, network: _CpuNetwork, *, batch_size: int, cache: Path | None) -> Run:
    engine = create(name, network.backbone, network.specs, batch_size=batch_size, cache=cache)
    return lambda pixels: engine.run({"pixels": pixels})


def _agrees(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], count: int) -> bool:
    return not any(compare(expected[tap][:count], got[tap]).problems(reduced=False) for tap in expected)


def _time_run(run: Run, pixels: np.ndarray) -> Any:
    """Return torch's Measurement of a batch, in seconds."""
    builder = logging.getLogger("torch.utils.cpp_extension")
    level = builder.level
    builder.setLevel(logging.ERROR)  # the import warns if there is no CUDA, which is not needed here
    try:
        from torch.utils.benchmark import Timer
    finally:
        builder.setLevel(level)
    timer: Any = Timer("run(pixels)", globals={"run": run, "pixels": pixels}, num_threads=cores())
    return timer.blocked_autorange(min_run_time=SECONDS)


def _summarise(times: Mapping[str, Any]) -> Latency:
    """Return the latency of the engine with the smallest median, with the medians of the others."""
    medians = {engine: 1e3 * float(measured.median) for engine, measured in times.items()}
    best = min(medians, key=medians.__getitem__)
    low, high = (1e3 * float(value) for value in np.quantile(times[best].times, (0.25, 0.75)))
    return Latency(engine=best, median=medians.pop(best), low=low, high=high, others=medians)
