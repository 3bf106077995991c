"""Sentences about the labels of a data set, for the user: possible mistakes, and columns that were renamed."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from pipeline.manifest import DATA, label_column
from pipeline.prepare.companions import TABLES, use_of_table
from pipeline.prepare.config import SPLIT_COLUMNS, PrepareConfig
from pipeline.prepare.image_folder import describe_odd_classes
from pipeline.prepare.roots import Root
from pipeline.text import describe_alike, group_alike, quote_alike

NAMED = ("label", *SPLIT_COLUMNS)
"""The columns whose values are compared with one another."""

SHOWN = 5
"""The most sentences about the values of one column."""

MOST_NAMES = 10_000
"""The most values of a column that are compared with one another: a column with more has no classes."""


def describe_labels(
    database: sqlite3.Connection, config: PrepareConfig, roots: Sequence[Root], types: Iterable[str]
) -> list[str]:
    """Return sentences about the label columns in `types` and their values in the database of samples."""
    names = list(types)
    notes = describe_odd_classes(_classes(database))
    notes += _renamed_columns(config, names) + _similar_values(database, config)
    notes += [f"{config.root}: the columns {quote_alike(group)} look the same." for group in group_alike(names)]
    return notes + (_unread_labels(database) if roots[0].kind == "files" else [])


def _renamed_columns(config: PrepareConfig, types: Iterable[str]) -> list[str]:
    """Return a sentence for each label column whose name in the manifest differs from its name in the data."""
    notes = []
    for name in types:
        column = label_column(name)
        own = column.removeprefix(DATA)
        if column == f"{DATA}label":
            notes.append(f"{config.root}: samples have a label in .cls and another in .json, stored as {column!r}.")
        elif column != own:
            notes.append(
                f"{config.root}: the column {own!r} of the data is {column!r} in the manifest, and {own!r} in settings."
            )
    return notes


def _unread_labels(database: sqlite3.Connection) -> list[str]:
    """Return a sentence if a file among the images may hold labels, which a folder of images does not read."""
    query = "SELECT path FROM files WHERE kind IS NOT NULL AND path LIKE ? ORDER BY path LIMIT 1"
    for name in (*TABLES, "%.json"):
        for (path,) in database.execute(query, (f"%/{name}",)):
            return [use_of_table(path)]
    return []


def _similar_values(database: sqlite3.Connection, config: PrepareConfig) -> list[str]:
    """Return a sentence for each label, domain or split that looks like another or has invisible characters."""
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
    """Yield the distinct values of `label` among the included samples."""
    query = "SELECT DISTINCT label FROM files WHERE kind IS NULL AND label IS NOT NULL"
    return (text for (text,) in database.execute(query))
