"""Freeze a torch module in memory as a backbone, and derive its spec from its transform's images."""

import copy

from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.aliases import aliases
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import BackboneError, ConfigError
from pipeline.inference.transforms import Transform, TransformReader, read_transform, try_transform

FITTING = "Give the `transform` that the network was trained with."


def freeze_module(
    module: nn.Module, transform: Transform | None
) -> tuple[nn.Module, BackboneSpec, TransformReader | None]:
    """Return a frozen copy of a module, its spec, and a reader for a transform that settings cannot describe.

    Raises ConfigError without a transform, BackboneError if the module cannot be copied or rejects the transform's
    images.
    """
    name = type(module).__name__
    if transform is None:
        raise ConfigError(
            f"Backbone: a {name} needs `transform`, the preprocessing that it was trained with, such as "
            "`weights.transforms()` of torchvision or `timm.data.create_transform(...)`."
        )
    try:
        network = serialization.freeze(copy.deepcopy(module).cpu())
    except Exception as error:
        raise BackboneError(
            f"{name}: expected a module that can be copied, got {type(error).__name__}: {error}."
        ) from error
    stated = read_transform(transform)
    inputs = [try_transform(transform)] if stated is None else [stated]
    if stated is not None and len(stated.mean) == 1:  # grey images, or one number for all colour channels
        colour = stated.image.model_copy(update={"mode": "RGB"})
        inputs.append(stated.model_copy(update={"image": colour, "mean": stated.mean * 3, "std": stated.std * 3}))
    for last, candidate in zip((*[False] * (len(inputs) - 1), True), inputs, strict=True):
        try:
            taps = serialization.survey_network(network, candidate, where=name, remedy=FITTING)
            break
        except BackboneError:
            if last:
                raise
    architecture = {"family": "memory", "name": name}
    spec = BackboneSpec(
        architecture=architecture,
        origin={"source": "memory"},
        weights_digest=serialization.weights_digest(network.state_dict()),
        input=candidate,
        taps=taps,
        aliases=aliases(architecture, taps),
    )
    return network, spec, TransformReader(transform) if stated is None else None
