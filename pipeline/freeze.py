"""Freeze a backbone: load its weights, check that they fit, and write the backbone artefact."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.backbones.spec import BackboneSpec
from pipeline.config import Settings
from pipeline.errors import BackboneError
from pipeline.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor


class FreezeConfig(Settings):
    """Where a backbone comes from."""

    source: Literal["pretrained", "torchvision"]
    network: str | None = Field(None, description="pretrained: the name of a network below `pretrain`")
    model: str | None = Field(None, description="torchvision: the model's name, such as mobilenet_v2")
    weights: str = Field("DEFAULT", description="torchvision: entry of the weights enum; preprocessing comes from it")
    file: Path | None = Field(None, description="torchvision: a local state dict (.safetensors, .pth) to use instead")
    sha256: str | None = Field(
        None, description="of `file`, at least its first 8 digits: another file, another backbone"
    )
    classes: int | None = Field(None, ge=1, description="torchvision: outputs of the classifier, if not the enum's")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "pretrained" and not self.network:
            raise ValueError("source: pretrained needs `network`, the name of a network below `pretrain`")
        if self.source == "torchvision" and not self.model:
            raise ValueError("source: torchvision needs `model`, such as mobilenet_v2")
        if self.file is not None and len(self.sha256 or "") < 8:
            raise ValueError(f"`file` needs `sha256`, its first 8 digits or more ({_suggest(self.file)})")
        return self


def _suggest(file: Path) -> str:
    return f"sha256: '{sha256_file(file)[:16]}'" if file.is_file() else f"{file}: no such file"


def freeze(config: FreezeConfig, folder: Path, *, pretrained: Path) -> BackboneSpec:
    """Write a backbone below `folder`; `pretrained` holds the networks that icecore trained."""
    if config.source == "pretrained":
        return _freeze_own(pretrained / str(config.network), folder)
    return _freeze_torchvision(config, folder)


def _freeze_own(source: Path, folder: Path) -> BackboneSpec:
    from pipeline.backbones import artefact

    own = artefact.read(source)
    return artefact.write(
        folder,
        own.module,
        architecture=own.spec.architecture,
        origin=own.spec.origin,
        inputs=own.spec.input,
        classes=own.spec.classes,
    )


def _freeze_torchvision(config: FreezeConfig, folder: Path) -> BackboneSpec:
    from pipeline.backbones import artefact, vision

    assert config.model is not None, "FreezeConfig checked it"
    entry = vision.weights_entry(config.model, config.weights)
    architecture = vision.architecture(config.model, entry, config.classes)
    origin: dict[str, Any] = {"source": "torchvision", "model": config.model, "weights": entry.name}
    if config.file is None:
        state: Mapping[str, Tensor] = vision.download(entry)
        origin["license"] = entry.meta.get("license", "not stated")
    else:
        state = read_state_dict(config.file, sha256=config.sha256 or "")
        origin |= {"file": config.file.name, "sha256": sha256_file(config.file)}
    network = artefact.build(architecture)
    artefact.load_state(network, vision.current_keys(state), where=f"{config.model} from {config.file or entry.name}")
    return artefact.write(
        folder,
        network,
        architecture=architecture,
        origin=origin,
        inputs=vision.preprocessing(entry),
        classes=entry.meta["categories"] if config.classes is None else (),
    )


def read_state_dict(file: Path, *, sha256: str) -> Mapping[str, "Tensor"]:
    """Read a local state dict without running any code from it; raises BackboneError with what is wrong with it."""
    import safetensors.torch
    import torch

    if not file.is_file():
        raise BackboneError(f"{file}: no such weights file. Set `file` to a .safetensors or .pth state dict.")
    found = sha256_file(file)
    if not found.startswith(sha256.lower()):
        raise BackboneError(f"{file}: expected a file whose SHA-256 begins with {sha256}, got {found}.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch's unpickler raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"{file}: expected a state dict (names to tensors), got a file that is damaged, or that cannot be read "
            f"without running code from it: {reason} Where you trust the file, load it once and save "
            "`model.state_dict()` with safetensors."
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BackboneError(f"{file}: expected a state dict (names to tensors), got {type(loaded).__name__}.")
    return loaded
