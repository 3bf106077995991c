"""The classifier of a network: the layer, or the layers side by side, from whose inputs all of the output follows.

A layer of a network is its classifier where

* it is the last one with weights, runs once, and is linear: `nn.Linear`, a 1x1 convolution, or one that sees its whole
  input. Any other convolution makes features, also where only a pooling follows it;
* the output follows from the layer's input alone, whatever the image. Where linear layers of one width work side by
  side, as those of a distilled transformer, the output follows from what all of them get;
* the network does not say that it has none: `num_classes = 0`, as timm writes it, or an `nn.Identity` under a
  classifier's name after the last layer.

A norm or a scale behind a layer as wide as the network's `num_classes` belongs to the end of the classifier.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import APPENDED, ENDS_AT, NoClassifier, first_input, one_path, with_first_input
from pipeline.backbones.spec import InputPart, Tap

NAMES = ("fc", "head", "head_dist", "classifier", "linear", "last_linear", "logits", "output")
"""What modules that classify are called; their parts may be numbered."""

MOST = 8  # layers side by side


def find_classifier(
    module: nn.Module, images: Tensor, *, ran: Sequence[str], once: Iterable[str], inputs: Mapping[str, Tap]
) -> dict[str, InputPart]:
    """Return the modules that get what the output follows from, each with its part of the joined vector.

    images: any. ran: all modules in the order in which they gave a tensor. once: those that ran once. inputs: what
    modules got. Empty where the network has no classifier.
    """
    parts = dict(module.named_modules())
    if missing := [name for name in ran if isinstance(parts[name], NoClassifier)]:
        return _missing(module, missing, images, inputs)
    if (getattr(module, "num_classes", None) == 0 and not hasattr(module, APPENDED)) or _is_taken_out(parts, ran):
        return {}
    layers = [name for name in ran if has_weights(parts[name])]
    if at := getattr(module, ENDS_AT, None):  # what runs after that makes none of the output
        end = max((number for number, name in enumerate(layers) if f"{name}.".startswith(f"{at}.")), default=-1)
        layers = layers[: end + 1] or layers
    while len(layers) > 1 and _is_behind(parts, layers, getattr(module, "num_classes", None)):
        layers.pop()
    usable = [name for name in once if name in inputs]
    if not layers or layers[-1] not in usable or not _is_linear(parts[layers[-1]], inputs[layers[-1]]):
        return {}
    if decide(module, layers[-1:], images):
        return _joined(parts, layers[-1:], inputs)
    several = _side_by_side(module, [name for name in layers if name in usable], images)
    return _joined(parts, several, inputs, module=module, images=images)


def has_weights(part: nn.Module) -> bool:
    """Return whether a module has weights itself. One with a single number, such as a temperature, has none."""
    return any(one.numel() > 1 for one in part.parameters(recurse=False))


@torch.no_grad()
def decide(module: nn.Module, names: Sequence[str], images: Tensor) -> bool:
    """Return whether the output follows from what some modules get: other images give the same."""
    kept = dict(zip(names, _got(module, names, images), strict=True))

    def put(name: str) -> Any:
        return lambda _part, args, kwargs: with_first_input(args, kwargs, kept[name])

    with one_path():
        logits = module(images)
        again = _hooked(module, {module.get_submodule(name): put(name) for name in names}, images.flip(0, 2))
    return isinstance(logits, Tensor) and torch.equal(again, logits)


def positions(part: nn.Module, got: Tap) -> tuple[int, ...]:
    """Return the axes of a layer's input, batch axis included, over which a linear layer and a mean can change places.

    None of a convolution that sees its whole input at once: its positions have weights of their own.
    """
    if isinstance(part, NoClassifier):
        maps, pointwise = part.maps, True
    else:
        last = [one for one in part.modules() if isinstance(one, nn.Linear | nn.Conv2d)][-1]
        maps, pointwise = isinstance(last, nn.Conv2d), getattr(last, "kernel_size", (1, 1)) == (1, 1)
    axes = range(2, 1 + len(got.shape)) if maps else range(1, len(got.shape))
    return tuple(axes) if pointwise else ()


def _hooked(module: nn.Module, hooks: Mapping[nn.Module, Any], images: Tensor) -> Any:
    """Run a network with a hook before each of some parts."""
    handles = [part.register_forward_pre_hook(hook, with_kwargs=True) for part, hook in hooks.items()]
    try:
        return module(images)
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(part: nn.Module, got: Tap) -> bool:
    if isinstance(part, nn.Conv2d):
        plain = (part.kernel_size, part.stride, part.padding) == ((1, 1), (1, 1), (0, 0))
        return plain or (part.kernel_size == got.shape[1:] and part.padding == (0, 0))
    return isinstance(part, nn.Linear)


def _is_taken_out(parts: Mapping[str, nn.Module], ran: Sequence[str]) -> bool:
    """Return whether an identity under a classifier's name ran after all layers with weights."""
    last = max((number for number, name in enumerate(ran) if has_weights(parts[name])), default=-1)
    for name in ran[last + 1 :]:
        *_, owner, own = ["", *name.split(".")]
        if isinstance(parts[name], nn.Identity) and (owner if own.isdigit() else own) in NAMES:
            return True
    return False


