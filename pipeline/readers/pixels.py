"""Transforms of decoded images: rotation to upright, colour mode, resized size and centre crop."""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms

from pipeline.errors import DataError
from pipeline.readers import image_files
from pipeline.readers.image_files import MAX_PIXELS

# EXIF orientation -> the transposition that makes the image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Transpositions that swap height and width.
ACROSS = tuple(TURNS[orientation] for orientation in (5, 6, 7, 8))


# Errors that Pillow's decoders raise for damaged data.
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright, by its EXIF orientation; None for an upright image."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:  # damaged metadata: the pixels are still used
        return None


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF orientation says."""
    # Pillow's exif_transpose rewrites all tags, and fails where any tag is malformed.
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to RGB or L: more bits scaled to 8, transparent pixels over white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None, "profileToProfile returns an image unless it works in place"
        image = converted
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 12-bit or 16-bit grey to 8 bits; the transparent value becomes white."""
    values = np.asarray(image).astype(np.int64)
    clear = image.info.get("transparency")
    transparent = values == clear if isinstance(clear, int) else None
    bits, negative = image_files.tiff_bits(image) or (16, False)
    grey = values * 255 // (4095 if bits == 12 else 65535)
    if negative:
        grey = 255 - grey
    if transparent is not None:
        grey[transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def resized_size(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after a resize; a single number is the shorter side, as in torchvision.

    Raises DataError for a narrow strip whose resized size would exceed MAX_PIXELS.
    """
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    longer = int(resize * max(size) / min(size))
    if longer * resize > MAX_PIXELS:
        raise DataError(f"a strip of {width}×{height}: after resizing, it would have more than {MAX_PIXELS:,} pixels")
    return (resize, longer) if width <= height else (longer, resize)


def centre_crop(pixels: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """Cut out the centre; smaller images are padded with zeros first, as torchvision does."""
    height, width = crop
    missing_h, missing_w = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if missing_h or missing_w:
        before_h, before_w = missing_h // 2, missing_w // 2
        pad = ((before_h, missing_h - before_h), (before_w, missing_w - before_w), (0, 0))
        pixels = np.pad(pixels, pad)
    top = round((pixels.shape[0] - height) / 2.0)
    left = round((pixels.shape[1] - width) / 2.0)
    return pixels[top : top + height, left : left + width]
