"""Settings of the stage `prepare`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.readers.image_files import MAX_PIXELS
from pipeline.settings.check import Settings
from pipeline.sources import filesystem

# The columns that say where a row belongs: from folders or from a list, always text, and no labels.
PLACES = ("domain", "split")


def _location(value: Any) -> str:
    """Return a path, tidied up, or a URL as it is."""
    if not isinstance(value, str | Path):
        raise PydanticCustomError("path_type", "expected a path")
    return str(value).rstrip("/") if filesystem.is_url(str(value)) else Path(value).as_posix()


Location = Annotated[str, BeforeValidator(_location)]
"""A path, or a URL such as s3://bucket/photos."""


LabelType = Literal["text", "integer", "number", "boolean"]


class PrepareConfig(Settings):
    """A data set: a folder of class folders, several such folders, a list of files with their labels, or containers.

    Containers are tar archives and Parquet files that hold the images themselves: one of them, or a folder of them.
    """

    root: Location = Field(description="a folder, a .csv or .parquet list, a .tar, or a URL of one of these")
    image: str | None = Field(None, description="the column of image bytes, where `root` is Parquet that holds them")
    folders: tuple[str, ...] = Field((), description="several roots below `root`; each becomes a `domain`")
    path: str = Field("path", description="the column of a list that holds the paths")
    columns: tuple[str, ...] | None = Field(
        None, description="the labels of a list, of Parquet or of .json to keep; all if not given"
    )
    types: dict[str, LabelType] = Field({}, description="types of label columns that their values do not show")
    encoding: str | None = Field(None, description="of a .csv list that is not UTF-8, such as cp1252")
    base: Location | None = Field(
        None, description="what a list's paths are relative to; the list's folder if not given"
    )
    check: Literal["decode", "header"] = Field("decode", description="how far each image is read to see that it is one")
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="larger images are refused, as decompression bombs")
    max_rejected: float = Field(0.05, ge=0, le=1, description="the share of unusable files above which prepare fails")

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            "".encode(name or "utf-8")
        except LookupError:
            raise ValueError(f"expected an encoding that Python knows, such as cp1252, got {name!r}") from None
        return name


@dataclass(frozen=True)
class FoundSample:
    """A sample before it was opened: its path and what its place, or its line in a list, says about it."""

    path: str
    labels: dict[str, Any] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, str] | tuple[None, None] = (None, None)
    """Kind and reason, where it is not to be opened at all."""
    container: str | None = None
    """What holds it among others, with `offset` and `size` as in `pipeline.sources.SampleLocation`."""
    offset: int | None = None
    size: int | None = None
