"""Outline a manifest before a data set is prepared: its rows by paths, lists and folders, without opening a sample."""

import itertools
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.files import content_key
from pipeline.manifest import label_column
from pipeline.prepare.config import PLACES, FoundSample, PrepareConfig
from pipeline.prepare.find import find, label_types
from pipeline.prepare.labels import json_type
from pipeline.prepare.roots import inspect_roots

MOST = 100_000
"""Samples that are listed; of larger data sets there is no outline."""


def outline_manifest(config: PrepareConfig) -> pa.Table | None:
    """Return a manifest's key, path, labels and places, with keys of the paths; None for a data set of many samples.

    Samples that prepare will leave out, such as copies, are in it. Raises DataError as `inspect_roots` and
    `label_types` do, and where there are no samples.
    """
    roots = inspect_roots(config)
    types = label_types(config, roots)
    listed = list(itertools.islice(find(config, roots, types), MOST + 1))
    if len(listed) > MOST:
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
    for name in [label_column(name) for name in types if name not in PLACES] if types is not None else named:
        kind = None if types is None else next(types[one] for one in types if label_column(one) == name)
        columns[name] = _column(rows, name, kind)
    for name in PLACES:
        if name in (types or {}) or any(name in row.place for row in rows):
            columns[name] = pa.array([row.place.get(name) for row in rows], pa.string())
    return pa.table(columns)


def _column(rows: Sequence[FoundSample], name: str, kind: pa.DataType | None) -> pa.Array:
    """Return a column of labels; as text where values of several types leave its own open."""
    values = [row.labels.get(name) for row in rows]
    if kind is not None:
        return pa.array(values, json_type(kind))
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
