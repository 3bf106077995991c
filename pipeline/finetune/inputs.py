"""The inputs of fine-tuning: pixels for the whole network, or stored rows of a tap for the part after the tap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import collect
from pipeline.backbones.replay import TOLERANCE
from pipeline.backbones.spec import BackboneSpec, InputSpec, TapSpec
from pipeline.errors import StoreError, TrainingError, bullets, unknown
from pipeline.extract.config import folder_of
from pipeline.loading.image_cache import Pixels
from pipeline.partition.split_points import build_tail, tail_parameters
from pipeline.readers.augment import upgrade_view
from pipeline.readers.transforms import AugmentConfig
from pipeline.store.features import Features
from pipeline.store.identity import differences, identity
from pipeline.training.data import FeatureSamples, PixelSamples, Samples, normalise
from pipeline.training.freezing import TrainableParts


class Inputs(Protocol):
    """The samples of a task, and the part of a network that runs on them."""

    @property
    def name(self) -> str:
        """Return the name of the inputs in predictions."""
        ...

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Return the settings that determine a batch, apart from keys and seed."""
        ...

    def samples(self, rows: np.ndarray, targets: Tensor, *, training: bool, seed: int) -> Samples:
        """Return rows of the task with their targets; for training with augmentation or augmented views."""
        ...

    def trained(self, network: nn.Module, spec: BackboneSpec) -> nn.Module:
        """Return the part of a network that runs on a batch."""
        ...

    def enter(self, inputs: Tensor) -> Tensor:
        """Convert the inputs of a batch, on the device, to the input of the trained part."""
        ...


@dataclass(frozen=True)
class FromPixels:
    """Decoded images, with new augmentation in each epoch; the whole network runs."""

    inputs: InputSpec
    pixels: Pixels
    keys: np.ndarray
    augment: AugmentConfig = ()
    name: str = "pixels"

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Return the preprocessing; the augmentation is in the settings of the run."""
        return {"input": self.inputs.model_dump(mode="json")}

    def samples(self, rows: np.ndarray, targets: Tensor, *, training: bool, seed: int) -> Samples:
        """See `Inputs`."""
        transforms = self.augment if training else ()
        return PixelSamples(self.pixels, targets, self.keys[rows], seed=seed, transforms=transforms)

    def trained(self, network: nn.Module, spec: BackboneSpec) -> nn.Module:  # noqa: ARG002 - `FromFeatures` needs it
        """Return the whole network."""
        return network

    def enter(self, inputs: Tensor) -> Tensor:
        """Normalise images to float32 (n, channels, height, width), channels-last in memory."""
        return normalise(inputs, self.inputs)


@dataclass(frozen=True)
class FromFeatures:
    """Stored rows of a tap; each epoch draws a view per sample, and the part of the network after the tap runs."""

    tap: str
    node: str
    clean: Features
    views: Sequence[Features]
    keys: np.ndarray

    @property
    def name(self) -> str:
        """Return the name of the tap."""
        return self.tap

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Return the cache addresses of the features."""
        return {"features": [features.index.address for features in (self.clean, *self.views)]}

    def samples(self, rows: np.ndarray, targets: Tensor, *, training: bool, seed: int) -> Samples:
        """See `Inputs`."""
        views = self.views if training and self.views else [self.clean]
        return FeatureSamples(views, targets, self.keys[rows], seed=seed)

    def trained(self, network: nn.Module, spec: BackboneSpec) -> nn.Module:
        """Return the part after the tap, which contains the whole network as a submodule."""
        return build_tail(network, self.node, spec=spec)

    def enter(self, inputs: Tensor) -> Tensor:
        """Return the rows; feature maps are channels-last in memory."""
        return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def open_features(folder: Path, tap: str, spec: BackboneSpec, *, views: int) -> tuple[Features, list[Features]]:
    """Open the features of a tap and of its views, unpooled and from this backbone.

    Raises TrainingError for a tap or a view that was not extracted, and for pooled rows; StoreError, with the fields,
    for features of another network.
    """
    extracted = sorted(path.parent.name for path in folder.glob("*/index.json"))
    if tap not in extracted:
        raise TrainingError(f"{folder}: {unknown('tap', tap, [name for name in extracted if '.' not in name])}")
    wanted = [folder_of(tap, number) for number in range(views)]
    missing = [name for name in wanted if name not in extracted]
    if missing:
        known = sum(name.startswith(folder_of(tap, 0)[:-1]) for name in extracted)
        raise TrainingError(
            f"{folder}: expected {views} views of {tap!r}, got {known}: there is no {missing[0]}. Give the entry of "
            f"`extract` `views` with `count: {views}`, or ask for fewer."
        )
    clean, *others = [Features.open(folder / name) for name in (folder_of(tap), *wanted)]
    for features in (clean, *others):
        _check_identity(features, spec)
    return clean, others


def _check_identity(features: Features, spec: BackboneSpec) -> None:
    stored = features.identity
    if stored["pool"] != "none" or "projection" in stored:
        raise TrainingError(
            f"{features.folder}: expected whole rows of {stored['node']!r}, got rows with `pool: {stored['pool']}`"
            f"{' and a projection' if 'projection' in stored else ''}. Extract the tap with `pool: none`, best with "
            "`dtype: float32`."
        )
    expected = identity(spec, TapSpec(node=stored["node"], dtype=stored["dtype"]), precision=stored["precision"])
    if "view" in stored["reader"]:
        expected["reader"]["view"] = upgrade_view(stored["reader"]["view"])
    if problems := differences(expected, stored):
        raise StoreError(
            bullets(
                f"{features.folder}: expected features of the backbone as it is, got others. Extract again", problems
            )
        )


def check_frozen(network: nn.Module, spec: BackboneSpec, trainable: TrainableParts, node: str, *, epochs: int) -> None:
    """Raise TrainingError if parameters before the tap would be trained in some epoch: stored rows would not change."""
    after = tail_parameters(network, node, spec=spec)
    trainable.start(epochs)  # parameters are only added, so the last epoch trains the most
    before = [name for name, value in network.named_parameters() if value.requires_grad and name not in after]
    trainable.start(0)
    if before:
        raise TrainingError(
            f"train: expected a part that runs after the stored tap {node!r}, got {len(before)} parameters before it, "
            f"such as {before[0]}. Train less, or from `input: pixels`."
        )


def compare_stored_rows(network: nn.Module, spec: BackboneSpec, pixels: Pixels, features: Features, node: str) -> float:
    """Compare stored rows with the outputs of a network; return the largest difference over the largest value.

    Raises TrainingError if the difference exceeds the tolerance of the stored dtype: the trained part then does not fit
    to this network.
    """
    network.eval()
    like = next(network.parameters())
    images = normalise(torch.from_numpy(pixels.eval_images(np.arange(len(pixels.keys)))), spec.input).to(like)
    with torch.inference_mode():
        live = collect(network, images, {"live": TapSpec(node=node)}, spec.taps)["live"].float().cpu().numpy()
    rows = features.load(pixels.keys).astype(np.float32)
    off = float(np.abs(rows - live).max() / max(float(np.abs(live).max()), np.finfo(np.float32).tiny))
    most = TOLERANCE[features.index.dtype]
    if not off <= most:
        raise TrainingError(
            f"{features.folder}: expected stored rows of {node!r} to be what the network computes, within {most:g} of "
            f"the largest value, got {off:.3g} in {len(rows)} rows. The frozen part changed, or the features are of "
            "other images: extract them again."
        )
    return off