def _is_behind(parts: Mapping[str, nn.Module], layers: Sequence[str], classes: Any) -> bool:
    """Return whether the last layer is a norm or a scale behind a classifier of so many classes."""
    before, last = parts[layers[-2]], parts[layers[-1]]
    return isinstance(before, nn.Linear | nn.Conv2d) and _is_norm(last) and before.weight.shape[0] == classes


def _is_norm(part: nn.Module) -> bool:
    """Return whether all weights of a module are one number per channel."""
    return all(one.ndim <= 1 for one in part.parameters(recurse=False))


def _side_by_side(module: nn.Module, layers: Sequence[str], images: Tensor) -> list[str]:
    """Return the last linear layers of which none feeds another, and from whose inputs the output follows."""
    parts = dict(module.named_modules())
    found = [layers[-1]]
    for name in reversed(layers[:-1]):
        part, last = parts[name], parts[layers[-1]]
        if _is_norm(part):
            continue
        if not (isinstance(part, nn.Linear) and isinstance(last, nn.Linear) and part.out_features == last.out_features):
            return []
        feeds, counts = _effects(module, name, found, images)
        if feeds or len(found) == MOST:
            return []
        found = [name, *found] if counts else found
        if decide(module, found, images):
            return found
    return []


@torch.no_grad()
def _effects(module: nn.Module, name: str, others: Sequence[str], images: Tensor) -> tuple[bool, bool]:
    """Return whether another output of a layer changes what some others get, and whether it changes the network's
    output.
    """
    got: list[dict[str, Tensor]] = [{}, {}]
    outputs = []

    def keep(name: str, values: dict[str, Tensor]) -> Any:
        return lambda _part, args, kwargs: values.update({name: first_input(args, kwargs).clone()})

    for values, factor in zip(got, (1, -2), strict=True):
        handle = module.get_submodule(name).register_forward_hook(
            lambda _part, _args, output, factor=factor: output * factor + (factor < 0)
        )
        try:
            with one_path():
                outputs.append(
                    _hooked(module, {module.get_submodule(other): keep(other, values) for other in others}, images)
                )
        finally:
            handle.remove()
    feeds = any(not torch.equal(got[0][other], got[1][other]) for other in others)
    return feeds, not torch.equal(*outputs)


def _joined(
    parts: Mapping[str, nn.Module],
    names: Sequence[str],
    inputs: Mapping[str, Tap],
    *,
    module: nn.Module | None = None,
    images: Tensor | None = None,
) -> dict[str, InputPart]:
    """Return the parts of a vector that modules get: all of it each, where all get the same, else one after the other.

    Where layers side by side have norms before them that get the same, the modules around these are taken.
    """
    shared = False
    if len(names) > 1 and module is not None and images is not None:
        around = [_around(parts, name, inputs) for name in names]
        first, *others = _got(module, around, images)
        shared = all(torch.equal(first, other) for other in others)
        names = around if shared else names
    result: dict[str, InputPart] = {}
    stop = 0
    for name in names:
        axes = positions(parts[name], inputs[name])
        start = 0 if shared else stop
        stop = start + math.prod(size for axis, size in enumerate(inputs[name].shape, start=1) if axis not in axes)
        result[name] = InputPart(start=start, stop=stop, axes=axes)
    return result


def _around(parts: Mapping[str, nn.Module], name: str, inputs: Mapping[str, Tap]) -> str:
    """Return the outermost module around a layer that holds nothing else with weights but norms."""
    while owner := name.rpartition(".")[0]:
        layers = [one for one in parts[owner].modules() if has_weights(one) and not _is_norm(one)]
        if len(layers) != 1 or owner not in inputs:
            break
        name = owner
    return name


@torch.no_grad()
def _got(module: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the tensors that some modules get."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _part, args, kwargs: kept.update({name: first_input(args, kwargs).clone()})

    with one_path():
        _hooked(module, {module.get_submodule(name): keep(name) for name in names}, images)
    return [kept[name] for name in names]


@torch.no_grad()
def _missing(
    module: nn.Module, names: Sequence[str], images: Tensor, inputs: Mapping[str, Tap]
) -> dict[str, InputPart]:
    """Return the parts where classifiers stood; empty where the output is what the only one got, as it is or pooled."""
    parts = dict(module.named_modules())
    if len(names) == 1:
        with one_path():
            output = module(images)
        (got,) = _got(module, names, images)
        alike = [
            got,
            *([got.mean((2, 3)), got.mean((1, 2))] if got.ndim == 4 else [got.mean(1)] if got.ndim == 3 else []),
        ]
        if any(one.numel() == output.numel() and torch.allclose(one.flatten(), output.flatten()) for one in alike):
            return {}
    return _joined(parts, names, inputs, module=module, images=images)
