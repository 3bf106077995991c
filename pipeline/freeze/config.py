"""Settings of the stage `freeze`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.backbones.spec import InputSpec
from pipeline.files import read_json, sha256_file
from pipeline.readers.image import ImageSpec, omit_added_defaults
from pipeline.settings.check import Settings, normalise_import_path

DIGITS = 8  # the fewest digits of a digest that identify a file

Side = Annotated[int, Field(ge=1)]


class InputConfig(Settings):
    """Preprocessing settings that override those of the source."""

    REMOVED = {"decoder": "Pillow decodes every image: leave it out."}

    mode: Literal["RGB", "L"] = Field(default="RGB", description="RGB, or L for grey")
    resize: Side | tuple[Side, Side] | None = Field(default=None, description="the shorter side, or height and width")
    crop: tuple[Side, Side] | None = Field(default=None, description="height and width; one number is both")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        default="bilinear", description="interpolation of the resize"
    )
    draft: bool = Field(
        default=False, description="decode JPEGs at a fraction of their size: faster, with slightly other pixels"
    )
    mean: tuple[float, ...] = Field(default=(), description="per channel, subtracted from pixels between 0 and 1")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="per channel, the divisor after the mean is subtracted"
    )

    @field_validator("crop", mode="before")
    @classmethod
    def _square(cls, crop: Any) -> Any:
        return (crop, crop) if isinstance(crop, int) else crop

    @model_serializer(mode="wrap")
    def _serialize(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return omit_added_defaults(write(self))

    def onto(self, own: InputSpec | None) -> InputSpec:
        """Return the source's own preprocessing with these settings applied; raises ValueError if they do not fit."""
        overrides = {name: getattr(self, name) for name in self.model_fields_set}
        values = {**(own.image.model_dump() | own.model_dump(exclude={"image"}) if own else {}), **overrides}
        if values.get("draft") and values.get("resize") is None:
            raise ValueError("expected `resize` with `draft`, which decodes at a fraction of the size, got none")
        image = ImageSpec(**{name: values[name] for name in ImageSpec.model_fields if name in values})
        mean, std = tuple(values.get("mean", ())), tuple(values.get("std", ()))
        channels = 1 if image.mode == "L" else 3
        problems = [
            f"expected {channels} numbers in `{name}` for mode {image.mode}, got {len(numbers)}"
            for name, numbers in (("mean", mean), ("std", std))
            if len(numbers) != channels
        ]
        if not isinstance(image.crop or image.resize, tuple):
            problems.append(
                f"expected `crop`, or both sides in `resize`, got resize: {image.resize}, which leaves a side open"
            )
        elif (
            "crop" in overrides
            and "resize" not in overrides
            and isinstance(image.resize, int)
            and image.resize < max(image.crop or ())
        ):
            problems.append(
                f"expected a `crop` within the resized image, whose shorter side is {image.resize}, got {image.crop}: "
                "its borders would be black. Set `resize` too"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return InputSpec(image=image, mean=mean, std=std)


class Pretrained(Settings):
    """A network of the stage `pretrain`."""

    source: Literal["pretrained"]
    network: str = Field(description="an entry of `pretrain`")
    input: InputConfig = Field(default=InputConfig(), description="preprocessing settings to override")


class Folder(Settings):
    """A backbone in any folder, as icecore writes them: pretrained, fine-tuned, distilled or frozen."""

    source: Literal["folder"]
    folder: Path = Field(description="a folder with a backbone that icecore wrote")
    digest: str | None = Field(
        None, validate_default=True, description="digest of its weights, at least the first 8 digits"
    )
    input: InputConfig = Field(default=InputConfig(), description="preprocessing settings to override")

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if len(self.digest or "") < DIGITS:
            raise ValueError(
                f"`folder` needs `digest`, at least the first {DIGITS} digits of the digest of its weights "
                f"({_suggest_digest(self.folder)})"
            )
        return self


class LocalWeights(Settings):
    """Weights in a file of the user."""

    file: Path | None = Field(None, description="a state dict: .safetensors, or .pth, .pt, .ckpt without code")
    sha256: str | None = Field(None, description="SHA-256 of `file`, at least its first 8 digits")
    entry: str | None = Field(
        None, min_length=1, description="the state dict to read, such as `model_ema`, where `file` has several"
    )
    strip_prefix: str | None = Field(
        None, min_length=1, description="a prefix to remove from keys, such as `model.`; other keys are ignored"
    )

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if self.file is not None and len(self.sha256 or "") < DIGITS:
            raise ValueError(
                f"`file` needs `sha256`, at least its first {DIGITS} digits ({_suggest_sha256(self.file)})"
            )
        if self.file is None:
            for name in ("sha256", "entry", "strip_prefix", "classes"):
                if getattr(self, name, None) is not None:
                    raise ValueError(f"`{name}` belongs to `file`, and there is none")
        return self


class Torchvision(LocalWeights):
    """A classification model of torchvision."""

    source: Literal["torchvision"]
    model: str = Field(description="name of the model, such as mobilenet_v2")
    weights: str = Field("DEFAULT", description="entry of the weights enum, which also gives the preprocessing")
    classes: int | None = Field(
        None, ge=1, description="outputs of the classifier in `file`; default: those of the entry"
    )
    input: InputConfig = Field(default=InputConfig(), description="preprocessing settings to override")


class Timm(LocalWeights):
    """A model of timm."""

    source: Literal["timm"]
    model: str = Field(description="name of the model without a tag, such as resnet50")
    weights: str | None = Field(None, description="timm's tag, such as a1_in1k, which also gives the preprocessing")
    classes: int | None = Field(
        None, ge=1, description="outputs of the classifier in `file`; default: those of the tag"
    )
    input: InputConfig = Field(default=InputConfig(), description="preprocessing settings to override")

    @field_validator("model")
    @classmethod
    def _without_tag(cls, model: str) -> str:
        name, dot, tag = model.partition(".")
        if dot:
            raise ValueError(f"expected a name without a tag. Write `model: {name}` and `weights: {tag}`")
        return model


class Module(LocalWeights):
    """A network of the user, built by a function or class that is named by its import path."""

    source: Literal["module"]
    factory: str = Field(description="import path: package.module:name, or package.module.name")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the factory, by name")
    seed: int | None = Field(None, ge=0, description="seed of random weights, a baseline without `file`")
    input: InputConfig = Field(description="the preprocessing")

    @field_validator("factory", mode="before")
    @classmethod
    def _with_colon(cls, factory: Any) -> Any:
        if not isinstance(factory, str):
            return factory
        path = normalise_import_path(factory)
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
            raise ValueError(
                "expected the import path of a class or a function, such as mynets.small.Net for the class Net in "
                f"mynets/small.py, got {factory!r}"
            )
        return path

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.file is None) == (self.seed is None):
            got = "neither" if self.file is None else "both"
            raise ValueError(f"expected `file`, or `seed` for random weights, got {got}")
        try:
            self.input.onto(None)
        except ValueError as error:
            raise ValueError(f"input: {error}") from None
        return self


FreezeConfig = Annotated[Pretrained | Torchvision | Timm | Folder | Module, Field(discriminator="source")]
"""Where a backbone comes from."""


def _suggest_sha256(file: Path) -> str:
    try:
        return f"sha256: '{sha256_file(file)[:16]}'" if file.is_file() else f"{file}: no such file"
    except PermissionError as error:
        return f"{error.filename}: {error.strerror}"


def _suggest_digest(folder: Path) -> str:
    try:
        return f"digest: '{read_json(folder / 'backbone.json')['weights_digest'][:16]}'"
    except PermissionError as error:
        return f"{error.filename}: {error.strerror}"
    except (OSError, ValueError, LookupError, TypeError):
        return f"{folder}: not a backbone"
