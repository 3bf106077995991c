"""Small things to train: a network of 32×32 grey images in the backbone format, and samples of bright and dark ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.serialization import Backbone
from pipeline.loading.image_cache import Pixels
from pipeline.store import key_arrays
from pipeline.training import freezing
from pipeline.training.config import LoopConfig
from pipeline.training.data import PixelSamples, normalise
from pipeline.training.freezing import TrainableParts
from pipeline.training.loop import TrainContext, make_fabric
from pipeline.training.losses import SupervisedLoss

CLASSES = 3


def backbone(folder: Path, *, widths: tuple[int, ...] = (4, 4, 4), seed: int = 0) -> Backbone:
    """A network of the family `glyphs` with random weights, written and read."""
    torch.manual_seed(seed)
    network = glyphs.GlyphNet(classes=CLASSES, widths=widths)
    architecture = {"family": "glyphs", "classes": CLASSES, "widths": list(widths)}
    serialization.write(
        folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT, classes=[*"abc"[:CLASSES]]
    )
    return serialization.read(folder)


def samples(count: int, *, seed: int = 0, **more: Any) -> PixelSamples:
    """Noise, brighter from class to class."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % CLASSES
    bright = 60 + 60 * targets[:, None, None, None]
    pixels = np.clip(random.normal(bright, 40, (count, 32, 32, 1)), 0, 255).astype(np.uint8)
    keys = np.sort(np.frombuffer(random.bytes(16 * count), key_arrays.DTYPE))
    return PixelSamples(Pixels(keys, pixels), torch.from_numpy(targets), keys, seed=seed, **more)


def setting(**settings: Any) -> TrainContext:
    """How to train on such samples, on the processor."""
    config = LoopConfig.model_validate(
        {"device": "cpu", "batch_size": 8, "epochs": 3, "learning_rate": 0.001, **settings}
    )
    return TrainContext(config, SupervisedLoss("classification", CLASSES), make_fabric(config), enter)


def enter(pixels: Tensor) -> Tensor:
    """Normalised images."""
    return normalise(pixels, glyphs.INPUT)


def all_of(found: Backbone, *, batch_norm: Any = "train", what: Any = "full", **more: Any) -> TrainableParts:
    """A network of which everything is trained, or what is said."""
    return freezing.prepare(found.module, found.spec, what, batch_norm=batch_norm, **more)
