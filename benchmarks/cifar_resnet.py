"""ResNet-20 and ResNet-56 for images of 32 × 32 px, with factories for `freeze`; the assets have weights of both.

    freeze: {resnet20: {source: module, factory: cifar_resnet:resnet20, file: …/resnet20-12fca82f.th,
             sha256: 12fca82f, strip_prefix: module., input: …}}

The networks of He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels with n blocks of two convolutions,
6n + 2 layers in all. A shortcut into a stage takes every second pixel, and has zeros for the new channels (option A):
no weights. The modules have the names that the keys of the weights have.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT = {"resize": [32, 32], "mean": list(MEAN), "std": list(STD)}
"""`input` of the settings of `freeze`: the weights were trained with ImageNet's mean and deviation."""

WEIGHTS = {"resnet20": "weights/resnet20-12fca82f.th", "resnet56": "weights/resnet56-4bfd9763.th"}
PREFIX = "module."  # of the keys in these files


class Block(nn.Module):
    """Two convolutions of 3 × 3 and a shortcut; (before, height, width) to (after, height / stride, …)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the output maps of maps (n, before, height, width)."""
        found = functional.relu(self.bn1(self.conv1(maps)))
        found = self.bn2(self.conv2(found))
        if self.more:
            beside = self.more // 2
            maps = functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, beside, beside))
        return functional.relu(found + maps)


class CifarResNet(nn.Module):
    """6n + 2 layers, for n blocks in each of three stages."""

    def __init__(self, *, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for number, width in enumerate(WIDTHS, start=1):
            stage = [
                Block(width if place else before, width, 1 if place or number == 1 else 2) for place in range(blocks)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, classes)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, 32, 32)."""
        maps = functional.relu(self.bn1(self.conv1(images)))
        for name in ("layer1", "layer2", "layer3"):
            maps = self.get_submodule(name)(maps)
        logits: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(maps, 1), 1))
        return logits


def resnet20(classes: int = 10) -> CifarResNet:
    """Create a ResNet-20, with 0.27 million parameters."""
    return CifarResNet(blocks=3, classes=classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """Create a ResNet-56, with 0.85 million parameters."""
    return CifarResNet(blocks=9, classes=classes)
