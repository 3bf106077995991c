"""JPEGs decoded, turned, resized and cropped on a CUDA device, a batch at once: nvjpeg, through torchvision.

Its pixels are not those of Pillow, so `decoder: nvjpeg` is part of the identity of all features made of them. Which
decoder an image gets follows from its bytes alone: nvjpeg the grey and YCbCr JPEGs whose end is there, Pillow all
others and those that nvjpeg refuses. So a PNG has the same pixels with both, and what is damaged has the same reason.

Not run on a GPU yet. torchvision calls its decoder deprecated since 0.29, in favour of TorchCodec.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin

from pipeline.errors import DataError, EngineError
from pipeline.readers import Sample
from pipeline.readers.image import ImageReader, ImageSpec, opened, shaped, target, turn_of

if TYPE_CHECKING:
    import torch

END = b"\xff\xd9"  # of a JPEG: without it nvjpeg may make up the rest, where Pillow refuses


class NvjpegReader:
    """Encoded images in, `pixels` out: uint8, (height, width, 3 or 1), on the host."""

    def __init__(self, spec: ImageSpec, *, device: str = "cuda") -> None:
        """`device` is "cpu" in tests only: the same steps by torchvision's other decoder.

        Raises EngineError where there is no CUDA device.
        """
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError(
                "reader 'nvjpeg': expected a CUDA device, got none. Freeze the backbone with `decoder: pillow`, which "
                "makes other features, or run on a machine with a GPU."
            )
        self.spec, self._device = spec, torch.device(device)
        self._host = ImageReader(spec.model_copy(update={"decoder": "pillow"}))

    @property
    def identity(self) -> Mapping[str, Any]:
        """What shapes the pixels."""
        return ImageReader(self.spec).identity

    def __call__(self, data: bytes) -> Sample:
        """Decode one image; raises DataError with the reason if the bytes cannot be used."""
        (found,) = self.batch([data])
        if isinstance(found, DataError):
            raise found
        return found

    def batch(self, data: Sequence[bytes]) -> list[Sample | DataError]:
        """Decode images; those that cannot be used have their reason in their place."""
        found: list[Sample | DataError | None] = [None] * len(data)
        chosen: list[tuple[int, Image.Transpose | None]] = []
        for place, one in enumerate(data):
            try:
                fits, turn = _fits(one)
            except DataError as error:
                found[place] = error
                continue
            if fits:
                chosen.append((place, turn))
        decoded = self._decode([data[place] for place, _ in chosen])
        for (place, turn), image in zip(chosen, decoded, strict=True):
            if image is not None:
                found[place] = self._shaped(image, turn, data[place])
        return [self._on_host(data[place]) if one is None else one for place, one in enumerate(found)]

    def _decode(self, data: Sequence[bytes]) -> "list[torch.Tensor | None]":
        """uint8 (channels, height, width) each; None for what the decoder refuses, alone as in a batch."""
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        if not data:
            return []
        mode = ImageReadMode.GRAY if self.spec.mode == "L" else ImageReadMode.RGB
        encoded = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is deprecated
                return list(decode_jpeg(encoded, mode=mode, device=self._device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # one is bad, and it does not say which
            if len(data) == 1:
                return [None]
            return [image for one in data for image in self._decode([one])]

    def _shaped(self, image: "torch.Tensor", turn: Image.Transpose | None, data: bytes) -> Sample | DataError:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        image = _turned(image, turn)
        if self.spec.resize is not None:
            try:
                width, height = target((image.shape[2], image.shape[1]), self.spec.resize)
            except DataError as error:
                return error
            by = InterpolationMode(self.spec.interpolation)
            image = functional.resize(image, [height, width], interpolation=by, antialias=True)
        if self.spec.crop is not None and self.spec.view is None:  # on the device, so that fewer bytes leave it
            image = functional.center_crop(image, list(self.spec.crop))
        pixels: np.ndarray = image.permute(1, 2, 0).contiguous().cpu().numpy()
        return {"pixels": shaped(pixels, self.spec, data)}

    def _on_host(self, data: bytes) -> Sample | DataError:
        try:
            return self._host(data)
        except DataError as error:
            return error


def _fits(data: bytes) -> tuple[bool, Image.Transpose | None]:
    """Whether nvjpeg is given an image, and how it is to be turned; raises DataError for what cannot be opened."""
    with opened(data) as image:
        whole = data.rstrip(b"\0").endswith(END)
        fits = isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("RGB", "L") and whole
        return fits, turn_of(image) if fits else None


def _turned(image: "torch.Tensor", turn: Image.Transpose | None) -> "torch.Tensor":
    """The same as Pillow's `transpose` of an image, on (channels, height, width)."""
    match turn:
        case None:
            return image
        case Image.Transpose.FLIP_LEFT_RIGHT:
            return image.flip(2)
        case Image.Transpose.FLIP_TOP_BOTTOM:
            return image.flip(1)
        case Image.Transpose.TRANSPOSE:
            return image.transpose(1, 2)
        case Image.Transpose.TRANSVERSE:
            return image.flip(1, 2).transpose(1, 2)
        case Image.Transpose.ROTATE_90:
            return image.rot90(1, (1, 2))
        case Image.Transpose.ROTATE_180:
            return image.flip(1, 2)
        case Image.Transpose.ROTATE_270:
            return image.rot90(-1, (1, 2))
