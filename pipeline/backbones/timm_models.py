"""Models of timm: weights by timm's tag, preprocessing from the settings that timm keeps beside each set of weights.

timm is an extra of its own. It is imported when a model of it is asked for.
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
"""What backbone.json may tell a model of timm. Others of its settings load files."""


def names() -> list[str]:
    """Return every model of the installed timm, without tags."""
    return list(_timm().list_models())


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model from the settings in backbone.json."""
    return _create(architecture, pretrained=False)


def weights_entry(model: str, tag: str | None) -> Any:
    """Return timm's settings of a set of weights; raises BackboneError with the models or the tags that exist."""
    timm = _timm()
    _known(model)
    tags = _tags(model)
    if tag is not None and tag not in tags:
        raise BackboneError(f"{model}: {unknown('weights', tag, tags)}")
    entry = timm.models.get_pretrained_cfg(model if tag is None else f"{model}.{tag}")
    if entry is None:
        raise BackboneError(f"{model}: expected a model with preprocessing of its own, and timm states none for it.")
    return entry


def _tags(model: str) -> list[str]:
    names = _timm().list_pretrained(f"{model}.*")
    return [name.partition(".")[2] for name in names if name.partition(".")[0] == model]


def all_preprocessing(model: str, *, own_size: bool = False) -> dict[str, InputSpec]:
    """Return the input of each set of weights of a model, by its tag; without those that icecore cannot reproduce."""
    result = {}
    for tag in _tags(model):
        with contextlib.suppress(BackboneError):
            result[tag] = preprocessing(model, weights_entry(model, tag), own_size=own_size)
    return result


def architecture(model: str, entry: Any, classes: int | None) -> dict[str, Any]:
    """Return what backbone.json keeps of a model that is to hold weights of an entry."""
    size = {"img_size": list(entry.input_size[1:])} if entry.fixed_input_size else {}
    return {"family": "timm", "name": model, "tag": entry.tag, "num_classes": classes or entry.num_classes, **size}


def preprocessing(model: str, entry: Any, *, own_size: bool = False) -> InputSpec:
    """Return the input that a set of weights is evaluated with, as timm states it.

    `own_size`: the user's settings replace resize and crop, so that those of timm need not be reproduced.
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
    """Return licence and addresses, where timm states them."""
    stated = {"hf_hub_id": entry.hf_hub_id, "url": entry.url, "origin_url": entry.origin_url}
    return {"license": entry.license or "not stated"} | {name: str(value) for name, value in stated.items() if value}


def download(architecture: Mapping[str, Any], entry: Any) -> nn.Module:
    """Return a model with the weights of an entry, from the caches of timm or from where it keeps them.

    Raises BackboneError if there is no network, or if what came is damaged.
    """
    _timm().models.set_pretrained_check_hash(True)
    where = f"{architecture['name']}.{entry.tag}"
    try:
        return _create(architecture, pretrained=True)
    except Exception as error:  # noqa: BLE001 - hubs and their clients raise nearly anything
        raise BackboneError(
            f"{where}: the weights could not be loaded: {type(error).__name__}: {error} Where there is no network, "
            f"fetch {entry.hf_hub_id or entry.url} elsewhere and name its file in `file`, with its `sha256`."
        ) from None


def _create(architecture: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    timm = _timm()
    _known(architecture["name"])  # else timm takes it for the address of a repository or of a folder
    settings = {name: architecture[name] for name in SETTINGS if name in architecture}
    network: nn.Module = timm.create_model(
        architecture["name"], pretrained=pretrained, pretrained_cfg=architecture["tag"], **settings
    )
    return network


def _known(model: str) -> None:
    timm = _timm()
    if not timm.is_model(model):
        raise BackboneError(unknown("timm model", model, timm.list_models()))


def _timm() -> Any:
    with requires("timm", what="models of timm", error=BackboneError):
        import timm
    return timm
