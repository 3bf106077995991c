"""Summarise the data of a new project: columns, classes, splits. Files are listed; no image is opened."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from pipeline.errors import DataError, bullets, counted, unknown
from pipeline.manifest import labels_in, split_of
from pipeline.prepare import delimited_text, file_list
from pipeline.prepare.config import SPLIT_COLUMNS, PrepareConfig
from pipeline.prepare.outline import outline_manifest
from pipeline.sources import PARQUET, filesystem
from pipeline.task import Kind

PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img")
"""Usual names of a list's column of paths, in the order in which they are tried, before all other columns."""

MOST_CLASSES = 20
"""The most distinct values with which a column of integers is a column of classes."""

SHOWN = 10


@dataclass(frozen=True)
class DataSummary:
    """The summary of a data set, as far as file names and its list show it."""

    config: dict[str, Any]
    """The settings of `prepare`."""

    kind: Kind
    targets: tuple[str, ...]
    """The target column, or several columns of 0 and 1."""

    rows: int | None
    """The number of samples; None if there are too many to list."""

    classes: Counter[str]
    splits: Counter[str]
    """The number of samples of each split in the data."""

    others: tuple[str, ...] = ()
    """Label columns that are not targets."""

    @property
    def smallest(self) -> int:
        """The number of samples of the smallest class; 0 if there are no classes."""
        return min(self.classes.values(), default=0)

    def describe(self) -> str:
        """Return the summary as a sentence."""
        if self.rows is None:
            return "too many images to count here."
        parts = [counted(self.rows, "image")]
        if self.classes:
            named = [f"{name} {count:,}" for name, count in self.classes.most_common(SHOWN)]
            more = ", …" if len(self.classes) > SHOWN else ""
            parts.append(f"of {counted(len(self.classes), 'class', 'classes')} ({', '.join(named)}{more})")
        elif self.kind != "classification":
            parts.append(f"with {', '.join(self.targets)} ({self.kind})")
        text = " ".join(parts)
        if self.splits:
            splits = ", ".join(f"{count:,} {name}" for name, count in self.splits.items())
            text += f"; the data give the split: {splits}"
        return f"{text}."


def summarize(
    images: str | None, *, labels: str | None = None, image: str | None = None, targets: Sequence[str] = ()
) -> DataSummary:
    """Summarise a data set.

    images: a folder of class folders, a .tar or a folder of them, Parquet, or a URL. With `labels`, the folder that the
        list's paths are relative to.
    labels: a list of paths and labels.
    image: the column of images in Parquet.
    targets: the columns to learn; by default the only label column.

    Raises DataError if there are no images, no labels or several label columns, or if a path is missing.
    """
    if images is not None and labels is None and filesystem.path_kind(images) is None:
        raise DataError(f"{images}: no such folder or list. Expected a folder of class folders, <class>/*.jpg.")
    config = _prepare_settings(images, labels, image)
    checked = PrepareConfig(**config)
    table = outline_manifest(checked)
    if table is None:
        return DataSummary(config, "classification", tuple(targets) or ("label",), None, Counter(), Counter())
    columns = labels_in(table)
    columns = columns.drop_columns([name for name in SPLIT_COLUMNS if name in columns.column_names])
    chosen = _choose_targets(columns, targets, where=checked.root)
    kind = _kind(columns, chosen)
    classes = Counter(map(str, columns[chosen[0]].drop_null().to_pylist())) if kind == "classification" else Counter()
    if kind == "classification" and len(classes) < 2:
        raise DataError(
            f"{checked.root}: expected at least two classes, got one: {next(iter(classes))}. Put the images into one "
            "folder per class, or give a list with `--list`."
        )
    others = tuple(name for name in columns.column_names if name not in chosen)
    return DataSummary(config, kind, chosen, len(table), classes, _count_splits(table), others)


