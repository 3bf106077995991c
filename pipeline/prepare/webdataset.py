"""Tar archives in the WebDataset convention: the samples in them, and the members of each sample.

Consecutive members whose names agree up to the first dot of the file name are one sample. A sample has one image. Its
`.cls` is the label, and top-level scalars and lists of strings in its `.json` are label columns; other members are
ignored. Without `.cls` and without `label` in `.json`, the label is the first folder of the name, below folders of
splits. A `label` in `.json` that differs from `.cls` becomes the column `data:label`.

A top folder that all samples share is ignored, if each sample has another folder below it and the top folder does not
name a split: `photos/cat/1.jpg` and `photos/dog/1.jpg` have the classes cat and dog.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pipeline.errors import DataError
from pipeline.manifest import DATA
from pipeline.prepare.archive_members import as_text, read_class, read_json
from pipeline.prepare.config import SPLIT_COLUMNS, FoundSample, PrepareConfig
from pipeline.prepare.image_folder import counts_as_folder, is_by_split, is_other_file, labels_from_path, skip_reason
from pipeline.prepare.labels import merge_places
from pipeline.prepare.roots import Root
from pipeline.readers import image_files
from pipeline.sources import filesystem, tar

TEXT_LIMIT = 16 * 2**20
"""The largest .json or .cls member that is read, in bytes."""


TOPS = 64
"""The most names of top folders that are collected: more than there are names of splits shows that they are classes."""


@dataclass
class Layout:
    """The folder structure that all samples of a root share, collected sample by sample."""

    root: str
    tops: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    depth: float = math.inf

    def add(self, folders: tuple[str, ...]) -> None:
        """Add the folder names of one sample."""
        self.depth = min(self.depth, len(folders))
        for names, name in zip(self.tops, folders, strict=False):
            if len(names) < TOPS and counts_as_folder(name):
                names.add(name)

    def labels_from_path(self, folders: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
        """Return label and place of a sample by the names of its folders, once all samples were added."""
        wrapped = self.depth > 1 and len(self.tops[0]) == 1 and not is_by_split(self.tops[0], where=self.root)
        return labels_from_path(folders[wrapped:], by_split=is_by_split(self.tops[wrapped], where=self.root))


def find(config: PrepareConfig, root: Root, *, labelled: bool = True) -> Iterator[FoundSample]:
    """Yield the samples of tar archives in order.

    labelled: whether folders, .cls and .json are read for labels, domains and splits.

    Damage, links and samples without an image are yielded with the reason. Raises DataError for a compressed archive.
    """
    if not labelled:
        for shard in root.shards:
            yield from (sample for sample, _ in _in_archive(shard.path, config, labelled=False))
        yield from root.other_files()
        return
    layout = Layout(root.path)
    # Labels are known only after the last sample's folders; until then, samples are kept in a file, not in memory.
    with tempfile.TemporaryFile("w+", encoding="ascii", prefix="icecore-tar-") as pending:
        for shard in root.shards:
            outer = root.place(shard)
            for sample, folders in _in_archive(shard.path, config, labelled=True):
                if sample.refused[0] is None:
                    layout.add(folders)
                pending.write(json.dumps((vars(sample), folders, outer)) + "\n")
        pending.seek(0)
        for line in pending:
            fields, folders, outer = json.loads(line)
            kind, reason = fields.pop("refused")
            label, inner = layout.labels_from_path(tuple(folders))
            if label is not None and kind is None:
                fields["labels"].setdefault("label", label)
            fields["place"], conflict = merge_places(outer, inner, fields["place"])
            yield FoundSample(**fields, refused=conflict if kind is None else (kind, reason))
    yield from root.other_files()


def _in_archive(path: str, config: PrepareConfig, *, labelled: bool) -> Iterator[tuple[FoundSample, tuple[str, ...]]]:
    """Yield the samples of one archive with the names of their folders."""
    try:
        with filesystem.open_file(path, buffering=2**14) as file:
            how = tar.compression(tar.read_at(file, 0, 8))
            if how is not None:
                raise DataError(
                    f"{path}: compressed with {how}, so that samples in it cannot be located. Unpack it to a plain "
                    ".tar."
                )
            group: list[tar.Member] = []
            for member in tar.members(file):
                if isinstance(member, tar.Damage):
                    yield from _sample(path, group, file, config, labelled=labelled)
                    group = []
                    yield FoundSample(path, refused=("unreadable", f"at byte {member.offset:,}: {member.reason}")), ()
                    continue
                refused = _refused(member)
                if refused is not None:
                    yield FoundSample(_describe(path, member), refused=refused, size=None), ()
                elif member.kind == "file":
                    if group and _stem(group[0]) != _stem(member):
                        yield from _sample(path, group, file, config, labelled=labelled)
                        group = []
                    group.append(member)
            yield from _sample(path, group, file, config, labelled=labelled)
    except OSError as error:
        yield FoundSample(path, refused=("unreadable", error.strerror or str(error))), ()


def _refused(member: tar.Member) -> tuple[str, str] | None:
    """Return kind and reason of a member that cannot belong to a sample; None for a usable member and for a folder."""
    kind, reason = skip_reason(_parts(member))
    if kind is not None and reason is not None:
        return None if member.kind == "folder" else (kind, reason)
    if member.kind in ("link", "special"):
        return "unreadable", str(member.refused)
    if member.kind == "folder" and _suffix(member) in image_files.extensions():
        return "unreadable", "a folder with the name of an image"
    return None


def _sample(
    path: str, group: list[tar.Member], file: BinaryIO, config: PrepareConfig, *, labelled: bool
) -> Iterator[tuple[FoundSample, tuple[str, ...]]]:
    """Yield one sample with the names of its folders, and its members that cannot belong to it with the reason."""
    if not group:
        return
    images = [member for member in group if _suffix(member) in image_files.extensions()]
    if not images:
        extensions = {_extension(member) for member in group[:100]}
        if not extensions & {".cls", ".json"} and all(is_other_file(member.name) for member in group):
            for member in group:
                yield FoundSample(_describe(path, member), refused=("other", "no image, by its extension")), ()
            return
        listed = sorted(extension or "no extension" for extension in extensions)
        reason = f"a sample without an image: it has {', '.join(listed[:5])}"
        yield FoundSample(_describe(path, group[0]), refused=("unreadable", reason)), ()
        return
    first, *others = images
    try:
        labels, place = _labels_of(group, file, config) if labelled else ({}, {})
        refused = (None, None) if first.refused is None else ("unreadable", first.refused)
    except ValueError as error:
        labels, place, refused = {}, {}, ("unreadable", str(error))
    shown = _describe(path, first)
    yield FoundSample(shown, labels, place, refused, path, first.offset, first.size), _parts(first)[:-1]
    for other in others:
        reason = f"a second image of the same sample: the first is {first.name}"
        yield FoundSample(_describe(path, other), refused=("unreadable", reason)), ()


def _labels_of(group: list[tar.Member], file: BinaryIO, config: PrepareConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the labels and the place in .cls and .json; raises ValueError with the reason if they cannot be read."""
    texts: dict[str, str] = {}
    for member in group:
        kind = _extension(member)
        if kind not in (".cls", ".json"):
            continue
        if kind in texts:
            raise ValueError(f"its sample has two {kind} members")
        texts[kind] = _text(member, kind, file)
    values = read_json(texts[".json"], config) if ".json" in texts else {}
    if ".cls" in texts:
        label = read_class(texts[".cls"])
        if "label" in values and values["label"] != label:
            values[f"{DATA}label"] = values["label"]
        values["label"] = label
    return (
        {name: value for name, value in values.items() if name not in SPLIT_COLUMNS},
        {name: as_text(values[name]) for name in SPLIT_COLUMNS if name in values},
    )


def _text(member: tar.Member, kind: str, file: BinaryIO) -> str:
    if member.refused is not None:
        raise ValueError(f"its {kind}: {member.refused}")
    if member.size > TEXT_LIMIT:
        raise ValueError(f"its {kind}: expected at most {TEXT_LIMIT:,} bytes, got {member.size:,}")
    try:
        return tar.read_at(file, member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its {kind} is not UTF-8") from None


def _parts(member: tar.Member) -> tuple[str, ...]:
    """Return the parts of a member's name, without the leading dots and slashes that tar may write."""
    return tuple(part for part in member.name.split("/") if part not in ("", "."))


def _describe(path: str, member: tar.Member) -> str:
    return filesystem.text(f"{path}/{'/'.join(_parts(member))}")


def _stem(member: tar.Member) -> tuple[str, ...]:
    *folders, name = _parts(member) or ("",)
    return (*folders, name.partition(".")[0])


def _extension(member: tar.Member) -> str:
    """Return the extension from the first dot of the file name on, in lower case."""
    _, dot, rest = (_parts(member) or ("",))[-1].partition(".")
    return (dot + rest).lower()


def _suffix(member: tar.Member) -> str:
    return PurePosixPath((_parts(member) or ("",))[-1]).suffix.lower()
