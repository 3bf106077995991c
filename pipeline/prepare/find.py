"""Find the files of a data set, unopened, and read their labels off their folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DataError
from pipeline.prepare import Found, PrepareConfig, listed

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def find(config: PrepareConfig) -> Iterator[Found]:
    """The files of a data set in the order of their paths (or of their list), unopened."""
    if config.root.is_dir():
        for name in config.folders:
            yield from _find_in_folder(config.root / name, name)
        if not config.folders:
            yield from _find_in_folder(config.root, None)
    else:
        yield from listed.find(config)


def _find_in_folder(root: Path, domain: str | None) -> Iterator[Found]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. `folders` names folders below `root`.")
    tops = [entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith(".")]
    by_split = bool(tops) and all(name in SPLIT_FOLDERS for name in tops)
    for path in _walk(root, ()):
        names = path.relative_to(root).parts
        folders = names[:-1]
        place = {} if domain is None else {"domain": domain}
        if by_split and folders and folders[0] in SPLIT_FOLDERS:
            place["split"] = SPLIT_FOLDERS[folders[0]]
            folders = folders[1:]
        yield Found(_text(path), {"label": folders[0] if folders else None}, place, _refusal(names))


def _refusal(names: tuple[str, ...]) -> tuple[str, str] | tuple[None, None]:
    """Whether a file below the root is not to be opened, going by its name and the names of its folders."""
    if any(name.startswith(".") for name in names):
        return "hidden", "a hidden file, or one in a hidden folder"
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        return "unreadable", "its name, or that of its folder, is not UTF-8: rename it"
    return None, None


def _text(path: Path) -> str:
    """A path as text; bytes that are not UTF-8 are written as \\udc.. there."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """All files below a folder, sorted; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_folder(entry):
            yield from _walk(folder / entry.name, (*above, here))
        else:
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it says so once more, and that goes into the list
        return False
