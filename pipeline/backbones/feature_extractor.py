"""A backbone and its taps as a module that engines run or export: pixels in, pooled rows out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import collect
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec


class Tapped(nn.Module):
    """A network that maps pixels uint8 (n, height, width, channels) to taps float32 (n, ...), in the order of `names`.

    `early`: stop the forward pass after the last tap. Off for tracers, which need a complete pass; layers after the
    last tap reach no output and are not in the graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, specs: Mapping[str, TapSpec], *, early: bool = True) -> None:
        super().__init__()
        self.network, self.specs, self.taps = backbone.module, dict(specs), backbone.spec.taps
        self.names, self.early = tuple(specs), early
        for name, values in (("mean", backbone.spec.input.mean), ("std", backbone.spec.input.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Normalise, run the network, and pool; float images (n, channels, height, width) are normalised already."""
        images = pixels if pixels.is_floating_point() else self.normalised(pixels)
        values = collect(self.network, images, self.specs, self.taps, early=self.early)
        return tuple(values[name].float() for name in self.names)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return images float32 (n, channels, height, width), channels-last in memory."""
        return normalised(pixels, self.mean, self.std)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert pixels uint8 (n, h, w, c) to images float32 (n, c, h, w), less `mean`, over `std`, each (1, c, 1, 1)."""
    # (n, h, w, c) bytes seen as (n, c, h, w) are channels-last already: nothing is copied.
    return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
