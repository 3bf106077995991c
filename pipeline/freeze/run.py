"""Freeze a backbone: build a source's network, load its weights, and write both with the preprocessing they need."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from pipeline.backbones import serialization, timm_models, user_module
from pipeline.backbones.find_classifier import determine_output
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.nodes import survey
from pipeline.backbones.spec import BackboneSpec, InputSpec
from pipeline.errors import BackboneError, counted
from pipeline.files import AnyPath, as_path, sha256_file
from pipeline.freeze.config import Folder, FreezeConfig, LocalWeights, Module, Pretrained, Timm, Torchvision
from pipeline.freeze.outline import refuse_ambiguous_preprocessing
from pipeline.freeze.state_dict import read_entry
from pipeline.runtime import SILENT, Reporter


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and the architecture, origin, preprocessing and classes that its source states."""

    network: nn.Module
    architecture: Mapping[str, Any]
    origin: Mapping[str, Any]
    inputs: InputSpec | None
    classes: Iterable[str] = ()


def freeze(config: FreezeConfig, folder: AnyPath, *, pretrained: AnyPath, reporter: Reporter = SILENT) -> BackboneSpec:
    """Write a backbone to `folder` and return its spec.

    pretrained: the folder of the networks of the stage `pretrain`.
    reporter: gets a message about entries of a weights file that are not read.
    """
    folder = as_path(folder, "freeze: folder")
    pretrained = as_path(pretrained, "freeze: pretrained")
    loaded = load(config, pretrained=pretrained, reporter=reporter)
    try:
        inputs = config.input.onto(loaded.inputs)
    except ValueError as error:
        raise BackboneError(f"{folder.name}: `input` makes no image: {error}.") from None
    return serialization.write(
        folder,
        loaded.network,
        architecture=loaded.architecture,
        origin=loaded.origin,
        inputs=inputs,
        classes=loaded.classes,
    )


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
    return _load_weights(loaded, torchvision_models.current_keys(state), config, where=where, reporter=reporter)


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
    return _load_weights(loaded, state, config, where=f"{config.model} from {config.file}", reporter=reporter)


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
        return _load_weights(loaded, state, config, where=f"{config.factory} from {config.file}", reporter=reporter)
    return Loaded(network, architecture, origin, None)


def _load_weights(
    loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module, *, where: str, reporter: Reporter
) -> Loaded:
    """Load weights into a network. If only the classifier does not fit, and `classes` is not set, cut it off."""
    at = () if getattr(config, "classes", None) else _mismatched_classifier(loaded, state, config)
    if at:
        base = dict(loaded.architecture)
        architecture = {
            "family": "headless",
            "name": str(base.get("name", "")),
            "base": base,
            "at": at[0] if len(at) == 1 else list(at),
        }
        other = [key for key in state if any(key.startswith(f"{name}.") for name in at)]
        own = loaded.network.state_dict()
        outputs = {len(state[key]) for key in other if key in own and state[key].ndim == own[key].ndim}
        reporter.message(_describe_cut(at, other, outputs, config, where=where))
        state = {key: value for key, value in state.items() if key not in other}
        origin = {**loaded.origin, "without": architecture["at"]}
        if len(outputs) == 1:
            origin["other_classes"] = outputs.pop()
        loaded = Loaded(serialization.build(architecture), architecture, origin, loaded.inputs)
    serialization.load_state(loaded.network, state, where=where)
    return loaded


def _describe_cut(at: Sequence[str], other: Sequence[str], outputs: set[int], config: object, *, where: str) -> str:
    """Return a message: why a backbone ends before its classifier, and which setting would include it."""
    names = " and ".join(repr(name) for name in at)
    layer = "layer" if len(at) == 1 else "layers"
    if len(outputs) == 1:
        (number,) = outputs
        make = "give the factory that number" if isinstance(config, Module) else f"set `classes: {number}`"
        start = (
            f"the file's weights of the last {layer}, {names}, have {counted(number, 'output')}, and the model has "
            f"another number (to load them, {make})"
        )
    else:
        start = f"no weights of the last {layer}, {names}"
    return f"{where}: {start}. The backbone ends before it: it has no classes, and its output is `penultimate`." + (
        f" Left out: {', '.join(other)}." if other else ""
    )


def _mismatched_classifier(
    loaded: Loaded, state: Mapping[str, Tensor], config: Torchvision | Timm | Module
) -> tuple[str, ...]:
    """Return the classifier's modules if all their weights, and no others, are missing or of another shape."""
    own = {key: value for key, value in loaded.network.state_dict().items() if not key.endswith("num_batches_tracked")}
    mismatched = {key for key, value in own.items() if key not in state or state[key].shape != value.shape}
    at: list[str] = []
    for name, _ in loaded.network.named_modules():
        keys = {key for key in own if key.startswith(f"{name}.")}
        if name and keys and keys <= mismatched and not any(name.startswith(f"{other}.") for other in at):
            owners = {key.rpartition(".")[0] for key in keys}
            if owners == {name} or len(owners) > 1:  # in a Sequential with a single layer with weights: that layer
                at.append(name)
    if not at or mismatched != {key for key in own if any(key.startswith(f"{name}.") for name in at)}:
        return ()
    try:
        shape = config.input.onto(loaded.inputs).shape
        network = serialization.freeze(loaded.network)
        last = survey(network, shape)[PENULTIMATE]
        heads = [last.input_of] if last.input_of is not None else list(last.parts)
        inside = bool(heads) and all(any(head == name or head.startswith(f"{name}.") for name in at) for head in heads)
        # Convolutions compute features: a network that lacks weights of one lacks more than its classifier.
        inside &= not any(
            isinstance(part, nn.Conv2d) and f"{name}.{inner}".rstrip(".") not in heads
            for name in at
            for inner, part in network.get_submodule(name).named_modules()
        )
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        return tuple(at) if inside and determine_output(network, at, images) else ()
    except Exception:  # noqa: BLE001 - an error in the input is reported when the backbone is written
        return ()


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
