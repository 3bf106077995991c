"""A network with a new classifier: the family `headed` of architectures, for any network that gives one tensor.

The classifier is the layer whose input is the node `penultimate`. Nobody has to know its name, and all other modules
keep theirs, so that taps and weights of the network before are those of the network after.

The output of the network is that of the new classifier, averaged over positions where there are several. Where more
follows the old classifier than a mean or a reshape (SqueezeNet's ReLU, a softmax, a temperature, a scale per class,
auxiliary outputs in training), the network ends at the new one (`ends`): what is behind it is no part of the output.
Where several layers give the output side by side, the new classifier is appended to what they get (`APPENDED`,
`parts`). Where no layer gives the output (a network without a classifier), it is appended to the output.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.hooks import APPENDED, PENULTIMATE, NoClassifier
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.truncation import EndLayers, InputCapture, end_network, find_end, linear_layers, output_width
from pipeline.errors import BackboneError


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
    at = classifier_node(spec)
    architecture = {
        "family": "headed",
        "name": str(spec.architecture.get("name", "")),
        "base": dict(spec.architecture),
        "at": at,
        **(_appended(spec) if at == APPENDED else find_end(spec, network, at)),
        "classes": classes,
        "dropout": dropout,
        "hidden": hidden,
        "convolution": None if convolution is None else {**_after_maps(spec, network), "side": convolution},
    }
    return _put(network, architecture), architecture


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network from the settings in backbone.json."""
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


def classifier_node(spec: BackboneSpec) -> str:
    """Return the name of the classifier, be it one layer or several; `APPENDED` where the network has none.

    Raises BackboneError for a network without the node `penultimate`.
    """
    if spec.architecture.get("family") == "headed":
        return str(spec.architecture["at"])
    tap = spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{spec.network}: expected a network that gives one tensor with a row per image, to put a classifier on, "
            f"got none ({PENULTIMATE!r} is no node of it). Return a tensor from a factory of yours."
        )
    return tap.input_of or APPENDED


def new_parts(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the modules that a headed architecture adds to its base; none for other architectures."""
    if architecture.get("family") != "headed":
        return ()
    more = architecture["convolution"]
    return (*([str(more["at"])] if more else []), str(architecture["at"]))


def last_layer(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Return the layer of a headed network that gives the logits."""
    last: nn.Module = linear_layers(network.get_submodule(architecture["at"]))[-1]
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


def _appended(spec: BackboneSpec) -> dict[str, Any]:
    """Return the width of what an appended classifier gets, and how that is made of the network's output, or of
    `parts`.
    """
    tap = spec.taps[PENULTIMATE]
    if len(tap.shape) == 1:
        parts = {name: part.model_dump(mode="json") for name, part in tap.parts.items()}
        return {"width": tap.shape[0], "axes": list(tap.averaged), **({"parts": parts} if parts else {})}
    raise BackboneError(
        f"{spec.network}: expected a network that gives a vector, maps or tokens per image, to put a classifier on, "
        f"got rows of the shape {tap.shape}. Pool them in a factory of yours."
    )


def _put(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Return the network with the parts that the architecture adds, on the device and in the mode of the network."""
    at, classes, hidden = architecture["at"], architecture["classes"], architecture["hidden"]
    like = next(network.parameters())
    if "width" in architecture and not hasattr(network, at):
        old: Any = nn.Linear(1, 1, device="meta")
        width = architecture["width"]
    else:
        old = linear_layers(network.get_submodule(at))[0]
        width = architecture.get("width") or old.weight.shape[1] * getattr(old, "groups", 1)
    parts = [_like(old, width, hidden or classes)]
    if hidden:
        parts += [nn.ReLU(), _like(old, hidden, classes, first=False)]
    if share := architecture["dropout"]:
        parts = [one for part in parts for one in ([] if isinstance(part, nn.ReLU) else [nn.Dropout(share)]) + [part]]
    ends = bool(architecture.get("ends"))
    inputs = architecture.get("parts", {})
    new: dict[str, nn.Module] = {name: InputCapture(output_width(network.get_submodule(name))) for name in inputs}
    if ends:
        new[at] = EndLayers(*parts, width=output_width(network.get_submodule(at)) or classes)
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
        network = end_network(network, at, architecture["axes"], inputs)
    return network


def _like(old: Any, before: int, after: int, *, first: bool = True) -> nn.Module:
    """Return a new layer of the kind of the old one."""
    if isinstance(old, nn.Linear):
        return nn.Linear(before, after)
    if not first:
        return nn.Conv2d(before, after, 1)
    return nn.Conv2d(before, after, old.kernel_size, stride=old.stride, padding=old.padding, dilation=old.dilation)


def _after_maps(spec: BackboneSpec, network: nn.Module) -> dict[str, Any]:
    """Return where a layer can be put after the last maps: at the end of the last sequence of modules that gives
    maps.
    """
    nodes, last = list(spec.taps), spec.taps[PENULTIMATE]
    classifier = last.input_of or next(iter(last.parts), PENULTIMATE)
    for node in reversed(nodes[: nodes.index(classifier)]):
        tap = spec.taps[node]
        if tap.layout != "CHW" or tap.kind != "Sequential" or tap.call or not _in_line(network, node):
            continue
        return {"at": f"{node}.{len(network.get_submodule(node))}", "width": tap.shape[0]}  # type: ignore[arg-type]
    raise BackboneError(
        f"{spec.network}: expected a torch.nn.Sequential that gives maps, to put a convolution at its end, got none. "
        "Leave `convolution` out."
    )


def _in_line(network: nn.Module, node: str) -> bool:
    """Return whether a sequence of modules stands in the network itself, or in sequences alone: no way leads
    past it.
    """
    owner = node.rpartition(".")[0]
    return not owner or (type(network.get_submodule(owner)) is nn.Sequential and _in_line(network, owner))
