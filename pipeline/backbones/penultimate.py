"""Find the classifier of a network, and with it `penultimate`, the classifier's input as one vector per sample.

The classifier is the layer, or the parallel layers, whose inputs determine the output. A layer is the classifier if

* it is the last layer with weights, runs once, and is linear: `nn.Linear`, a 1x1 convolution, or a convolution that
  covers its whole input. Any other convolution computes features, even if only a pooling follows;
* its input determines the output, whatever the image. Of parallel linear layers of equal width, as in a distilled
  transformer, the inputs of all layers determine the output;
* the network does not state that it has no classifier: `num_classes = 0`, timm's convention, or an `nn.Identity` under
  a classifier's name after the last layer.

A norm or a scale after a layer as wide as the network's `num_classes` belongs to the classifier.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import (
    APPENDED,
    ENDS_AT,
    PENULTIMATE,
    NoClassifier,
    first_input,
    with_first_input,
    without_attention_fastpath,
)
from pipeline.backbones.spec import InputPart, Tap

NAMES = ("fc", "head", "head_dist", "classifier", "linear", "last_linear", "logits", "output")
"""Usual names of classifiers; numbered modules inside them count too."""

MAX_PARALLEL = 8  # parallel layers

POSITIONS: Mapping[str, tuple[int, ...]] = {"CHW": (2, 3), "HWC": (1, 2), "LC": (1,)}
"""The axes of a batch that are positions, by the layout of its rows."""


def penultimate_node(module: nn.Module, parts: dict[str, InputPart], *, inputs: Mapping[str, Tap], output: Tap) -> Tap:
    """Return the node of the classifier's input before averaging, or of the output if there is no classifier.

    parts: what `find_classifier` returned. inputs: the input of each module. output: the node of the network's output.
    """
    if not parts:
        return output.model_copy(update={"kind": PENULTIMATE})
    last = inputs[next(reversed(parts))]
    if len(parts) > 1 or not isinstance(module.get_submodule(next(iter(parts))), nn.Linear | nn.Conv2d):
        shape = (max(part.stop for part in parts.values()),)
        last = last.model_copy(update={"shape": shape, "input_of": None, "parts": dict(parts)})
    return last


def average_positions(tap: Tap, parts: Mapping[str, InputPart]) -> Tap:
    """Return the node as a vector: averaged over its positions if it has any."""
    if tap.parts or len(tap.shape) == 1:
        return tap
    axes = next(iter(parts.values())).axes if parts else POSITIONS.get(tap.layout, ())
    if not axes:
        return tap
    shape = tuple(size for axis, size in enumerate(tap.shape, start=1) if axis not in axes)
    update = {"shape": shape, "averaged": axes, "layout": "other", "operation": "mean", "prefix": 0}
    return tap.model_copy(update={**update, "class_token": False})


def find_classifier(
    module: nn.Module, images: Tensor, *, ran: Sequence[str], once: Iterable[str], inputs: Mapping[str, Tap]
) -> dict[str, InputPart]:
    """Return the modules of the classifier, each with its part of the joined input vector; empty without a classifier.

    images: any images. ran: all modules in the order in which they returned a tensor. once: the modules that ran once.
    inputs: the input of each module.
    """
    parts = dict(module.named_modules())
    if missing := [name for name in ran if isinstance(parts[name], NoClassifier)]:
        return _parts_of_headless(module, missing, images, inputs)
    if (getattr(module, "num_classes", None) == 0 and not hasattr(module, APPENDED)) or _has_identity_classifier(
        parts, ran
    ):
        return {}
    layers = [name for name in ran if has_weights(parts[name])]
    if at := getattr(module, ENDS_AT, None):  # modules that run after this part do not reach the output
        end = max((number for number, name in enumerate(layers) if f"{name}.".startswith(f"{at}.")), default=-1)
        layers = layers[: end + 1] or layers
    while len(layers) > 1 and _is_norm_after_classifier(parts, layers, getattr(module, "num_classes", None)):
        layers.pop()
    usable = [name for name in once if name in inputs]
    if not layers or layers[-1] not in usable or not _is_linear(parts[layers[-1]], inputs[layers[-1]]):
        return {}
    if determine_output(module, layers[-1:], images):
        return _join_parts(parts, layers[-1:], inputs)
    parallel = _find_parallel_layers(module, [name for name in layers if name in usable], images)
    return _join_parts(parts, parallel, inputs, module=module, images=images)


def has_weights(part: nn.Module) -> bool:
    """Return whether a module has weights of its own. A single number, such as a temperature, does not count."""
    return any(parameter.numel() > 1 for parameter in part.parameters(recurse=False))


@torch.no_grad()
def determine_output(module: nn.Module, names: Sequence[str], images: Tensor) -> bool:
    """Return whether the inputs of modules determine the output: with other images, the output stays the same."""
    inputs = dict(zip(names, _capture_inputs(module, names, images), strict=True))

    def replace_input(name: str) -> Any:
        return lambda _part, args, kwargs: with_first_input(args, kwargs, inputs[name])

    with without_attention_fastpath():
        logits = module(images)
        again = _run_with_hooks(
            module, {module.get_submodule(name): replace_input(name) for name in names}, images.flip(0, 2)
        )
    return isinstance(logits, Tensor) and torch.equal(again, logits)


def positions(part: nn.Module, got: Tap) -> tuple[int, ...]:
    """Return the axes of a layer's input, counted with the batch axis, over which the layer and a mean commute.

    A convolution that covers its whole input has no such axes: each position has weights of its own.
    """
    if isinstance(part, NoClassifier):
        maps, pointwise = part.maps, True
    else:
        last = [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
        maps, pointwise = isinstance(last, nn.Conv2d), getattr(last, "kernel_size", (1, 1)) == (1, 1)
    axes = range(2, 1 + len(got.shape)) if maps else range(1, len(got.shape))
    return tuple(axes) if pointwise else ()


def _run_with_hooks(module: nn.Module, hooks: Mapping[nn.Module, Any], images: Tensor) -> Any:
    """Run a network with forward pre-hooks on modules."""
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


def _has_identity_classifier(parts: Mapping[str, nn.Module], ran: Sequence[str]) -> bool:
    """Return whether an `nn.Identity` under a classifier's name ran after all layers with weights."""
    last = max((number for number, name in enumerate(ran) if has_weights(parts[name])), default=-1)
    for name in ran[last + 1 :]:
        *_, owner, own = ["", *name.split(".")]
        if isinstance(parts[name], nn.Identity) and (owner if own.isdigit() else own) in NAMES:
            return True
    return False


