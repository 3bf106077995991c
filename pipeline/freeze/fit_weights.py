"""Load weights into a network, which loses its classifier where only the classifier's weights do not fit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones import serialization
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.nodes import survey
from pipeline.backbones.penultimate import determine_output
from pipeline.backbones.spec import InputSpec
from pipeline.errors import counted
from pipeline.freeze.config import Module, Timm, Torchvision
from pipeline.runtime import Reporter


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and the architecture, origin, preprocessing and classes that its source states."""

    network: nn.Module
    architecture: Mapping[str, Any]
    origin: Mapping[str, Any]
    inputs: InputSpec | None
    classes: Iterable[str] = ()


def load_weights(
    loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module, *, where: str, reporter: Reporter
) -> Loaded:
    """Load weights into a network. If only the classifier does not fit, and `classes` is not set, cut it off."""
    at = () if getattr(config, "classes", None) else _mismatched_classifier(loaded, state, config)
    if at:
        base = dict(loaded.architecture)
        architecture = {
            "family": "headless",
            "name": str(base.get("name", "")),
            "base": base,
            "at": at[0] if len(at) == 1 else list(at),
        }
        other = [key for key in state if any(key.startswith(f"{name}.") for name in at)]
        own = loaded.network.state_dict()
        outputs = {len(state[key]) for key in other if key in own and state[key].ndim == own[key].ndim}
        reporter.message(_describe_cut(at, other, outputs, config, where=where))
        state = {key: value for key, value in state.items() if key not in other}
        origin = {**loaded.origin, "without": architecture["at"]}
        if len(outputs) == 1:
            origin["other_classes"] = outputs.pop()
        loaded = Loaded(serialization.build(architecture), architecture, origin, loaded.inputs)
    serialization.load_state(loaded.network, state, where=where)
    return loaded


def _describe_cut(at: Sequence[str], other: Sequence[str], outputs: set[int], config: object, *, where: str) -> str:
    """Return a message: why a backbone ends before its classifier, and which setting would include it."""
    names = " and ".join(repr(name) for name in at)
    layer = "layer" if len(at) == 1 else "layers"
    if len(outputs) == 1:
        (number,) = outputs
        make = "give the factory that number" if isinstance(config, Module) else f"set `classes: {number}`"
        start = (
            f"the file's weights of the last {layer}, {names}, have {counted(number, 'output')}, and the model has "
            f"another number (to load them, {make})"
        )
    else:
        start = f"no weights of the last {layer}, {names}"
    return f"{where}: {start}. The backbone ends before it: it has no classes, and its output is `penultimate`." + (
        f" Left out: {', '.join(other)}." if other else ""
    )


def _mismatched_classifier(
    loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module
) -> tuple[str, ...]:
    """Return the classifier's modules if all their weights, and no others, are missing or of another shape."""
    own = {key: value for key, value in loaded.network.state_dict().items() if not key.endswith("num_batches_tracked")}
    mismatched = {key for key, value in own.items() if key not in state or state[key].shape != value.shape}
    at: list[str] = []
    for name, _ in loaded.network.named_modules():
        keys = {key for key in own if key.startswith(f"{name}.")}
        if name and keys and keys <= mismatched and not any(name.startswith(f"{other}.") for other in at):
            owners = {key.rpartition(".")[0] for key in keys}
            if owners == {name} or len(owners) > 1:  # in a Sequential with a single layer with weights: that layer
                at.append(name)
    if not at or mismatched != {key for key in own if any(key.startswith(f"{name}.") for name in at)}:
        return ()
    try:
        shape = config.input.onto(loaded.inputs).shape
        network = serialization.freeze(loaded.network)
        last = survey(network, shape)[PENULTIMATE]
        heads = [last.input_of] if last.input_of is not None else list(last.parts)
        inside = bool(heads) and all(any(head == name or head.startswith(f"{name}.") for name in at) for head in heads)
        # Convolutions compute features: a network that lacks weights of one lacks more than its classifier.
        inside &= not any(
            isinstance(part, nn.Conv2d) and f"{name}.{inner}".rstrip(".") not in heads
            for name in at
            for inner, part in network.get_submodule(name).named_modules()
        )
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        return tuple(at) if inside and determine_output(network, at, images) else ()
    except Exception:  # noqa: BLE001 - an error in the input is reported when the backbone is written
        return ()
