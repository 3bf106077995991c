"""What the names of folders say: class, split, and whether a file is to be opened at all."""

from collections.abc import Iterable, Sequence

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def is_by_split(tops: Iterable[str]) -> bool:
    """Whether the top folders are those of splits, and of nothing else; hidden ones do not count."""
    names = {name for name in tops if not name.startswith(".")}
    return bool(names) and names <= set(SPLIT_FOLDERS)


def read_off(folders: Sequence[str], *, by_split: bool) -> tuple[str | None, dict[str, str]]:
    """The label and the place that the folders of a file give, from the top one down."""
    place = {}
    if by_split and folders and folders[0] in SPLIT_FOLDERS:
        place["split"] = SPLIT_FOLDERS[folders[0]]
        folders = folders[1:]
    return (folders[0] if folders else None), place


def refusal(names: Sequence[str]) -> tuple[str, str] | tuple[None, None]:
    """Kind and reason where a file is not to be opened, going by its name and the names of its folders."""
    if any(name.startswith(".") for name in names):
        return "hidden", "a hidden file, or one in a hidden folder"
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        return "unreadable", "its name, or that of its folder, is not UTF-8: rename it"
    return None, None
