"""The torch engine: eager, channels-last, float32, on a GPU where there is one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.backbones import taps
from pipeline.backbones.artefact import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.runtime import versions


class TorchEngine:
    """Runs a backbone in fixed batches: a short batch is filled up, since kernels may round by the batch size."""

    def __init__(self, backbone: Backbone, specs: Mapping[str, TapSpec], *, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        if self.device.type == "cuda":
            # The identity says float32; TensorFloat-32, which cuDNN would take for convolutions, is coarser.
            torch.backends.cudnn.allow_tf32 = False
        self._spec, self._taps = backbone.spec, dict(specs)
        self._module = backbone.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (backbone.spec.input.mean, backbone.spec.input.std)
        )

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Engine, device and versions."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"engine": "torch", "device": device, "batch_size": self.batch_size, **versions("torch")}

    @torch.inference_mode()
    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`pixels` uint8 (n, height, width, channels), n up to the batch size, to each tap, float32 (n, ...)."""
        pixels = torch.from_numpy(batch["pixels"])
        rows = len(pixels)
        if rows < self.batch_size:
            pixels = torch.cat([pixels, pixels[-1:].expand(self.batch_size - rows, -1, -1, -1)])
        # (n, h, w, c) bytes seen as (n, c, h, w) are channels-last already: nothing is copied.
        images = pixels.to(self.device).permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)
        found = taps.collect(self._module, images, self._taps, self._spec.taps)
        return {name: value[:rows].float().cpu().numpy() for name, value in found.items()}