def _is_norm_after_classifier(parts: Mapping[str, nn.Module], layers: Sequence[str], classes: Any) -> bool:
    """Return whether the last layer is a norm or a scale after a classifier of `classes` classes."""
    before, last = parts[layers[-2]], parts[layers[-1]]
    return isinstance(before, nn.Linear | nn.Conv2d) and _is_norm(last) and before.weight.shape[0] == classes


def _is_norm(part: nn.Module) -> bool:
    """Return whether all weights of a module are vectors, with a number per channel."""
    return all(parameter.ndim <= 1 for parameter in part.parameters(recurse=False))


def _find_parallel_layers(module: nn.Module, layers: Sequence[str], images: Tensor) -> list[str]:
    """Return the last linear layers that do not feed each other and whose inputs determine the output, or []."""
    parts = dict(module.named_modules())
    found = [layers[-1]]
    for name in reversed(layers[:-1]):
        part, last = parts[name], parts[layers[-1]]
        if _is_norm(part):
            continue
        if not (isinstance(part, nn.Linear) and isinstance(last, nn.Linear) and part.out_features == last.out_features):
            return []
        feeds, counts = _effects_of(module, name, found, images)
        if feeds or len(found) == MAX_PARALLEL:
            return []
        found = [name, *found] if counts else found
        if determine_output(module, found, images):
            return found
    return []


