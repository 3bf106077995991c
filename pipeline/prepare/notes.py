"""Sentences about the labels of a data set for the user to read: what may be a mistake, and what has another name."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from pipeline.manifest import DATA, label_column
from pipeline.prepare.companions import TABLES, use_of_table
from pipeline.prepare.config import PLACES, PrepareConfig
from pipeline.prepare.image_folder import describe_odd_classes
from pipeline.prepare.roots import Root
from pipeline.text import describe_alike, group_alike, quote_alike

NAMED = ("label", *PLACES)
"""The columns whose texts are compared with one another."""

SHOWN = 5
"""Sentences about the values of a column that are written."""

MOST_NAMES = 10_000
"""Values of a column above which they are not compared with one another: they are no classes."""


def describe_labels(
    database: sqlite3.Connection, config: PrepareConfig, roots: Sequence[Root], types: Iterable[str]
) -> list[str]:
    """Return sentences about the label columns `types` of the samples in the database, and about their values."""
    names = list(types)
    notes = describe_odd_classes(_classes(database))
    notes += _moved(config, names) + _like_another(database, config)
    notes += [f"{config.root}: the columns {quote_alike(group)} look the same." for group in group_alike(names)]
    return notes + (_labels_unread(database) if roots[0].kind == "files" else [])


def _moved(config: PrepareConfig, types: Iterable[str]) -> list[str]:
    """Return a sentence for each label column that has another name in the manifest than in the data."""
    notes = []
    for name in types:
        column = label_column(name)
        own = column.removeprefix(DATA)
        if column == f"{DATA}label":
            notes.append(f"{config.root}: samples have a label in .cls and another one in .json, which is {column!r}.")
        elif column != own:
            notes.append(
                f"{config.root}: the column {own!r} of the data is {column!r} in the manifest, and {own!r} in settings."
            )
    return notes


def _labels_unread(database: sqlite3.Connection) -> list[str]:
    """Return a sentence where labels may lie among images in a file that is not read with a folder of images."""
    query = "SELECT path FROM files WHERE kind IS NOT NULL AND path LIKE ? ORDER BY path LIMIT 1"
    for name in (*TABLES, "%.json"):
        for (path,) in database.execute(query, (f"%/{name}",)):
            return [use_of_table(path)]
    return []


def _like_another(database: sqlite3.Connection, config: PrepareConfig) -> list[str]:
    """Yield a sentence for each label, domain or split that looks the same as another one, or cannot be seen whole."""
    notes = []
    for name in NAMED:
        query = f"SELECT DISTINCT {name} FROM files WHERE kind IS NULL AND {name} IS NOT NULL LIMIT {MOST_NAMES + 1}"
        texts = [text for (text,) in database.execute(query)]
        if len(texts) <= MOST_NAMES:
            lines = describe_alike(texts)
            notes += [f"{config.root}: the values of {name!r}: {line}" for line in lines[:SHOWN]]
            notes += [f"{config.root}: {len(lines) - SHOWN:,} more of the kind."] if len(lines) > SHOWN else []
    return notes


def _classes(database: sqlite3.Connection) -> Iterator[str]:
    """Yield the distinct texts of `label` among the rows of the manifest."""
    query = "SELECT DISTINCT label FROM files WHERE kind IS NULL AND label IS NOT NULL"
    return (text for (text,) in database.execute(query))
