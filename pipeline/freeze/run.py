"""The run of `freeze`: a source's weights in its network, with the preprocessing they want, become a backbone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from pipeline.backbones import artefact, factory, timm_models
from pipeline.backbones.spec import BackboneSpec, InputSpec
from pipeline.backbones.survey import survey
from pipeline.backbones.taps import PENULTIMATE
from pipeline.errors import BackboneError
from pipeline.files import sha256_file
from pipeline.freeze import Folder, FreezeConfig, LocalWeights, Module, Pretrained, Timm, Torchvision
from pipeline.freeze.checkpoint import read_state_dict


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and what its source says of it."""

    network: nn.Module
    architecture: Mapping[str, Any]
    origin: Mapping[str, Any]
    inputs: InputSpec | None
    classes: Iterable[str] = ()


Say = Callable[[str], None]


def freeze(config: FreezeConfig, folder: Path, *, pretrained: Path, say: Say = lambda _: None) -> BackboneSpec:
    """Write a backbone below `folder`; `pretrained` holds the networks that icecore trained.

    say: gets what of a weights file is read, where the file holds more.
    """
    match config:
        case Pretrained():
            loaded = _own(pretrained / config.network)
        case Folder():
            loaded = _own(config.folder, digest=config.digest or "")
        case Torchvision():
            loaded = _torchvision(config, say)
        case Timm():
            loaded = _timm(config, say)
        case Module():
            loaded = _module(config, say)
        case _:
            assert_never(config)
    try:
        inputs = config.input.onto(loaded.inputs)
    except ValueError as error:
        raise BackboneError(f"{folder.name}: `input` makes no image: {error}.") from None
    return artefact.write(
        folder,
        loaded.network,
        architecture=loaded.architecture,
        origin=loaded.origin,
        inputs=inputs,
        classes=loaded.classes,
    )


def _own(source: Path, *, digest: str = "") -> Loaded:
    own = artefact.read(source)
    if not own.spec.weights_digest.startswith(digest.lower()):
        raise BackboneError(
            f"{source}: expected weights whose digest begins with {digest}, got {own.spec.weights_digest[:16]}. "
            "Where the new ones are meant, set `digest` to that."
        )
    return Loaded(own.module, own.spec.architecture, own.spec.origin, own.spec.input, own.spec.classes)


def _torchvision(config: Torchvision, say: Say) -> Loaded:
    from pipeline.backbones import vision  # torchvision takes as long to import as torch

    entry = vision.weights_entry(config.model, config.weights)
    architecture = vision.architecture(config.model, entry, config.classes)
    origin = {"source": "torchvision", "model": config.model, "weights": entry.name}
    if config.file is None:
        state: Mapping[str, Tensor] = vision.download(entry)
        origin |= {"license": entry.meta.get("license", "not stated"), "url": entry.url}
    else:
        state = _state(config, say)
        origin |= _named(config)
    network = artefact.build(architecture)
    classes = (entry.meta.get("categories") or ()) if config.classes is None else ()
    loaded = Loaded(network, architecture, origin, vision.preprocessing(entry), classes)
    where = f"{config.model} from {config.file or entry.name}"
    return _with_weights(loaded, vision.current_keys(state), config, where=where, say=say)


def _timm(config: Timm, say: Say) -> Loaded:
    entry = timm_models.weights_entry(config.model, config.weights)
    architecture = timm_models.architecture(config.model, entry, config.classes)
    origin = {"source": "timm", "model": config.model, "weights": entry.tag or ""}
    if config.file is None:
        network = timm_models.download(architecture, entry)
        origin |= timm_models.origin(entry)
    else:
        network = artefact.build(architecture)
        origin |= _named(config)
    own_size = {"resize", "crop"} <= config.input.model_fields_set
    inputs = timm_models.preprocessing(config.model, entry, own_size=own_size)
    loaded = Loaded(network, architecture, origin, inputs, (entry.label_names or ()) if config.classes is None else ())
    if config.file is None:
        return loaded
    return _with_weights(loaded, _state(config, say), config, where=f"{config.model} from {config.file}", say=say)


def _module(config: Module, say: Say) -> Loaded:
    with torch.random.fork_rng(devices=[]):
        architecture = factory.architecture(config.factory, config.arguments)
        torch.manual_seed(config.seed or 0)
        network = artefact.build(architecture)
    origin: dict[str, Any] = {"source": "module", "factory": config.factory}
    if config.file is None:
        origin["seed"] = config.seed
    else:
        origin |= _named(config)
        loaded = Loaded(network, architecture, origin, None)
        return _with_weights(loaded, _state(config, say), config, where=f"{config.factory} from {config.file}", say=say)
    return Loaded(network, architecture, origin, None)


def _with_weights(
    loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module, *, where: str, say: Say
) -> Loaded:
    """Put weights into a network; without its last layer where that is all that they lack, and nobody asked for it."""
    at = None if getattr(config, "classes", None) else _missing_classifier(loaded, state, config)
    if at is not None:
        base = dict(loaded.architecture)
        architecture = {"family": "headless", "name": str(base.get("name", "")), "base": base, "at": at}
        other = [key for key in state if key.startswith(f"{at}.")]
        state = {key: value for key, value in state.items() if key not in other}
        say(
            f"{where}: no weights of the last layer, {at!r}. The backbone ends before it: it has no classes, and its "
            f"output is `penultimate`." + (f" Left out: {', '.join(other)}." if other else "")
        )
        origin = {**loaded.origin, "without": at}
        loaded = Loaded(artefact.build(architecture), architecture, origin, loaded.inputs)
    artefact.load_state(loaded.network, state, where=where)
    return loaded


def _missing_classifier(loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module) -> str | None:
    """Return the name of the last layer if a state dict lacks all its weights and no others."""
    own = loaded.network.state_dict()
    lacking = {key for key in own if key not in state and not key.endswith("num_batches_tracked")}
    at = next(iter(lacking), "").rpartition(".")[0]
    if not at or lacking != {key for key in own if key.rpartition(".")[0] == at}:
        return None
    try:
        shape = config.input.onto(loaded.inputs).shape
        taps = survey(artefact.freeze(loaded.network), shape)
    except Exception:  # noqa: BLE001 - what is wrong with the input is named when the backbone is written
        return None
    last = taps.get(PENULTIMATE)
    return at if last is not None and last.input_of == at else None


def _state(config: LocalWeights, say: Say) -> Mapping[str, Tensor]:
    assert config.file is not None, "the caller looked"
    return read_state_dict(
        config.file,
        sha256=config.sha256 or "",
        entry=config.entry,
        strip_prefix=config.strip_prefix or "",
        say=say,
    )


def _named(config: LocalWeights) -> dict[str, str]:
    assert config.file is not None, "the caller looked"
    named = {"file": config.file.name, "sha256": sha256_file(config.file)}
    return named | ({} if config.entry is None else {"entry": config.entry})
