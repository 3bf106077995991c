"""Aliases of nodes: the names that papers and other libraries use.

conv4_3 relu4_3 bn4_3 pool4 fc6 relu6 fc8    VGG: before and after the activation (Simonyan and Zisserman 2015)
conv1 relu1 pool1 fc6 relu6 fc8              AlexNet
res2 … res5                                  residual networks: torchvision's layer1 … layer4 (Detectron's names)
mixed_5b … mixed_7c, mixed_0 … mixed_10      Inception: torchvision's names in small letters, and TensorFlow's numbers
denseblock1, transition1                     DenseNet, without the `features.` before them
fire2 … fire9                                SqueezeNet
block.0, block.1, …                          blocks of transformers, ConvNeXt, MobileNet, EfficientNet, over all stages
cls                                          the class token after the last norm: the input of the last layer
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.backbones.spec import Tap

Taps = Mapping[str, Tap]

BLOCKS = ("EncoderBlock", "SwinTransformerBlock", "SwinTransformerBlockV2", "MaxVitLayer", "CNBlock", "Block")
SMALL_BLOCKS = ("InvertedResidual", "MBConv", "FusedMBConv")  # MaxViT has these inside its blocks
DENSE = re.compile(r"features\.(denseblock|transition)\d")
RESIDUAL = re.compile(r"(wide_|se)?res(net|next|nest)")
MIXED = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
         "Mixed_7b", "Mixed_7c")  # fmt: skip


def aliases(architecture: Mapping[str, Any], taps: Taps) -> dict[str, str]:
    """Return {alias: node}; an alias never hides a node of the same name."""
    name = str(architecture.get("name", ""))
    pairs: list[tuple[str, str]] = [*_blocks(taps), *_class_token(taps)]
    if name.startswith("vgg"):
        pairs += [*_vgg(taps), *_classifier(taps)]
    elif name == "alexnet":
        pairs += [*_alexnet(taps), *_classifier(taps)]
    elif RESIDUAL.match(name):
        pairs += [(f"res{number + 1}", f"layer{number}") for number in range(1, 5)]
    elif name.startswith("inception_v3"):
        pairs += [(node.lower(), node) for node in MIXED]
        pairs += [(f"mixed_{number}", node) for number, node in enumerate(MIXED)]
    elif name.startswith("densenet"):
        pairs += [(node.removeprefix("features."), node) for node in taps if DENSE.fullmatch(node)]
    elif name.startswith("squeezenet"):
        fires = [node for node in taps if taps[node].kind == "Fire"]
        pairs += [(f"fire{number}", node) for number, node in enumerate(fires, start=2)]
    return {alias: node for alias, node in pairs if node in taps and alias not in taps}


def _vgg(taps: Taps) -> Iterator[tuple[str, str]]:
    """Yield the aliases of VGG, such as conv<block>_<number>; a pooling ends a block."""
    block, number = 1, 0
    for node in _below("features", taps):
        kind = taps[node].kind
        if kind == "Conv2d":
            number += 1
            yield f"conv{block}_{number}", node
        elif kind == "BatchNorm2d":
            yield f"bn{block}_{number}", node
        elif kind == "ReLU":
            yield f"relu{block}_{number}", node
        elif kind == "MaxPool2d":
            yield f"pool{block}", node
            block, number = block + 1, 0


def _alexnet(taps: Taps) -> Iterator[tuple[str, str]]:
    """Yield the aliases of AlexNet; a pooling takes the number of the convolution before it."""
    number = 0
    names = {"Conv2d": "conv", "ReLU": "relu", "MaxPool2d": "pool"}
    for node in _below("features", taps):
        number += taps[node].kind == "Conv2d"
        if taps[node].kind in names:
            yield f"{names[taps[node].kind]}{number}", node


def _classifier(taps: Taps) -> Iterator[tuple[str, str]]:
    """Yield the aliases of the fully connected layers, numbered from 6: after five blocks of convolutions."""
    number = 5
    for node in _below("classifier", taps):
        number += taps[node].kind == "Linear"
        if taps[node].kind in ("Linear", "ReLU"):
            yield f"{'fc' if taps[node].kind == 'Linear' else 'relu'}{number}", node


def _below(parent: str, taps: Taps) -> list[str]:
    return [node for node in taps if re.fullmatch(rf"{parent}\.\d+", node)]


def _blocks(taps: Taps) -> Iterator[tuple[str, str]]:
    """Yield `block.0`, … if a network's blocks are all of one class; `Block` is the class of timm's transformers."""
    kinds = {tap.kind for tap in taps.values()}
    present = [kind for kind in BLOCKS if kind in kinds] or [kind for kind in SMALL_BLOCKS if kind in kinds]
    if len(present) == 1:
        blocks = [node for node, tap in taps.items() if tap.kind == present[0] and not tap.call]
        yield from ((f"block.{number}", node) for number, node in enumerate(blocks))


def _class_token(taps: Taps) -> Iterator[tuple[str, str]]:
    """Yield `cls` if the last layer takes the normalised class token, and not the mean over the patches."""
    last = taps.get("penultimate")
    tokens = [tap for tap in taps.values() if tap.class_token]
    mean = "fc_norm" in taps and taps["fc_norm"].kind != "Identity"
    if last and tokens and last.operation == "native_layer_norm" and last.shape == tokens[-1].shape[1:] and not mean:
        yield "cls", "penultimate"
