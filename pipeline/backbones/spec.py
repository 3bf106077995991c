"""What backbone.json says: architecture, origin, input, taps. Values only, no torch.

`data/backbones/<name>/` holds `backbone.json` (this) and `weights.safetensors` (parameters and buffers).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.readers.augment import View
from pipeline.readers.image import ImageSpec
from pipeline.settings.check import Settings

GRID = re.compile(r"avg([1-9]\d*)x([1-9]\d*)")
MAP_POOLINGS, TOKEN_POOLINGS = ("mean", "max", "gem", "mean+std"), ("cls", "mean_tokens")
POOLINGS = ("none", "flatten", *MAP_POOLINGS, *TOKEN_POOLINGS, "avg<h>x<w>")

ACTIVATIONS = ("relu", "gelu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "leaky_relu",
               "mish", "softmax", "prelu")  # fmt: skip
"""Operations of torch that are non-linear in each value; ReLU6 is hardtanh."""

WEIGHTED = ("convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "native_batch_norm", "cudnn_batch_norm",
            "native_layer_norm", "native_group_norm")  # fmt: skip
"""Operations of torch that a non-linearity usually follows: convolutions, linear layers and norms."""


WIDE = 8192
"""Values of a row: a wider tap is seldom meant."""


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
    def description(self) -> str:
        """What is done to an image, as one line for people."""
        image, (height, width) = self.image, self.size
        resize = image.resize
        sides = f"{resize[0]}×{resize[1]}" if isinstance(resize, tuple) else f"the shorter side to {resize}"
        steps = [] if resize is None else [f"resize {sides} ({image.interpolation})"]
        steps += [f"crop {height}×{width}"] if image.crop is not None else []
        numbers = ((name, " ".join(f"{one:g}" for one in getattr(self, name))) for name in ("mean", "std"))
        return ", ".join([image.mode, *steps, *(f"{name} {text}" for name, text in numbers)])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (1 if self.image.mode == "L" else 3, *self.size)


class InputPart(Settings):
    """The part of a joined vector that one of several modules gets, averaged over some axes of what it really gets."""

    start: int
    stop: int
    axes: tuple[int, ...] = ()


class Tap(Settings):
    """A place in the network whose output can be stored."""

    shape: tuple[int, ...] = Field(description="of one sample, without the batch axis")
    layout: Literal["CHW", "HWC", "LC", "other"] = Field(default="other", description="LC: tokens")
    kind: str = Field(default="", description="the class of the module, or `function`")
    operation: str = Field(
        default="", description="the last operation that shaped the value, such as relu or convolution"
    )
    multiply_adds: int = Field(default=0, description="of one sample, from the input up to this node")
    prefix: int = Field(default=0, description="tokens before those of the patches: class token, registers")
    class_token: bool = Field(default=False, description="whether the first token is the class token")
    call: int = Field(default=0, description="which call of the module, from 0")
    input_of: str | None = Field(default=None, description="the module whose input this is, not its output")
    mixed: bool = Field(default=False, description="whether a row depends on the other samples of its batch")
    averaged: tuple[int, ...] = Field(default=(), description="axes of a batch over which the value is averaged")
    parts: dict[str, InputPart] = Field(
        default_factory=dict, description="the modules whose inputs are joined to this, where they are several"
    )
    revision: int = Field(default=0, description="raised where the node was another place before")

    @property
    def definition(self) -> dict[str, Any]:
        """What of the node's meaning is not in its name; empty where the name says all."""
        return self.model_dump(include={"averaged", "parts", "revision"}, mode="json", exclude_defaults=True)

    @property
    def activation(self) -> Literal["pre", "post"] | None:
        """Whether the value comes out of a layer with weights or out of a non-linearity; None for all else."""
        operation = self.operation.removesuffix("_")
        return "post" if operation in ACTIVATIONS else "pre" if operation in WEIGHTED else None


class Probe(Settings):
    """What the network gave for one fixed image when it was written; see probe.py."""

    values: tuple[float, ...] = Field(description="of all outputs, evenly spaced")
    largest: float = Field(description="the largest absolute value of all outputs")
    versions: dict[str, str] = Field(description="of the packages that computed it")


class BackboneSpec(Settings):
    """The whole of backbone.json."""

    format: Literal[2] = 2
    architecture: dict[str, Any] = Field(description="`family` and what its builder needs")
    origin: dict[str, Any] = Field(description="where the weights came from")
    weights_digest: str
    input: InputSpec
    taps: dict[str, Tap]
    aliases: dict[str, str] = Field(
        default_factory=dict, description="other names of nodes: those of papers and of other libraries"
    )
    classes: tuple[str, ...] = ()
    probe: Probe | None = Field(default=None, description="None of older files, and where it draws at random")

    @property
    def network(self) -> str:
        """The name of the network, such as `mobilenet_v2`, or of what got a new classifier; else its family."""
        architecture = self.architecture
        while not architecture.get("name") and "base" in architecture:
            architecture = architecture["base"]
        return str(architecture.get("name") or architecture.get("family"))

    def node(self, name: str) -> str:
        """Return the node that a name or an alias stands for; a name that is neither comes back as it is."""
        return name if name in self.taps else self.aliases.get(name, name)

    def viewed(self, view: View | None) -> "BackboneSpec":
        """Return the backbone with an augmented view as its input; the backbone itself without a view."""
        if view is None:
            return self
        image = self.input.image.model_copy(update={"view": view})
        return self.model_copy(update={"input": self.input.model_copy(update={"image": image})})


