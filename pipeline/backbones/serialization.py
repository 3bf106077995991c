"""Write a backbone to disk and read it: weights as safetensors, everything else in backbone.json.

Stages that train a network call `write`; code that runs a network calls `read`, which checks digest and outputs.
"""

import hashlib
import importlib
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.backbones import ARCHITECTURES, reference_output
from pipeline.backbones.aliases import aliases
from pipeline.backbones.nodes import survey
from pipeline.backbones.spec import SPEC_FILE, BackboneSpec, InputSpec, Tap, read_spec
from pipeline.errors import BackboneError, bullets, counted, unknown
from pipeline.files import AnyPath, as_path, atomic, check_readable, write_json

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, repr=False)
class Backbone:
    """A frozen network (evaluation mode, no gradients) and its spec.

    >>> backbone = read("data/backbones/tiny")
    >>> backbone.spec.taps["penultimate"].shape, backbone.module.training
    ((4,), False)
    """

    spec: BackboneSpec
    module: nn.Module

    def __repr__(self) -> str:
        return f"Backbone({self.spec.network}, {counted(len(self.spec.taps), 'node')})"


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build an untrained network; raises BackboneError if its family is unknown."""
    family = architecture.get("family", "")
    if family not in ARCHITECTURES:
        raise BackboneError(unknown("architecture family", family, ARCHITECTURES))
    module, attribute = ARCHITECTURES[family].split(":")
    network: nn.Module = getattr(importlib.import_module(module), attribute)(architecture)
    return network


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load weights into a network; raises BackboneError with the first keys and shapes that differ."""
    own = network.state_dict()
    # Files older than torch 0.4.1 lack BatchNorm's num_batches_tracked, which evaluation mode does not use.
    state = {**{key: own[key] for key in own if key.endswith("num_batches_tracked")}, **state}
    problems = [f"missing: {key} {tuple(own[key].shape)}" for key in own if key not in state]
    problems += [f"not in the architecture: {key} {tuple(state[key].shape)}" for key in state if key not in own]
    problems += [
        f"{key}: the architecture has {tuple(own[key].shape)}, the weights {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        differ = counted(len(problems), "key differs", "keys differ")
        title = f"{where}: the weights do not fit the architecture, {differ}. The first of them"
        raise BackboneError(bullets(title, problems[:8]) + _prefix_hint(own, state))
    # Modules ask for the version of the weights' layout (MNASNet fails without it), which safetensors files do not
    # store. Names and shapes equal those of the network, so that its versions apply.
    versioned = OrderedDict(state)
    versioned._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=True)


def _prefix_hint(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return advice if the weights were saved from a wrapper around the network, such as DataParallel (`module.`)."""
    ends = ((key, dot.end()) for key in state for dot in re.finditer(r"\.", key))
    prefixes = Counter(key[:end] for key, end in ends if key[end:] in own)
    best, count = next(iter(prefixes.most_common(1)), ("", 0))
    if 2 * count <= sum(not key.endswith("num_batches_tracked") for key in own):
        return ""
    return f"\nKeys begin with {best!r}: set `strip_prefix: '{best}'`."


def freeze(network: nn.Module) -> nn.Module:
    """Set a network to evaluation mode and switch off its gradients; return it."""
    return network.eval().requires_grad_(False)


def write(
    folder: Path,
    network: nn.Module,
    *,
    architecture: Mapping[str, Any],
    origin: Mapping[str, Any],
    inputs: InputSpec,
    classes: Iterable[str] = (),
) -> BackboneSpec:
    """Write a network in the backbone format; backbone.json is written last and marks the folder as complete.

    Raises BackboneError if the network does not accept the input.
    """
    state = _unshare_memory(network.state_dict())
    taps = survey_network(network, inputs, where=folder.name)
    spec = BackboneSpec(
        architecture=dict(architecture),
        origin=dict(origin),
        weights_digest=weights_digest(state),
        input=inputs,
        taps=taps,
        aliases=aliases(architecture, taps),
        classes=tuple(classes),
        probe=reference_output.compute_probe(
            network, inputs.shape, packages=reference_output.packages_of(architecture)
        ),
    )
    with atomic(folder / WEIGHTS) as temporary:
        safetensors.torch.save_file(state, temporary)
    write_json(folder / SPEC_FILE, spec.model_dump(mode="json"))
    return spec


def _unshare_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, as safetensors requires: tied weights are written twice."""
    storages: set[int] = set()
    result = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.detach().clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return result


def survey_network(
    network: nn.Module,
    inputs: InputSpec,
    *,
    where: str,
    remedy: str = "Set `input` to the preprocessing of its training.",
) -> dict[str, Tap]:
    """Return the nodes of a network; raises BackboneError with `remedy` if the network does not accept the input."""
    try:
        return survey(freeze(network), inputs.shape)
    except Exception as error:
        channels, height, width = inputs.shape
        reason = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"{where}: expected an input that {type(network).__name__} takes, got images of {height}×{width} with "
            f"{channels} channels: {type(error).__name__}: {reason}. {remedy}"
        ) from error


def read(folder: AnyPath) -> Backbone:
    """Read a backbone; check its weights against their digest and its outputs against its probe.

    Raises BackboneError with the reason and the advice.
    """
    folder = as_path(folder, "read: folder")
    spec = read_spec(folder)
    remedy = f"The file was changed or damaged: run `icecore repro -f freeze@{folder.name}`."
    check_readable(folder / WEIGHTS)
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{folder / WEIGHTS}: expected weights, got {error}. {remedy}") from None
    computed = weights_digest(state)
    if computed != spec.weights_digest:
        raise BackboneError(
            f"{folder / WEIGHTS}: expected weights with the digest {spec.weights_digest[:16]}…, got {computed[:16]}…. "
            f"{remedy}"
        )
    network = build(spec.architecture)
    load_state(network, state, where=str(folder))
    if spec.probe is not None:
        reference_output.check(freeze(network), spec.input.shape, spec.probe, where=str(folder))
    return Backbone(spec=spec, module=freeze(network))
