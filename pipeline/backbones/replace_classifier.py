"""Replace the classifier of a network: the architecture family `headed`, for any network that returns a tensor.

The classifier is the layer whose input is the node `penultimate`, whatever its name. All other modules keep their
names, so that taps and weights of the original network stay valid.

The output of the new network is that of the new classifier, averaged over positions if there are any. If more than a
mean or a reshape follows the old classifier (SqueezeNet's ReLU, a softmax, a temperature, a scale per class, auxiliary
outputs in training), the network ends at the new classifier (`ends`): later layers do not reach the output. If parallel
layers give the output, the new classifier is appended to their joined inputs (`APPENDED`, `parts`). If the network has
no classifier, the new one is appended to its output.
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
    """Put a new classifier into a network, in place; return the network and the architecture that rebuilds it.

    dropout: probability of dropping a value before each layer of the classifier. hidden: width of a hidden layer with a
    ReLU. convolution: kernel size of a convolution with BatchNorm and ReLU after the last feature maps, as wide as they
    are. New weights are drawn from torch's global generator. Raises BackboneError if the network returns no vector or
    maps, or if there is no place for a convolution.
    """
    at = classifier_node(spec)
    architecture = {
        "family": "headed",
        "name": str(spec.architecture.get("name", "")),
        "base": dict(spec.architecture),
        "at": at,
        **(_describe_appended(spec) if at == APPENDED else find_end(spec, network, at)),
        "classes": classes,
        "dropout": dropout,
        "hidden": hidden,
        "convolution": None if convolution is None else {**_find_convolution_site(spec, network), "side": convolution},
    }
    return _add_classifier(network, architecture), architecture


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network from the settings in backbone.json."""
    return _add_classifier(serialization.build(architecture["base"]), architecture)


def build_headless(architecture: Mapping[str, Any]) -> nn.Module:
    """Build an untrained network without its classifier: the classifier's input takes the place of its output."""
    network = serialization.build(architecture["base"])
    for name in missing_classifiers(architecture):
        owner, _, last = name.rpartition(".")
        maps = any(isinstance(part, nn.Conv2d) for part in network.get_submodule(name).modules())
        network.get_submodule(owner).add_module(last, NoClassifier(maps=maps))
    return network


