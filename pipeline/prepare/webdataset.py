"""Tar archives in the WebDataset convention: which samples are in them, and what belongs to each.

Members in a row that share their name up to the first dot of the file's name are one sample. It has one image; `.cls`
is its label, top-level scalars and lists of texts of `.json` are columns, and other members are not looked at. A sample
that has no `.cls`, and no `label` in its `.json`, has the first folder of its name as label, below those of splits. A
`label` of `.json` that differs from `.cls` is the column `data:label`.

A top folder that all samples have in common is passed over where each has another below it and it is not that of a
split: what is packed as `photos/cat/1.jpg` and `photos/dog/1.jpg` has the classes cat and dog.
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
from pipeline.prepare.config import PLACES, FoundSample, PrepareConfig
from pipeline.prepare.image_folder import counts_as_folder, is_by_split, is_other_file, read_off, refusal
from pipeline.prepare.places import place_of
from pipeline.prepare.roots import Root
from pipeline.readers import image_files
from pipeline.sources import filesystem, tar

TEXT_LIMIT = 16 * 2**20
"""Bytes of a .json or .cls member above which it is not read."""


TOPS = 64
"""Names of top folders that are kept: more than splits have say that they are classes."""


@dataclass
class Layout:
    """What the folders of all samples of a root have in common, seen one sample after another."""

    root: str
    tops: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    depth: float = math.inf

    def see(self, folders: tuple[str, ...]) -> None:
        """Add one sample, by the names of its folders."""
        self.depth = min(self.depth, len(folders))
        for seen, name in zip(self.tops, folders, strict=False):
            if len(seen) < TOPS and counts_as_folder(name):
                seen.add(name)

    def read_off(self, folders: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
        """Return label and place of a sample, once all were seen."""
        wrapped = self.depth > 1 and len(self.tops[0]) == 1 and not is_by_split(self.tops[0], where=self.root)
        return read_off(folders[wrapped:], by_split=is_by_split(self.tops[wrapped], where=self.root))


def find(config: PrepareConfig, root: Root, *, labelled: bool = True) -> Iterator[FoundSample]:
    """Yield the samples of tar archives in their order; unless `labelled` without what folders, .cls and .json say.

    What is no sample comes with the reason: damage, links, samples without an image. Raises DataError for an archive
    that is compressed.
    """
    if not labelled:
        for shard in root.shards:
            yield from (sample for sample, _ in _in_archive(shard.path, config, labelled=False))
        yield from root.other_files()
        return
    layout = Layout(root.path)
    # Labels are known when the last folder was seen; until then what was found waits in a file, not in memory.
    with tempfile.TemporaryFile("w+", encoding="ascii", prefix="icecore-tar-") as waiting:
        for shard in root.shards:
            outer = root.place(shard)
            for found, folders in _in_archive(shard.path, config, labelled=True):
                if found.refused[0] is None:
                    layout.see(folders)
                waiting.write(json.dumps((vars(found), folders, outer)) + "\n")
        waiting.seek(0)
        for line in waiting:
            settings, folders, outer = json.loads(line)
            kind, reason = settings.pop("refused")
            label, inner = layout.read_off(tuple(folders))
            if label is not None and kind is None:
                settings["labels"].setdefault("label", label)
            settings["place"], differing = place_of(outer, inner, settings["place"])
            yield FoundSample(**settings, refused=differing if kind is None else (kind, reason))
    yield from root.other_files()


def _in_archive(path: str, config: PrepareConfig, *, labelled: bool) -> Iterator[tuple[FoundSample, tuple[str, ...]]]:
    """Yield the samples of one archive with the names of their folders."""
    try:
        with filesystem.open_file(path, buffering=2**14) as file:
            how = tar.compression(tar.read_at(file, 0, 8))
            if how is not None:
                raise DataError(
                    f"{path}: compressed with {how}, so no sample in it can be found. Unpack it to a plain .tar."
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
    """Return why a member is part of no sample, going by itself; folders are none, and need no reason."""
    kind, reason = refusal(_parts(member))
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
    """Yield one sample, and whatever of its members cannot be part of it."""
    if not group:
        return
    images = [member for member in group if _suffix(member) in image_files.extensions()]
    if not images:
        extensions = {_extension(member) for member in group[:100]}
        if not extensions & {".cls", ".json"} and all(is_other_file(member.name) for member in group):
            for member in group:
                yield FoundSample(_describe(path, member), refused=("other", "no image, by its extension")), ()
            return
        there = sorted(extension or "no extension" for extension in extensions)
        reason = f"a sample without an image: it has {', '.join(there[:5])}"
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
        reason = f"a second image of one sample: the first is {first.name}"
        yield FoundSample(_describe(path, other), refused=("unreadable", reason)), ()


def _labels_of(group: list[tar.Member], file: BinaryIO, config: PrepareConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Return labels and place that .cls and .json give; raises ValueError with the reason where they cannot be read."""
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
        {name: value for name, value in values.items() if name not in PLACES},
        {name: as_text(values[name]) for name in PLACES if name in values},
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
    """Return the names of a member's folders and its own, without the dots and slashes at the front that tar leaves
    there.
    """
    return tuple(part for part in member.name.split("/") if part not in ("", "."))


def _describe(path: str, member: tar.Member) -> str:
    return filesystem.text(f"{path}/{'/'.join(_parts(member))}")


def _stem(member: tar.Member) -> tuple[str, ...]:
    *folders, name = _parts(member) or ("",)
    return (*folders, name.partition(".")[0])


def _extension(member: tar.Member) -> str:
    """Return what is behind the first dot of the name, with that dot, in lower case."""
    _, dot, rest = (_parts(member) or ("",))[-1].partition(".")
    return (dot + rest).lower()


def _suffix(member: tar.Member) -> str:
    return PurePosixPath((_parts(member) or ("",))[-1]).suffix.lower()
