"""What backbone.json says: architecture, origin, input, taps. Values only, no torch.

`data/backbones/<name>/` holds `backbone.json` (this) and `weights.safetensors` (parameters and buffers).
"""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config import Settings
from pipeline.readers.image import ImageSpec

GRID = re.compile(r"avg([1-9]\d*)x([1-9]\d*)")
POOLINGS = ("none", "flatten", "mean", "max", "avg<h>x<w>")


class InputSpec(Settings):
    """The tensor that the network wants: the pixels of `image`, divided by 255, minus `mean`, divided by `std`."""

    image: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        size = self.image.crop or self.image.resize
        assert isinstance(size, tuple), "an input spec fixes both sides"
        return size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (1 if self.image.mode == "L" else 3, *self.size)


class Tap(Settings):
    """A place in the network whose output can be stored."""

    shape: tuple[int, ...] = Field(description="of one sample, without the batch axis")
    layout: Literal["CHW", "HWC", "other"] = "other"


class BackboneSpec(Settings):
    """The whole of backbone.json."""

    format: Literal[1] = 1
    architecture: dict[str, Any] = Field(description="`family` and what its builder needs")
    origin: dict[str, Any] = Field(description="where the weights came from")
    weights_digest: str
    input: InputSpec
    taps: dict[str, Tap]
    classes: tuple[str, ...] = ()


class TapSpec(Settings):
    """What to store of a tap: which node, how it is pooled, in which dtype."""

    node: str
    pool: str = Field("none", description="none, flatten, mean, max, or avg<h>x<w> such as avg2x2")
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"

    @field_validator("pool")
    @classmethod
    def _known(cls, pool: str) -> str:
        if pool not in POOLINGS[:4] and not GRID.fullmatch(pool):
            raise ValueError(f"unknown pooling. Expected one of: {', '.join(POOLINGS)}")
        return pool


def pooled_shape(tap: Tap, pool: str) -> tuple[int, ...]:
    """The shape of one stored row; raises ValueError if the pooling does not fit the tap."""
    if pool == "none":
        return tap.shape
    if pool == "flatten":
        size = 1
        for side in tap.shape:
            size *= side
        return (size,)
    if tap.layout == "other":
        raise ValueError(f"pooling {pool!r} averages over height and width, but a row has the shape {tap.shape}")
    channels = tap.shape[0] if tap.layout == "CHW" else tap.shape[-1]
    grid = GRID.fullmatch(pool)
    cells = int(grid[1]) * int(grid[2]) if grid else 1
    return (channels * cells,)
