"""The small source network of the default run: printed characters, 32×32 grey, about 0.2 million parameters."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.backbones.spec import InputSpec
from pipeline.readers.image import ImageSpec

INPUT = InputSpec(image=ImageSpec(mode="L", resize=(32, 32), interpolation="bilinear"), mean=(0.5,), std=(0.5,))


class GlyphNet(nn.Module):
    """Three blocks of two convolutions, (1, 32, 32) -> (width, 4, 4), a mean over space and a linear classifier."""

    def __init__(self, *, classes: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        channels = 1
        for number, width in enumerate(widths, start=1):
            self.add_module(f"block{number}", _block(channels, width))
            channels = width
        self.penultimate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, classes) of images (n, 1, 32, 32)."""
        for part in self.children():
            images = part(images)
        return images


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network from the settings in backbone.json."""
    return GlyphNet(classes=architecture["classes"], widths=tuple(architecture["widths"]))
