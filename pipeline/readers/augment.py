"""Augmentation: random transforms of decoded images, with a random seed per sample.

The result for a sample depends only on its pixels and its seed: not on the rest of the batch, on threads, or on other
users of random numbers. The seed is computed from the sample's key and a number (`seed_of`): the number of the epoch
where a network trains on pixels, the number of the view where features of augmented samples are stored. With equal
seeds, view 3 therefore has the pixels of epoch 3, and a view can be recomputed from its identity.

Crops and warps (random_resized_crop, random_crop, rotation, affine) need the pixels that the centre crop cuts off:
torchvision's reference recipe crops the original image. These transforms get the uncropped image: decoded and resized
as in evaluation, without the centre crop. The first random crop gives the image its final size. Without a random crop,
the centre crop follows the last warp. Transforms that neither crop nor warp get the centre crop, exactly the pixels of
evaluation.

torch is imported only where images are transformed.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.errors import EngineError
from pipeline.readers.sample_key import KEY_BYTES
from pipeline.readers.transforms import AugmentConfig, needs_uncropped
from pipeline.settings.check import Settings


@functools.cache
def _torchvision_version() -> str:
    return metadata.version("torchvision")


VERSION: Literal[2] = 2


class View(Settings):
    """An augmented copy of every sample: all settings that are needed to recompute it."""

    augment: Annotated[AugmentConfig, Field(min_length=1)]
    seed: int = 0
    number: Annotated[int, Field(ge=0)]
    torchvision: str = Field(
        default_factory=_torchvision_version, description="version of torchvision that the transforms are from"
    )
    version: Literal[2] = Field(
        default=VERSION, description="what crops and warps get: 2 the uncropped image, 1 the centre crop"
    )

    @model_serializer(mode="wrap")
    def _serialise(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `version` if no transform crops or warps: pixels and addresses are then those of version 1."""
        return {
            name: value for name, value in write(self).items() if name != "version" or needs_uncropped(self.augment)
        }

    def __call__(
        self, images: Sequence[np.ndarray], keys: np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return the view of images uint8 (height, width, channels) with keys (n,) S16, as an array: see `augment`.

        Raises EngineError if another version of torchvision is installed: its transforms may give other pixels.
        """
        if self.torchvision != _torchvision_version():
            raise EngineError(
                f"view {self.number}: expected torchvision {self.torchvision}, got {_torchvision_version()}, whose "
                f"transforms may give other pixels. Install torchvision {self.torchvision}, or extract the views again."
            )
        return augment(images, self.augment, seeds=seeds_of(self.seed, self.number, keys), size=size)


def upgrade_view(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored view's identity as this version of icecore writes it for the same settings."""
    return View.model_validate({name: value for name, value in view.items() if name != "version"}).model_dump(
        mode="json"
    )


class Views(Settings):
    """Augmented copies of every sample: their number, transforms and seed."""

    count: Annotated[int, Field(ge=1)] = Field(description="augmented copies of each sample")
    augment: Annotated[AugmentConfig, Field(min_length=1)] = Field(
        description="transforms, in the order in which they are applied"
    )
    seed: int = Field(default=0, description="seed of the random transforms")

    def view(self, number: int) -> View:
        """Return the view with this number."""
        return View(augment=self.augment, seed=self.seed, number=number)


def augment(
    images: Sequence[np.ndarray],
    transforms: AugmentConfig,
    *,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Transform images uint8 (height, width, channels), with a seed per image, to an array (n, *size, channels).

    `size`: height and width of the result, for uncropped images; None: the size of the images, which is then the same.
    """
    height, width, channels = images[0].shape
    height, width = size or (height, width)
    result = np.empty((len(images), height, width, channels), np.uint8)
    for row, seed in enumerate(seeds):
        result[row] = _transform(images[row], transforms, seed, (height, width))
    return result


def seed_of(seed: int, number: int, key: bytes) -> int:
    """Return the seed of a sample in the epoch or view `number`: 63 bits of BLAKE2b (RFC 7693)."""
    data = f"{seed}:{number}:".encode() + key
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def seeds_of(seed: int, number: int, keys: np.ndarray) -> list[int]:
    """Return the seed of each sample, by keys (n,) S16."""
    data = np.ascontiguousarray(keys).tobytes()
    return [seed_of(seed, number, data[start : start + KEY_BYTES]) for start in range(0, len(data), KEY_BYTES)]


def _transform(image: np.ndarray, transforms: AugmentConfig, seed: int, size: tuple[int, int]) -> np.ndarray:
    import torch

    value = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    with _drawing_mode()(torch.Generator().manual_seed(seed)):
        for transform in _build_transforms(transforms, size):
            value = transform(value)
    result: np.ndarray = value.permute(1, 2, 0).numpy()
    return result


@functools.cache
def _build_transforms(transforms: AugmentConfig, size: tuple[int, int]) -> list[Any]:
    """Build the transforms; without a random crop, insert the centre crop (see the top of this file)."""
    from torchvision.transforms import v2

    result = [transform.build(size) for transform in transforms]
    if not any(transform.crops for transform in transforms):
        warps = [position for position, transform in enumerate(transforms) if transform.warps]
        result.insert(warps[-1] + 1 if warps else 0, v2.CenterCrop(size))
    return result


@functools.cache
def _drawing_mode() -> Any:
    """Return a context manager in which torch draws this thread's random numbers from a given generator.

    torchvision draws from torch's global generator, which all threads share: numbers after a seed set there for one
    sample would be drawn by other samples, and by the dropout of a network that trains at the same time.
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
