"""Augmentation: random transforms of decoded images; each sample has a random seed of its own.

The result for a sample depends on its pixels and its seed alone: not on the rest of a batch, on threads, or on other
users of random numbers. The seed follows from the sample's key and a number (`seed_of`): the number of the epoch where
a network trains on pixels, the number of the view where features of augmented samples are stored. So with equal seeds
view 3 has the pixels of epoch 3, and a view can be made again from its identity.

Crops and warps (random_resized_crop, random_crop, rotation, affine) need what the centre crop cuts off: torchvision's
reference recipe crops an image that nothing else has cropped. These transforms get the uncropped image: decoded and
resized as in evaluation, without the centre crop. The first random crop brings the image to the final size. Without a
random crop, the last warp is followed by the centre crop. Transforms that neither crop nor warp get the centre crop,
the very pixels of evaluation.

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
from pipeline.files import KEY_BYTES
from pipeline.readers.transforms import AugmentConfig, needs_uncropped
from pipeline.settings.check import Settings


@functools.cache
def _installed() -> str:
    return metadata.version("torchvision")


VERSION: Literal[2] = 2


class View(Settings):
    """An augmented copy of every sample: all that is needed to make it again."""

    augment: Annotated[AugmentConfig, Field(min_length=1)]
    seed: int = 0
    number: Annotated[int, Field(ge=0)]
    torchvision: str = Field(default_factory=_installed, description="whose transforms these are")
    version: Literal[2] = Field(default=VERSION, description="of what crops and warps are given; 1: the centre crop")

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `version` out where nothing crops or warps: pixels, and so addresses, are those of version 1."""
        return {k: value for k, value in write(self).items() if k != "version" or needs_uncropped(self.augment)}

    def __call__(
        self, images: Sequence[np.ndarray], keys: np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return the view's pixels of samples uint8 (height, width, channels) with these keys (n,) S16: see `augment`.

        Raises EngineError if another torchvision is installed: its transforms may be others.
        """
        if self.torchvision != _installed():
            raise EngineError(
                f"view {self.number}: expected torchvision {self.torchvision}, got {_installed()}, whose transforms "
                "may give other pixels. Install that version, or extract the views again."
            )
        return augment(images, self.augment, seeds=seeds_of(self.seed, self.number, keys), size=size)


def as_made_now(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored view, as an identity has it, says where it is made again with these settings."""
    return View.model_validate({name: value for name, value in view.items() if name != "version"}).model_dump(
        mode="json"
    )


class Views(Settings):
    """So many augmented copies of every sample."""

    count: Annotated[int, Field(ge=1)] = Field(description="augmented copies of each sample")
    augment: Annotated[AugmentConfig, Field(min_length=1)] = Field(description="the transforms, in their order")
    seed: int = Field(default=0, description="of what they draw")

    def view(self, number: int) -> View:
        """Return the view of a number."""
        return View(augment=self.augment, seed=self.seed, number=number)


def augment(
    images: Sequence[np.ndarray],
    transforms: AugmentConfig,
    *,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Transform images uint8 (height, width, channels), one seed each, to an array (n, *size, channels).

    `size`: height and width of the centre crop, for images without it; None: that of the images, all of one size.
    """
    height, width, channels = images[0].shape
    height, width = size or (height, width)
    result = np.empty((len(images), height, width, channels), np.uint8)
    for row, seed in enumerate(seeds):
        result[row] = _one(images[row], transforms, seed, (height, width))
    return result


def seed_of(seed: int, number: int, key: bytes) -> int:
    """Return the seed of a sample in an epoch, or in a view, of that number: 63 bits of BLAKE2b (RFC 7693)."""
    data = f"{seed}:{number}:".encode() + key
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def seeds_of(seed: int, number: int, keys: np.ndarray) -> list[int]:
    """Return the seed of each sample, by keys (n,) S16."""
    data = np.ascontiguousarray(keys).tobytes()
    return [seed_of(seed, number, data[start : start + KEY_BYTES]) for start in range(0, len(data), KEY_BYTES)]


def _one(image: np.ndarray, transforms: AugmentConfig, seed: int, size: tuple[int, int]) -> np.ndarray:
    import torch

    value = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    with _drawing()(torch.Generator().manual_seed(seed)):
        for transform in _built(transforms, size):
            value = transform(value)
    result: np.ndarray = value.permute(1, 2, 0).numpy()
    return result


@functools.cache
def _built(transforms: AugmentConfig, size: tuple[int, int]) -> list[Any]:
    """Return the transforms, with the crop that brings an uncropped image to its final size: see the top of this
    file.
    """
    from torchvision.transforms import v2

    result = [one.build(size) for one in transforms]
    if not any(one.crops for one in transforms):
        warps = [place for place, one in enumerate(transforms) if one.warps]
        result.insert(warps[-1] + 1 if warps else 0, v2.CenterCrop(size))
    return result


@functools.cache
def _drawing() -> Any:
    """Return a block in which what this thread asks torch to draw comes from a generator.

    torchvision draws from torch's only generator, which all threads share: a seed set there for one sample would be
    used up by others, and by the dropout of a network that trains meanwhile.
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