@torch.no_grad()
def _effects_of(module: nn.Module, name: str, others: Sequence[str], images: Tensor) -> tuple[bool, bool]:
    """Return whether a layer's output changes the inputs of `others`, and whether it changes the network's output."""
    inputs: list[dict[str, Tensor]] = [{}, {}]
    outputs = []

    def keep(name: str, values: dict[str, Tensor]) -> Any:
        return lambda _part, args, kwargs: values.update({name: first_input(args, kwargs).clone()})

    for values, factor in zip(inputs, (1, -2), strict=True):
        handle = module.get_submodule(name).register_forward_hook(
            lambda _part, _args, output, factor=factor: output * factor + (factor < 0)
        )
        try:
            with without_attention_fastpath():
                outputs.append(
                    _run_with_hooks(
                        module, {module.get_submodule(other): keep(other, values) for other in others}, images
                    )
                )
        finally:
            handle.remove()
    feeds = any(not torch.equal(inputs[0][other], inputs[1][other]) for other in others)
    return feeds, not torch.equal(*outputs)


def _join_parts(
    parts: Mapping[str, nn.Module],
    names: Sequence[str],
    inputs: Mapping[str, Tap],
    *,
    module: nn.Module | None = None,
    images: Tensor | None = None,
) -> dict[str, InputPart]:
    """Return each module's part of the joined vector: the whole vector if all inputs are equal, else consecutive parts.

    If parallel layers have norms before them with equal inputs, the modules around norm and layer are returned.
    """
    shared = False
    if len(names) > 1 and module is not None and images is not None:
        owners = [_outermost_owner(parts, name, inputs) for name in names]
        first, *others = _capture_inputs(module, owners, images)
        shared = all(torch.equal(first, other) for other in others)
        names = owners if shared else names
    result: dict[str, InputPart] = {}
    stop = 0
    for name in names:
        axes = positions(parts[name], inputs[name])
        start = 0 if shared else stop
        stop = start + math.prod(size for axis, size in enumerate(inputs[name].shape, start=1) if axis not in axes)
        result[name] = InputPart(start=start, stop=stop, axes=axes)
    return result


def _outermost_owner(parts: Mapping[str, nn.Module], name: str, inputs: Mapping[str, Tap]) -> str:
    """Return the outermost module around a layer whose other weights are those of norms only."""
    while owner := name.rpartition(".")[0]:
        layers = [layer for layer in parts[owner].modules() if has_weights(layer) and not _is_norm(layer)]
        if len(layers) != 1 or owner not in inputs:
            break
        name = owner
    return name


@torch.no_grad()
def _capture_inputs(module: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the inputs of modules in a forward pass."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _part, args, kwargs: inputs.update({name: first_input(args, kwargs).clone()})

    with without_attention_fastpath():
        _run_with_hooks(module, {module.get_submodule(name): keep(name) for name in names}, images)
    return [inputs[name] for name in names]


@torch.no_grad()
def _parts_of_headless(
    module: nn.Module, names: Sequence[str], images: Tensor, inputs: Mapping[str, Tap]
) -> dict[str, InputPart]:
    """Return the parts of removed classifiers; empty if the output is the only classifier's input, pooled or not."""
    parts = dict(module.named_modules())
    if len(names) == 1:
        with without_attention_fastpath():
            output = module(images)
        (value,) = _capture_inputs(module, names, images)
        candidates = [value]
        if value.ndim == 4:
            candidates += [value.mean((2, 3)), value.mean((1, 2))]
        elif value.ndim == 3:
            candidates.append(value.mean(1))
        if any(x.numel() == output.numel() and torch.allclose(x.flatten(), output.flatten()) for x in candidates):
            return {}
    return _join_parts(parts, names, inputs, module=module, images=images)
