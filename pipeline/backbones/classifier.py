"""A network with a new classifier: the family `headed` of architectures, for any network that gives one tensor.

The classifier is the layer whose input is the node `penultimate`. Nobody has to know its name, and all other modules
keep theirs, so that taps and weights of the network before are those of the network after.

The output of the network is that of the new classifier, averaged over positions where there are several. Where more
follows the old classifier than a mean or a reshape (SqueezeNet's ReLU, a softmax, a temperature, a scale per class,
auxiliary outputs in training), the network ends at the new one (`ends`): what is behind it is no part of the output.
Where several layers give the output side by side, the new classifier is appended to what they get (`APPENDED`,
`parts`). Where no layer gives the output (a network without a classifier), it is appended to the output.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones import serialization
from pipeline.backbones.hooks import APPENDED, ENDS_AT, PENULTIMATE, NoClassifier, join, one_path
from pipeline.backbones.spec import BackboneSpec, InputPart, Tap
from pipeline.errors import BackboneError, HeadError


def replace_classifier(
    spec: BackboneSpec,
    network: nn.Module,
    *,
    classes: int,
    dropout: float = 0.0,
    hidden: int | None = None,
    convolution: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Put a new classifier into a network, and say how to build it again; the network itself is changed.

    dropout: the share of values that are dropped before each layer of the classifier. hidden: the width of a layer
    before the last, with a ReLU. convolution: the side of a convolution that is put after the last maps, as wide as
    they are, with a BatchNorm and a ReLU. The new weights are drawn from torch's global generator. Raises BackboneError
    if the network gives no vector or maps, or has no place for a convolution.
    """
    at = place_of(spec)
    architecture = {
        "family": "headed",
        "name": str(spec.architecture.get("name", "")),
        "base": dict(spec.architecture),
        "at": at,
        **(_appended(spec) if at == APPENDED else _end(spec, network, at)),
        "classes": classes,
        "dropout": dropout,
        "hidden": hidden,
        "convolution": None if convolution is None else {**_after_maps(spec, network), "side": convolution},
    }
    return _put(network, architecture), architecture


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """An untrained network from the settings in backbone.json."""
    return _put(serialization.build(architecture["base"]), architecture)


def build_headless(architecture: Mapping[str, Any]) -> nn.Module:
    """Build an untrained network without its classifier: its output is what is made of the classifier's input."""
    network = serialization.build(architecture["base"])
    for name in missing_of(architecture):
        owner, _, last = name.rpartition(".")
        maps = any(isinstance(part, nn.Conv2d) for part in network.get_submodule(name).modules())
        network.get_submodule(owner).add_module(last, NoClassifier(maps=maps))
    return network