def missing_classifiers(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classifiers that a headless architecture lacks; () for other architectures."""
    if architecture.get("family") != "headless":
        return ()
    at = architecture["at"]
    return (at,) if isinstance(at, str) else tuple(at)


def classifier_node(spec: BackboneSpec) -> str:
    """Return the name of the classifier layer; `APPENDED` if the network has parallel classifiers or none.

    Raises BackboneError for a network without the node `penultimate`.
    """
    if spec.architecture.get("family") == "headed":
        return str(spec.architecture["at"])
    tap = spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{spec.network}: expected a network that returns a tensor with a row per image, for a new classifier, but "
            f"{PENULTIMATE!r} is not a node of it. Return a single tensor from your own factory."
        )
    return tap.input_of or APPENDED


def new_modules(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the modules that a headed architecture adds to its base; () for other architectures."""
    if architecture.get("family") != "headed":
        return ()
    convolution = architecture["convolution"]
    return (*([str(convolution["at"])] if convolution else []), str(architecture["at"]))


def last_layer(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Return the layer of a headed network that computes the logits."""
    last: nn.Module = linear_layers(network.get_submodule(architecture["at"]))[-1]
    return last


def init_from_linear(network: nn.Module, architecture: Mapping[str, Any], linear: nn.Linear) -> None:
    """Initialise the classifier of a headed network with the weights of a linear layer, such as `linear_of` returns.

    Raises BackboneError unless the classifier is a single linear layer of this shape on the original features.
    """
    last = last_layer(network, architecture)
    weight, shape = last.get_parameter("weight"), tuple(linear.weight.shape)
    if architecture["hidden"] or architecture["convolution"]:
        got = "`hidden` or `convolution`"
    elif tuple(weight.flatten(1).shape) != shape:
        got = f"a layer of the shape {tuple(weight.shape)}"
    else:  # a 1x1 convolution is the linear layer at each position, whose mean is the linear layer of the mean
        last.load_state_dict({"weight": linear.weight.view_as(weight), "bias": linear.bias})
        return
    raise BackboneError(
        f"{architecture['name'] or 'network'}: expected a classifier of a single linear layer of the shape "
        f"{shape}, to start from a fitted head, got {got}. Fit the head on `{PENULTIMATE}`, and leave out `hidden` and "
        "`convolution`."
    )


def _describe_appended(spec: BackboneSpec) -> dict[str, Any]:
    """Return the settings of an appended classifier: its input's width, and the axes to average or the joined parts."""
    tap = spec.taps[PENULTIMATE]
    if len(tap.shape) == 1:
        parts = {name: part.model_dump(mode="json") for name, part in tap.parts.items()}
        return {"width": tap.shape[0], "axes": list(tap.averaged), **({"parts": parts} if parts else {})}
    raise BackboneError(
        f"{spec.network}: expected a network that returns a vector, maps or tokens per image, for a new classifier, "
        f"got rows of the shape {tap.shape}. Pool them in your own factory."
    )


def _add_classifier(network: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Add the modules of the architecture to the network, on its device and in its mode; return the network."""
    at, classes, hidden = architecture["at"], architecture["classes"], architecture["hidden"]
    like = next(network.parameters())
    if "width" in architecture and not hasattr(network, at):
        old: Any = nn.Linear(1, 1, device="meta")
        width = architecture["width"]
    else:
        old = linear_layers(network.get_submodule(at))[0]
        width = architecture.get("width") or old.weight.shape[1] * getattr(old, "groups", 1)
    parts = [_new_layer(old, width, hidden or classes)]
    if hidden:
        parts += [nn.ReLU(), _new_layer(old, hidden, classes, first=False)]
    if share := architecture["dropout"]:
        parts = [
            layer for part in parts for layer in ([part] if isinstance(part, nn.ReLU) else [nn.Dropout(share), part])
        ]
    ends = bool(architecture.get("ends"))
    inputs = architecture.get("parts", {})
    new: dict[str, nn.Module] = {name: InputCapture(output_width(network.get_submodule(name))) for name in inputs}
    if ends:
        new[at] = EndLayers(*parts, width=output_width(network.get_submodule(at)) or classes)
    else:
        new[at] = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    if settings := architecture["convolution"]:
        width = settings["width"]
        convolution = nn.Conv2d(width, width, settings["side"], padding="same", bias=False)
        new[settings["at"]] = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
    for name, part in new.items():
        owner, _, last = name.rpartition(".")
        network.get_submodule(owner).add_module(last, part.to(like).train(network.training))
    is_first = architecture["base"].get("family") != "headed"
    if is_first and (ends or "width" in architecture):
        network = end_network(network, at, architecture["axes"], inputs)
    return network


def _new_layer(old: Any, inputs: int, outputs: int, *, first: bool = True) -> nn.Module:
    """Return a new layer of the same kind as the old layer."""
    if isinstance(old, nn.Linear):
        return nn.Linear(inputs, outputs)
    if not first:
        return nn.Conv2d(inputs, outputs, 1)
    return nn.Conv2d(inputs, outputs, old.kernel_size, stride=old.stride, padding=old.padding, dilation=old.dilation)


def _find_convolution_site(spec: BackboneSpec, network: nn.Module) -> dict[str, Any]:
    """Return name and width of a layer after the last feature maps: at the end of the last nn.Sequential of maps."""
    nodes, last = list(spec.taps), spec.taps[PENULTIMATE]
    classifier = last.input_of or next(iter(last.parts), PENULTIMATE)
    for node in reversed(nodes[: nodes.index(classifier)]):
        tap = spec.taps[node]
        if tap.layout != "CHW" or tap.kind != "Sequential" or tap.call or not _is_sequential(network, node):
            continue
        return {"at": f"{node}.{len(network.get_submodule(node))}", "width": tap.shape[0]}  # type: ignore[arg-type]
    raise BackboneError(
        f"{spec.network}: expected a torch.nn.Sequential that returns maps, for a convolution at its end, got none. "
        "Leave out `convolution`."
    )


def _is_sequential(network: nn.Module, node: str) -> bool:
    """Return whether a module lies directly in the network or in nn.Sequential only: no branch bypasses it."""
    owner = node.rpartition(".")[0]
    return not owner or (type(network.get_submodule(owner)) is nn.Sequential and _is_sequential(network, owner))
