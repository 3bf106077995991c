"""Images: any file that Pillow decodes in the process, to uint8 pixels of one size and one colour mode.

The steps, in this order: EXIF rotation, conversion to `mode` (transparent pixels over white, more bits scaled to 8),
resize of the shorter side (or to an exact size), centre crop. Resizing is Pillow's, which is antialiased, with
torchvision's rounding of the longer side: the pixels equal those of torchvision's own transforms on a PIL image.

With `draft` they do not, where a JPEG is much larger than it is to be: fine detail is never decoded (DCT scaling).
With `view` an augmented copy is read; crops and warps then get the image before the centre crop, see augment.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.errors import DataError
from pipeline.files import KEY_BYTES, content_key
from pipeline.readers import Sample, image_files
from pipeline.readers.augment import View
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.readers.pixels import ACROSS, DAMAGE, centre_crop, resized_size, to_mode, turn_of, upright
from pipeline.settings.check import Settings

T = TypeVar("T")

VERSION = 2
"""1: 12-bit TIFF was read as 16-bit, 16-bit TIFF in which 0 is white as its negative."""


# A drafted JPEG is decoded at this many times its size to be, or at more, as Pillow's `thumbnail` does: pixels stray
# less than with 1.
GAP = 2

LATER: Mapping[str, Any] = {"draft": False, "view": None}
"""Settings that addresses did not have at first, with the values that leave addresses as they were."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class NotAnImageError(DataError):
    """Bytes that are of no known image format."""


class ImageSpec(Settings):
    """What the pixels are made to be. `resize` is the shorter side, or (height, width); `crop` is (height, width).

    Settings that came later are left out of what is written where they are off: digests made before them stay right.
    """

    mode: Literal["RGB", "L"] = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    draft: bool = Field(default=False, description="decode JPEGs at a fraction of their size first")
    view: View | None = Field(default=None, description="an augmented copy in the place of the image")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.draft and self.resize is None:
            raise ValueError("expected `resize` with `draft`, which decodes at a fraction of the size, got none")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_what_is_off(write(self))


def without_what_is_off(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an image without those of LATER that are off."""
    return {name: value for name, value in settings.items() if name not in LATER or value != LATER[name]}


class ImageReader:
    """Encoded image in, `pixels` out: uint8, (height, width, 3 or 1)."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    @property
    def identity(self) -> Mapping[str, Any]:
        """What shapes the pixels."""
        return {"reader": "image", "version": VERSION, **self.spec.model_dump(mode="json")}

    def __call__(self, data: bytes) -> Sample:
        """Decode and resize; raises DataError with the reason if the bytes are no image that can be used.

        Raises EngineError for a view of another torchvision.
        """
        image = _read_either(data, lambda readable: _small(readable, self.spec)) if self.spec.draft else None
        if image is None:
            image = self._resize(decode(data, mode=self.spec.mode))
        if self.spec.view is None:
            return {"pixels": self._crop(image)}
        key = np.frombuffer(bytes.fromhex(content_key(data)), f"S{KEY_BYTES}")
        return {"pixels": self.spec.view([_with_channels(image)], key, size=self.spec.crop)[0]}

    def from_image(self, image: Image.Image) -> Sample:
        """Resize and crop an image that Pillow opened; raises DataError as a call with its bytes does."""
        try:
            _refuse_32_bits(image)
            image.load()
            return {"pixels": self._crop(self._resize(to_mode(upright(image), self.spec.mode)))}
        except DAMAGE as error:
            raise DataError(f"damaged image: {error}") from None

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.spec.resize is None:
            return image
        return image.resize(resized_size(image.size, self.spec.resize), INTERPOLATIONS[self.spec.interpolation])

    def _crop(self, image: Image.Image) -> np.ndarray:
        pixels = _with_channels(image)
        return np.ascontiguousarray(pixels if self.spec.crop is None else centre_crop(pixels, self.spec.crop))


def _with_channels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image, uint8 (height, width, channels), with one channel where it is grey."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode(data: bytes, *, mode: str, max_pixels: int | None = None) -> Image.Image:
    """Decode bytes to an upright image in `mode`; raises DataError with the reason.

    `max_pixels`: refuse larger images. What `prepare` let through needs no limit.
    """
    return _read_either(data, lambda readable: _decode(readable, mode, max_pixels))


def check(data: bytes, *, whole: bool, max_pixels: int = MAX_PIXELS) -> None:
    """Raise DataError if the bytes are no usable image; only the header is looked at unless `whole`."""
    if whole:
        decode(data, mode="RGB", max_pixels=max_pixels)
        return
    _read_either(data, lambda readable: _open_only(readable, max_pixels))


def _read_either(data: bytes, read: Callable[[bytes], T]) -> T:
    """Read an image, and where that fails the same image without its metadata, which must not cost the pixels."""
    try:
        return read(data)
    except DataError:
        bare = image_files.without_metadata(data)
        if bare is None or bare == data:
            raise
        try:
            return read(bare)
        except DataError:
            pass
        raise


def _decode(data: bytes, mode: str, max_pixels: int | None) -> Image.Image:
    with open_image(data, max_pixels=max_pixels) as image:
        image.load()
        return to_mode(upright(image), mode)


def _open_only(data: bytes, max_pixels: int) -> None:
    with open_image(data, max_pixels=max_pixels):
        pass


@contextlib.contextmanager
def open_image(data: bytes, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow has against the bytes becomes a DataError with a short reason."""
    if not data:
        raise DataError("empty file")
    try:
        with image_files.open_image(data) as image:
            _refuse_size(image.size, max_pixels)
            if reason := image_files.refuse_tiff(image):
                raise DataError(reason)
            _refuse_32_bits(image)
            image_files.correct(image, data)
            yield image
    except UnidentifiedImageError:
        other = image_files.describe_other(data)
        raise (DataError(other) if other else NotAnImageError("not an image that Pillow can read")) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"refused as a decompression bomb: {error}") from None
    except DAMAGE as error:
        raise DataError(f"damaged image: {error}") from None


def _refuse_32_bits(image: Image.Image) -> None:
    # A PGM with 16 bits opens as I. Else these are 32-bit numbers, which Pillow would clip at 255.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise DataError("32-bit pixels, of which black and white are not known: convert them to 8 or 16 bits")


def _refuse_size(size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(
            f"more than {max_pixels:,} pixels: refused as a decompression bomb, unless `max_pixels` allows its "
            f"{width} × {height}"
        )


def _small(data: bytes, spec: ImageSpec) -> Image.Image | None:
    """Return a large JPEG, decoded at a half, a quarter or an eighth of its size, upright and resized; None for any
    other.

    The target, and what it shows of the decoded image, follow from the whole image, as in Pillow's `thumbnail`.
    """
    assert spec.resize is not None, "the spec was checked"
    with open_image(data) as image:
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            return None
        turn, size = turn_of(image), image.size
        if turn in ACROSS:
            height, width = resized_size((size[1], size[0]), spec.resize)
        else:
            width, height = resized_size(size, spec.resize)
        drafted = image.draft(None, (GAP * width, GAP * height))
        if drafted is None or image.size == size:
            return None
        image.load()
        # It is turned last: the box is one of the image as it is stored.
        small = to_mode(image, spec.mode).resize((width, height), INTERPOLATIONS[spec.interpolation], box=drafted[1])
        return small if turn is None else small.transpose(turn)