def missing_of(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules that a headless architecture is without; none of other architectures."""
    if architecture.get("family") != "headless":
        return ()
    at = architecture["at"]
    return (at,) if isinstance(at, str) else tuple(at)


def place_of(spec: BackboneSpec) -> str:
    """Return the name of the classifier, be it one layer or several; `APPENDED` where the network has none.

    Raises BackboneError for a network without the node `penultimate`.
    """
    if spec.architecture.get("family") == "headed":
        return str(spec.architecture["at"])
    tap = spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{_named(spec)}: expected a network that gives one tensor with a row per image, to put a classifier on, "
            f"got none ({PENULTIMATE!r} is no node of it). Return a tensor from a factory of yours."
        )
    return tap.input_of or APPENDED


def new_parts(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the modules that a headed architecture adds to its base; none for other architectures."""
    if architecture.get("family") != "headed":
        return ()
    more = architecture["convolution"]
    return (*([str(more["at"])] if more else []), str(architecture["at"]))


def last_layer(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """The layer of a headed network that gives the logits."""
    last: nn.Module = _layers(network.get_submodule(architecture["at"]))[-1]
    return last


def start_from(network: nn.Module, architecture: Mapping[str, Any], linear: nn.Linear) -> None:
    """Give the classifier of a headed network the weights of a linear layer, such as `linear_of` makes.

    Raises BackboneError if the classifier is not one linear layer of this shape on what the network had before.
    """
    last = last_layer(network, architecture)
    weight, shape = last.get_parameter("weight"), tuple(linear.weight.shape)
    if architecture["hidden"] or architecture["convolution"]:
        found = "`hidden` or `convolution`"
    elif tuple(weight.flatten(1).shape) != shape:
        found = f"one of {tuple(weight.shape)}"
    else:  # a 1x1 convolution is the linear layer at each position, whose mean is the linear layer of the mean
        last.load_state_dict({"weight": linear.weight.view_as(weight), "bias": linear.bias})
        return
    raise BackboneError(
        f"{architecture['name'] or 'network'}: expected a classifier of one linear layer of the shape {shape}, to "
        f"start from a fitted head, got {found}. Fit the head on `{PENULTIMATE}`, and leave the classifier one layer."
    )


def linear_of(
    head: Any, *, classes: Sequence[str], kind: Literal["classification", "multilabel", "regression"] = "classification"
) -> nn.Linear:
    """Turn a fitted scikit-learn pipeline of scalers and a linear head into one layer, float32, rows as `classes`.

    The softmax of the logits, or of several labels their sigmoid, is what `predict_proba` of a logistic regression
    gives; of a regression the one output is the prediction. Raises HeadError for anything that is not linear, and where
    the classes are others.
    """
    *scalers, last = [step for _, step in getattr(head, "steps", [("", head)])]
    mean, scale = np.zeros(1), np.ones(1)
    for step in scalers:
        if type(step).__name__ != "StandardScaler":
            raise HeadError(
                f"head: expected StandardScaler and a linear classifier, which one layer can do, got "
                f"{type(step).__name__}. Fit the head with `scale: standard` or `scale: none`."
            )
        # (x - mean) / scale of one scaler after the other
        mean = mean + scale * (step.mean_ if step.with_mean else 0)
        scale = scale * (step.scale_ if step.with_std else 1)
    each = getattr(last, "estimators_", None)  # a classifier per label, of one-vs-rest
    linear = each if kind == "multilabel" and each is not None else [last]
    if not all(hasattr(one, "coef_") and (kind == "regression" or hasattr(one, "classes_")) for one in linear):
        wanted, use = "classifier, with `coef_` and `classes_`", "logistic"
        if kind == "regression":
            wanted, use = "regression, with `coef_`", "ridge"
        got = type(last.estimator if kind == "multilabel" and each is not None else last).__name__
        raise HeadError(f"head: expected a linear {wanted}, got {got}. Start from `head: {use}`.")
    if kind != "classification":
        weights = np.concatenate([np.atleast_2d(one.coef_) for one in linear])
        intercept = np.concatenate([np.atleast_1d(one.intercept_) for one in linear])
        outputs = 1 if kind == "regression" else len(classes)
        if len(weights) != outputs:
            raise HeadError(f"head: expected {outputs} outputs, got {len(weights)}. Fit the head on this task.")
        return head_from_linear(weights, np.broadcast_to(intercept, outputs), mean=mean, scale=scale)
    known = [str(name) for name in last.classes_]
    if sorted(known) != sorted(classes):
        different = sorted(set(known) ^ set(classes))
        raise HeadError(
            f"head: expected the {len(classes)} classes of the task, got {len(known)}. They differ in: "
            f"{', '.join(different[:12])}. Fit the head on this task."
        )
    weights, intercept = np.atleast_2d(last.coef_), np.atleast_1d(last.intercept_)
    if len(weights) == 1 and len(known) == 2:  # one decision value s: the probabilities are the softmax of -s/2, s/2
        weights, intercept = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    order = [known.index(name) for name in classes]
    return head_from_linear(weights[order], intercept[order], mean=mean, scale=scale)


def head_from_linear(
    weights: np.ndarray, intercept: np.ndarray, *, mean: np.ndarray | float = 0.0, scale: np.ndarray | float = 1.0
) -> nn.Linear:
    """A linear layer that gives weights @ ((x - mean) / scale) + intercept, in float64; weights (classes, width)."""
    folded = np.asarray(weights, np.float64) / scale
    bias = np.asarray(intercept, np.float64) - folded @ np.broadcast_to(mean, folded.shape[1:])
    layer = nn.Linear(folded.shape[1], folded.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(folded))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


class _Kept:
    """The last tensor that a network ends with, at one of its modules. A copy of a network begins without one."""

    tensor: Tensor | None = None

    def __deepcopy__(self, _memo: object) -> "_Kept":
        return _Kept()


class _Last(nn.Sequential):
    """Layers at which the network ends with their output.

    What follows them in the network runs on zeros of the width that it was made for, and is no part of the output.
    width: of the output of the old classifier.
    """

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__(*layers)
        self.kept, self.width = _Kept(), width

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        self.kept.tensor = output
        if isinstance(_layers(self)[-1], nn.Conv2d):
            return nn.functional.pad(output[:, :1] * 0, (0, 0, 0, 0, 0, self.width - 1))
        return nn.functional.pad(output[..., :1] * 0, (0, self.width - 1))


class _Input(nn.Module):
    """Stands where one of several classifiers was, and keeps what that got.

    width: of the output of the old classifier; None where the weights have none of it.
    """

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.kept, self.width = _Kept(), width

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept.tensor = inputs
        return inputs if self.width is None else nn.functional.pad(inputs[..., :1] * 0, (0, self.width - 1))


def _ending(network: nn.Module, at: str, axes: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """The same network, whose output is that of its part `at`, averaged over some axes.

    parts: the modules whose inputs the part `at` gets, where it does not get the network's output.
    """
    base: Any = type(network)
    joined = Tap(shape=(), parts={name: InputPart(**part) for name, part in parts.items()})

    def forward(self: nn.Module, images: Tensor) -> Any:
        value: Any = base.forward(self, images)
        part: Any = self.get_submodule(at)
        if parts:
            return part(join([self.get_submodule(name).kept.tensor for name in parts], joined))  # type: ignore[union-attr, misc]
        if isinstance(part, _Last):
            value = part.kept.tensor
        pooled = value.mean(tuple(axes)) if axes else value
        return pooled if isinstance(part, _Last) else part(pooled)

    members = {"forward": forward, "__module__": base.__module__, ENDS_AT: at}
    network.__class__ = type(base.__name__, (base,), members)
    return network


def _width(old: nn.Module) -> int | None:
    """Return the width of the output of a classifier, as the network was made for it."""
    if isinstance(old, _Last):
        return old.width
    layers = _layers(old)
    return int(layers[-1].weight.shape[0]) if layers else None


def _appended(spec: BackboneSpec) -> dict[str, Any]:
    """The width of what an appended classifier gets, and how that is made of the network's output, or of `parts`."""
    tap = spec.taps[PENULTIMATE]
    if len(tap.shape) == 1:
        parts = {name: part.model_dump(mode="json") for name, part in tap.parts.items()}
        return {"width": tap.shape[0], "axes": list(tap.averaged), **({"parts": parts} if parts else {})}
    raise BackboneError(
        f"{_named(spec)}: expected a network that gives a vector, maps or tokens per image, to put a classifier on, "
        f"got rows of the shape {tap.shape}. Pool them in a factory of yours."
    )


@torch.no_grad()
def _end(spec: BackboneSpec, network: nn.Module, at: str) -> dict[str, Any]:
    """Where a network has to end at a new classifier: the axes over which its output is averaged.

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
        if _layers(part) and not any(one == name or one.startswith(f"{name}.") for one in ran)
    ]
    return {} if plain and not aside else {"ends": True, "axes": axes}


def _put(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """The network with the parts that the architecture adds, on the device and in the mode of the network."""
    at, classes, hidden = architecture["at"], architecture["classes"], architecture["hidden"]
    like = next(network.parameters())
    if "width" in architecture and not hasattr(network, at):
        old: Any = nn.Linear(1, 1, device="meta")
        width = architecture["width"]
    else:
        old = _layers(network.get_submodule(at))[0]
        width = architecture.get("width") or old.weight.shape[1] * getattr(old, "groups", 1)
    parts = [_like(old, width, hidden or classes)]
    if hidden:
        parts += [nn.ReLU(), _like(old, hidden, classes, first=False)]
    if share := architecture["dropout"]:
        parts = [one for part in parts for one in ([] if isinstance(part, nn.ReLU) else [nn.Dropout(share)]) + [part]]
    ends = bool(architecture.get("ends"))
    inputs = architecture.get("parts", {})
    new: dict[str, nn.Module] = {name: _Input(_width(network.get_submodule(name))) for name in inputs}
    if ends:
        new[at] = _Last(*parts, width=_width(network.get_submodule(at)) or classes)
    else:
        new[at] = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    if more := architecture["convolution"]:
        convolution = nn.Conv2d(more["width"], more["width"], more["side"], padding="same", bias=False)
        new[more["at"]] = nn.Sequential(convolution, nn.BatchNorm2d(more["width"]), nn.ReLU())
    for name, part in new.items():
        owner, _, last = name.rpartition(".")
        network.get_submodule(owner).add_module(last, part.to(like).train(network.training))
    is_first = architecture["base"].get("family") != "headed"
    if is_first and (ends or "width" in architecture):
        network = _ending(network, at, architecture["axes"], inputs)
    return network


def _named(spec: BackboneSpec) -> str:
    return str(spec.architecture.get("name") or spec.architecture.get("family"))


def _layers(part: nn.Module) -> list[Any]:
    """The linear layers and convolutions of a classifier, be it one of them."""
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _like(old: Any, before: int, after: int, *, first: bool = True) -> nn.Module:
    """A new layer of the kind of the old one."""
    if isinstance(old, nn.Linear):
        return nn.Linear(before, after)
    if not first:
        return nn.Conv2d(before, after, 1)
    return nn.Conv2d(before, after, old.kernel_size, stride=old.stride, padding=old.padding, dilation=old.dilation)


def _after_maps(spec: BackboneSpec, network: nn.Module) -> dict[str, Any]:
    """Where a layer can be put after the last maps: at the end of the last sequence of modules that gives maps."""
    nodes, last = list(spec.taps), spec.taps[PENULTIMATE]
    classifier = last.input_of or next(iter(last.parts), PENULTIMATE)
    for node in reversed(nodes[: nodes.index(classifier)]):
        tap = spec.taps[node]
        if tap.layout != "CHW" or tap.kind != "Sequential" or tap.call or not _in_line(network, node):
            continue
        return {"at": f"{node}.{len(network.get_submodule(node))}", "width": tap.shape[0]}  # type: ignore[arg-type]
    raise BackboneError(
        f"{_named(spec)}: expected a torch.nn.Sequential that gives maps, to put a convolution at its end, got none. "
        "Leave `convolution` out."
    )


def _in_line(network: nn.Module, node: str) -> bool:
    """Whether a sequence of modules stands in the network itself, or in sequences alone: no way leads past it."""
    owner = node.rpartition(".")[0]
    return not owner or (type(network.get_submodule(owner)) is nn.Sequential and _in_line(network, owner))
