"""Small networks of torchvision's own classes, with random weights, as backbones: what the tests of training cut up."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import resnet, vgg

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.aliases import aliases
from pipeline.backbones.nodes import survey
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec, InputSpec
from pipeline.readers.image import ImageSpec

CLASSES = 5


def _vgg() -> nn.Module:
    with torch.device("meta"):  # its own layers are large, and are replaced
        network = vgg.VGG(nn.Identity(), num_classes=CLASSES, init_weights=False)
    network.features = vgg.make_layers([8, "M", 16, "M", 16, 512, "M"], batch_norm=False)
    network.classifier[0] = nn.Linear(512 * 7 * 7, 24)
    network.classifier[3] = nn.Linear(24, 24)
    network.classifier[6] = nn.Linear(24, CLASSES)
    return network


def _mobilenet() -> nn.Module:
    setting = [[1, 8, 1, 1], [6, 16, 2, 2], [6, 24, 2, 2]]
    return models.MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=setting)


def _vit() -> nn.Module:
    network = models.VisionTransformer(
        32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=CLASSES, dropout=0.1
    )
    nn.init.normal_(network.heads.head.weight)  # torchvision begins with zeros
    nn.init.normal_(network.class_token)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": _vgg,
    "resnet": partial(models.ResNet, resnet.BasicBlock, [2, 1, 1, 1], num_classes=CLASSES),
    "mobilenet": _mobilenet,
    "vit": _vit,
}


def backbone(network: nn.Module | str, *, side: int = 32, **architecture: Any) -> Backbone:
    """A network as a backbone, with BatchNorm statistics as after some training; those with names are made once."""
    if not isinstance(network, str):
        return _backbone(network, side, architecture)
    if (network, side) not in MADE:
        torch.manual_seed(0)
        MADE[network, side] = _backbone(NETWORKS[network](), side, {"family": "torchvision", "name": network})
    made = MADE[network, side]
    return Backbone(made.spec, copy.deepcopy(made.module))


MADE: dict[tuple[str, int], Backbone] = {}


def _backbone(network: nn.Module, side: int, architecture: dict[str, Any]) -> Backbone:
    channels = next(part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    taps = survey(serialization.freeze(network), (channels, side, side))
    image = ImageSpec(mode="L" if channels == 1 else "RGB", resize=(side, side))
    spec = BackboneSpec(
        architecture=architecture,
        origin={},
        weights_digest="0" * 64,
        input=InputSpec(image=image, mean=(0.5,) * channels, std=(0.5,) * channels),
        taps=taps,
        aliases=aliases(architecture, taps),
    )
    return Backbone(spec, network)


def glyph_net() -> Backbone:
    """The network of the default run, smaller."""
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=CLASSES, widths=(4, 6, 8))
    return backbone(network, family="glyphs", classes=CLASSES, widths=[4, 6, 8])


def images(spec: BackboneSpec, count: int, *, seed: int = 1) -> Tensor:
    """Random inputs of a network, (count, channels, height, width)."""
    return torch.randn(count, *spec.input.shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int) -> Tensor:
    """A class for each of them."""
    return torch.arange(count) % CLASSES