def _prepare_settings(images: str | None, labels: str | None, image: str | None) -> dict[str, Any]:
    """Return the settings of `prepare`, with absolute paths."""
    root = labels if labels is not None else images
    assert root is not None, "the command line requires one of them"
    if labels is not None and filesystem.path_kind(labels) != "file":
        raise DataError(f"{labels}: no such list. Expected a .csv or .parquet file with paths and labels.")
    config: dict[str, Any] = {"root": _absolute(root)}
    if image is not None:
        config["image"] = image
    if labels is None:
        return config
    if images is not None:
        if filesystem.path_kind(images) != "folder":
            raise DataError(
                f"{images}: no such folder. Expected the folder that the paths in {labels} are relative to."
            )
        config["base"] = _absolute(images)
    path = _path_column(config, labels)
    return config if path == "path" else {**config, "path": path}


def _absolute(path: str) -> str:
    return path if filesystem.is_url(path) else Path(path).resolve().as_posix()


def _path_column(config: dict[str, Any], labels: str) -> str:
    """Return the list's column of paths, which is the column whose first values are files."""
    names = _columns(config)
    base = config.get("base") or filesystem.parent(config["root"])
    ordered = [name for name in PATH_NAMES if name in names] + [name for name in names if name not in PATH_NAMES]
    tried: list[str] = []
    for name in ordered:
        only_paths = PrepareConfig(**config, path=name, columns=())
        try:
            first = [row.path for row in itertools.islice(file_list.find(only_paths), 3)]
        except DataError:  # a column with missing values, or not of text
            continue
        if any(filesystem.path_kind(path) == "file" for path in first):
            return name
        tried += first[:1]
    example = f" {tried[0]} does not exist." if tried else ""
    raise DataError(
        f"{labels}: expected a column of paths of files below {base}, got {', '.join(names)}.{example} Name the folder "
        "that the paths are relative to in `base`."
    )


def _columns(config: dict[str, Any]) -> list[str]:
    """Return the columns of a list."""
    if config["root"].lower().endswith(PARQUET):
        import pyarrow.parquet as pq

        with filesystem.open_file(config["root"]) as file:
            return [str(name) for name in pq.read_schema(file).names]
    return [name for name, _ in delimited_text.read_types(PrepareConfig(**config))]


def _choose_targets(columns: pa.Table, targets: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return the columns to learn."""
    names = [name for name in columns.column_names if columns[name].null_count < len(columns)]
    if absent := [name for name in targets if name not in names]:
        raise DataError(f"{where}: {unknown('column of labels', absent[0], names)}")
    if targets:
        return tuple(targets)
    if not names:
        raise DataError(
            f"{where}: no classes: the images are not in class folders. Expected <class>/*.jpg below it, or a list of "
            "paths and labels with `--list`."
        )
    if "label" in names or len(names) == 1:
        return ("label",) if "label" in names else (names[0],)
    lines = [f"{name}: {_examples(columns[name])}" for name in names]
    raise DataError(bullets(f"{where}: expected one column of labels, got several; name one with `--target`", lines))


def _examples(column: pa.ChunkedArray) -> str:
    first = list(dict.fromkeys(map(str, column.slice(0, 100).drop_null().to_pylist())))
    return ", ".join(first[:3]) + (", …" if len(first) > 3 else "")


def _kind(columns: pa.Table, targets: Sequence[str]) -> Kind:
    """Return the kind of task for the target columns: multilabel for lists and `a;b`, regression for most numbers."""
    column = columns[targets[0]].drop_null()
    if len(targets) > 1 or types.is_list(column.type) or types.is_large_list(column.type):
        return "multilabel"
    if types.is_floating(column.type) or types.is_decimal(column.type):
        return "regression"
    distinct = column.unique().to_pylist()
    if types.is_integer(column.type):
        return "regression" if len(distinct) > max(MOST_CLASSES, len(column) // 10) else "classification"
    parts = [str(value).split(";") for value in distinct]
    single = {value[0] for value in parts if len(value) == 1}
    several = [part for value in parts if len(value) > 1 for part in value]
    return "multilabel" if several and 2 * sum(part in single for part in several) >= len(several) else "classification"


def _count_splits(table: pa.Table) -> Counter[str]:
    """Return the number of samples of each split in the data; empty if they have fewer than two splits."""
    if "split" not in table.column_names:
        return Counter()
    named: Iterable[str | None] = (split_of(value) for value in table["split"].to_pylist() if value is not None)
    counts = Counter(name for name in named if name is not None)
    return counts if len(counts) > 1 else Counter()
