"""Convert transforms of other libraries to preprocessing settings, if these give the same pixels.

This works for the evaluation transforms of torchvision (presets and `Compose`, versions 1 and 2) and of timm: resize,
centre crop, conversion to a tensor, normalisation. Any other transform is called as a function for each image.
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
"""Width and height of the test image for an unknown transform."""


def read_transform(transform: Transform) -> InputSpec | None:
    """Return the preprocessing that gives the same pixels as a transform; None if settings cannot express it."""
    from torchvision.transforms._presets import ImageClassification

    from pipeline.backbones.torchvision_models import preset_input

    try:
        if type(transform) is ImageClassification:
            return preset_input(transform)
        return _of_steps(list(_steps(transform)))
    except (ValueError, TypeError, LookupError):  # settings that a reader does not have
        return None


def _steps(transform: Any) -> Iterator[Any]:
    """Yield the steps of a transform; a `Compose` is unfolded."""
    from torchvision import transforms
    from torchvision.transforms import v2

    if type(transform) in (transforms.Compose, v2.Compose):
        for step in transform.transforms:
            yield from _steps(step)
    else:
        yield transform


def _of_steps(steps: list[Any]) -> InputSpec | None:
    """Return the input settings of resize, centre crop, tensor and normalisation, in this order; None for others."""
    by_letter = dict(zip(map(_letter, steps), steps, strict=True))
    if not ORDER.fullmatch("".join(map(_letter, steps))):
        return None
    resize, crop = (_size(by_letter[letter].size) if letter in by_letter else None for letter in "RC")
    if isinstance(crop, int):
        crop = (crop, crop)
    if not isinstance(crop or resize, tuple):
        return None  # images would differ in size
    norm = by_letter.get("N")
    mean, std = (tuple(map(float, values)) for values in ((norm.mean, norm.std) if norm else ((0,) * 3, (1,) * 3)))
    if len(mean) not in (1, 3) or len(std) != len(mean):
        return None
    image: dict[str, Any] = {"mode": "L" if len(mean) == 1 else "RGB", "resize": resize, "crop": crop}
    if "R" in by_letter:
        interpolation = by_letter["R"].interpolation
        image["interpolation"] = getattr(interpolation, "value", interpolation)
    return InputSpec(image=ImageSpec.model_validate(image), mean=mean, std=std)


ORDER = re.compile("R?C?(T|tf)N?")
"""The order of steps, as letters of `_letter`; the image reader applies them in the same order."""


def _letter(step: Any) -> str:
    """Return a letter: R resize, C centre crop, T float tensor, t tensor, f floats, N normalise, ? anything else."""
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
    """Return a size as the short side, or as height and width."""
    if isinstance(size, int):
        return size
    sides = tuple(int(side) for side in size)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class TransformReader(ImageReader):
    """Read images with the user's transform: `pixels` are its output, float32 (channels, height, width).

    The transform gets an upright RGB image of Pillow. Raises DataError if the transform fails, or returns anything
    other than finite floats with three axes.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__(ImageSpec(mode="RGB"))
        self._transform = transform

    def __call__(self, data: bytes) -> Sample:
        """Decode an image and transform it; raises DataError for bytes that are no image, and as the class says."""
        return {"pixels": self._apply(super().__call__(data)["pixels"])}

    def from_image(self, image: Image.Image) -> Sample:
        """Transform an image opened by Pillow; raises DataError as `__call__` does."""
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
    """Return the input settings of a transform, by the shape of its output for a test image.

    Raises BackboneError if a second call returns other values, and for anything but one or three channels.
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
            "from call to call: leave out random steps, such as the random crops and flips of training."
        )
    channels, height, width = first.shape
    if channels not in (1, 3):
        raise BackboneError(f"transform: expected 1 or 3 channels, got the shape {first.shape}. End it with ToTensor.")
    image_spec = ImageSpec(mode="L" if channels == 1 else "RGB", resize=(height, width))
    return InputSpec(image=image_spec, mean=(0.0,) * channels, std=(1.0,) * channels)
