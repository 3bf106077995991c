"""What the names of folders say: class, split, and whether a file is to be opened at all."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pipeline.errors import DataError
from pipeline.manifest import split_of

# Files and folders that operating systems, file managers, cameras and storage devices leave behind, in lower case.
LITTER = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini", "photothumb.db"),
        *("__macosx", "@eadir", "$recycle.bin", "recycler", "system volume information", "lost+found", "lost.dir"),
        *("#recycle", "@recycle", "@tmp", "#snapshot", "msocache", "__pycache__"),
        *("@__thumb", "@sharebin", "@synoresource", "found.000", "_vti_cnf", "resource.frk", "autorun.inf"),
    }
)
LITTER_ENDS = ("~", "zone.identifier", ".crdownload", ".part", ".partial", ".tmp", ".lnk", ".url", ".aae", ".thm")
# exiftool's copy of a photo whose tags it wrote, photo.jpg_original, has the same pixels.
LITTER_COPY = re.compile(r".+\.[a-z0-9]+_original")

# Extensions of files that plainly are no images. Those of archives are missing: what they hold would be missed.
OTHER_FILES = frozenset(
    {
        *("txt", "csv", "tsv", "json", "jsonl", "ndjson", "xml", "yaml", "yml", "toml", "ini", "cfg", "conf", "log"),
        *("md", "rst", "tex", "html", "htm", "css", "js", "doc", "docx", "odt", "rtf", "pdf", "ppt", "pptx"),
        *("xls", "xlsx", "ods", "db", "sqlite", "sqlite3", "npy", "npz", "mat", "pkl", "pickle", "pt", "pth", "onnx"),
        *("safetensors", "py", "ipynb", "pyc", "r", "m", "sh", "bat", "exe", "dll", "so", "sha256", "sha1", "md5"),
        *("mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "mp3", "wav", "flac", "ogg", "m4a", "srt"),
        *("xmp", "dvc", "lock", "bak", "old", "swp", "idx", "index"),
    }
)

# What the names of splits begin with, for folders that look like splits and are named otherwise.
LOOKS_LIKE_SPLIT = re.compile(
    r"(train|test|val|valid|validation|dev|eval|evaluation|holdout|held.?out)([^a-z].*|set|s)?"
)


def counts_as_folder(name: str) -> bool:
    """Return whether a folder can be one of a class or of a split: it is not hidden, and no litter."""
    return not name.startswith(".") and name.casefold() not in LITTER


def is_by_split(tops: Iterable[str], *, where: str) -> bool:
    """Return whether the top folders are those of splits, and of nothing else; hidden ones and litter do not count.

    `where`: what has the folders. Raises DataError for folders of two splits beside others, which may be either.
    """
    names = {name for name in tops if counts_as_folder(name)}
    splits = {name: split_of(name) for name in names if split_of(name) is not None}
    others = sorted(names - set(splits))
    if len(set(splits.values())) > 1 and others:
        raise DataError(
            f"{where}: expected either folders of splits or folders of classes, got {', '.join(sorted(splits))} and "
            f"beside them {', '.join(others[:5])}. Move the others away, or give a list with columns of labels and "
            "splits."
        )
    return bool(names) and not others


def describe_joined_splits(tops: Iterable[str]) -> list[str]:
    """Return a line for each split that several of the top folders name, such as `test` and `holdout`."""
    found: dict[str, list[str]] = {}
    for name in sorted(tops):
        split = split_of(name) if counts_as_folder(name) else None
        if split is not None:
            found.setdefault(split, []).append(name)
    return [
        f"{', '.join(names)}: these folders are all read as {split}. If they are not one split, give a list with a "
        "column of splits."
        for split, names in found.items()
        if len(names) > 1
    ]


def describe_odd_classes(classes: Iterable[str]) -> list[str]:
    """Return a line for classes whose names look like those of splits."""
    odd = sorted(name for name in classes if split_of(name) or LOOKS_LIKE_SPLIT.fullmatch(name.casefold()))
    if not odd:
        return []
    return [
        f"classes that look like splits: {', '.join(odd[:5])}. If they are, name their folders train, validation and "
        "test, and put the folders of classes below."
    ]


def read_off(folders: Sequence[str], *, by_split: bool) -> tuple[str | None, dict[str, str]]:
    """Return the label and the place that the folders of a file give, from the top one down."""
    place = {}
    split = split_of(folders[0]) if by_split and folders else None
    if split is not None:
        place["split"] = split
        folders = folders[1:]
    return (folders[0] if folders else None), place


def refusal(names: Sequence[str]) -> tuple[str, str] | tuple[None, None]:
    """Return kind and reason where a file is not to be opened, going by its name and the names of its folders."""
    if any(name.startswith(".") for name in names):
        return "hidden", "a hidden file, or one in a hidden folder"
    if is_litter(names):
        return "other", "left behind by an operating system, a program or a device"
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        return "unreadable", "its name, or that of its folder, is not UTF-8: rename it"
    return None, None


def is_litter(names: Sequence[str]) -> bool:
    """Return whether a file, or one of the folders around it, was left behind by a system, a program or a device."""
    lower = [name.casefold() for name in names]
    return any(name in LITTER for name in lower) or any(
        name.endswith(LITTER_ENDS) or LITTER_COPY.fullmatch(name) for name in lower[-1:]
    )


def is_other_file(name: str) -> bool:
    """Return whether a file is plainly no image, going by its extension."""
    return PurePosixPath(name).suffix.lower().removeprefix(".") in OTHER_FILES
