"""A network with its weights, from each kind of source."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from pipeline.backbones import serialization, timm_models, user_module
from pipeline.errors import BackboneError
from pipeline.files import sha256_file
from pipeline.freeze.config import Folder, FreezeConfig, LocalWeights, Module, Pretrained, Timm, Torchvision
from pipeline.freeze.fit_weights import Loaded, load_weights
from pipeline.freeze.outline import refuse_ambiguous_preprocessing
from pipeline.freeze.state_dict import read_entry
from pipeline.runtime import SILENT, Reporter


def load(config: FreezeConfig, *, pretrained: Path, reporter: Reporter = SILENT) -> Loaded:
    """Load the network of a backbone with its weights; raises BackboneError where weights are missing or do not fit.

    pretrained, reporter: as in `freeze`.
    """
    match config:
        case Pretrained():
            return _load_backbone(pretrained / config.network)
        case Folder():
            return _load_backbone(config.folder, digest=config.digest or "")
        case Torchvision():
            return _load_torchvision(config, reporter)
        case Timm():
            return _load_timm(config, reporter)
        case Module():
            return _load_module(config, reporter)
        case _:
            assert_never(config)


def _load_backbone(source: Path, *, digest: str = "") -> Loaded:
    own = serialization.read(source)
    if not own.spec.weights_digest.startswith(digest.lower()):
        raise BackboneError(
            f"{source}: expected weights whose digest begins with {digest}, got {own.spec.weights_digest[:16]}. "
            "If the new weights are right, set `digest` to that."
        )
    return Loaded(own.module, own.spec.architecture, own.spec.origin, own.spec.input, own.spec.classes)


def _load_torchvision(config: Torchvision, reporter: Reporter) -> Loaded:
    from pipeline.backbones import torchvision_models  # torchvision takes time to import

    entry = torchvision_models.weights_entry(config.model, config.weights)
    architecture = torchvision_models.architecture(config.model, entry, config.classes)
    origin = {"source": "torchvision", "model": config.model, "weights": entry.name}
    if config.file is None:
        state: Mapping[str, Tensor] = torchvision_models.download(entry)
        origin |= {"license": entry.meta.get("license", "not stated"), "url": entry.url}
    else:
        refuse_ambiguous_preprocessing(config)
        state, file_origin = _read_weights_file(config, reporter)
        origin |= file_origin
    network = serialization.build(architecture)
    classes = (entry.meta.get("categories") or ()) if config.classes is None else ()
    loaded = Loaded(network, architecture, origin, torchvision_models.preprocessing(entry), classes)
    where = f"{config.model} from {config.file or entry.name}"
    return load_weights(loaded, torchvision_models.current_keys(state), config, where=where, reporter=reporter)


def _load_timm(config: Timm, reporter: Reporter) -> Loaded:
    entry = timm_models.weights_entry(config.model, config.weights)
    architecture = timm_models.architecture(config.model, entry, config.classes)
    origin = {"source": "timm", "model": config.model, "weights": entry.tag or ""}
    if config.file is None:
        network = timm_models.download(architecture, entry)
        origin |= timm_models.origin(entry)
    else:
        network = serialization.build(architecture)
    own_size = {"resize", "crop"} <= config.input.model_fields_set
    inputs = timm_models.preprocessing(config.model, entry, own_size=own_size)
    loaded = Loaded(network, architecture, origin, inputs, (entry.label_names or ()) if config.classes is None else ())
    if config.file is None:
        return loaded
    refuse_ambiguous_preprocessing(config)
    state, file_origin = _read_weights_file(config, reporter)
    loaded = replace(loaded, origin={**origin, **file_origin})
    return load_weights(loaded, state, config, where=f"{config.model} from {config.file}", reporter=reporter)


def _load_module(config: Module, reporter: Reporter) -> Loaded:
    with torch.random.fork_rng(devices=[]):
        architecture = user_module.architecture(config.factory, config.arguments)
        torch.manual_seed(config.seed or 0)
        network = serialization.build(architecture)
    origin: dict[str, Any] = {"source": "module", "factory": config.factory}
    if config.file is None:
        origin["seed"] = config.seed
    else:
        state, file_origin = _read_weights_file(config, reporter)
        loaded = Loaded(network, architecture, origin | file_origin, None)
        return load_weights(loaded, state, config, where=f"{config.factory} from {config.file}", reporter=reporter)
    return Loaded(network, architecture, origin, None)


def _read_weights_file(config: LocalWeights, reporter: Reporter) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Read the weights of a file; also return their origin for backbone.json: file name, digest, entry."""
    assert config.file is not None, "callers check `file`"
    state, entry = read_entry(
        config.file,
        sha256=config.sha256 or "",
        entry=config.entry,
        strip_prefix=config.strip_prefix or "",
        reporter=reporter,
    )
    origin = {"file": config.file.name, "sha256": sha256_file(config.file)}
    return state, origin | ({"entry": entry} if entry else {})
