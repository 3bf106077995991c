"""Files that other tools write next to images and archives and that are no samples: indices, statistics, label tables.

img2dataset   00000.tar with 00000.parquet and 00000_stats.json; the .json members repeat the table
NeMo Curator  the same, and 00000.idx, a DALI index
WebDataset    an index of all archives, .json
Hugging Face  metadata.csv, .jsonl or .parquet with the labels of a folder of images; dataset_info.json, README.md
"""

from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from pipeline.sources import PARQUET, TAR

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files with the labels of the images in and below their folder, in the convention of Hugging Face's ImageFolder."""


def is_table_of_labels(name: str) -> bool:
    """Return whether a file among images is a table of their labels, judged by its name."""
    return name.lower() in TABLES


def use_of_table(path: str) -> str:
    """Return a sentence on how to use a file that may hold the labels of the images next to it."""
    suffix = PurePosixPath(path).suffix.lower()
    todo = {
        ".json": "Pack the folder as a .tar, with a .json for each image, or write a list as CSV or Parquet.",
        ".jsonl": "Write it as CSV or Parquet, and set `root` to that.",
    }.get(suffix, f"Set `root: {path}` and `path: file_name` to read them.")
    return f"{path} may hold labels, which are not read with a folder of images. {todo}"


def archive_stems(paths: Iterable[str]) -> frozenset[str]:
    """Return the paths of tar archives without the extension `.tar`."""
    return frozenset(path[: -len(TAR)] for path in paths if path[-len(TAR) :].lower() == TAR)


def is_archive_table(path: str, archives: Collection[str]) -> bool:
    """Return whether a Parquet file describes an archive: whether they share a name. archives: from `archive_stems`."""
    return path[-len(PARQUET) :].lower() == PARQUET and path[: -len(PARQUET)] in archives
