"""Engines run a backbone: a batch of named arrays in, {tap: array} out.

torch_engine        eager torch, CPU or CUDA: the reference for the others; and torch.compile
onnxruntime_engine  ONNX Runtime on the exported graph, CPU or CUDA
openvino_engine     OpenVINO on the exported graph, CPU; an extra
autotune            `engine: auto`: the fastest engine that passes the parity check
batch_size          the batch size of a GPU; out_of_memory halves batches that do not fit
parity              metrics of agreement with torch float32; parity_gate checks them
onnx_export         the exported graph
padding             fixed batch sizes, and projection after the network
profiling           parameters, multiply-adds and latency of a network
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from pipeline.backbones.spec import TapSpec
from pipeline.errors import EngineError, requires, unknown

if TYPE_CHECKING:
    from pipeline.backbones.serialization import Backbone

# OpenVINO would report its import and each conversion to its makers, from a fork of this process. It does not where its
# package for that is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Name = Literal["torch", "torch_compiled", "onnxruntime", "onnxruntime_cuda", "openvino"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ENGINES: Mapping[str, str] = {
    "torch": "pipeline.engines.torch_engine:TorchEngine",
    "torch_compiled": "pipeline.engines.torch_engine:CompiledEngine",
    "onnxruntime": "pipeline.engines.onnxruntime_engine:CpuEngine",
    "onnxruntime_cuda": "pipeline.engines.onnxruntime_engine:CudaEngine",
    "openvino": "pipeline.engines.openvino_engine:OpenVINOEngine",
}
PRECISIONS_OF: Mapping[str, tuple[Precision, ...]] = {
    "torch": PRECISIONS,
    "torch_compiled": PRECISIONS,
    "onnxruntime": ("float32",),
    "onnxruntime_cuda": ("float32", "tf32"),
    "openvino": ("float32", "bfloat16"),
}
BATCH = 64  # default batch size

Answer = Callable[[], dict[str, np.ndarray]]
"""Waits for the result of `Engine.begin`."""


class Engine(Protocol):
    """Runs a backbone in a library, on a device and in a precision."""

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute each tap, float32 (n, ...), of `pixels` uint8 (n, height, width, channels)."""
        ...

    def begin(self, batch: Mapping[str, np.ndarray]) -> Answer:
        """Start a batch and return a function that waits for its taps; the next batch may be started before."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device and versions, for the record of each shard."""
        ...


def create(
    name: str,
    backbone: "Backbone",
    specs: Mapping[str, TapSpec],
    *,
    batch_size: int,
    precision: str = "float32",
    cache: Path | None = None,
) -> Engine:
    """Create an engine by its name. `cache`: folder of exported graphs; None exports each time.

    Raises EngineError for an unknown name or precision, a precision that the engine does not support, a missing library
    or device, and a network that cannot be exported.
    """
    if name not in ENGINES:
        raise EngineError(unknown("engine", name, ENGINES))
    if precision not in PRECISIONS:
        raise EngineError(unknown("precision", precision, PRECISIONS))
    if precision not in PRECISIONS_OF[name]:
        raise EngineError(
            f"engine {name!r}: expected one of its precisions ({', '.join(PRECISIONS_OF[name])}), got "
            f"{precision}. Choose another engine, or `auto`."
        )
    module, attribute = ENGINES[name].split(":")
    with requires("openvino" if name == "openvino" else "onnx", what=f"engine {name!r}", error=EngineError):
        engine_class: Any = getattr(importlib.import_module(module), attribute)
    engine: Engine = engine_class(backbone, specs, batch_size=batch_size, precision=precision, cache=cache)
    return engine
