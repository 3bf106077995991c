"""Settings of a backbone, given a model name (with or without a weights file) or a folder; taps of its blocks."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.backbones import torchvision_models
from pipeline.backbones.spec import SPEC_FILE, Tap, pooled_shape, read_spec
from pipeline.errors import BackboneError, ConfigError
from pipeline.files import sha256_file
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.library_model import Weights, raw_settings
from pipeline.freeze.outline import Outline, outline
from pipeline.inference.node_table import blocks
from pipeline.settings.check import Section, check, refuse

DIGITS = 16  # digits of a digest in params.yaml

DEPTHS = (0.6, 0.85)
"""The relative depths of the blocks whose outputs are tried in addition to the last layer's."""


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone's name in params.yaml, its settings of `freeze`, and its nodes."""

    name: str
    settings: dict[str, Any]
    outline: Outline


def read_backbone(model: str, weights: Weights) -> NamedBackbone:
    """Return the backbone for a model of torchvision or timm, or for a folder that icecore wrote.

    Nothing is downloaded. Raises BackboneError for an unknown model, with similar names, and ConfigError for a missing
    weights file, for weights given with a folder, and for wrong settings.
    """
    folder = Path(model)
    if (folder / SPEC_FILE).is_file():
        if weights != Weights():
            raise ConfigError(f"{model}: the folder of a backbone contains its weights. Leave out the weights options.")
        digest = read_spec(folder).weights_digest[:DIGITS]
        settings: dict[str, Any] = {"source": "folder", "folder": folder.resolve().as_posix(), "digest": digest}
        name = folder.resolve().name
    else:
        settings = _library_settings(model, weights)
        name = settings["model"]
    name = entry_name(name)
    values, problems = check({"freeze": {name: settings}}, {"freeze": Section(FreezeConfig, named=True)})
    refuse(problems, where=model)
    nodes = outline(values["freeze"][name], pretrained=Path())
    if nodes is None:
        raise BackboneError(
            f"{model}: its nodes cannot be listed without its weights. Add the backbone to params.yaml by hand."
        )
    return NamedBackbone(name, settings, nodes)


def entry_name(text: str) -> str:
    """Turn a text into the name of an entry of params.yaml, of letters, digits, `-` and `_`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name or "backbone"


def _library_settings(model: str, weights: Weights) -> dict[str, Any]:
    """Return the settings of a model by its name. A file name that torchvision knows identifies the weights."""
    if weights.file is not None and weights.name is None and weights.source in (None, "torchvision"):
        known = torchvision_models.entries(model) if model in torchvision_models.names() else []
        named = [entry.name for entry in known if entry.url.rpartition("/")[2] == weights.file.name]
        weights = replace(weights, name=named[0]) if named else weights
    settings = raw_settings(model, weights)
    if weights.file is not None:
        digest = weights.sha256 or sha256_file(weights.file)[:DIGITS]
        settings |= {"file": weights.file.resolve().as_posix(), "sha256": digest}
    return settings


def tap_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of a tap, given as NODE or NODE:POOLING."""
    node, colon, pool = text.partition(":")
    return entry_name(text), {"node": node} | ({"pool": pool} if colon else {})


def block_taps(backbone: NamedBackbone, count: int) -> dict[str, dict[str, Any]]:
    """Return taps of up to `count` blocks of a backbone, each pooled to a vector."""
    taps = backbone.outline.taps
    listed = blocks(backbone.outline)
    pooled = {node: pool for node in taps if node in listed and (pool := _pooling(taps[node]))}
    nodes = list(pooled)
    indices = sorted({int(len(nodes) * depth) for depth in DEPTHS[:count]}) if nodes else []
    aliases = {node: alias for alias, node in backbone.outline.aliases.items()}
    named = [(aliases.get(nodes[index], nodes[index]), pooled[nodes[index]]) for index in indices]
    return {entry_name(name): {"node": name, "pool": pool} for name, pool in named}


def _pooling(tap: Tap) -> str:
    """Return the pooling that reduces a tap to a vector, or an empty string."""
    wanted = {"CHW": "mean", "HWC": "mean", "LC": "cls" if tap.class_token else "mean_tokens"}.get(tap.layout, "")
    try:
        return wanted if wanted and pooled_shape(tap, wanted) and len(tap.shape) > 1 else ""
    except ValueError:
        return ""
