"""Classification models of torchvision: weights by the name of their enum entry, preprocessing from the weights."""

import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from pipeline.backbones.spec import InputSpec
from pipeline.errors import BackboneError, unknown
from pipeline.readers.image import ImageSpec

# What torchvision switches on by itself only when it loads the weights. The weights hold the auxiliary classifiers.
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}

# DenseNet's files are older than its module names: `denselayer1.norm.1.weight` is `denselayer1.norm1.weight` now.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def names() -> list[str]:
    """Return every classification model of the installed torchvision."""
    return list(models.list_models(module=models))


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model from the settings in backbone.json."""
    options = {key: value for key, value in architecture.items() if key not in ("family", "name")}
    network: nn.Module = models.get_model(architecture["name"], weights=None, **options)
    return network


def architecture(model: str, entry: Any, classes: int | None) -> dict[str, Any]:
    """Return what backbone.json keeps of a model that is to hold weights of an enum entry."""
    options = dict(EXTRA.get(model, {}))
    if model.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    return {"family": "torchvision", "name": model, **options, **({"num_classes": classes} if classes else {})}


def weights_entry(model: str, weights: str) -> Any:
    """Return the entry of the model's weights enum; raises BackboneError with the models or the entries that exist."""
    if model not in names():
        raise BackboneError(unknown("torchvision classification model", model, names()))
    entries = models.get_model_weights(model)
    if weights not in entries.__members__:
        raise BackboneError(f"{model}: {unknown('weights', weights, entries.__members__)}")
    return entries[weights]


def entries(model: str) -> list[Any]:
    """Return all entries of the model's weights enum."""
    return list(models.get_model_weights(model))


def preprocessing(entry: Any) -> InputSpec:
    """Return the input that a set of weights was trained for, as torchvision states it."""
    return preset_input(entry.transforms())


def preset_input(preset: Any) -> InputSpec:
    """Return the input that a preset of torchvision for classification makes of an image."""
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    interpolation = InterpolationMode(preset.interpolation).value
    image = ImageSpec(mode="RGB", resize=resize, crop=(crop, crop), interpolation=interpolation)
    return InputSpec(image=image, mean=tuple(preset.mean), std=tuple(preset.std))


def download(entry: Any) -> dict[str, torch.Tensor]:
    """Return the weights of an enum entry, from torch's own cache or from where torchvision keeps them; hash checked.

    Raises BackboneError if there is no network, or if what came is damaged.
    """
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except PermissionError:  # torch's cache is another user's
        raise
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BackboneError(
            f"{entry.url}: the weights could not be loaded: {error}. Where there is no network, fetch that file "
            "elsewhere and name it in `file`, with its `sha256`."
        ) from None
    return state


def current_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the names that the modules have in the installed torchvision."""
    return {OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
