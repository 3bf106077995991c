"""Augmentation: random transforms of torchvision on decoded images, each sample's drawn by a seed of its own.

What becomes of a sample depends on its pixels and its seed alone: not on the rest of a batch, on threads, or on what
else draws random numbers. The seed follows from the sample's key and a number (`seed_of`): that of an epoch where a
network trains on pixels, that of a view where features of augmented samples are stored. So with equal seeds view 3 has
the pixels of epoch 3, and it can be made again from what its identity says.

Crops and warps (random_resized_crop, random_crop, rotation, affine) need what the centre crop cuts off: torchvision's
reference recipe crops an image that nothing else has cropped. They get the uncropped image: decoded and resized as in
evaluation, without the centre crop. The first random crop brings it to the final size. Without a random crop, the last
warp is followed by the centre crop. Transforms that neither crop nor warp get the centre crop, the very pixels of
evaluation.

Settings are checked without torch, which is imported by what transforms.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.errors import EngineError
from pipeline.files import KEY_BYTES
from pipeline.settings.check import Settings


@functools.cache
def _installed() -> str:
    return metadata.version("torchvision")


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
Ratios = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
Grey = Annotated[int, Field(ge=0, le=255)]
Interpolation = Literal["nearest", "bilinear"]

VERSION: Literal[2] = 2


class _Transform(Settings):
    """One transform of torchvision's `transforms.v2`: its class, and parameters under the names that it has there."""

    made_of: ClassVar[str]
    crops: ClassVar[bool] = False
    """Whether the result has the final size, cut at random."""

    warps: ClassVar[bool] = False
    """Whether pixels move, so that pixels from outside of the centre crop may come in."""

    def build(self, size: tuple[int, int]) -> Any:
        """The transform, for images that are to have a height and a width."""
        from torchvision.transforms import InterpolationMode, v2

        values = self.model_dump(exclude={"name"})
        if "interpolation" in values:
            values["interpolation"] = InterpolationMode(values["interpolation"])
        if self.crops:
            values["size"] = size
        return getattr(v2, self.made_of)(**values)


class RandomResizedCrop(_Transform):
    """A part of the image, by its share of the area and its width over height, resized to the final size (bilinear)."""

    made_of = "RandomResizedCrop"
    crops = True
    name: Literal["random_resized_crop"]
    scale: Shares = Field(default=(0.08, 1.0), description="smallest and largest share of the area")
    ratio: Ratios = Field(default=(3 / 4, 4 / 3), description="smallest and largest width over height")


class RandomCrop(_Transform):
    """A part of the padded image, of the final size."""

    made_of = "RandomCrop"
    crops = True
    name: Literal["random_crop"]
    padding: Annotated[int, Field(ge=1)] = Field(default=4, description="pixels on each side before the crop")
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = Field(
        default="constant", description="what the padding is filled with"
    )

    def build(self, size: tuple[int, int]) -> Any:
        """The same; images smaller than the final size are first padded with zeros, as the centre crop pads them."""
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional

        height, width = size
        crop = super().build(size)

        def padded(image: Any) -> Any:
            return functional.center_crop(image, [max(height, image.shape[1]), max(width, image.shape[2])])

        return v2.Compose([padded, crop])


class HorizontalFlip(_Transform):
    """Left and right swapped, with a probability."""

    made_of = "RandomHorizontalFlip"
    name: Literal["horizontal_flip"]
    p: Share = Field(default=0.5, description="probability")


class VerticalFlip(_Transform):
    """Top and bottom swapped, with a probability."""

    made_of = "RandomVerticalFlip"
    name: Literal["vertical_flip"]
    p: Share = Field(default=0.5, description="probability")


