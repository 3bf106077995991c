"""The content of backbone.json: architecture, origin, input, taps. Values only, without torch.

`data/backbones/<name>/` holds `backbone.json` and `weights.safetensors` (parameters and buffers).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.files import AnyPath, as_path, read_json
from pipeline.readers.augment import View
from pipeline.readers.image import ImageSpec
from pipeline.settings.check import Settings

SPEC_FILE = "backbone.json"

GRID = re.compile(r"avg([1-9]\d*)x([1-9]\d*)")
MAP_POOLINGS, TOKEN_POOLINGS = ("mean", "max", "gem", "mean+std"), ("cls", "mean_tokens")
POOLINGS = ("none", "flatten", *MAP_POOLINGS, *TOKEN_POOLINGS, "avg<h>x<w>")

ACTIVATIONS = ("relu", "gelu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "leaky_relu",
               "mish", "softmax", "prelu")  # fmt: skip
"""Operations of torch that are elementwise non-linearities; ReLU6 is hardtanh."""

WEIGHTED = ("convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "native_batch_norm", "cudnn_batch_norm",
            "native_layer_norm", "native_group_norm")  # fmt: skip
"""Operations of torch that a non-linearity usually follows: convolutions, linear layers, norms."""


WIDE = 8192
"""Values per row above which a tap is probably a mistake."""


class InputSpec(Settings):
    """The input tensor of a network: the pixels of `image`, divided by 255, minus `mean`, divided by `std`."""

    image: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        size = self.image.crop or self.image.resize
        assert isinstance(size, tuple), "an input spec fixes both sides"
        return size

    @property
    def description(self) -> str:
        """The preprocessing as a line for people."""
        image, (height, width) = self.image, self.size
        resize = image.resize
        sides = f"{resize[0]}×{resize[1]}" if isinstance(resize, tuple) else f"the shorter side to {resize}"
        steps = [] if resize is None else [f"resize {sides} ({image.interpolation})"]
        steps += [f"crop {height}×{width}"] if image.crop is not None else []
        numbers = ((name, " ".join(f"{value:g}" for value in getattr(self, name))) for name in ("mean", "std"))
        return ", ".join([image.mode, *steps, *(f"{name} {text}" for name, text in numbers)])

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an input without the batch axis: (channels, height, width)."""
        return (1 if self.image.mode == "L" else 3, *self.size)


class InputPart(Settings):
    """The part of a joined vector that belongs to a module: its input, averaged over `axes`."""

    start: int
    stop: int
    axes: tuple[int, ...] = ()


class Tap(Settings):
    """A node of a network: a value that can be stored."""

    shape: tuple[int, ...] = Field(description="shape of a row, without the batch axis")
    layout: Literal["CHW", "HWC", "LC", "other"] = Field(
        default="other", description="order of axes; LC: tokens, then channels"
    )
    kind: str = Field(default="", description="class of the module, or `function`")
    operation: str = Field(
        default="", description="last operation that computed the value, such as relu or convolution"
    )
    multiply_adds: int = Field(default=0, description="multiply-adds per sample, from the input up to this node")
    prefix: int = Field(default=0, description="tokens before the patches: class token, registers")
    class_token: bool = Field(default=False, description="whether the first token is the class token")
    call: int = Field(default=0, description="number of the module's call, from 0")
    input_of: str | None = Field(default=None, description="module whose input the value is; null: an output")
    mixed: bool = Field(default=False, description="whether a row depends on the other samples of its batch")
    averaged: tuple[int, ...] = Field(
        default=(), description="axes over which the value is averaged, batch axis counted"
    )
    parts: dict[str, InputPart] = Field(
        default_factory=dict, description="modules whose inputs are joined to this value"
    )
    revision: int = Field(default=0, description="1 where an earlier version of icecore gave the node another meaning")

    @property
    def definition(self) -> dict[str, Any]:
        """The part of the node's meaning that its name does not state, for the identity; usually empty."""
        return self.model_dump(include={"averaged", "parts", "revision"}, mode="json", exclude_defaults=True)

    @property
    def activation(self) -> Literal["pre", "post"] | None:
        """The kind of value: "pre" for the output of a layer with weights, "post" for that of a non-linearity."""
        operation = self.operation.removesuffix("_")
        return "post" if operation in ACTIVATIONS else "pre" if operation in WEIGHTED else None


class Probe(Settings):
    """The outputs of a network for a fixed image when it was written; see reference_output.py."""

    values: tuple[float, ...] = Field(description="output values, evenly spaced")
    largest: float = Field(description="largest absolute output value")
    versions: dict[str, str] = Field(description="versions of the packages that computed the values")


