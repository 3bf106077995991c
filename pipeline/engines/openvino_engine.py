"""Run a network's graph with OpenVINO on the CPU: a few rows per request, several requests in parallel.

Small requests of a fixed size keep feature maps in the processor's cache, and make a row's values independent of the
size of the batch.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import Answer
from pipeline.engines.openvino_model import FILE, cached_model
from pipeline.engines.padding import pad_batch, unpad
from pipeline.errors import EngineError
from pipeline.runtime import cores, versions

ROWS = 4  # per request
HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine:
    """An engine that runs the graph a few rows at a time, with several requests in parallel."""

    NAME = "openvino"

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
        self._specs, channels_first = dict(specs), backbone.spec.input.shape
        self._shape = (min(ROWS, batch_size), *channels_first[1:], channels_first[0])
        try:
            model = cached_model(backbone, specs, cache=cache)
            if precision != "float32":
                try_in_subprocess(model, self._shape, precision)
            compiled = compile_model(model, self._shape, precision)
        except RuntimeError as error:
            raise EngineError(
                f"engine 'openvino': it cannot run this network: {str(error).strip().splitlines()[-1].rstrip('.')}. "
                "Choose another engine."
            ) from None
        self._queue = openvino.AsyncInferQueue(compiled, max(1, _optimal_requests(compiled)))
        self._outputs = [tuple(output.shape)[1:] for output in compiled.outputs]
        self._queue.set_callback(self._store)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Return engine, device, precision and versions."""
        record = {"engine": self.NAME, "device": "cpu", "precision": self.precision, "batch_size": self.batch_size}
        return {**record, "rows_a_request": self._shape[0], **versions("torch", "openvino")}

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute each tap, float32 (n, ...), of `pixels` uint8 (n, height, width, channels)."""
        return self.begin(batch)()

    def begin(self, batch: Mapping[str, np.ndarray]) -> Answer:
        """Start the requests of a batch and return a function that waits for them; batches may overlap."""
        rows, step = len(batch["pixels"]), self._shape[0]
        pixels = np.ascontiguousarray(pad_batch(batch["pixels"], -(-rows // step) * step))
        values = [np.empty((len(pixels), *shape), dtype=np.float32) for shape in self._outputs]
        pending = _PendingRequests(len(pixels) // step, pixels)
        for start in range(0, len(pixels), step):
            part = slice(start, start + step)
            self._queue.start_async({0: pixels[part]}, userdata=(values, part, pending), share_inputs=True)

        def wait() -> dict[str, np.ndarray]:
            while not pending.wait(1.0):  # seconds
                self._queue.wait_all()  # raises what a request raised
            return unpad(values, self._specs, rows)

        return wait

    @staticmethod
    def _store(request: Any, where: "tuple[list[np.ndarray], slice, _PendingRequests]") -> None:
        values, part, pending = where
        for number, value in enumerate(values):
            value[part] = request.get_output_tensor(number).data
        pending.count_done()


class _PendingRequests:
    """The number of unfinished requests of a batch, with a reference to the pixels that the requests read."""

    def __init__(self, count: int, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self._count, self._lock, self._all_done = count, threading.Lock(), threading.Event()

    def count_done(self) -> None:
        """Count a request as finished."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._all_done.set()

    def wait(self, seconds: float) -> bool:
        """Wait for all requests, at most this many seconds; return whether all are finished."""
        return self._all_done.wait(seconds)


def compile_model(model: Any, shape: tuple[int, ...], precision: str) -> Any:
    """Compile a model for the CPU and inputs of one shape."""
    model.reshape(list(shape))
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    return openvino.Core().compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": cores()})


def _optimal_requests(compiled: Any) -> int:
    return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


SUBPROCESS = """
import sys
import numpy as np
from pipeline.engines.openvino_engine import compile_model, openvino
shape = tuple(map(int, sys.argv[3:]))
compile_model(openvino.Core().read_model(sys.argv[1]), shape, sys.argv[2])({0: np.zeros(shape, np.uint8)})
"""


def try_in_subprocess(model: Any, shape: tuple[int, ...], precision: str) -> None:
    """Run one request in a subprocess; raises EngineError if the subprocess fails.

    Some virtual machines report matrix instructions (AMX) of the processor, but kill processes that use them.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        openvino.save_model(model, path, compress_to_fp16=False)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-W", "ignore", "-c", SUBPROCESS, str(path), precision, *map(str, shape)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"ended by signal {-done.returncode}" if done.returncode < 0 else last.rstrip(".")
        raise EngineError(
            f"engine 'openvino', precision {precision!r}: expected a first request to pass, but it was {how}. Choose "
            "another engine, or set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 where the processor's AMX cannot be used."
        )
