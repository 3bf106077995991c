"""The torch engines: channels-last, on a GPU where there is one, eager or compiled."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.backbones.artefact import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.backbones.tapped import Tapped
from pipeline.engines.batches import filled, finished
from pipeline.errors import EngineError
from pipeline.runtime import versions

LOWERED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Runs a backbone in fixed batches: a short batch is filled up, since kernels may round by the batch size.

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
            # The caller's network stays where it is: others export it.
            backbone = Backbone(spec=backbone.spec, module=copy.deepcopy(backbone.module))
        self._network = self._prepare(backbone)

    def _prepare(self, backbone: Backbone) -> nn.Module:
        tapped = Tapped(backbone, self._specs).eval()
        return tapped.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device, precision and versions."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        told = {"engine": self.NAME, "device": device, "precision": self.precision, "batch_size": self.batch_size}
        return {**told, **versions("torch")}

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`pixels` uint8 (n, height, width, channels), n up to the batch size, to each tap, float32 (n, ...)."""
        pixels = torch.from_numpy(filled(batch["pixels"], self.batch_size))
        with torch.inference_mode(), self._precisely():
            values = [value.cpu().numpy() for value in self._network(pixels.to(self.device))]
        return finished(values, self._specs, len(batch["pixels"]))

    @contextlib.contextmanager
    def _precisely(self) -> Iterator[None]:
        """The precision asked for, and no other: cuDNN would take TensorFloat-32 for convolutions by itself."""
        if self.precision in LOWERED:
            with torch.autocast(self.device.type, dtype=LOWERED[self.precision]):
                yield
        elif self.device.type == "cuda":
            flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
            wanted = self.precision == "tf32"
            before = [flag.allow_tf32 for flag in flags]
            try:
                for flag in flags:
                    flag.allow_tf32 = wanted
                yield
            finally:
                for flag, value in zip(flags, before, strict=True):
                    flag.allow_tf32 = value
        else:
            yield


class CompiledEngine(TorchEngine):
    """The same through torch.compile. The graph is exported first, so that the hooks of taps are no obstacle."""

    NAME = "torch_compiled"

    def _prepare(self, backbone: Backbone) -> nn.Module:
        whole = Tapped(backbone, self._specs, early=False).eval()
        whole = whole.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixels = torch.zeros(self.batch_size, *self._size, self._channels, dtype=torch.uint8, device=self.device)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                graph = torch.export.export(whole, (pixels,)).module()
                compiled: nn.Module = torch.compile(graph)  # type: ignore[assignment]
                with torch.inference_mode(), self._precisely():
                    compiled(pixels)
        except Exception as error:  # noqa: BLE001 - whatever stops a compiler is the reason
            raise EngineError(
                f"engine 'torch_compiled': the network cannot be compiled here: {first_line(error)}. Choose `torch`."
            ) from None
        return compiled


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
