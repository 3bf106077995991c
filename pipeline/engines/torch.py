"""The torch engine: eager, channels-last, float32, on a GPU where there is one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.backbones import projection
from pipeline.backbones.artefact import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.backbones.tapped import Tapped
from pipeline.runtime import versions


class TorchEngine:
    """Runs a backbone in fixed batches: a short batch is filled up, since kernels may round by the batch size."""

    def __init__(self, backbone: Backbone, specs: Mapping[str, TapSpec], *, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        if self.device.type == "cuda":
            # The identity says float32; TensorFloat-32, which cuDNN would take for convolutions, is coarser.
            torch.backends.cudnn.allow_tf32 = False
        self._specs = dict(specs)
        self._tapped = Tapped(backbone, specs).eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        found = dict(zip(self._tapped.names, self._tapped(pixels.to(self.device)), strict=True))
        return {name: finish(value[:rows].cpu().numpy(), self._specs[name]) for name, value in found.items()}


def finish(rows: np.ndarray, spec: TapSpec) -> np.ndarray:
    """What is left to do after the network: the random projection, where the tap has one."""
    return rows if spec.project is None else projection.project(rows, spec.project, spec.project_seed)
