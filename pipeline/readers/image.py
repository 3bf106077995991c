"""The image reader: any file that Pillow decodes in this process, to uint8 pixels of one size and colour mode.

The steps, in this order: EXIF rotation, conversion to `mode` (transparent pixels over white, more bits scaled to 8),
resize of the shorter side (or to an exact size), centre crop. Resizing is Pillow's, which is antialiased, with
torchvision's rounding of the longer side: the pixels equal those of torchvision's own transforms on a PIL image.

With `draft`, pixels of a JPEG that is much larger than the target differ: fine detail is not decoded (DCT scaling).
With `view`, the reader returns an augmented copy; crops and warps get the image before the centre crop, see augment.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.errors import DataError
from pipeline.readers import Sample, image_files
from pipeline.readers.augment import View
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.readers.pixels import ACROSS, DAMAGE, centre_crop, resized_size, to_mode, turn_of, upright
from pipeline.readers.sample_key import KEY_BYTES, content_key
from pipeline.settings.check import Settings

T = TypeVar("T")

VERSION = 2
"""Version 1 read 12-bit TIFF as 16-bit, and 16-bit TIFF in which 0 is white as its negative."""


# A drafted JPEG is decoded at this multiple of the target size or more, as Pillow's `thumbnail` does: its pixels are
# closer to those of a full decode than with 1.
GAP = 2

ADDED_LATER: Mapping[str, Any] = {"draft": False, "view": None}
"""Settings added after the first release, with their defaults. Defaults are omitted, so that addresses stay valid."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class NotAnImageError(DataError):
    """The bytes are not of a known image format."""


class ImageSpec(Settings):
    """The pixels that a network takes. `resize` is the shorter side, or (height, width); `crop` is (height, width).

    Defaults of settings that were added later are omitted from the serialised form, so that old digests stay valid.
    """

    mode: Literal["RGB", "L"] = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    draft: bool = Field(default=False, description="decode JPEGs at a fraction of their size first")
    view: View | None = Field(default=None, description="read this augmented copy instead of the image")

    @model_validator(mode="after")
    def _draft_needs_resize(self) -> Self:
        if self.draft and self.resize is None:
            raise ValueError("expected `resize` with `draft`, which decodes at a fraction of the size, got none")
        return self

    @model_serializer(mode="wrap")
    def _serialise(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return omit_added_defaults(write(self))


def omit_added_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return image settings without those of ADDED_LATER that have their default."""
    return {name: value for name, value in settings.items() if name not in ADDED_LATER or value != ADDED_LATER[name]}


class ImageReader:
    """Decodes an image to `pixels`: uint8, (height, width, 3 or 1)."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    @property
    def identity(self) -> Mapping[str, Any]:
        """The reader's name, version and settings: everything that changes the pixels."""
        return {"reader": "image", "version": VERSION, **self.spec.model_dump(mode="json")}

    def __call__(self, data: bytes) -> Sample:
        """Decode and resize; raises DataError with the reason if the bytes are not a usable image.

        Raises EngineError for a view of another version of torchvision.
        """
        image = (
            _read_with_fallback(data, lambda readable: _decode_draft(readable, self.spec)) if self.spec.draft else None
        )
        if image is None:
            image = self._resize(decode(data, mode=self.spec.mode))
        if self.spec.view is None:
            return {"pixels": self._crop(image)}
        key = np.frombuffer(bytes.fromhex(content_key(data)), f"S{KEY_BYTES}")
        return {"pixels": self.spec.view([_with_channels(image)], key, size=self.spec.crop)[0]}

    def from_image(self, image: Image.Image) -> Sample:
        """Resize and crop an image opened by Pillow; raises DataError as a call with its bytes does."""
        if reason := image_files.refuse_tiff(image):
            raise DataError(reason)
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
    """Return the pixels of an image, uint8 (height, width, channels); a grey image has one channel."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode(data: bytes, *, mode: str, max_pixels: int | None = None) -> Image.Image:
    """Decode bytes to an upright image in `mode`; raises DataError with the reason.

    `max_pixels`: refuse larger images. Images that `prepare` accepted need no limit.
    """
    return _read_with_fallback(data, lambda readable: _decode(readable, mode, max_pixels))


def check(data: bytes, *, decode_pixels: bool, max_pixels: int = MAX_PIXELS) -> None:
    """Raise DataError if the bytes are not a usable image. Without `decode_pixels`, only the header is checked."""
    if decode_pixels:
        decode(data, mode="RGB", max_pixels=max_pixels)
        return
    _read_with_fallback(data, lambda readable: _check_header(readable, max_pixels))


def read_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that an image's header states; raises DataError as `check` does."""
    return _read_with_fallback(data, lambda readable: _check_header(readable, None))


def _read_with_fallback(data: bytes, read: Callable[[bytes], T]) -> T:
    """Read an image; if that fails, read the same image without its metadata, which may be damaged alone."""
    try:
        return read(data)
    except DataError:
        stripped = image_files.without_metadata(data)
        if stripped is None or stripped == data:
            raise
        try:
            return read(stripped)
        except DataError:
            pass
        raise


def _decode(data: bytes, mode: str, max_pixels: int | None) -> Image.Image:
    with open_image(data, max_pixels=max_pixels) as image:
        image.load()
        return to_mode(upright(image), mode)


def _check_header(data: bytes, max_pixels: int | None) -> tuple[int, int]:
    with open_image(data, max_pixels=max_pixels) as image:
        return image.size


@contextlib.contextmanager
def open_image(data: bytes, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Yield an open image; any error of Pillow becomes a DataError with a short reason."""
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
    # Pillow opens a 16-bit PGM in mode I. Other images in mode I have 32-bit numbers, which Pillow would clip at 255.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise DataError("32-bit pixels whose black and white are not known: convert them to 8 or 16 bits")


def _refuse_size(size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(
            f"more than {max_pixels:,} pixels: refused as a decompression bomb. If the image is genuine, allow its "
            f"{width} × {height} pixels with `max_pixels`"
        )


def _decode_draft(data: bytes, spec: ImageSpec) -> Image.Image | None:
    """Decode a large JPEG at 1/2, 1/4 or 1/8 of its size, upright and resized; return None for any other image.

    Target size and box are computed from the full image, as in Pillow's `thumbnail`.
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
        # Rotation comes last: the box refers to the image as stored.
        small = to_mode(image, spec.mode).resize((width, height), INTERPOLATIONS[spec.interpolation], box=drafted[1])
        return small if turn is None else small.transpose(turn)
