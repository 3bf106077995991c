"""The torch engines: channels-last, on a GPU if there is one, eager or compiled."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.backbones.feature_extractor import Tapped
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import Answer
from pipeline.engines.out_of_memory import first_line, run_halving_on_oom
from pipeline.engines.padding import pad_batch, unpad
from pipeline.errors import EngineError
from pipeline.runtime import versions

LOWERED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Runs a backbone in batches of fixed size: a short batch is padded, since rounding may depend on the batch size.

    Reduced precision is torch's autocast: matrix products and convolutions are reduced, sums are not.
    """

    NAME = "torch"

    def __init__(
        self,
        backbone: Backbone,
        specs: Mapping[str, TapSpec],
        *,
        batch_size: int,
        precision: str = "float32",
        cache: Path | None = None,  # noqa: ARG002 - nothing is exported
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.precision = batch_size, precision
        if precision == "tf32" and self.device.type != "cuda":
            raise EngineError("precision 'tf32': expected a CUDA device, got the CPU. Choose float32 or bfloat16.")
        self._specs, self._size = dict(specs), backbone.spec.input.size
        self._channels = backbone.spec.input.shape[0]
        if self.device.type == "cuda":
            # A copy, since the caller's network must stay on its device: other engines export it.
            backbone = Backbone(spec=backbone.spec, module=copy.deepcopy(backbone.module))
            self._copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._smallest = 1
        self._network = self._prepare(backbone)

    def _prepare(self, backbone: Backbone) -> nn.Module:
        tapped = Tapped(backbone, self._specs).eval()
        return tapped.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device, precision and versions."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        record = {"engine": self.NAME, "device": device, "precision": self.precision, "batch_size": self.batch_size}
        return {**record, **versions("torch")}

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute each tap, float32 (n, ...), of `pixels` uint8 (n, height, width, channels), n <= batch size."""
        return self.begin(batch)()

    def begin(self, batch: Mapping[str, np.ndarray]) -> Answer:
        """Start a batch. On a GPU, its transfers overlap with the computation of other batches."""
        rows, pixels = len(batch["pixels"]), pad_batch(batch["pixels"], self.batch_size)
        if self.device.type == "cuda":
            try:
                sent = self._send(pixels)
            except torch.OutOfMemoryError:
                torch.cuda.synchronize(self.device)  # finishes the batches started before
            else:
                return lambda: unpad(sent(), self._specs, rows)
        taps = unpad(run_halving_on_oom(self._compute, pixels, smallest=self._smallest), self._specs, rows)
        return lambda: taps

    def _compute(self, pixels: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode(), self._precision_context():
            return [value.cpu().numpy() for value in self._network(torch.from_numpy(pixels).to(self.device))]

    def _send(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Queue a batch on the GPU without waiting; the returned function waits for its rows."""
        pinned = torch.from_numpy(pixels).pin_memory()
        computing = torch.cuda.current_stream(self.device)
        with torch.inference_mode(), self._precision_context():
            with torch.cuda.stream(self._copying):
                moved = pinned.to(self.device, non_blocking=True)
            computing.wait_stream(self._copying)
            moved.record_stream(computing)
            values = self._network(moved)
            rows = [torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for value in values]
            for row, value in zip(rows, values, strict=True):
                row.copy_(value, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(computing)

        def wait() -> list[np.ndarray]:
            ready.synchronize()
            return [row.numpy() for row in rows]

        return wait

    @contextlib.contextmanager
    def _precision_context(self) -> Iterator[None]:
        """Set the precision of torch in this block: by default, cuDNN uses TensorFloat-32 for convolutions."""
        if self.precision in LOWERED:
            with torch.autocast(self.device.type, dtype=LOWERED[self.precision]):
                yield
        elif self.device.type == "cuda":
            flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
            allow = self.precision == "tf32"
            before = [flag.allow_tf32 for flag in flags]
            try:
                for flag in flags:
                    flag.allow_tf32 = allow
                yield
            finally:
                for flag, value in zip(flags, before, strict=True):
                    flag.allow_tf32 = value
        else:
            yield


class CompiledEngine(TorchEngine):
    """Runs a backbone through torch.compile. The graph is exported first, since hooks cannot be compiled."""

    NAME = "torch_compiled"

    def _prepare(self, backbone: Backbone) -> nn.Module:
        self._smallest = self.batch_size  # the graph is compiled for it
        tapped = Tapped(backbone, self._specs, early=False).eval()
        tapped = tapped.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixels = torch.zeros(self.batch_size, *self._size, self._channels, dtype=torch.uint8, device=self.device)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                graph = torch.export.export(tapped, (pixels,)).module()
                compiled: nn.Module = torch.compile(graph)  # type: ignore[assignment]
                with torch.inference_mode(), self._precision_context():
                    compiled(pixels)
        except Exception as error:  # noqa: BLE001 - any error of the compiler is the reason
            raise EngineError(
                f"engine 'torch_compiled': the network cannot be compiled here: {first_line(error)}. Choose `torch`."
            ) from None
        return compiled
