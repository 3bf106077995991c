"""Draw the pictures of the page as data URIs: the image, the evidence over it as a heat map, thumbnails of samples."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 224
"""The least pixels of a picture's shorter side; smaller images are enlarged without smoothing."""

THUMBNAIL = 112

FOR, AGAINST = np.array([213, 94, 0]), np.array([0, 114, 178])
"""Colours that colour-blind readers can distinguish (Okabe and Ito 2008)."""

STRONGEST = 0.75
"""The opacity of the colour where the evidence is largest."""


def picture(pixels: np.ndarray) -> str:
    """Return pixels uint8 (height, width, channels) as a data URI."""
    return _data_uri(_image(pixels))


def overlay(pixels: np.ndarray, evidence: np.ndarray, largest: float) -> str:
    """Draw evidence over the image in grey; return a data URI. largest: the evidence that gets the strongest colour."""
    base = _image(pixels).convert("L").convert("RGB")
    smooth = Image.fromarray(evidence.astype(np.float32)).resize(base.size, Image.Resampling.BILINEAR)
    strength = np.asarray(smooth) / largest if largest > 0 else np.zeros(base.size[::-1])
    share = np.clip(np.abs(strength), 0, 1)[:, :, None] * STRONGEST
    colour = np.where(strength[:, :, None] > 0, FOR, AGAINST)
    mixed = np.asarray(base) * (1 - share) + colour * share
    return _data_uri(Image.fromarray(mixed.round().astype(np.uint8)))


def thumbnail(image: Image.Image) -> str:
    """Return an image as a small data URI."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return _data_uri(small)


def _image(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = -(-SIDE // min(image.size))
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
