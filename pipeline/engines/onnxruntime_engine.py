"""ONNX Runtime: the exported graph on the CPU, or on a GPU through CUDA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import Answer
from pipeline.engines.onnx_export import INPUT, cached_export
from pipeline.engines.out_of_memory import run_halving_on_oom
from pipeline.engines.padding import pad_batch, unpad
from pipeline.errors import EngineError
from pipeline.runtime import cores, versions


class CpuEngine:
    """Runs the exported graph in batches of fixed size: a short batch is padded."""

    NAME = "onnxruntime"
    PROVIDER = "CPUExecutionProvider"

    def __init__(
        self,
        backbone: Backbone,
        specs: Mapping[str, TapSpec],
        *,
        batch_size: int,
        precision: str = "float32",
        cache: Path | None = None,
    ) -> None:
        self.batch_size, self.precision = batch_size, precision
        self._specs = dict(specs)
        if self.PROVIDER not in onnxruntime.get_available_providers():
            self._refuse("this build of ONNX Runtime does not have it")
        data = cached_export(backbone, specs, cache=cache)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = cores(), 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        # Spinning threads would occupy the cores that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=self._providers())
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes of its own
            self._refuse(str(error).strip().splitlines()[0].rstrip("."))
        self._session.disable_fallback()
        if self._session.get_providers()[0] != self.PROVIDER:
            # ONNX Runtime would continue on the CPU and report it only in its log.
            self._refuse(f"its libraries or its device are missing; active: {self._session.get_providers()[0]}")

    def _refuse(self, reason: str) -> None:
        raise EngineError(
            f"engine {self.NAME!r}: expected {self.PROVIDER} to be active, but {reason}. "
            "Install its requirements, or choose another engine."
        ) from None

    def _providers(self) -> list[Any]:
        return [self.PROVIDER]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device, precision and versions."""
        record = {"engine": self.NAME, "device": "cpu", "precision": self.precision, "batch_size": self.batch_size}
        return {**record, **versions("torch", "onnx", "onnxscript"), "onnxruntime": onnxruntime.__version__}

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute each tap, float32 (n, ...), of `pixels` uint8 (n, height, width, channels), n <= batch size."""
        pixels = pad_batch(batch["pixels"], self.batch_size)
        return unpad(run_halving_on_oom(self._forward, pixels), self._specs, len(batch["pixels"]))

    def begin(self, batch: Mapping[str, np.ndarray]) -> Answer:
        """Run the batch immediately: `run` of a session is synchronous."""
        taps = self.run(batch)
        return lambda: taps

    def _forward(self, pixels: np.ndarray) -> list[np.ndarray]:
        values: list[np.ndarray] = self._session.run(list(self._specs), {INPUT: np.ascontiguousarray(pixels)})
        return values


class CudaEngine(CpuEngine):
    """Runs the exported graph on a GPU: pixels and rows are bound to the device and copied once each."""

    NAME = "onnxruntime_cuda"
    PROVIDER = "CUDAExecutionProvider"

    def _providers(self) -> list[Any]:
        _load_libraries()
        options = {
            "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search may choose other kernels each time
            "use_tf32": "1" if self.precision == "tf32" else "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [(self.PROVIDER, options), "CPUExecutionProvider"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device, precision and versions."""
        return {**super().provenance, "device": _device_name()}

    def _forward(self, pixels: np.ndarray) -> list[np.ndarray]:
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT, np.ascontiguousarray(pixels))
        for name in self._specs:
            binding.bind_output(name, "cuda", 0)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        values: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return values


def _load_libraries() -> None:
    """Load CUDA and cuDNN from torch's packages; without them, the check of the active provider fails later."""
    if hasattr(onnxruntime, "preload_dlls"):
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
