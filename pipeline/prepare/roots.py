"""Inspect the roots of a data set: the kind of each root, and its containers. No file is opened.

Files that other tools write next to images and archives are no samples: indices, statistics, label tables.

img2dataset   00000.tar with 00000.parquet and 00000_stats.json; the .json members repeat the table
NeMo Curator  the same, and 00000.idx, a DALI index
WebDataset    an index of all archives, .json
Hugging Face  metadata.csv, .jsonl or .parquet with the labels of a folder of images; dataset_info.json, README.md
"""

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from pipeline.errors import DataError
from pipeline.manifest import split_of_file
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.image_folder import is_by_split, is_other_file, labels_from_path, skip_reason
from pipeline.readers import image_files
from pipeline.sources import PARQUET, TAR, filesystem

COMPRESSED = (
    ".tgz",
    ".tbz",
    ".tbz2",
    ".txz",
    ".tzst",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".tar.lz4",
    ".zst",
)

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files with the labels of the images in and below their folder, in the convention of Hugging Face's ImageFolder."""

Kind = Literal["files", "list", "tar", "parquet"]


@dataclass(frozen=True)
class Root:
    """A folder or file of a data set, and the containers in it, sorted by path (`shards`)."""

    path: str
    kind: Kind
    domain: str | None = None
    shards: tuple[filesystem.Entry, ...] = ()

    @cached_property
    def by_split(self) -> bool:
        """Whether the containers lie in folders named after splits."""
        return is_by_split((entry.names[0] for entry in self.shards if len(entry.names) > 1), where=self.path)

    @cached_property
    def split_by_name(self) -> bool:
        """Whether every container's name names a split, with more than one split in total."""
        splits = {split_of_file(entry.names[-1]) for entry in self.shards}
        return not self.by_split and None not in splits and len(splits) > 1

    def place(self, shard: filesystem.Entry) -> dict[str, str]:
        """Return domain and split of a container's samples, from its folders or its name."""
        _, place = labels_from_path(shard.names[:-1], by_split=self.by_split)
        split = split_of_file(shard.names[-1]) if self.split_by_name else None
        if split is not None:
            place["split"] = split
        return place if self.domain is None else {**place, "domain": self.domain}

    def other_files(self) -> Iterator[FoundSample]:
        """Yield the files that are no containers, each with the reason why it is not read."""
        shards = {entry.path for entry in self.shards}
        if self.path in shards:
            return
        archives = archive_stems(shards)
        for entry in filesystem.walk(self.path):
            if entry.path not in shards:
                refused = skip_reason(entry.names)
                if refused[0] is None and is_archive_table(entry.path, archives):
                    refused = ("other", "a table that describes the archive of the same name")
                elif refused[0] is None and is_other_file(entry.names[-1]):
                    refused = ("other", "no image, by its extension")
                elif refused[0] is None:
                    refused = ("unreadable", f"among containers, and no .{self.kind} itself: move it away")
                yield FoundSample(entry.path, refused=refused)


def inspect_roots(config: PrepareConfig) -> list[Root]:
    """Return the roots of a data set, which are all of one kind.

    A folder with .tar or .parquet files and without images (files with an extension that Pillow knows) is a folder of
    containers. Raises DataError for a root that is missing, for compressed archives, for containers of two kinds, and
    for settings of lists without a list.
    """
    roots = _roots(config)
    if roots[0].kind != "list":
        idle = [name for name in ("path", "base", "encoding") if name in config.model_fields_set]
        if idle:
            names = " and ".join(f"`{name}`" for name in idle)
            raise DataError(f"{config.root}: expected a list of files with {names}, got none. Leave {names} out.")
    return roots


def _roots(config: PrepareConfig) -> list[Root]:
    root = config.root
    kind = filesystem.path_kind(root)
    if kind is None:
        raise DataError(f"{root}: no such folder or list. Set `root` to the folder, list or archive of the data set.")
    if kind == "file":
        return [_file_root(config)]
    if not config.folders:
        return [_folder_root(config, root, None)]
    roots = []
    for name in config.folders:
        path = filesystem.join(root, name)
        if filesystem.path_kind(path) != "folder":
            raise DataError(f"{path}: no such folder. `folders` names folders below `root`.")
        roots.append(_folder_root(config, path, name))
    kinds = sorted({inspected.kind for inspected in roots})
    if len(kinds) > 1:
        raise DataError(f"{root}: expected `folders` of one kind, got {' and '.join(kinds)}. Make a data set of each.")
    return roots


def _file_root(config: PrepareConfig) -> Root:
    root = config.root
    _refuse_compressed([root])
    suffix = PurePosixPath(root).suffix.lower()
    if suffix not in (".csv", ".tsv", PARQUET, TAR):
        raise DataError(
            f"{root}: expected a folder, a .csv or a .parquet list, or a .tar. Write a list of another kind, such as "
            ".jsonl, as .csv or .parquet."
        )
    if config.image is not None and suffix != PARQUET:
        raise DataError(f"{root}: expected Parquet, since `image` names a column of bytes, got {suffix}. Leave it out.")
    is_container = suffix == TAR or config.image is not None
    if config.folders:
        raise DataError(f"{root}: expected a folder, since `folders` names folders below it, got a file. Leave it out.")
    if not is_container:
        return Root(root, "list")
    return Root(
        root, "tar" if suffix == TAR else "parquet", shards=(filesystem.Entry((PurePosixPath(root).name,), root),)
    )


def _folder_root(config: PrepareConfig, path: str, domain: str | None) -> Root:
    shards = []
    for entry in filesystem.walk(path):
        name = entry.names[-1].lower()
        if skip_reason(entry.names)[0] is not None:
            continue
        if PurePosixPath(name).suffix in image_files.extensions() and config.image is None:
            return Root(path, "files", domain)
        if name.endswith((TAR, PARQUET, *COMPRESSED)):
            shards.append(entry)
    if not shards:
        if config.image is not None:
            raise DataError(f"{path}: expected .parquet files, since `image` names their column of bytes, got none.")
        return Root(path, "files", domain)
    _refuse_compressed(entry.path for entry in shards)
    if config.image is None:
        archives = archive_stems(entry.path for entry in shards)
        shards = [entry for entry in shards if not is_archive_table(entry.path, archives)]
    kinds = {entry.path.rpartition(".")[2].lower() for entry in shards}
    if len(kinds) > 1:
        raise DataError(f"{path}: expected either .tar or .parquet files, got both. Make a data set of each.")
    kind: Kind = "tar" if kinds == {"tar"} else "parquet"
    if kind == "parquet" and config.image is None:
        raise DataError(f"{path}: a folder of .parquet files. Set `image` to the column that has the images' bytes.")
    if kind == "tar" and config.image is not None:
        raise DataError(f"{path}: expected .parquet files, since `image` names their column of bytes, got .tar.")
    return Root(path, kind, domain, tuple(shards))


def _refuse_compressed(paths: Iterable[str]) -> None:
    for path in itertools.islice((path for path in paths if path.lower().endswith(COMPRESSED)), 1):
        raise DataError(f"{path}: compressed, so that samples in it cannot be located. Unpack it to a plain .tar.")


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
