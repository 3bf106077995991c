"""Settings of the stage `prepare`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.readers.image_files import MAX_PIXELS
from pipeline.settings.check import Settings
from pipeline.sources import UNKNOWN, SampleLocation, filesystem

# The columns that say where a row belongs, from folders or from a list. Their values are text; they are not labels.
SPLIT_COLUMNS = ("domain", "split")


def _location(value: Any) -> str:
    """Return a path in POSIX form, or a URL without trailing slashes."""
    if not isinstance(value, str | Path):
        raise PydanticCustomError("path_type", "expected a path")
    return str(value).rstrip("/") if filesystem.is_url(str(value)) else Path(value).as_posix()


Location = Annotated[str, BeforeValidator(_location)]
"""A path, or a URL such as s3://bucket/photos."""


LabelType = Literal["text", "integer", "number", "boolean"]


class PrepareConfig(Settings):
    """A data set: a folder of class folders, several such folders, a list of files with labels, or containers.

    Containers are tar archives and Parquet files that hold the images: a single file or a folder of them.
    """

    root: Location = Field(description="a folder, a .csv or .parquet list, a .tar, or the URL of any of these")
    image: str | None = Field(None, description="the column of image bytes, where `root` is Parquet with images")
    folders: tuple[str, ...] = Field((), description="several folders below `root`; each becomes a `domain`")
    path: str = Field("path", description="a list's column of file paths")
    columns: tuple[str, ...] | None = Field(
        None, description="label columns to keep, of a list, Parquet or .json; default: all"
    )
    types: dict[str, LabelType] = Field({}, description="types of label columns, where the values do not show them")
    encoding: str | None = Field(None, description="encoding of a .csv list that is not UTF-8, such as cp1252")
    base: Location | None = Field(
        None, description="the folder that a list's paths are relative to; default: the list's own"
    )
    check: Literal["decode", "header"] = Field(
        "decode", description="whether every image is decoded, or only its header read"
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="larger images are refused as decompression bombs")
    max_rejected: float = Field(0.05, ge=0, le=1, description="prepare fails above this share of unusable files")

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
    """A sample that was listed and not opened: its path, its labels, and its domain and split (`place`)."""

    path: str
    labels: dict[str, Any] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, str] | tuple[None, None] = (None, None)
    """Kind and reason of a file that is not opened."""
    container: str | None = None
    """The archive or Parquet file with the sample; `offset` and `size` as in `pipeline.sources.SampleLocation`."""
    offset: int | None = None
    size: int | None = None

    @property
    def location(self) -> SampleLocation:
        """Where the bytes of the sample are stored."""
        return SampleLocation(self.path, self.container, self.offset, UNKNOWN if self.size is None else self.size)
