"""The settings of a backbone by the name of a model, with weights on disk, or by its folder; and taps of its blocks."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.backbones import serialization, torchvision_models
from pipeline.backbones.spec import Tap, pooled_shape
from pipeline.errors import BackboneError, ConfigError
from pipeline.files import sha256_file
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.library_model import Weights, raw_settings
from pipeline.freeze.outline import Outline, outline
from pipeline.inference.node_table import blocks

DIGITS = 16  # of a digest, in params.yaml

DEPTHS = (0.6, 0.85)
"""Where the blocks lie whose output is tried besides the last layer's, as shares of all blocks."""


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone's name in params.yaml, its settings of `freeze`, and its nodes."""

    name: str
    settings: dict[str, Any]
    outline: Outline


def read_backbone(model: str, weights: Weights) -> NamedBackbone:
    """Return the backbone of a model of torchvision or timm, or of a folder that icecore wrote.

    Nothing is downloaded. Raises BackboneError for a model that no library has, with those of similar names, and
    ConfigError for weights that are missing, or given with a folder.
    """
    folder = Path(model)
    if (folder / serialization.JSON).is_file():
        if weights != Weights():
            raise ConfigError(f"{model}: a backbone's folder has its weights. Leave out the options of weights.")
        digest = serialization.read_spec(folder).weights_digest[:DIGITS]
        settings: dict[str, Any] = {"source": "folder", "folder": folder.resolve().as_posix(), "digest": digest}
        name = folder.resolve().name
    else:
        settings = _library_settings(model, weights)
        name = settings["model"]
    config: FreezeConfig = TypeAdapter(FreezeConfig).validate_python(settings)
    nodes = outline(config, pretrained=Path())
    if nodes is None:
        raise BackboneError(f"{model}: its nodes cannot be listed without its weights. Write it into params.yaml.")
    return NamedBackbone(entry_name(name), settings, nodes)


def entry_name(text: str) -> str:
    """Return a text as the name of an entry of params.yaml: letters, digits, `-` and `_`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name or "backbone"


def _library_settings(model: str, weights: Weights) -> dict[str, Any]:
    """Return the settings of a model by name; a file that torchvision offers for download says which weights it has."""
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
    """Return the name and the settings of a tap that is written NODE or NODE:POOLING."""
    node, colon, pool = text.partition(":")
    return entry_name(text), {"node": node} | ({"pool": pool} if colon else {})


def block_taps(backbone: NamedBackbone, count: int) -> dict[str, dict[str, Any]]:
    """Return taps of up to `count` blocks of a backbone, pooled to one vector each."""
    taps = backbone.outline.taps
    listed = blocks(backbone.outline)
    pooled = {node: pool for node in taps if node in listed and (pool := _pooling(taps[node]))}
    nodes = list(pooled)
    places = sorted({int(len(nodes) * depth) for depth in DEPTHS[:count]}) if nodes else []
    aliases = {node: alias for alias, node in backbone.outline.aliases.items()}
    named = [(aliases.get(nodes[place], nodes[place]), pooled[nodes[place]]) for place in places]
    return {entry_name(name): {"node": name, "pool": pool} for name, pool in named}


def _pooling(tap: Tap) -> str:
    """Return the pooling that makes one vector of a tap; "" where there is none."""
    wanted = {"CHW": "mean", "HWC": "mean", "LC": "cls" if tap.class_token else "mean_tokens"}.get(tap.layout, "")
    try:
        return wanted if wanted and pooled_shape(tap, wanted) and len(tap.shape) > 1 else ""
    except ValueError:
        return ""
