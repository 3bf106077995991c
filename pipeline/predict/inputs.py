"""The inputs of `icecore predict`, in order: files, folders, lists, archives, Parquet, URLs, paths on standard input.

Folders, lists, archives and Parquet are read as `prepare` reads them, without labels. Text lists (.txt) and standard
input have one path per line, or paths that end with a zero byte.
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
    """A sample to predict. `named`: whether the user or a list named it; then it has a row even if it is no image."""

    sample: FoundSample
    named: bool


@dataclass(frozen=True)
class _Source:
    """An argument. `roots` is None for a file, a text list and standard input."""

    argument: str
    config: PrepareConfig | None = None
    roots: tuple[Root, ...] | None = None

    @property
    def is_list(self) -> bool:
        """Whether the argument names single files."""
        return self.roots is None or self.roots[0].kind == "list"


class Inputs:
    """The samples of the arguments in order, without opening them. Iterating reads lists and folders, once."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        image: str | None = None,
        path: str | None = None,
        stdin: BinaryIO | None = None,
        out: Path | None = None,
    ) -> None:
        """Inspect the arguments. Lists are not read yet, and folders are only searched for file names.

        image: the column of images in Parquet. path: the column of paths in lists. stdin: the stream that `-` reads.
        out: the output file, which must not be an input.

        Raises DataError with every argument that cannot be used, and if there are no arguments.
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
                self._sources.append(_inspect(argument, image=image, path=path))
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
            assert self._stdin is not None, "__init__ checks it"
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
                problems.append(f"{out}: expected an output file that is not an input. Choose another `--out`.")
            elif out.suffix.lower() == PARQUET and here.is_dir() and out.resolve().is_relative_to(here.resolve()):
                problems.append(
                    f"{out}: expected a .parquet file outside the input {argument}, where the next prediction would "
                    "read it as an input. Choose another `--out`, or .csv."
                )
        return problems


def _inspect(argument: str, *, image: str | None, path: str | None) -> _Source:
    """Return the source for an argument; raises DataError if it does not exist or does not match its extension."""
    if argument == STDIN:
        return _Source(argument)
    kind = filesystem.path_kind(argument)
    if kind is None:
        raise DataError(_describe_missing(argument))
    suffix = PurePosixPath(argument).suffix.lower()
    is_root = kind == "folder" or suffix in (*LISTS, TAR) or argument.lower().endswith(COMPRESSED)
    if not is_root:
        return _Source(argument)
    has_images = image is not None and suffix == PARQUET and _has_column(argument, image)
    settings: dict[str, Any] = {"root": argument, "columns": ()} | ({"image": image} if has_images else {})
    if path is not None and kind == "file" and suffix in LISTS and not has_images:
        settings["path"] = path
    try:
        return _source(settings)
    except DataError:
        if image is None or kind == "file":
            raise
        return _source(settings | {"image": image})  # a folder with only Parquet files


def _source(settings: dict[str, Any]) -> _Source:
    config = PrepareConfig.model_validate(settings)
    return _Source(str(settings["root"]), config, tuple(inspect_roots(config)))


def _has_column(argument: str, name: str) -> bool:
    """Return whether a Parquet file has a column; True for a file that cannot be opened, whose error follows later."""
    try:
        with parquet.open_parquet(argument) as file:
            return name in file.schema_arrow.names
    except (OSError, pa.ArrowException):
        return True


def _describe_missing(argument: str) -> str:
    """Return the error for an argument that is neither a file nor a folder, with similar names."""
    here = filesystem.local(argument)
    if here is not None and (here.exists() or here.is_symlink()):
        if here.is_symlink() and not here.exists():
            return f"{argument}: a link to a file that does not exist: {here.readlink()}."
        return f"{argument}: expected a file or a folder, got a pipe or a device. `-` reads paths from standard input."
    similar: list[str] = []
    if here is not None and here.parent.is_dir():
        names = [entry.name for entry in os.scandir(here.parent)]
        similar = [str(here.parent / name) for name in difflib.get_close_matches(here.name, names, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, similar))}?" if similar else ""
    return f"{argument}: no such file, folder or list.{hint}"


def _named(path: str) -> FoundSample:
    """Return the sample for a path that the user or a list names, which may be a hidden file."""
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        return FoundSample(filesystem.text(path), refused=("unreadable", "its path is not UTF-8: rename it"))
    return FoundSample(path)


def _in_text_list(argument: str) -> Iterator[FoundSample]:
    base = filesystem.parent(argument)
    with filesystem.open_file(argument) as file:
        for path in _paths_in(file, where=argument):
            yield _named(filesystem.join(base, path))


def _paths_in(file: Iterable[bytes], *, where: str = "standard input") -> Iterator[str]:
    """Yield the paths in a text, without empty lines; raises DataError for UTF-16."""
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{where}: expected paths as UTF-8, got UTF-16. Save the list as UTF-8.")
    first = first.removeprefix(codecs.BOM_UTF8)
    zero_terminated = b"\0" in first
    pieces = b"".join([first, *lines]).split(b"\0") if zero_terminated else chain([first], lines)
    for piece in pieces:
        path = os.fsdecode(piece if zero_terminated else piece.rstrip(b"\r\n"))
        if path.strip():
            yield path
