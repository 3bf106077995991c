"""End a network at its new classifier, where more layers follow the old one or several layers give the output.

The layers that follow run on zeros of the width that they were made for: their output is dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import ENDS_AT, join, one_path
from pipeline.backbones.spec import BackboneSpec, InputPart, Tap


class _LastTensor:
    """Hold the last tensor at a module at which a network ends. A copy of the network holds none."""

    tensor: Tensor | None = None

    def __deepcopy__(self, _memo: object) -> "_LastTensor":
        return _LastTensor()


class EndLayers(nn.Sequential):
    """Layers at which the network ends with their output.

    What follows them in the network runs on zeros of the width that it was made for, and is no part of the output.
    width: of the output of the old classifier.
    """

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__(*layers)
        self.kept, self.width = _LastTensor(), width

    def forward(self, inputs: Tensor) -> Tensor:
        """Hold the output of the layers, and return zeros as wide as what the network expects."""
        output: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        self.kept.tensor = output
        if isinstance(linear_layers(self)[-1], nn.Conv2d):
            return nn.functional.pad(output[:, :1] * 0, (0, 0, 0, 0, 0, self.width - 1))
        return nn.functional.pad(output[..., :1] * 0, (0, self.width - 1))


class InputCapture(nn.Module):
    """Stand in the place of one of several classifiers, and hold its input.

    width: of the output of the old classifier; None where the weights have none of it.
    """

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.kept, self.width = _LastTensor(), width

    def forward(self, inputs: Tensor) -> Tensor:
        """Hold the input, and return zeros as wide as what the network expects; the input itself without a `width`."""
        self.kept.tensor = inputs
        return inputs if self.width is None else nn.functional.pad(inputs[..., :1] * 0, (0, self.width - 1))


def end_network(network: nn.Module, at: str, axes: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """Return the network with the output of its module `at` as its output, averaged over some axes.

    parts: the modules whose inputs the part `at` gets, where it does not get the network's output.
    """
    base: Any = type(network)
    joined = Tap(shape=(), parts={name: InputPart(**part) for name, part in parts.items()})

    def forward(self: nn.Module, images: Tensor) -> Any:
        value: Any = base.forward(self, images)
        part: Any = self.get_submodule(at)
        if parts:
            return part(join([self.get_submodule(name).kept.tensor for name in parts], joined))  # type: ignore[union-attr, misc]
        if isinstance(part, EndLayers):
            value = part.kept.tensor
        pooled = value.mean(tuple(axes)) if axes else value
        return pooled if isinstance(part, EndLayers) else part(pooled)

    members = {"forward": forward, "__module__": base.__module__, ENDS_AT: at}
    network.__class__ = type(base.__name__, (base,), members)
    return network


def output_width(old: nn.Module) -> int | None:
    """Return the width of the output of a classifier, as the network was made for it."""
    if isinstance(old, EndLayers):
        return old.width
    layers = linear_layers(old)
    return int(layers[-1].weight.shape[0]) if layers else None


@torch.no_grad()
def find_end(spec: BackboneSpec, network: nn.Module, at: str) -> dict[str, Any]:
    """Find whether a network has to end at its new classifier, and return the axes to average its output over.

    Nothing where the network's output is its classifier's as it is, or its mean. The output of the classifier is
    replaced by random numbers, so that the answer does not depend on weights, and by one more of them than it has,
    which a scale per class does not take. A part that has weights and does not run in evaluation is an auxiliary
    classifier, which is no output of ours in training.
    """
    if spec.architecture.get("family") == "headed":
        return {name: spec.architecture[name] for name in ("ends", "axes") if "ends" in spec.architecture}
    like = next(network.parameters())
    if like.device.type == "meta":
        return {}
    last = isinstance(network.get_submodule(at), nn.Conv2d)
    ran, given = set[str](), list[Tensor]()
    generator = torch.Generator().manual_seed(0)

    def replace(_part: nn.Module, _args: Any, output: Tensor) -> Tensor:
        channel = 1 if last else output.ndim - 1
        shape = [size + (axis == channel) for axis, size in enumerate(output.shape)]
        given.append(torch.randn(shape, generator=generator).to(output))
        return given[0].clone()

    hooks = [
        part.register_forward_pre_hook(lambda _part, _args, name=name: ran.add(name))
        for name, part in network.named_modules()
    ]
    hooks.append(network.get_submodule(at).register_forward_hook(replace))
    modes = [(part, part.training) for part in network.modules()]
    try:
        with one_path():
            output = network.eval()(torch.zeros(2, *spec.input.shape).to(like))
    except (RuntimeError, ValueError, AssertionError, IndexError):
        output = None  # what follows takes the old number of classes only
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    value = given[0]
    axes = list(range(2, value.ndim)) if last else list(range(1, value.ndim - 1))
    poolings = [value, value.mean(axes)] if axes else [value]
    plain = isinstance(output, Tensor) and any(
        one.numel() == output.numel() and torch.allclose(one.flatten(), output.flatten(), atol=1e-5) for one in poolings
    )
    aside = [
        name
        for name, part in network.named_children()
        if linear_layers(part) and not any(one == name or one.startswith(f"{name}.") for one in ran)
    ]
    return {} if plain and not aside else {"ends": True, "axes": axes}


def linear_layers(part: nn.Module) -> list[Any]:
    """Return the linear layers and convolutions of a classifier, which may be one of these itself."""
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
