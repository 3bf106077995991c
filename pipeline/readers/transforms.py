"""Settings of random transforms: torchvision's classes of `transforms.v2` by name, with their parameters.

Settings are checked without torch, which `build` imports.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.settings.check import Settings


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


class _Transform(Settings):
    """One transform of torchvision's `transforms.v2`: its class, and parameters under the names that it has there."""

    made_of: ClassVar[str]
    crops: ClassVar[bool] = False
    """Whether the result has the final size, cut at random."""

    warps: ClassVar[bool] = False
    """Whether pixels move, so that pixels from outside of the centre crop may come in."""

    def build(self, size: tuple[int, int]) -> Any:
        """Return the transform, for images that are to have a height and a width."""
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
        """Return the crop; images smaller than the final size are first padded with zeros, as the centre crop pads
        them.
        """
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
    """Return whether transforms crop or warp: such transforms get images without the centre crop."""
    return any(one.crops or one.warps for one in transforms)
