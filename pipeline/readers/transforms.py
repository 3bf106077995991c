"""Settings of random transforms: classes of torchvision's `transforms.v2` by name, with their parameters.

Settings are checked without torch; `build` imports it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.settings.check import Settings


def _check_order(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


Share = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


Shares = Annotated[tuple[Share, Share], AfterValidator(_check_order)]


Ratios = Annotated[tuple[Positive, Positive], AfterValidator(_check_order)]


Grey = Annotated[int, Field(ge=0, le=255)]


Interpolation = Literal["nearest", "bilinear"]


class _Transform(Settings):
    """A transform of torchvision's `transforms.v2`. Its settings have the names of the class's parameters."""

    class_name: ClassVar[str]
    crops: ClassVar[bool] = False
    """Whether the transform crops at random to the final size."""

    warps: ClassVar[bool] = False
    """Whether the transform moves pixels, so that pixels from outside the centre crop may move in."""

    def build(self, size: tuple[int, int]) -> Any:
        """Return the transform, for a final size (height, width)."""
        from torchvision.transforms import InterpolationMode, v2

        values = self.model_dump(exclude={"name"})
        if "interpolation" in values:
            values["interpolation"] = InterpolationMode(values["interpolation"])
        if self.crops:
            values["size"] = size
        return getattr(v2, self.class_name)(**values)


class RandomResizedCrop(_Transform):
    """Crop a random part of the image and resize it (bilinear) to the final size."""

    class_name = "RandomResizedCrop"
    crops = True
    name: Literal["random_resized_crop"]
    scale: Shares = Field(default=(0.08, 1.0), description="smallest and largest share of the area")
    ratio: Ratios = Field(default=(3 / 4, 4 / 3), description="smallest and largest width over height")


class RandomCrop(_Transform):
    """Pad the image and crop a random part of the final size."""

    class_name = "RandomCrop"
    crops = True
    name: Literal["random_crop"]
    padding: Annotated[int, Field(ge=1)] = Field(default=4, description="pixels on each side before the crop")
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = Field(
        default="constant", description="what the padding is filled with"
    )

    def build(self, size: tuple[int, int]) -> Any:
        """Return the transform; images smaller than the final size are padded as by the centre crop first."""
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional

        height, width = size
        crop = super().build(size)

        def pad(image: Any) -> Any:
            return functional.center_crop(image, [max(height, image.shape[1]), max(width, image.shape[2])])

        return v2.Compose([pad, crop])


class HorizontalFlip(_Transform):
    """Mirror left and right, with a probability."""

    class_name = "RandomHorizontalFlip"
    name: Literal["horizontal_flip"]
    p: Share = Field(default=0.5, description="probability")


class VerticalFlip(_Transform):
    """Mirror top and bottom, with a probability."""

    class_name = "RandomVerticalFlip"
    name: Literal["vertical_flip"]
    p: Share = Field(default=0.5, description="probability")


class Rotation(_Transform):
    """Rotate by a random angle; the corners are filled."""

    class_name = "RandomRotation"
    warps = True
    name: Literal["rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = Field(
        default=15.0, description="largest angle in degrees, in either direction"
    )
    interpolation: Interpolation = Field(default="bilinear", description="how pixels are interpolated")
    fill: Grey = Field(default=0, description="value of pixels outside, 0 to 255")


class Affine(_Transform):
    """Rotate, shift, scale and shear at random."""

    class_name = "RandomAffine"
    warps = True
    name: Literal["affine"]
    degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        default=15.0, description="largest angle in degrees, in either direction"
    )
    translate: tuple[Share, Share] | None = Field(
        default=None, description="largest shift as a share of width and height"
    )
    scale: Ratios | None = Field(default=None, description="smallest and largest factor of the size")
    shear: Annotated[float, Field(gt=0, lt=90)] | None = Field(default=None, description="largest shear, in degrees")
    interpolation: Interpolation = Field(default="bilinear", description="how pixels are interpolated")
    fill: Grey = Field(default=0, description="value of pixels outside, 0 to 255")


class ColorJitter(_Transform):
    """Change brightness, contrast, saturation and hue at random, in random order."""

    class_name = "ColorJitter"
    name: Literal["color_jitter"]
    brightness: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    contrast: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    saturation: Annotated[float, Field(ge=0)] = Field(default=0.4, description="largest change, as a share")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="largest change, as a share of the circle"
    )


class Grayscale(_Transform):
    """Convert to grey, with a probability."""

    class_name = "RandomGrayscale"
    name: Literal["grayscale"]
    p: Share = Field(default=0.1, description="probability")


class GaussianBlur(_Transform):
    """Blur with a random standard deviation."""

    class_name = "GaussianBlur"
    name: Literal["gaussian_blur"]
    kernel_size: Literal[3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23] = Field(
        default=5, description="width of the filter in pixels"
    )
    sigma: Ratios = Field(default=(0.1, 2.0), description="smallest and largest standard deviation in pixels")


class RandAugment(_Transform):
    """Apply random operations out of 14, all of the same magnitude (Cubuk et al. 2019)."""

    class_name = "RandAugment"
    name: Literal["rand_augment"]
    num_ops: Annotated[int, Field(ge=1)] = Field(default=2, description="operations per image")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(default=9, description="strength, 0 to 30")


class TrivialAugment(_Transform):
    """Apply one random operation out of 14, of a random magnitude (Müller and Hutter 2021)."""

    class_name = "TrivialAugmentWide"
    name: Literal["trivial_augment"]


class RandomErasing(_Transform):
    """Overwrite a random rectangle, with a probability (Zhong et al. 2017)."""

    class_name = "RandomErasing"
    name: Literal["random_erasing"]
    p: Share = Field(default=0.5, description="probability")
    scale: Shares = Field(default=(0.02, 0.33), description="smallest and largest share of the area")
    ratio: Ratios = Field(default=(0.3, 3.3), description="smallest and largest width over height")
    value: Grey = Field(default=0, description="value of the overwritten pixels, 0 to 255")


Transform = Annotated[
    RandomResizedCrop | RandomCrop | HorizontalFlip | VerticalFlip | Rotation | Affine | ColorJitter | Grayscale
    | GaussianBlur | RandAugment | TrivialAugment | RandomErasing,
    Field(discriminator="name"),
]  # fmt: skip


AugmentConfig = tuple[Transform, ...]
"""Type of a setting: transforms by name and parameters, in their order. An empty tuple leaves pixels as they are."""


def needs_uncropped(transforms: AugmentConfig) -> bool:
    """Return whether any transform crops or warps, and so needs images before the centre crop."""
    return any(transform.crops or transform.warps for transform in transforms)