class Rotation(_Transform):
    """Turned by up to so many degrees either way; corners are filled."""

    made_of = "RandomRotation"
    warps = True
    name: Literal["rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = Field(default=15.0, description="largest angle, to either side")
    interpolation: Interpolation = Field(default="bilinear", description="of the pixels")
    fill: Grey = Field(default=0, description="value of pixels outside, 0 to 255")


class Affine(_Transform):
    """Turned, moved by shares of the sides, scaled and sheared (degrees)."""

    made_of = "RandomAffine"
    warps = True
    name: Literal["affine"]
    degrees: Annotated[float, Field(ge=0, le=180)] = Field(default=15.0, description="largest angle, to either side")
    translate: tuple[Share, Share] | None = Field(
        default=None, description="largest shift as a share of width and height"
    )
    scale: Ratios | None = Field(default=None, description="smallest and largest factor of the size")
    shear: Annotated[float, Field(gt=0, lt=90)] | None = Field(default=None, description="largest shear, in degrees")
    interpolation: Interpolation = Field(default="bilinear", description="of the pixels")
    fill: Grey = Field(default=0, description="value of pixels outside, 0 to 255")


class ColorJitter(_Transform):
    """Brightness, contrast, saturation and hue changed by up to these factors, in random order."""

    made_of = "ColorJitter"
    name: Literal["color_jitter"]
    brightness: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    contrast: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    saturation: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="largest change, as a share of the circle"
    )


class Grayscale(_Transform):
    """Colours lost, with a probability."""

    made_of = "RandomGrayscale"
    name: Literal["grayscale"]
    p: Share = Field(default=0.1, description="probability")


class GaussianBlur(_Transform):
    """Blurred by a random standard deviation, in pixels."""

    made_of = "GaussianBlur"
    name: Literal["gaussian_blur"]
    kernel_size: Literal[3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23] = Field(
        default=5, description="width of the filter in pixels"
    )
    sigma: Ratios = Field(default=(0.1, 2.0), description="smallest and largest standard deviation in pixels")


class RandAugment(_Transform):
    """So many of 14 operations, all of one magnitude (Cubuk et al. 2019)."""

    made_of = "RandAugment"
    name: Literal["rand_augment"]
    num_ops: Annotated[int, Field(ge=1)] = Field(default=2, description="operations per image")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(default=9, description="strength, 0 to 30")


class TrivialAugment(_Transform):
    """One of 14 operations of a random magnitude (Müller and Hutter 2021)."""

    made_of = "TrivialAugmentWide"
    name: Literal["trivial_augment"]


class RandomErasing(_Transform):
    """A rectangle painted over, with a probability (Zhong et al. 2017)."""

    made_of = "RandomErasing"
    name: Literal["random_erasing"]
    p: Share = Field(default=0.5, description="probability")
    scale: Shares = Field(default=(0.02, 0.33), description="smallest and largest share of the area")
    ratio: Ratios = Field(default=(0.3, 3.3), description="smallest and largest width over height")
    value: Grey = Field(default=0, description="what the pixels become, 0 to 255")


Transform = Annotated[
    RandomResizedCrop | RandomCrop | HorizontalFlip | VerticalFlip | Rotation | Affine | ColorJitter | Grayscale
    | GaussianBlur | RandAugment | TrivialAugment | RandomErasing,
    Field(discriminator="name"),
]  # fmt: skip
AugmentConfig = tuple[Transform, ...]
"""Transforms by name and parameters, in their order. A field of settings; without any, pixels stay as they are."""


def needs_uncropped(transforms: AugmentConfig) -> bool:
    """Whether transforms crop or warp: such transforms get images without the centre crop."""
    return any(one.crops or one.warps for one in transforms)


