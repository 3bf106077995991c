"""End a network at its new classifier, if further layers follow the old classifier or parallel layers give the output.

The further layers run on zeros of the width that they expect, and their output is dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import ENDS_AT, join, without_attention_fastpath
from pipeline.backbones.spec import BackboneSpec, InputPart, Tap


class _TensorSlot:
    """Holds the last tensor of a module at which a network ends. A deep copy is empty."""

    tensor: Tensor | None = None

    def __deepcopy__(self, _memo: object) -> "_TensorSlot":
        return _TensorSlot()


class EndLayers(nn.Sequential):
    """The layers at which a network ends: their output is the output of the network.

    width: width of the old classifier's output, which the further layers expect.
    """

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__(*layers)
        self.slot, self.width = _TensorSlot(), width

    def forward(self, inputs: Tensor) -> Tensor:
        """Hold the output of the layers, and return zeros of the width that the further layers expect."""
        output: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        self.slot.tensor = output
        if isinstance(linear_layers(self)[-1], nn.Conv2d):
            return nn.functional.pad(output[:, :1] * 0, (0, 0, 0, 0, 0, self.width - 1))
        return nn.functional.pad(output[..., :1] * 0, (0, self.width - 1))


class InputCapture(nn.Module):
    """Replaces one of several parallel classifiers and holds its input.

    width: width of the old classifier's output; None if the weights lack that classifier.
    """

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.slot, self.width = _TensorSlot(), width

    def forward(self, inputs: Tensor) -> Tensor:
        """Hold the input, and return zeros of `width`; without a `width`, return the input."""
        self.slot.tensor = inputs
        return inputs if self.width is None else nn.functional.pad(inputs[..., :1] * 0, (0, self.width - 1))


def end_network(network: nn.Module, at: str, axes: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """Return the network with the output of its module `at` as its output, averaged over `axes`.

    parts: the modules whose joined inputs `at` takes; if empty, `at` takes the network's output.
    """
    base: Any = type(network)
    joined = Tap(shape=(), parts={name: InputPart(**part) for name, part in parts.items()})

    def forward(self: nn.Module, images: Tensor) -> Any:
        value: Any = base.forward(self, images)
        part: Any = self.get_submodule(at)
        if parts:
            return part(join([self.get_submodule(name).slot.tensor for name in parts], joined))  # type: ignore[union-attr, misc]
        if isinstance(part, EndLayers):
            value = part.slot.tensor
        pooled = value.mean(tuple(axes)) if axes else value
        return pooled if isinstance(part, EndLayers) else part(pooled)

    members = {"forward": forward, "__module__": base.__module__, ENDS_AT: at}
    network.__class__ = type(base.__name__, (base,), members)
    return network


def output_width(old: nn.Module) -> int | None:
    """Return the width of the classifier's output that the further layers of the network expect."""
    if isinstance(old, EndLayers):
        return old.width
    layers = linear_layers(old)
    return int(layers[-1].weight.shape[0]) if layers else None


@torch.no_grad()
def find_end(spec: BackboneSpec, network: nn.Module, at: str) -> dict[str, Any]:
    """Return {"ends": True, "axes": axes to average over} if a network has to end at its new classifier, else {}.

    It need not end there if the network's output is the classifier's output or its mean. For the test, random numbers
    replace the classifier's output, so that the result does not depend on weights, with an additional class, which a
    scale per class does not accept. A child with weights that does not run in evaluation is an auxiliary classifier,
    whose output in training is not wanted.
    """
    if spec.architecture.get("family") == "headed":
        return {name: spec.architecture[name] for name in ("ends", "axes") if "ends" in spec.architecture}
    like = next(network.parameters())
    if like.device.type == "meta":
        return {}
    last = isinstance(network.get_submodule(at), nn.Conv2d)
    ran, outputs = set[str](), list[Tensor]()
    generator = torch.Generator().manual_seed(0)

    def replace(_part: nn.Module, _args: Any, output: Tensor) -> Tensor:
        channel = 1 if last else output.ndim - 1
        shape = [size + (axis == channel) for axis, size in enumerate(output.shape)]
        outputs.append(torch.randn(shape, generator=generator).to(output))
        return outputs[0].clone()

    hooks = [
        part.register_forward_pre_hook(lambda _part, _args, name=name: ran.add(name))
        for name, part in network.named_modules()
    ]
    hooks.append(network.get_submodule(at).register_forward_hook(replace))
    modes = [(part, part.training) for part in network.modules()]
    try:
        with without_attention_fastpath():
            output = network.eval()(torch.zeros(2, *spec.input.shape).to(like))
    except (RuntimeError, ValueError, AssertionError, IndexError):
        output = None  # the further layers accept only the old number of classes
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    value = outputs[0]
    axes = list(range(2, value.ndim)) if last else list(range(1, value.ndim - 1))
    poolings = [value, value.mean(axes)] if axes else [value]
    plain = isinstance(output, Tensor) and any(
        pooled.numel() == output.numel() and torch.allclose(pooled.flatten(), output.flatten(), atol=1e-5)
        for pooled in poolings
    )
    auxiliary = [
        name
        for name, part in network.named_children()
        if linear_layers(part) and not any(module == name or module.startswith(f"{name}.") for module in ran)
    ]
    return {} if plain and not auxiliary else {"ends": True, "axes": axes}


def linear_layers(part: nn.Module) -> list[Any]:
    """Return the linear layers and convolutions in a classifier, including itself."""
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
