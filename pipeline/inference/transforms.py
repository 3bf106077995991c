"""Transforms of other libraries: as settings of the preprocessing where these give the same pixels, else as functions.

The evaluation transforms of torchvision (presets and `Compose`, versions 1 and 2) and of timm are read: resize, centre
crop, conversion to a tensor, normalisation. Any other function is called with each image.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.backbones.spec import InputSpec
from pipeline.errors import BackboneError, DataError
from pipeline.readers import Sample
from pipeline.readers.image import ImageReader, ImageSpec

Transform = Callable[[Image.Image], Any]
"""A function from an RGB image of Pillow to a tensor or array (channels, height, width)."""

TRIAL = (320, 240)
"""Width and height of the image with which an unknown transform is tried."""


def read_transform(transform: Transform) -> InputSpec | None:
    """Return the preprocessing that gives the same pixels as a transform; None where settings cannot say it."""
    from torchvision.transforms._presets import ImageClassification

    from pipeline.backbones.torchvision_models import preset_input

    try:
        if type(transform) is ImageClassification:
            return preset_input(transform)
        return _of_steps(list(_steps(transform)))
    except (ValueError, TypeError, LookupError):  # settings that a reader does not have
        return None


def _steps(transform: Any) -> Iterator[Any]:
    """Yield the steps of a transform, those of a `Compose` one by one."""
    from torchvision import transforms
    from torchvision.transforms import v2

    if type(transform) in (transforms.Compose, v2.Compose):
        for step in transform.transforms:
            yield from _steps(step)
    else:
        yield transform


def _of_steps(steps: list[Any]) -> InputSpec | None:
    """Return the input of resize, centre crop, tensor and normalisation, in this order; None for other steps."""
    found = dict(zip(map(_letter, steps), steps, strict=True))
    if not ORDER.fullmatch("".join(map(_letter, steps))):
        return None
    resize, crop = (_size(found[letter].size) if letter in found else None for letter in "RC")
    if isinstance(crop, int):
        crop = (crop, crop)
    if not isinstance(crop or resize, tuple):
        return None  # images would differ in size
    norm = found.get("N")
    mean, std = (tuple(map(float, values)) for values in ((norm.mean, norm.std) if norm else ((0,) * 3, (1,) * 3)))
    if len(mean) not in (1, 3) or len(std) != len(mean):
        return None
    image: dict[str, Any] = {"mode": "L" if len(mean) == 1 else "RGB", "resize": resize, "crop": crop}
    if "R" in found:
        way = found["R"].interpolation
        image["interpolation"] = getattr(way, "value", way)
    return InputSpec(image=ImageSpec.model_validate(image), mean=mean, std=std)


ORDER = re.compile("R?C?(T|tf)N?")
"""The order of steps, each as `_letter` has it, that the reader of images follows too."""


def _letter(step: Any) -> str:
    """Return R for a resize, C for a centre crop, T for a float tensor, or t and f for its two halves, N for a norm."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    kind = type(step)
    if kind.__module__ == "timm.data.transforms" and kind.__name__ == "MaybeToTensor":
        return "T"
    letters = {
        "R": (v1.Resize, v2.Resize),
        "C": (v1.CenterCrop, v2.CenterCrop),
        "T": (v1.ToTensor, v2.ToTensor),
        "t": (v1.PILToTensor, v2.PILToTensor, v2.ToImage),
        "f": (v1.ConvertImageDtype, v2.ConvertImageDtype, v2.ToDtype),
        "N": (v1.Normalize, v2.Normalize),
    }
    letter = next((letter for letter, kinds in letters.items() if kind in kinds), "?")
    if letter == "R" and getattr(step, "max_size", None) is not None:
        return "?"
    if letter == "f" and (step.dtype is not torch.float32 or getattr(step, "scale", True) is not True):
        return "?"
    return letter


def _size(size: Any) -> int | tuple[int, int]:
    """Return one side, or height and width."""
    if isinstance(size, int):
        return size
    sides = tuple(int(side) for side in size)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class TransformReader(ImageReader):
    """Images in, what a function makes of them out: `pixels` float32 (channels, height, width), normalised already.

    The function gets an upright RGB image of Pillow. Raises DataError where the function fails, or returns anything but
    finite float numbers of three axes.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__(ImageSpec(mode="RGB"))
        self._transform = transform

    def __call__(self, data: bytes) -> Sample:
        """Decode an image and transform it; raises DataError as the class says, and for what is no image."""
        return {"pixels": self._apply(super().__call__(data)["pixels"])}

    def from_image(self, image: Image.Image) -> Sample:
        """Transform an image that Pillow opened; raises DataError as a call with its bytes does."""
        return {"pixels": self._apply(super().from_image(image)["pixels"])}

    def _apply(self, pixels: np.ndarray) -> np.ndarray:
        try:
            value = self._transform(Image.fromarray(pixels))
        except Exception as error:
            raise DataError(f"the transform fails: {type(error).__name__}: {error}") from error
        values = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if values.ndim != 3 or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise DataError(
                "expected a transform that returns finite float numbers (channels, height, width), got "
                f"{type(value).__name__} {values.dtype} {values.shape}. End the transform with ToTensor and Normalize"
            )
        return values.astype(np.float32)


def try_transform(transform: Transform) -> InputSpec:
    """Return the input that a transform makes, by the shape of what it returns for one image.

    Raises BackboneError where it returns other values at a second call, and for other than one or three channels.
    """
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*reversed(TRIAL), 3), dtype=np.uint8))
    try:
        first, again = (TransformReader(transform).from_image(image)["pixels"] for _ in range(2))
    except DataError as error:
        raise BackboneError(f"transform: {error}.") from error
    if first.shape != again.shape or not np.array_equal(first, again):
        raise BackboneError(
            "transform: expected the same values for the same image, got others at the second call. Rows would differ "
            "from call to call: leave out random steps, such as crops and flips of training."
        )
    channels, height, width = first.shape
    if channels not in (1, 3):
        raise BackboneError(f"transform: expected 1 or 3 channels, got the shape {first.shape}. End it with ToTensor.")
    image_spec = ImageSpec(mode="L" if channels == 1 else "RGB", resize=(height, width))
    return InputSpec(image=image_spec, mean=(0.0,) * channels, std=(1.0,) * channels)
