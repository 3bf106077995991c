"""Sentences about the labels of a data set, for the user: possible mistakes, and columns that were renamed."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from pipeline.manifest import DATA, label_column, split_of
from pipeline.prepare.config import SPLIT_COLUMNS, PrepareConfig
from pipeline.prepare.image_folder import describe_odd_classes
from pipeline.prepare.roots import TABLES, Root, use_of_table
from pipeline.text import describe_alike, group_alike, quote_alike

NAMED = ("label", *SPLIT_COLUMNS)
"""The columns whose values are compared with one another."""

SHOWN = 5
"""The most sentences about the values of one column."""

NAMES_OF_SPLITS = ("split", "splits", "set", "subset", "partition", "phase", "usage", "data_split", "dataset_split")
"""Names of columns, in lower case, whose values may be splits."""

MOST_SPLITS = 12
"""The most values of a column of splits."""

MOST_NAMES = 10_000
"""The most values of a column that are compared with one another: a column with more has no classes."""


def describe_labels(
    database: sqlite3.Connection, config: PrepareConfig, roots: Sequence[Root], types: Iterable[str]
) -> list[str]:
    """Return sentences about the label columns in `types` and their values in the database of samples."""
    names = list(types)
    notes = describe_odd_classes(_classes(database))
    notes += _renamed_columns(config, names) + _similar_values(database, config)
    notes += _unused_splits(database, config, names)
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


def _unused_splits(database: sqlite3.Connection, config: PrepareConfig, names: Sequence[str]) -> list[str]:
    """Return a sentence for each column of split names, unless there is a column `split`, which tasks look for."""
    if "split" in names:
        return []
    notes = []
    for name in names:
        if name.casefold() not in NAMES_OF_SPLITS:
            continue
        query = "SELECT DISTINCT json_extract(labels, ?) FROM files WHERE kind IS NULL LIMIT ?"
        values = [value for (value,) in database.execute(query, (f'$."{name}"', MOST_SPLITS + 1)) if value is not None]
        splits = {split_of(value) if isinstance(value, str) else None for value in values}
        if len(values) <= MOST_SPLITS and None not in splits and len(splits) > 1:
            notes.append(
                f"{config.root}: the column {name!r} names splits ({', '.join(sorted(values)[:SHOWN])}); tasks look "
                f"for them in a column 'split'. Set `by: column` and `column: {name}` in a task that is to have them."
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
