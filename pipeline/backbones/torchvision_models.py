"""Classification models of torchvision: weights by the name of the enum entry, preprocessing from the weights."""

import importlib
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.backbones.spec import InputSpec
from pipeline.errors import BackboneError, unknown
from pipeline.readers.image import ImageSpec

COMPILER = "torch._dynamo.utils"


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let torchvision be imported within without the compiler of torch, which takes longer than all the rest of it.

    An operator of torchvision, `roi_align`, asks for one function of the compiler, which it calls when it runs: see
    `python -X importtime -c "import torchvision"`. Within, this function stands for it, and imports the compiler when
    it is called; any other name of the compiler that is asked for imports it at once.
    """
    if COMPILER in sys.modules:
        yield
        return
    stand_in = _Compiler(COMPILER)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


class _Compiler(ModuleType):
    """Stands in the place of a module of the compiler, with one function of it."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        """Return whether the compiler supports a device."""
        return importlib.import_module(COMPILER).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


with _without_compiler():
    from torchvision import models
    from torchvision.transforms import InterpolationMode

# Options that torchvision sets only when it loads the weights itself. The weights include the auxiliary classifiers.
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}

# DenseNet's weight files have old module names: `denselayer1.norm.1.weight` is now `denselayer1.norm1.weight`.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def names() -> list[str]:
    """Return the names of all classification models of the installed torchvision."""
    return list(models.list_models(module=models))


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model from the settings in backbone.json."""
    options = {key: value for key, value in architecture.items() if key not in ("family", "name")}
    network: nn.Module = models.get_model(architecture["name"], weights=None, **options)
    return network


def architecture(model: str, entry: Any, classes: int | None) -> dict[str, Any]:
    """Return the architecture in backbone.json for a model with the weights of an enum entry."""
    options = dict(EXTRA.get(model, {}))
    if model.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    return {"family": "torchvision", "name": model, **options, **({"num_classes": classes} if classes else {})}


def weights_entry(model: str, weights: str) -> Any:
    """Return an entry of the model's weights enum; raises BackboneError with the known models or entries."""
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
    """Return torchvision's evaluation input for a set of weights."""
    return preset_input(entry.transforms())


def preset_input(preset: Any) -> InputSpec:
    """Return the input of a classification preset of torchvision."""
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    interpolation = InterpolationMode(preset.interpolation).value
    image = ImageSpec(mode="RGB", resize=resize, crop=(crop, crop), interpolation=interpolation)
    return InputSpec(image=image, mean=tuple(preset.mean), std=tuple(preset.std))


def download(entry: Any) -> dict[str, torch.Tensor]:
    """Return the weights of an enum entry, from torch's cache or downloaded, with their hash checked.

    Raises BackboneError if there is no connection, or if the download is damaged.
    """
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except PermissionError:  # the cache of torch belongs to another user
        raise
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BackboneError(
            f"{entry.url}: the weights could not be loaded: {error}. Without a connection, download that "
            "file elsewhere and set `file` to its path, with its `sha256`."
        ) from None
    return state


def current_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with the module names of the installed torchvision."""
    return {OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
