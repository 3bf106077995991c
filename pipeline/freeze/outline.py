"""Outline a backbone before it is frozen: list its nodes and check names of nodes, without weights or computation."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import serialization, timm_models, user_module
from pipeline.backbones.aliases import aliases
from pipeline.backbones.hooks import LOGITS, PENULTIMATE
from pipeline.backbones.nodes import survey_shapes
from pipeline.backbones.spec import SPEC_FILE, InputSpec, Tap, TapSpec, pooled_shape, read_spec
from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.files import sha256_file
from pipeline.freeze.config import Folder, FreezeConfig, LocalWeights, Module, Pretrained, Timm, Torchvision


@dataclass(frozen=True)
class Outline:
    """The nodes of a backbone by name, and their aliases."""

    taps: Mapping[str, Tap]
    aliases: Mapping[str, str]

    listed: str = "NAME"
    """The argument with which `icecore layers` lists the nodes."""

    def check_node(self, name: str) -> str:
        """Return the error in the name of a node, or an empty string."""
        if name in self.taps or name in self.aliases or name in (PENULTIMATE, LOGITS):
            return ""
        return unknown_node(name, [PENULTIMATE, LOGITS, *self.aliases, *self.taps], backbone=self.listed)

    def check_tap(self, tap: TapSpec) -> str:
        """Return the error in a tap, in its node or its pooling, or an empty string."""
        node = self.aliases.get(tap.node, tap.node)
        if problem := self.check_node(tap.node):
            return problem
        try:
            if node in self.taps and node != PENULTIMATE:
                pooled_shape(self.taps[node], tap.pool)
        except ValueError as error:
            return f"{error}. Use none or flatten."
        return ""


def outline(config: FreezeConfig, *, pretrained: Path) -> Outline | None:
    """Return the nodes of a backbone, given its settings; None if only the frozen network can show them.

    pretrained: the folder of the networks of the stage `pretrain`.

    The network is built on torch's meta device, which has shapes and no values. Raises BackboneError for a model,
    weights, module or folder that does not exist, and for an `input` that gives no image.
    """
    if isinstance(config, Pretrained | Folder):
        folder = config.folder if isinstance(config, Folder) else pretrained / config.network
        if isinstance(config, Pretrained) and not (folder / SPEC_FILE).is_file():
            return None  # the stage `pretrain` has yet to train it
        spec = read_spec(folder)
        if isinstance(config, Folder) and not spec.weights_digest.startswith((config.digest or "").lower()):
            raise BackboneError(
                f"{folder}: expected weights whose digest begins with {config.digest}, got {spec.weights_digest[:16]}."
            )
        return Outline(spec.taps, spec.aliases, str(folder))
    architecture, stated = _architecture(config)
    if isinstance(config, Torchvision | Timm):
        refuse_ambiguous_preprocessing(config)
    network = _build(architecture)
    try:
        inputs = config.input.onto(stated)
    except ValueError as error:
        if isinstance(config, Module):
            return None  # the check of the settings reports it
        raise BackboneError(f"`input` makes no image: {error}.") from None
    taps = survey_shapes(serialization.freeze(network), inputs.shape)
    return Outline(taps, aliases(architecture, taps), getattr(config, "model", "NAME")) if taps else None


def survey_model(config: Torchvision | Timm) -> Outline:
    """Return all nodes of a model of torchvision or timm. It has random weights; nothing is downloaded or written.

    Raises BackboneError where neither library has the model.
    """
    architecture, stated = _architecture(config)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = serialization.build(architecture)
    taps = serialization.survey_network(network, config.input.onto(stated), where=config.model)
    return Outline(taps, aliases(architecture, taps), config.model)


def check_file(config: LocalWeights) -> str:
    """Return the error in the weights file, a missing file or another digest, or an empty string."""
    if config.file is None:
        return ""
    if not config.file.is_file():
        return f"{config.file}: no such file. Name the file of weights."
    digest = sha256_file(config.file)
    if not digest.startswith((config.sha256 or "").lower()):
        return (
            f"{config.file}: expected a SHA-256 that begins with {config.sha256}, got {digest[:16]}. If this is the "
            "right file, set `sha256` to that."
        )
    return ""


def refuse_ambiguous_preprocessing(config: Torchvision | Timm) -> None:
    """Raise BackboneError if a weights file may need one of several preprocessings and `weights` names none."""
    if config.file is None or ("weights" in config.model_fields_set and config.weights is not None):
        return
    if isinstance(config, Timm):
        own_size = {"resize", "crop"} <= config.input.model_fields_set
        entries = timm_models.all_preprocessing(config.model, own_size=own_size)
    else:
        from pipeline.backbones import torchvision_models as vision  # torchvision takes time to import

        entries = {entry.name: vision.preprocessing(entry) for entry in vision.entries(config.model)}
    by_preprocessing: dict[str, list[str]] = {}
    for name, own in entries.items():
        with contextlib.suppress(ValueError):  # `freeze` reports what is wrong with `input`
            by_preprocessing.setdefault(config.input.onto(own).description, []).append(name)
    if len(by_preprocessing) > 1:
        title = (
            f"{config.model}: expected `weights` with `file`, since the model's published weights differ in "
            f"preprocessing, and {config.file} does not say which it needs. Set `weights` to one of"
        )
        raise BackboneError(bullets(title, [f"{', '.join(names)}: {text}" for text, names in by_preprocessing.items()]))


def _architecture(config: Any) -> tuple[dict[str, Any], InputSpec | None]:
    """Return the architecture of the network, and the preprocessing that its weights state."""
    if isinstance(config, Module):
        return user_module.architecture(config.factory, config.arguments), None
    if isinstance(config, Timm):
        entry = timm_models.weights_entry(config.model, config.weights)
        own_size = {"resize", "crop"} <= config.input.model_fields_set
        stated = timm_models.preprocessing(config.model, entry, own_size=own_size)
        return timm_models.architecture(config.model, entry, config.classes), stated
    from pipeline.backbones import torchvision_models as vision  # torchvision takes time to import

    entry = vision.weights_entry(config.model, config.weights)
    return vision.architecture(config.model, entry, config.classes), vision.preprocessing(entry)


def _build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network on the meta device; with real values if its constructor computes with them."""
    try:
        with torch.device("meta"):
            return serialization.build(architecture)
    except BackboneError as error:
        if isinstance(error.__cause__, NotImplementedError | RuntimeError):  # the meta device may be the cause
            return serialization.build(architecture)
        raise
    except Exception:  # noqa: BLE001 - a constructor that computes can raise nearly anything
        return serialization.build(architecture)