class BackboneSpec(Settings):
    """The content of backbone.json."""

    format: Literal[2] = 2
    architecture: dict[str, Any] = Field(description="`family`, and the arguments of its builder")
    origin: dict[str, Any] = Field(description="source of the weights")
    weights_digest: str
    input: InputSpec
    taps: dict[str, Tap]
    aliases: dict[str, str] = Field(
        default_factory=dict, description="other names of nodes, from papers and other libraries"
    )
    classes: tuple[str, ...] = ()
    probe: Probe | None = Field(default=None, description="null in older files, and for a network with random outputs")

    @property
    def network(self) -> str:
        """The name of the network under its new classifier, such as `mobilenet_v2`; the family if it has no name."""
        architecture = self.architecture
        while not architecture.get("name") and "base" in architecture:
            architecture = architecture["base"]
        return str(architecture.get("name") or architecture.get("family"))

    def node(self, name: str) -> str:
        """Return the node of a name or alias; an unknown name is returned unchanged."""
        return name if name in self.taps else self.aliases.get(name, name)

    def viewed(self, view: View | None) -> "BackboneSpec":
        """Return the spec with an augmented view as the input; the same spec without a view."""
        if view is None:
            return self
        image = self.input.image.model_copy(update={"view": view})
        return self.model_copy(update={"input": self.input.model_copy(update={"image": image})})


class TapSpec(Settings):
    """A tap to store: its node, pooling, projection and dtype."""

    REMOVED = {"project_seed": "Projections to the same number of dimensions are equal: leave it out."}

    node: str = Field(description="node or alias; `icecore layers` lists them")
    pool: str = Field(default="none", description=f"{', '.join(POOLINGS[:-1])}, or avg<h>x<w> such as avg2x2")
    project: int | None = Field(
        default=None, ge=1, description="dimensions of a random projection of the pooled, flattened row"
    )
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        default="float16", description="dtype of stored values"
    )

    @field_validator("pool")
    @classmethod
    def _check_pool(cls, pool: str) -> str:
        if pool not in POOLINGS[:-1] and not GRID.fullmatch(pool):
            raise ValueError(f"unknown pooling. Expected one of: {', '.join(POOLINGS)}")
        return pool


def read_spec(folder: AnyPath) -> BackboneSpec:
    """Read backbone.json; raises BackboneError if it is missing or of another format."""
    folder = as_path(folder, "read_spec: folder")
    path = folder / SPEC_FILE
    if not path.is_file():
        raise BackboneError(
            f"{folder}: not a backbone ({SPEC_FILE} is missing). Run `icecore repro freeze@{folder.name}`."
        )
    try:
        return BackboneSpec.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise BackboneError(f"{path}: not a backbone of this version of icecore. {error}") from None


def pooled_shape(tap: Tap, pool: str) -> tuple[int, ...]:
    """Return the shape of a row after pooling; raises ValueError if the pooling does not fit the tap."""
    if pool == "none":
        return tap.shape
    if pool == "flatten":
        return (math.prod(tap.shape),)
    if pool == "mean" and tap.averaged:
        return tap.shape
    if tap.averaged:
        raise ValueError(
            f"pooling {pool!r} needs all positions, but a row is their mean, of the shape {tap.shape}. Choose the node "
            "before it, whose value is the map or the tokens"
        )
    if pool in TOKEN_POOLINGS:
        if tap.layout != "LC":
            raise ValueError(f"pooling {pool!r} needs tokens, but a row has the shape {tap.shape}")
        if pool == "cls" and not tap.class_token:
            raise ValueError("pooling 'cls' takes the class token, and this node has none")
        return (tap.shape[1],)
    if tap.layout not in ("CHW", "HWC"):
        raise ValueError(f"pooling {pool!r} averages over height and width, but a row has the shape {tap.shape}")
    channels = tap.shape[0] if tap.layout == "CHW" else tap.shape[-1]
    grid = GRID.fullmatch(pool)
    cells = int(grid[1]) * int(grid[2]) if grid else 2 if pool == "mean+std" else 1
    return (channels * cells,)


def row_shape(tap: Tap, spec: TapSpec) -> tuple[int, ...]:
    """Return the shape of a stored row; raises ValueError if the pooling does not fit the tap."""
    pooled = pooled_shape(tap, spec.pool)
    return pooled if spec.project is None else (spec.project,)


def resolve(specs: Mapping[str, TapSpec], backbone: BackboneSpec, *, where: str) -> dict[str, TapSpec]:
    """Return the taps with aliases replaced by nodes.

    Raises BackboneError with all nodes that do not exist, and with nodes whose rows depend on the rest of the batch.
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
        reason = f"the weights lack {names}" if number is None else f"the weights of {names} are for {number} classes"
        problems = [
            f"tap {name!r}: no classifier: {reason}. Use `penultimate`"
            + ("" if number is None else f", or freeze the backbone with `classes: {number}`")
            for name, spec in result.items()
            if spec.node == "logits"
        ]
        if problems:
            raise BackboneError(bullets(f"{where}: taps of a classifier that is missing", problems))
    problems = [
        f"tap {name!r}: expected values that depend on a single sample, but those of {spec.node!r} depend on the other "
        "samples of the batch. Choose an earlier node."
        for name, spec in result.items()
        if backbone.taps[spec.node].mixed
    ]
    if problems:
        raise BackboneError(bullets(f"{where}: taps that cannot be stored", problems))
    return result
