"""Freeze a backbone: build a source's network, load its weights, and write both with the preprocessing they need."""

from pipeline.backbones import serialization
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import BackboneError
from pipeline.files import AnyPath, as_path
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.load import load
from pipeline.runtime import SILENT, Reporter


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
