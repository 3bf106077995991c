"""Engines run a backbone: a batch of named arrays in, a mapping from tap to array out.

torch_engine        eager, CPU or CUDA: what the others are measured against
torch_compiled      the same through torch.compile
onnxruntime_engine  the exported graph on the CPU; _cuda on a GPU
openvino_engine     the same file on the CPU; an extra
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from pipeline.backbones.spec import TapSpec
from pipeline.errors import EngineError, requires, unknown

if TYPE_CHECKING:
    from pipeline.backbones.serialization import Backbone

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
BATCH = 64  # samples, where no other size is asked for

Answer = Callable[[], dict[str, np.ndarray]]
"""Waits for a batch that was begun."""


class Engine(Protocol):
    """One way to run one backbone."""

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute each tap, float32 (n, ...), of `pixels` uint8 (n, height, width, channels)."""
        ...

    def begin(self, batch: Mapping[str, np.ndarray]) -> Answer:
        """Begin with a batch, and return what waits for its taps: another may be begun before. `run` does both."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device and versions, for the record beside each shard."""
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
    """Make an engine by its name; `cache` is the folder that keeps exported graphs, none exports each time.

    Raises EngineError for an unknown name or precision, for a precision that the engine does not have, for a library or
    device that is not there, and for a network that cannot be exported.
    """
    if name not in ENGINES:
        raise EngineError(unknown("engine", name, ENGINES))
    if precision not in PRECISIONS:
        raise EngineError(unknown("precision", precision, PRECISIONS))
    if precision not in PRECISIONS_OF[name]:
        raise EngineError(
            f"engine {name!r}: expected one of the precisions it has ({', '.join(PRECISIONS_OF[name])}), got "
            f"{precision}. Choose another engine, or `auto`."
        )
    module, attribute = ENGINES[name].split(":")
    with requires("openvino" if name == "openvino" else "onnx", what=f"engine {name!r}", error=EngineError):
        made: Any = getattr(importlib.import_module(module), attribute)
    engine: Engine = made(backbone, specs, batch_size=batch_size, precision=precision, cache=cache)
    return engine
