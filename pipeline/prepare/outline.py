"""Outline a manifest before `prepare` runs: rows and labels from paths, lists and folders, without opening a sample."""

import itertools
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.manifest import label_column
from pipeline.prepare.config import SPLIT_COLUMNS, FoundSample, PrepareConfig
from pipeline.prepare.find import find, label_types
from pipeline.prepare.labels import json_type
from pipeline.prepare.roots import inspect_roots
from pipeline.readers.sample_key import content_key

MAX_SAMPLES = 100_000
"""The most samples that are listed; a larger data set has no outline."""


def outline_manifest(config: PrepareConfig) -> pa.Table | None:
    """Return the manifest's columns key, path, labels, domain and split; None for more than `MAX_SAMPLES` samples.

    Keys are digests of paths, not of contents, and samples that `prepare` will exclude, such as copies, are included.
    Raises DataError as `inspect_roots` and `label_types` do, and for a data set without samples.
    """
    roots = inspect_roots(config)
    types = label_types(config, roots)
    listed = list(itertools.islice(find(config, roots, types), MAX_SAMPLES + 1))
    if len(listed) > MAX_SAMPLES:
        return None
    rows = [row for row in listed if row.refused[0] is None]
    if not rows:
        what = "images" if listed else "files"
        raise DataError(f"{config.root}: there are no {what} in it. Give a folder, a list or an archive with images.")
    columns: dict[str, pa.Array] = {
        "key": pa.array([content_key(f"{row.path}#{number}".encode()) for number, row in enumerate(rows)]),
        "path": pa.array([row.path for row in rows]),
    }
    named = dict.fromkeys(name for row in rows for name in row.labels)
    for name in [label_column(name) for name in types if name not in SPLIT_COLUMNS] if types is not None else named:
        kind = None if types is None else next(types[own] for own in types if label_column(own) == name)
        columns[name] = _column(rows, name, kind)
    for name in SPLIT_COLUMNS:
        if name in (types or {}) or any(name in row.place for row in rows):
            columns[name] = pa.array([row.place.get(name) for row in rows], pa.string())
    return pa.table(columns)


def _column(rows: Sequence[FoundSample], name: str, kind: pa.DataType | None) -> pa.Array:
    """Return a column of labels; as text where its type is not given and its values are of several types."""
    values = [row.labels.get(name) for row in rows]
    if kind is not None:
        return pa.array(values, json_type(kind))
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
