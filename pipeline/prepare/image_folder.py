"""Read class and split from folder names, and decide by its name whether a file is skipped."""

import re
from collections.abc import Iterable, Sequence

from pipeline.errors import DataError
from pipeline.manifest import split_of, split_of_file

# Files and folders that operating systems, file managers, cameras and storage devices create, in lower case.
LITTER = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini", "photothumb.db"),
        *("__macosx", "@eadir", "$recycle.bin", "recycler", "system volume information", "lost+found", "lost.dir"),
        *("#recycle", "@recycle", "@tmp", "#snapshot", "msocache", "__pycache__"),
        *("@__thumb", "@sharebin", "@synoresource", "found.000", "_vti_cnf", "resource.frk", "autorun.inf"),
    }
)
LITTER_ENDS = ("~", "zone.identifier", ".crdownload", ".part", ".partial", ".tmp", ".lnk", ".url", ".aae", ".thm")
# exiftool saves the original of an edited photo as photo.jpg_original, with the same pixels.
LITTER_COPY = re.compile(r".+\.[a-z0-9]+_original")

# Extensions of files that are plainly not images. Archives are not in the list: they may contain samples.
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

# Folder names that look like splits, although `split_of` does not know them.
LOOKS_LIKE_SPLIT = re.compile(
    r"(train|test|val|valid|validation|dev|eval|evaluation|holdout|held.?out)([^a-z].*|set|s)?"
)


def counts_as_folder(name: str) -> bool:
    """Return whether a folder can stand for a class or a split: neither hidden nor a system folder."""
    return not name.startswith(".") and name.casefold() not in LITTER


def is_by_split(tops: Iterable[str], *, where: str) -> bool:
    """Return whether all top folders are named after splits; hidden and system folders do not count.

    where: the parent folder, for the error. Raises DataError for folders of two splits mixed with other folders.
    """
    names = {name for name in tops if counts_as_folder(name)}
    splits = {name: split_of(name) for name in names if split_of(name) is not None}
    others = sorted(names - set(splits))
    if len(set(splits.values())) > 1 and others:
        raise DataError(
            f"{where}: expected either folders of splits or folders of classes, got {', '.join(sorted(splits))} mixed "
            f"with {', '.join(others[:5])}. Move the others away, or give a list with columns of labels and splits."
        )
    return bool(names) and not others


def describe_joined_splits(tops: Iterable[str]) -> list[str]:
    """Return a sentence for each split that several top folders name, such as `test` and `holdout`."""
    folders: dict[str, list[str]] = {}
    for name in sorted(tops):
        split = split_of(name) if counts_as_folder(name) else None
        if split is not None:
            folders.setdefault(split, []).append(name)
    return [
        f"{', '.join(names)}: these folders are all read as {split}. If they are not one split, give a list with a "
        "column of splits."
        for split, names in folders.items()
        if len(names) > 1
    ]


def describe_odd_classes(classes: Iterable[str]) -> list[str]:
    """Return a sentence on the classes whose names look like splits, if there are any."""
    names = sorted(classes)
    odd = [name for name in names if split_of(name) or LOOKS_LIKE_SPLIT.fullmatch(name.casefold())]
    if not odd:  # seg_train and seg_test; a single name such as crash_test says nothing
        splits = {name: split for name in names if (split := split_of_file(name)) is not None}
        odd = [*splits] if len({*splits.values()}) > 1 else []
    if not odd:
        return []
    return [
        f"classes that look like splits: {', '.join(odd[:5])}. If they are, name their folders train, validation and "
        "test, and put the folders of classes below."
    ]


def labels_from_path(folders: Sequence[str], *, by_split: bool) -> tuple[str | None, dict[str, str]]:
    """Return a file's label and its place (domain and split), given the names of its folders from the top down."""
    place = {}
    split = split_of(folders[0]) if by_split and folders else None
    if split is not None:
        place["split"] = split
        folders = folders[1:]
    return (folders[0] if folders else None), place


def skip_reason(names: Sequence[str]) -> tuple[str, str] | tuple[None, None]:
    """Return kind and reason if a file is to be skipped, judged by its name and its folders' names; else two Nones."""
    if any(name.startswith(".") for name in names):
        return "hidden", "a hidden file, or a file in a hidden folder"
    if is_litter(names):
        return "other", "left behind by an operating system, a program or a device"
    if any("\udc80" <= letter <= "\udcff" for name in names if not name.isascii() for letter in name):
        return "unreadable", "its name, or that of its folder, is not UTF-8: rename it"
    return None, None


def is_litter(names: Sequence[str]) -> bool:
    """Return whether a file or one of its folders was created by a system, a program or a device, not by the user."""
    lower = [name.casefold() for name in names]
    return any(name in LITTER for name in lower) or any(
        name.endswith(LITTER_ENDS) or LITTER_COPY.fullmatch(name) for name in lower[-1:]
    )


def is_other_file(name: str) -> bool:
    """Return whether a file is plainly not an image, judged by its extension."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and suffix.lower() in OTHER_FILES