class View(Settings):
    """An augmented copy of every sample: all that is needed to make it again."""

    augment: Annotated[AugmentConfig, Field(min_length=1)]
    seed: int = 0
    number: Annotated[int, Field(ge=0)]
    torchvision: str = Field(default_factory=_installed, description="whose transforms these are")
    version: Literal[2] = Field(default=VERSION, description="of what crops and warps are given; 1: the centre crop")

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `version` out where nothing crops or warps: pixels, and so addresses, are those of version 1."""
        return {k: value for k, value in write(self).items() if k != "version" or needs_uncropped(self.augment)}

    def __call__(
        self, images: Sequence[np.ndarray], keys: np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The view's pixels of samples uint8 (height, width, channels) with these keys (n,) S16: see `augment`.

        Raises EngineError if another torchvision is installed: its transforms may be others.
        """
        if self.torchvision != _installed():
            raise EngineError(
                f"view {self.number}: expected torchvision {self.torchvision}, got {_installed()}, whose transforms "
                "may give other pixels. Install that version, or extract the views again."
            )
        return augment(images, self.augment, seeds=seeds_of(self.seed, self.number, keys), size=size)


def as_made_now(view: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored view, as an identity has it, says where it is made again with these settings."""
    return View.model_validate({name: value for name, value in view.items() if name != "version"}).model_dump(
        mode="json"
    )


class Views(Settings):
    """So many augmented copies of every sample."""

    count: Annotated[int, Field(ge=1)] = Field(description="augmented copies of each sample")
    augment: Annotated[AugmentConfig, Field(min_length=1)] = Field(description="the transforms, in their order")
    seed: int = Field(default=0, description="of what they draw")

    def view(self, number: int) -> View:
        """One of them."""
        return View(augment=self.augment, seed=self.seed, number=number)


def augment(
    images: Sequence[np.ndarray],
    transforms: AugmentConfig,
    *,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Transform images uint8 (height, width, channels), one seed each, to an array (n, *size, channels).

    `size`: height and width of the centre crop, for images without it; None: that of the images, all of one size.
    """
    height, width, channels = images[0].shape
    height, width = size or (height, width)
    found = np.empty((len(images), height, width, channels), np.uint8)
    for row, seed in enumerate(seeds):
        found[row] = _one(images[row], transforms, seed, (height, width))
    return found


def seed_of(seed: int, number: int, key: bytes) -> int:
    """The seed of a sample in an epoch, or in a view, of that number: 63 bits of BLAKE2b (RFC 7693)."""
    data = f"{seed}:{number}:".encode() + key
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def seeds_of(seed: int, number: int, keys: np.ndarray) -> list[int]:
    """The same for keys (n,) S16."""
    data = np.ascontiguousarray(keys).tobytes()
    return [seed_of(seed, number, data[start : start + KEY_BYTES]) for start in range(0, len(data), KEY_BYTES)]


def _one(image: np.ndarray, transforms: AugmentConfig, seed: int, size: tuple[int, int]) -> np.ndarray:
    import torch

    value = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    with _drawing()(torch.Generator().manual_seed(seed)):
        for transform in _built(transforms, size):
            value = transform(value)
    found: np.ndarray = value.permute(1, 2, 0).numpy()
    return found


@functools.cache
def _built(transforms: AugmentConfig, size: tuple[int, int]) -> list[Any]:
    """The transforms, with the crop that brings an uncropped image to its final size: see the top of this file."""
    from torchvision.transforms import v2

    found = [one.build(size) for one in transforms]
    if not any(one.crops for one in transforms):
        warps = [place for place, one in enumerate(transforms) if one.warps]
        found.insert(warps[-1] + 1 if warps else 0, v2.CenterCrop(size))
    return found


@functools.cache
def _drawing() -> Any:
    """A block in which what this thread asks torch to draw comes from a generator.

    torchvision draws from torch's only generator, which all threads share: a seed set there for one sample would be
    used up by others, and by the dropout of a network that trains meanwhile.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    functions = {torch.rand, torch.randint, torch.randperm, torch.multinomial, torch.Tensor.uniform_}

    class Drawing(TorchFunctionMode):
        def __init__(self, generator: torch.Generator) -> None:
            super().__init__()
            self._generator = generator

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            own = {"generator": self._generator} if func in functions else {}
            return func(*args, **(kwargs or {}), **own)

    return Drawing
