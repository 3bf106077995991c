"""Models of timm: weights by timm's tag, preprocessing from timm's settings for each set of weights.

timm is an extra of its own, imported with the first of its models.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.backbones.spec import InputSpec
from pipeline.errors import BackboneError, requires, unknown
from pipeline.readers.image import ImageSpec

SETTINGS = ("num_classes", "img_size")
"""Settings of a timm model that backbone.json may hold. Other settings of timm load files."""


def names() -> list[str]:
    """Return the names of all models of the installed timm, without tags."""
    return list(_timm().list_models())


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model from the settings in backbone.json."""
    return _create(architecture, pretrained=False)


def weights_entry(model: str, tag: str | None) -> Any:
    """Return timm's settings of a set of weights; raises BackboneError with the known models or tags."""
    timm = _timm()
    _check_model(model)
    tags = _tags(model)
    if tag is not None and tag not in tags:
        raise BackboneError(f"{model}: {unknown('weights', tag, tags)}")
    entry = timm.models.get_pretrained_cfg(model if tag is None else f"{model}.{tag}")
    if entry is None:
        raise BackboneError(f"{model}: expected a model with preprocessing settings, but timm has none for it.")
    return entry


def _tags(model: str) -> list[str]:
    names = _timm().list_pretrained(f"{model}.*")
    return [name.partition(".")[2] for name in names if name.partition(".")[0] == model]


def all_preprocessing(model: str, *, own_size: bool = False) -> dict[str, InputSpec]:
    """Return {tag: input} for the weights of a model, without inputs that icecore cannot reproduce."""
    result = {}
    for tag in _tags(model):
        with contextlib.suppress(BackboneError):
            result[tag] = preprocessing(model, weights_entry(model, tag), own_size=own_size)
    return result


def architecture(model: str, entry: Any, classes: int | None) -> dict[str, Any]:
    """Return the architecture in backbone.json for a model with the weights of an entry."""
    size = {"img_size": list(entry.input_size[1:])} if entry.fixed_input_size else {}
    return {"family": "timm", "name": model, "tag": entry.tag, "num_classes": classes or entry.num_classes, **size}


def preprocessing(model: str, entry: Any, *, own_size: bool = False) -> InputSpec:
    """Return timm's evaluation input for a set of weights.

    `own_size`: the user sets resize and crop, so that timm's need not be reproduced.
    """
    height, width = entry.input_size[1:]
    scaled = (math.floor(height / entry.crop_pct), math.floor(width / entry.crop_pct))
    reproduced = entry.crop_mode == "squash" or (entry.crop_mode == "center" and height == width)
    if not reproduced and not own_size:
        raise BackboneError(
            f"{model}: expected a crop that icecore can reproduce (center of a square, or squash), got "
            f"{entry.crop_mode} to {height}×{width}. Set `resize` and `crop` in `input` to what you want instead."
        )
    resize = scaled if entry.crop_mode == "squash" else min(scaled)
    image = ImageSpec(mode="RGB", resize=resize, crop=(height, width), interpolation=entry.interpolation)
    return InputSpec(image=image, mean=tuple(entry.mean), std=tuple(entry.std))


def origin(entry: Any) -> dict[str, str]:
    """Return the licence and the addresses that timm states."""
    stated = {"hf_hub_id": entry.hf_hub_id, "url": entry.url, "origin_url": entry.origin_url}
    return {"license": entry.license or "not stated"} | {name: str(value) for name, value in stated.items() if value}


def download(architecture: Mapping[str, Any], entry: Any) -> nn.Module:
    """Return a model with the weights of an entry, from timm's cache or downloaded.

    Raises BackboneError if there is no connection, or if the download is damaged.
    """
    _timm().models.set_pretrained_check_hash(True)
    where = f"{architecture['name']}.{entry.tag}"
    try:
        return _create(architecture, pretrained=True)
    except Exception as error:  # noqa: BLE001 - hubs and their clients raise nearly anything
        raise BackboneError(
            f"{where}: the weights could not be loaded: {type(error).__name__}: {error} Without a connection, "
            f"download {entry.hf_hub_id or entry.url} elsewhere and set `file` to its file, with its `sha256`."
        ) from None


def _create(architecture: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    timm = _timm()
    _check_model(architecture["name"])  # timm takes an unknown name for the address of a repository or folder
    settings = {name: architecture[name] for name in SETTINGS if name in architecture}
    network: nn.Module = timm.create_model(
        architecture["name"], pretrained=pretrained, pretrained_cfg=architecture["tag"], **settings
    )
    return network


def _check_model(model: str) -> None:
    timm = _timm()
    if not timm.is_model(model):
        raise BackboneError(unknown("timm model", model, timm.list_models()))


def _timm() -> Any:
    with requires("timm", what="models of timm", error=BackboneError):
        import timm
    return timm
