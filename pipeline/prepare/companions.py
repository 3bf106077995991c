"""Files that other tools write beside images and archives, which are no samples: indices, statistics, tables of labels.

img2dataset   00000.tar with 00000.parquet and 00000_stats.json; the .json members have what the table has
NeMo Curator  the same, and 00000.idx, an index of DALI
WebDataset    an index of all archives, .json
Hugging Face  metadata.csv, .jsonl or .parquet, the labels of a folder of images; dataset_info.json, README.md
"""

from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from pipeline.sources import PARQUET, TAR

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Labels of the images in a folder and below it, as Hugging Face's ImageFolder has them."""


def is_table_of_labels(name: str) -> bool:
    """Return whether a file among images holds their labels, going by its name."""
    return name.lower() in TABLES


def use_of_table(path: str) -> str:
    """Return what to do with a file among images that may hold their labels."""
    suffix = PurePosixPath(path).suffix.lower()
    todo = {
        ".json": "Pack the folder as a .tar, with a .json for each image, or write a list as CSV or Parquet.",
        ".jsonl": "Write it as CSV or Parquet, and set `root` to that.",
    }.get(suffix, f"Set `root: {path}` and `path: file_name` to read them.")
    return f"{path} may hold labels, which are not read with a folder of images. {todo}"


def stems(paths: Iterable[str]) -> frozenset[str]:
    """Return the paths of archives without `.tar`."""
    return frozenset(path[: -len(TAR)] for path in paths if path[-len(TAR) :].lower() == TAR)


def is_table_of(path: str, archives: Collection[str]) -> bool:
    """Return whether a Parquet file has the name of one of the archives, given as `stems`: it says what is in that."""
    return path[-len(PARQUET) :].lower() == PARQUET and path[: -len(PARQUET)] in archives