class TapSpec(Settings):
    """What to store of a tap: which node, how it is pooled, in which dtype."""

    REMOVED = {"project_seed": "Every projection of so many dimensions is the same one: leave it out."}

    node: str = Field(description="a node or an alias: `icecore layers` lists them")
    pool: str = Field(default="none", description=f"{', '.join(POOLINGS[:-1])}, or avg<h>x<w> such as avg2x2")
    project: int | None = Field(
        default=None, ge=1, description="dimensions of a random projection of the pooled, flat row"
    )
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(default="float16", description="of stored values")

    @field_validator("pool")
    @classmethod
    def _known(cls, pool: str) -> str:
        if pool not in POOLINGS[:-1] and not GRID.fullmatch(pool):
            raise ValueError(f"unknown pooling. Expected one of: {', '.join(POOLINGS)}")
        return pool


def pooled_shape(tap: Tap, pool: str) -> tuple[int, ...]:
    """Return the shape of one row after pooling; raises ValueError if the pooling does not fit the tap."""
    if pool == "none":
        return tap.shape
    if pool == "flatten":
        return (math.prod(tap.shape),)
    if pool == "mean" and tap.averaged:
        return tap.shape
    if tap.averaged:
        raise ValueError(
            f"pooling {pool!r} needs all positions, but a row is their mean, of the shape {tap.shape}. Take the node "
            "before it, which gives the map or the tokens"
        )
    if pool in TOKEN_POOLINGS:
        if tap.layout != "LC":
            raise ValueError(f"pooling {pool!r} needs tokens, but a row has the shape {tap.shape}")
        if pool == "cls" and not tap.class_token:
            raise ValueError("pooling 'cls' takes the class token, and there is none at this node")
        return (tap.shape[1],)
    if tap.layout not in ("CHW", "HWC"):
        raise ValueError(f"pooling {pool!r} averages over height and width, but a row has the shape {tap.shape}")
    channels = tap.shape[0] if tap.layout == "CHW" else tap.shape[-1]
    grid = GRID.fullmatch(pool)
    cells = int(grid[1]) * int(grid[2]) if grid else 2 if pool == "mean+std" else 1
    return (channels * cells,)


def row_shape(tap: Tap, spec: TapSpec) -> tuple[int, ...]:
    """Return the shape of one stored row; raises ValueError if the pooling does not fit the tap."""
    pooled = pooled_shape(tap, spec.pool)
    return pooled if spec.project is None else (spec.project,)


def resolve(specs: Mapping[str, TapSpec], backbone: BackboneSpec, *, where: str) -> dict[str, TapSpec]:
    """Return the taps with nodes in the place of aliases.

    Raises BackboneError with all nodes that do not exist, and with those whose rows depend on the rest of their batch.
    """
    result = {name: spec.model_copy(update={"node": backbone.node(spec.node)}) for name, spec in specs.items()}
    known = (*backbone.aliases, *backbone.taps)
    problems = [
        f"tap {name!r}: {unknown_node(spec.node, known)}"
        for name, spec in result.items()
        if spec.node not in backbone.taps
    ]
    if problems:
        raise BackboneError(bullets(f"{where}: taps that do not exist", problems))
    if backbone.architecture.get("family") == "headless":
        at, number = backbone.architecture["at"], backbone.origin.get("other_classes")
        names = repr(at) if isinstance(at, str) else " and ".join(map(repr, at))
        lack = f"the weights lack {names}" if number is None else f"the weights of {names} are of {number} classes"
        problems = [
            f"tap {name!r}: no classifier: {lack}. Take `penultimate`"
            + ("" if number is None else f", or freeze the backbone with `classes: {number}`")
            for name, spec in result.items()
            if spec.node == "logits"
        ]
        if problems:
            raise BackboneError(bullets(f"{where}: taps of a classifier that is missing", problems))
    problems = [
        f"tap {name!r}: expected values of one sample, got those of {spec.node!r}, which depend on the other samples "
        "of the batch. Choose a node before it."
        for name, spec in result.items()
        if backbone.taps[spec.node].mixed
    ]
    if problems:
        raise BackboneError(bullets(f"{where}: taps that cannot be stored", problems))
    return result
