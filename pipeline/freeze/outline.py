"""Outline a backbone before it is frozen: its nodes, and what is wrong with its names, without weights or computing."""

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
from pipeline.backbones.spec import InputSpec, Tap, TapSpec, pooled_shape
from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.files import sha256_file
from pipeline.freeze.config import Folder, FreezeConfig, LocalWeights, Module, Pretrained, Timm, Torchvision


@dataclass(frozen=True)
class Outline:
    """The nodes of a backbone by their names, and other names of them."""

    taps: Mapping[str, Tap]
    aliases: Mapping[str, str]

    listed: str = "NAME"
    """What `icecore layers` takes to list the nodes."""

    def check_node(self, name: str) -> str:
        """Return what is wrong with the name of a node; "" for nothing."""
        if name in self.taps or name in self.aliases or name in (PENULTIMATE, LOGITS):
            return ""
        return unknown_node(name, [PENULTIMATE, LOGITS, *self.aliases, *self.taps], backbone=self.listed)

    def check_tap(self, tap: TapSpec) -> str:
        """Return what is wrong with a tap, its node and its pooling; "" for nothing."""
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
    """Return the nodes of a backbone by its settings; None where only the frozen network tells them.

    Networks are built on torch's meta device, where they have shapes and no values. pretrained: as `freeze` has it.
    Raises BackboneError for a model, weights, a module or a folder that is not there, and for an input that fits none.
    """
    if isinstance(config, Pretrained | Folder):
        folder = config.folder if isinstance(config, Folder) else pretrained / config.network
        if isinstance(config, Pretrained) and not (folder / serialization.JSON).is_file():
            return None  # the stage `pretrain` makes it
        spec = serialization.read_spec(folder)
        if isinstance(config, Folder) and not spec.weights_digest.startswith((config.digest or "").lower()):
            raise BackboneError(
                f"{folder}: expected weights whose digest begins with {config.digest}, got {spec.weights_digest[:16]}."
            )
        return Outline(spec.taps, spec.aliases, str(folder))
    architecture, stated = _architecture(config)
    if isinstance(config, Torchvision | Timm):
        refuse_guess(config)
    network = _build(architecture)
    try:
        inputs = config.input.onto(stated)
    except ValueError as error:
        if isinstance(config, Module):
            return None  # the settings say so
        raise BackboneError(f"`input` makes no image: {error}.") from None
    taps = survey_shapes(serialization.freeze(network), inputs.shape)
    return Outline(taps, aliases(architecture, taps), getattr(config, "model", "NAME")) if taps else None


def survey_model(config: Torchvision | Timm) -> Outline:
    """Return all nodes of a model of torchvision or timm, with random weights: nothing is downloaded or written.

    Raises BackboneError where the libraries have no such model.
    """
    architecture, stated = _architecture(config)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = serialization.build(architecture)
    taps = serialization.survey_network(network, config.input.onto(stated), where=config.model)
    return Outline(taps, aliases(architecture, taps), config.model)


def check_file(config: LocalWeights) -> str:
    """Return what is wrong with the file of weights: that it is missing, or has another digest; "" for nothing."""
    if config.file is None:
        return ""
    if not config.file.is_file():
        return f"{config.file}: no such file. Name the file of weights."
    digest = sha256_file(config.file)
    if not digest.startswith((config.sha256 or "").lower()):
        return (
            f"{config.file}: expected a SHA-256 that begins with {config.sha256}, got {digest[:16]}. If the file is "
            "the one that you mean, set `sha256` to that."
        )
    return ""


def refuse_guess(config: Torchvision | Timm) -> None:
    """Raise BackboneError where weights in a file may want one of several preprocessings, and nobody says which."""
    if config.file is None or ("weights" in config.model_fields_set and config.weights is not None):
        return
    if isinstance(config, Timm):
        own_size = {"resize", "crop"} <= config.input.model_fields_set
        entries = timm_models.all_preprocessing(config.model, own_size=own_size)
    else:
        from pipeline.backbones import torchvision_models as vision  # torchvision takes as long to import as torch

        entries = {one.name: vision.preprocessing(one) for one in vision.entries(config.model)}
    found: dict[str, list[str]] = {}
    for name, own in entries.items():
        with contextlib.suppress(ValueError):  # `freeze` says what is wrong with `input`
            found.setdefault(config.input.onto(own).description, []).append(name)
    if len(found) > 1:
        title = (
            f"{config.model}: expected `weights` with `file`, since the sets of weights that the model has differ in "
            f"preprocessing, and {config.file} does not say which it wants. Set `weights` to one of"
        )
        raise BackboneError(bullets(title, [f"{', '.join(names)}: {text}" for text, names in found.items()]))


def _architecture(config: Any) -> tuple[dict[str, Any], InputSpec | None]:
    """Return how the network is built, and the input that its weights state."""
    if isinstance(config, Module):
        return user_module.architecture(config.factory, config.arguments), None
    if isinstance(config, Timm):
        entry = timm_models.weights_entry(config.model, config.weights)
        own_size = {"resize", "crop"} <= config.input.model_fields_set
        stated = timm_models.preprocessing(config.model, entry, own_size=own_size)
        return timm_models.architecture(config.model, entry, config.classes), stated
    from pipeline.backbones import torchvision_models as vision  # torchvision takes as long to import as torch

    entry = vision.weights_entry(config.model, config.weights)
    return vision.architecture(config.model, entry, config.classes), vision.preprocessing(entry)


def _build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return the network on the meta device; with values where it computes while it is built."""
    try:
        with torch.device("meta"):
            return serialization.build(architecture)
    except BackboneError as error:
        if isinstance(error.__cause__, NotImplementedError | RuntimeError):  # it may be of the device
            return serialization.build(architecture)
        raise
    except Exception:  # noqa: BLE001 - networks that compute while they are built raise nearly anything
        return serialization.build(architecture)
