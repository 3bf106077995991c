"""Choose a model of torchvision or timm by name and weights, and freeze it into a folder that later calls reuse.

torch is imported only to look a name up and to freeze, so that a call for a model that is frozen already starts fast.
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.backbones.spec import SPEC_FILE
from pipeline.errors import BackboneError, ConfigError, install_command, unknown
from pipeline.files import digest, sha256_file
from pipeline.freeze.config import Timm, Torchvision
from pipeline.runtime import Reporter, versions
from pipeline.settings.check import Section, check, refuse

LIBRARIES = ("torchvision", "timm")

LibraryModel = Annotated[Torchvision | Timm, Field(discriminator="source")]
"""The settings of `freeze` for a model of torchvision or timm."""


@dataclass(frozen=True)
class Weights:
    """The weights of a model. A field that is None has the library's default.

    source: torchvision or timm.
    name: an entry of torchvision's enum, or a tag of timm.
    file: weights on disk.
    sha256: the first digits of the digest of `file`.
    entry: the key of the state dict, in a file with several.

    >>> Weights(source="torchvision", name="IMAGENET1K_V1").file is None
    True
    """

    source: str | None = None
    name: str | None = None
    file: Path | None = None
    sha256: str | None = None
    entry: str | None = None


def model_settings(model: str, weights: Weights | None = None) -> Torchvision | Timm:
    """Return the validated settings of `freeze` for a model of torchvision or timm.

    Raises BackboneError where neither library has the model, and ConfigError with every wrong setting.
    """
    values, problems = check({"freeze": raw_settings(model, weights or Weights())}, {"freeze": Section(LibraryModel)})
    refuse(problems, where=model)
    settings: Torchvision | Timm = values["freeze"]
    return settings


def raw_settings(model: str, weights: Weights, *, work: Path | None = None) -> dict[str, Any]:
    """Return the settings of `freeze` for a model, not yet validated. A timm tag in the name selects the weights.

    `work`: the folder in which `freeze_once` may have frozen the model already, so that its library is known.

    Raises BackboneError where neither library has the model, and ConfigError where the weights file is missing.
    """
    if weights.file is not None:
        if not weights.file.is_file():
            raise ConfigError(f"{weights.file}: no such weights file. Expected a .safetensors or .pth state dict.")
        weights = replace(weights, sha256=weights.sha256 or sha256_file(weights.file))
    source = weights.source or _library_of_frozen(model, weights, work) or library_of(model)
    name, dot, tag = model.partition(".")
    settings: dict[str, Any] = {"source": source, "model": model}
    if weights.name is not None:
        settings["weights"] = weights.name
    elif source == "timm" and dot:
        settings |= {"model": name, "weights": tag}
    return settings | {
        key: value for key in ("file", "sha256", "entry") if (value := getattr(weights, key)) is not None
    }


def library_of(model: str) -> str:
    """Return the library that has a model, torchvision if both have it. Raises BackboneError if neither has it."""
    from pipeline.backbones import timm_models, torchvision_models

    if model in torchvision_models.names():
        return "torchvision"
    has_timm = importlib.util.find_spec("timm") is not None
    timm_names = timm_models.names() if has_timm else []
    if model.partition(".")[0] in timm_names:
        return "timm"
    libraries = (
        "torchvision and timm" if has_timm else f"torchvision (timm is not installed: `{install_command('timm')}`)"
    )
    problem = unknown("backbone", model, {*torchvision_models.names(), *timm_names})
    raise BackboneError(
        f"{problem} These are the models of {libraries}; or name the folder of a backbone that icecore wrote."
    )


def freeze_once(settings: Torchvision | Timm, work: Path, reporter: Reporter) -> Path:
    """Freeze a model below `work/backbones` unless that was done before; return its folder."""
    folder = _frozen_folder(settings, work)
    if not (folder / SPEC_FILE).is_file():
        from pipeline.freeze.run import freeze

        freeze(settings, folder, pretrained=work, reporter=reporter)
    return folder


def _frozen_folder(settings: Torchvision | Timm, work: Path) -> Path:
    """Return the folder of a frozen model. Its name has a digest of the settings and the library versions."""
    libraries = versions("torch", "torchvision", settings.source)
    made_from = digest({"settings": settings.model_dump(mode="json", exclude={"file"}), "versions": libraries})
    return work / "backbones" / f"{settings.model}-{made_from[:12]}"


def _library_of_frozen(model: str, weights: Weights, work: Path | None) -> str | None:
    """Return the library of a model that was frozen below `work` with these versions; None without such a model."""
    if work is None:
        return None
    for source in LIBRARIES:
        raw = raw_settings(model, replace(weights, source=source))
        values, problems = check({"freeze": raw}, {"freeze": Section(LibraryModel)})
        if not problems and (_frozen_folder(values["freeze"], work) / SPEC_FILE).is_file():
            return source
    return None
