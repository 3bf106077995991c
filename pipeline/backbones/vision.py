"""Classification models of torchvision: weights by the name of their enum entry, preprocessing from the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from pipeline.backbones.spec import InputSpec
from pipeline.errors import BackboneError, unknown
from pipeline.readers.image import ImageSpec

# What torchvision switches on by itself only when it loads the weights.
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
}

# Swin keeps (height, width, channels) until its last normalisation.
CHANNELS_LAST = {"swin": ("features", "norm")}


def names() -> list[str]:
    """Every classification model of the installed torchvision."""
    return list(models.list_models(module=models))


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """An untrained model from the settings in backbone.json."""
    options = {key: value for key, value in architecture.items() if key not in ("family", "name")}
    network: nn.Module = models.get_model(architecture["name"], weights=None, **options)
    return network


def architecture(model: str, classes: int | None) -> dict[str, Any]:
    """What backbone.json keeps of a model; raises BackboneError if torchvision has no such classification model."""
    if model not in names():
        raise BackboneError(unknown("torchvision classification model", model, names()))
    options = dict(EXTRA.get(model, {}))
    return {"family": "torchvision", "name": model, **options, **({"num_classes": classes} if classes else {})}


def weights_entry(model: str, weights: str) -> Any:
    """The entry of the model's weights enum; raises BackboneError with the names that exist."""
    entries = models.get_model_weights(model)
    if weights not in entries.__members__:
        raise BackboneError(f"{model}: {unknown('weights', weights, entries.__members__)}")
    return entries[weights]


def preprocessing(entry: Any) -> InputSpec:
    """The input that a set of weights was trained for, as torchvision states it."""
    preset = entry.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    interpolation = InterpolationMode(preset.interpolation).value
    image = ImageSpec(mode="RGB", resize=resize, crop=(crop, crop), interpolation=interpolation)
    return InputSpec(image=image, mean=tuple(preset.mean), std=tuple(preset.std))


def download(entry: Any) -> dict[str, torch.Tensor]:
    """The weights of an enum entry, from torch's own cache or from where torchvision keeps them; hash checked."""
    state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    return state


def channels_last(model: str) -> tuple[str, ...]:
    """The top-level modules of a model whose maps are (height, width, channels)."""
    return next((parts for prefix, parts in CHANNELS_LAST.items() if model.startswith(prefix)), ())
