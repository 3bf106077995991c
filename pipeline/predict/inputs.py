"""The inputs of `icecore predict`: files, folders, lists, archives, Parquet, URLs, paths on standard input, in order.

A folder, a list, an archive or Parquet is read as `prepare` reads it, but for its labels. Text lists (.txt) and
standard input have a path per line, or paths that end with a zero byte.
"""

import codecs
import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.errors import DataError, bullets
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.roots import COMPRESSED, Root, inspect_roots
from pipeline.sources import PARQUET, TAR, filesystem, parquet

STDIN = "-"
LISTS = (".csv", ".tsv", PARQUET)
PATHS = ".txt"


@dataclass(frozen=True)
class Input:
    """A sample that is to be predicted; `named`: whether a user or a list named it, so that it is a row in any case."""

    sample: FoundSample
    named: bool


@dataclass(frozen=True)
class _Source:
    """One argument. `roots`: None where it is a file, a text list or standard input."""

    argument: str
    config: PrepareConfig | None = None
    roots: tuple[Root, ...] | None = None

    @property
    def is_list(self) -> bool:
        """Whether it names files one by one."""
        return self.roots is None or self.roots[0].kind == "list"


class Inputs:
    """The samples of some arguments in their order, unopened. Iterating reads lists and folders, once."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        image: str | None = None,
        path: str | None = None,
        stdin: BinaryIO | None = None,
        out: Path | None = None,
    ) -> None:
        """Look at the arguments; no list is read, and of folders the names of files alone.

        image: the column of Parquet that has the images. path: the column of lists that has the paths. stdin: what `-`
        stands for. out: the file that is written, which is no input. Raises DataError with every argument that cannot
        be used, and for no argument.
        """
        if not arguments:
            raise DataError(
                "expected images to predict, got none. Name files, folders, lists, archives or URLs, or `-` for paths "
                "on standard input."
            )
        self.arguments, self._stdin = tuple(arguments), stdin
        self._sources: list[_Source] = []
        problems: list[str] = []
        for argument in arguments:
            try:
                self._sources.append(_look_at(argument, image=image, path=path))
            except DataError as error:
                problems.append(str(error))
        problems += self._conflicts(image, path, out) if not problems else []
        if problems:
            raise DataError(problems[0] if len(problems) == 1 else bullets("inputs that cannot be used", problems))

    def __iter__(self) -> Iterator[Input]:
        for source in self._sources:
            for sample in self._samples(source):
                yield Input(sample, source.is_list)

    def _samples(self, source: _Source) -> Iterator[FoundSample]:
        if source.config is not None and source.roots is not None:
            return find(source.config, source.roots, labelled=False)
        if source.argument == STDIN:
            assert self._stdin is not None, "it was asked for when the arguments were looked at"
            return map(_named, _paths_in(self._stdin))
        if PurePosixPath(source.argument).suffix.lower() == PATHS:
            return _in_text_list(source.argument)
        return iter([_named(source.argument)])

    def _conflicts(self, image: str | None, path: str | None, out: Path | None) -> list[str]:
        kinds = {root.kind for source in self._sources for root in source.roots or ()}
        problems = []
        if image is not None and "parquet" not in kinds:
            problems.append(f"expected Parquet with a column {image!r} of images among the inputs, got none.")
        if path is not None and "list" not in kinds:
            problems.append(f"expected a .csv or .parquet list, since {path!r} names a column of paths, got none.")
        if STDIN in self.arguments and self._stdin is None:
            problems.append("expected paths on standard input for `-`, got no standard input.")
        if self.arguments.count(STDIN) > 1:
            problems.append("expected `-`, standard input, once, got it several times.")
        for argument in self.arguments if out is not None else ():
            here = None if argument == STDIN else filesystem.local(argument)
            if here is None or out is None:
                continue
            if here.resolve() == out.resolve():
                problems.append(f"{out}: expected another file to write than an input. Choose another `--out`.")
            elif out.suffix.lower() == PARQUET and here.is_dir() and out.resolve().is_relative_to(here.resolve()):
                problems.append(
                    f"{out}: expected a .parquet file outside of the input {argument}, in which the next prediction "
                    "would read it. Choose another `--out`, or .csv."
                )
        return problems


def _look_at(argument: str, *, image: str | None, path: str | None) -> _Source:
    """Return what an argument is; raises DataError where it does not exist, or cannot be what its name says."""
    if argument == STDIN:
        return _Source(argument)
    kind = filesystem.path_kind(argument)
    if kind is None:
        raise DataError(_absent(argument))
    suffix = PurePosixPath(argument).suffix.lower()
    is_root = kind == "folder" or suffix in (*LISTS, TAR) or argument.lower().endswith(COMPRESSED)
    if not is_root:
        return _Source(argument)
    packed = image is not None and suffix == PARQUET and _has_column(argument, image)
    settings: dict[str, Any] = {"root": argument, "columns": ()} | ({"image": image} if packed else {})
    if path is not None and kind == "file" and suffix in LISTS and not packed:
        settings["path"] = path
    try:
        return _source(settings)
    except DataError:
        if image is None or kind == "file":
            raise
        return _source(settings | {"image": image})  # a folder of Parquet, and of nothing else


def _source(settings: dict[str, Any]) -> _Source:
    config = PrepareConfig.model_validate(settings)
    return _Source(str(settings["root"]), config, tuple(inspect_roots(config)))


def _has_column(argument: str, name: str) -> bool:
    """Return whether a Parquet file has a column; one that cannot be opened is said to have it."""
    try:
        with parquet.open_parquet(argument) as file:
            return name in file.schema_arrow.names
    except (OSError, pa.ArrowException):
        return True


def _absent(argument: str) -> str:
    here = filesystem.local(argument)
    if here is not None and (here.exists() or here.is_symlink()):
        if here.is_symlink() and not here.exists():
            return f"{argument}: a link to what does not exist: {here.readlink()}."
        return f"{argument}: expected a file or a folder, got a pipe or a device. `-` reads paths from standard input."
    near: list[str] = []
    if here is not None and here.parent.is_dir():
        names = [entry.name for entry in os.scandir(here.parent)]
        near = [str(here.parent / name) for name in difflib.get_close_matches(here.name, names, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{argument}: no such file, folder or list.{hint}"


def _named(path: str) -> FoundSample:
    """Return the sample of a path that a user or a list names; hidden files too."""
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        return FoundSample(filesystem.text(path), refused=("unreadable", "its path is not UTF-8: rename it"))
    return FoundSample(path)


def _in_text_list(argument: str) -> Iterator[FoundSample]:
    base = filesystem.parent(argument)
    with filesystem.open_file(argument) as file:
        for path in _paths_in(file, where=argument):
            yield _named(filesystem.join(base, path))


def _paths_in(file: Iterable[bytes], *, where: str = "standard input") -> Iterator[str]:
    """Yield the paths of a text, without empty lines; raises DataError for a text of two bytes per letter."""
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{where}: expected paths as UTF-8, got UTF-16. Save the list as UTF-8.")
    first = first.removeprefix(codecs.BOM_UTF8)
    ended = b"\0" in first
    pieces = b"".join([first, *lines]).split(b"\0") if ended else chain([first], lines)
    for piece in pieces:
        path = os.fsdecode(piece if ended else piece.rstrip(b"\r\n"))
        if path.strip():
            yield path
