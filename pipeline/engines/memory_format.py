"""Layers whose weights torch cannot train in channels-last memory, and how they are kept out of it.

On the CPU, torch 2.15 writes beyond its memory when it computes the gradient of the weights of a 1×1 convolution with
stride, of few input channels, channels last: the process ends with a double free, or goes on with other memory changed.
The first blocks of RepVGG, MobileOne and FastViT have such a layer, on the three channels of an image. Forward passes
and gradients of inputs are right.
"""

from typing import Any, TypeGuard

import torch
from torch import nn

FEW = 16
"""Channels that fill a vector of AVX-512. With AVX2, whose vectors have 8, up to 6 channels end the process."""


def keep_contiguous(network: nn.Module) -> None:
    """Make the layers of a network that need contiguous memory for their gradients work in it, whatever comes in.

    On a GPU such a layer copies its few channels for nothing.
    """
    for layer in network.modules():
        if _overruns(layer) and _copy_contiguous not in layer._forward_pre_hooks.values():
            # `contiguous` returns such weights as they are, since both formats have their values in one order.
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
            layer.register_forward_pre_hook(_copy_contiguous)


def _overruns(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.groups == 1
        and layer.in_channels < FEW
    )


def _copy_contiguous(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone(memory_format=torch.contiguous_format) for value in inputs)
