"""Prepare a data set: find its files, check that each can be read, and write its manifest.

find     the files of a folder, unopened, and what their places say about them
listed   the same of a list: a CSV or Parquet file of paths and labels
run      open them all, find duplicates and conflicts, write the manifest
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Settings

# The columns that say where a row belongs: from folders or from a list, always text, and no labels.
PLACES = ("domain", "split")


class PrepareConfig(Settings):
    """A data set: a folder of class folders, several such folders, or a list of files with their labels."""

    root: Path = Field(description="a folder, or a .csv or .parquet list")
    folders: tuple[str, ...] = Field((), description="several roots below `root`; each becomes a `domain`")
    path: str = Field("path", description="the column of a list that holds the paths")
    columns: tuple[str, ...] | None = Field(None, description="the label columns of a list to keep; all if not given")
    base: Path | None = Field(None, description="what a list's paths are relative to; the list's folder if not given")
    check: Literal["decode", "header"] = Field("decode", description="how far each image is read to see that it is one")
    max_rejected: float = Field(0.05, ge=0, le=1, description="the share of unusable files above which prepare fails")


@dataclass(frozen=True)
class Found:
    """A file before it was opened: its path and what its place, or its line in a list, says about it."""

    path: str
    labels: dict[str, Any] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, str] | tuple[None, None] = (None, None)
    """Kind and reason, where it is not to be opened at all."""
