"""The rows of the manifests with their targets: classes, sets of labels, or numbers.

A row whose target is missing or of another kind is an error that names rows, never a row that is left out.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest
from pipeline.errors import DataError, bullets, counted, unknown
from pipeline.manifest import FIXED
from pipeline.runtime import SILENT, Reporter
from pipeline.split.config import SplitConfig
from pipeline.split.given import find_used
from pipeline.split.names import compare_names, rename_classes
from pipeline.split.separators import check_separator
from pipeline.task import LEVEL, TYPES

SHOWN = 5  # rows that an error names
FEW_ROWS = 20  # below which each of them may well have a class of its own

_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}

WHAT = {"classification": "value", "multilabel": "list of labels", "regression": "finite number"}


def read(config: SplitConfig, manifests: Path, reporter: Reporter = SILENT) -> pa.Table:
    """Return key, path, target, domain, and group, column and levels where asked for, of all data sets, sorted by key.

    Contents that several data sets have are one row. Values that may be mistakes are reported.
    Raises DataError with what is wrong with the targets.
    """
    table = pa.concat_tables([_of_dataset(config, manifests, name, reporter) for name in config.datasets])
    table = table.sort_by([("key", "ascending"), ("domain", "ascending")])
    table = _without_unused(table, config)
    where = f"of {', '.join(config.datasets)}"
    _refuse_missing(table, config, where)
    table = rename_classes(table, config)
    compare_names(table, config, reporter)
    table = _one_row_a_key(table.drop_columns(["said"]), config, reporter)
    _refuse_other_kind(table, config, where)
    _refuse_divided_classes(table, config)
    return table


def _without_unused(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Return the rows but for those of splits that `use` leaves out, which need no target.

    Raises DataError for splits in `use` that no row has.
    """
    if not config.use or table["column"].null_count == len(table):
        return table
    values = [value for value in pc.unique(table["column"]).to_pylist() if value is not None]
    unused = [value for value, split in find_used(values, config).items() if split == "none"]
    return table.filter(pc.invert(pc.is_in(table["column"], pa.array(unused, pa.string()))))


QUANTILES = 10
"""Strata of a regression: enough for the shape of a distribution, few enough for rows in each split."""


def strata(table: pa.Table, config: SplitConfig) -> list[str]:
    """Return what each row counts as where a task is stratified.

    Its class; of several labels the one that fewest rows have, none being one too; of a number its
    quantile among `QUANTILES`, equal numbers in one.
    """
    targets = table["target"].to_pylist()
    if config.kind == "classification":
        return [str(target) for target in targets]
    if config.kind == "regression":
        import numpy as np

        edges = np.quantile(targets, np.arange(1, QUANTILES) / QUANTILES)
        return [str(place) for place in np.searchsorted(edges, targets, side="right")]
    rows = Counter(label for labels in targets for label in labels)
    return [min(labels, key=lambda label: (rows[label], label), default="") for labels in targets]


def _of_dataset(config: SplitConfig, manifests: Path, dataset: str, reporter: Reporter) -> pa.Table:
    table = manifest.read(manifests, dataset)
    named = {LEVEL + level: level for level in config.levels}
    if config.group is not None:
        named["group"] = config.group
    labels = manifest.labels_in(table)
    if config.by == "column" or (config.by == "auto" and _says_splits(labels, config)):
        named["column"] = config.column
    odd = [name for name in dict.fromkeys([*config.columns, *named.values()]) if name not in labels.column_names]
    if odd:
        found = " ".join(_say_unknown(name, labels.column_names) for name in odd)
        raise DataError(f"{manifests / dataset}.parquet: {found}")
    if lists := [name for name in named.values() if pa.types.is_list(labels[name].type)]:
        raise DataError(f"{manifests / dataset}.parquet: expected a value per row, got lists in {', '.join(lists)}.")
    domain = labels["domain"] if "domain" in labels.column_names else pa.nulls(len(table), pa.string())
    return pa.table(
        {
            "key": table["key"],
            "path": table["path"],
            "target": _targets(labels, config, f"the target {config.target!r} of {dataset}", reporter),
            "said": _describe_target(labels, config.columns),
            "domain": pc.fill_null(pc.cast(domain, pa.string()), dataset),
            **{name: _as_text(labels[column]) for name, column in named.items()},
            **({} if "column" in named or config.by != "auto" else {"column": pa.nulls(len(table), pa.string())}),
        }
    )


def _says_splits(labels: pa.Table, config: SplitConfig) -> bool:
    """Return whether a data set has a column of splits that the task does not learn from."""
    name = config.column
    return name in labels.column_names and name not in config.columns and not pa.types.is_list(labels[name].type)


def _say_unknown(name: str, there: Sequence[str]) -> str:
    hint = f" (The manifest's own {name!r} is no label.)" if name in FIXED else ""
    return unknown("column", name, there) + hint


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as text; of numbers, NaN is no value."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return pc.cast(column, pa.string())


def _targets(table: pa.Table, config: SplitConfig, where: str, reporter: Reporter) -> pa.Array:
    """Return the targets as the kind has them; null where a row has none."""
    column = table[config.columns[0]]
    many = pa.types.is_list(column.type)
    if config.kind == "classification":
        if many:
            raise DataError(f"{where}: expected a class per row, got lists. Say `kind: multilabel`.")
        return _as_text(column)
    if config.kind == "regression":
        plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, _is_text, pa.types.is_null)
        if not any(test(column.type) for test in plain):
            raise DataError(f"{where}: expected numbers, got {column.type}. Choose another column, or another `kind`.")
        return pa.array(_numbers(column), pa.float64())
    if len(config.columns) > 1:
        return pa.array(_flags(table, config.columns, where), TYPES["multilabel"])
    if many:
        labels = pc.cast(column, TYPES["multilabel"]).to_pylist()
        found = [_unless_empty(row, config) if row is None or None in row else sorted(set(row)) for row in labels]
    elif _is_text(column.type):
        texts = column.to_pylist()
        found = [_unless_empty(text, config) if text is None else _labels_in(text, config.separator) for text in texts]
        check_separator(found, config, reporter, where=where)
    else:
        raise DataError(
            f"{where}: expected lists, or texts with {config.separator!r} between labels, got {column.type}. "
            "Name several columns of 0 and 1, or another column."
        )
    return pa.array(found, TYPES["multilabel"])


def _unless_empty(value: Any, config: SplitConfig) -> list[str] | None:
    """Return no labels for an empty cell, where `empty` says that it has none; None for a mistake."""
    return [] if value is None and config.empty == "none" else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _labels_in(text: str, separator: str) -> list[str]:
    return sorted({label.strip() for label in text.split(separator)} - {""})


def _numbers(column: pa.ChunkedArray) -> Iterator[float | None]:
    """Yield finite numbers; a text is one where it is written as Python and CSV files write them."""
    for value in column.to_pylist():
        try:
            number = math.nan if value is None or "_" in str(value) else float(value)
        except ValueError:
            number = math.nan
        yield number if math.isfinite(number) else None


def _flags(table: pa.Table, columns: Sequence[str], where: str) -> list[list[str] | None]:
    """Return the names of the columns that say 1 or true; raises DataError for columns of anything but 0, 1 and no
    value.
    """
    problems, values = [], {}
    for name in columns:
        values[name] = [_flag(value) for value in table[name].to_pylist()]
        odd = {str(value): None for value in values[name] if value is not None and value not in (0, 1)}
        if odd:
            problems.append(f"{name}: {', '.join(list(odd)[:SHOWN])}")
    if problems:
        raise DataError(bullets(f"{where}: expected columns of 0 and 1, or true and false, got also", problems))
    rows = zip(*values.values(), strict=True)
    return [None if None in row else sorted(n for n, flag in zip(columns, row, strict=True) if flag) for row in rows]


def _flag(value: Any) -> Any:
    """Return a value of a column of flags; texts are flags where they are written as CSV files write these."""
    return _FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _describe_target(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Return what the manifest says of each row's target, for errors."""
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [", ".join("no value" if value is None else repr(value) for value in row) for row in rows]


def _refuse_missing(table: pa.Table, config: SplitConfig, where: str) -> None:
    named = {"target": ("target", config.target), "group": ("group", config.group)}
    named |= {LEVEL + level: ("level", level) for level in config.levels}
    for column, (what, name) in named.items():
        if column not in table.column_names or not table[column].null_count:
            continue
        rows = table.filter(pc.is_null(table[column]))
        kind = WHAT[config.kind] if what == "target" else "value"
        hint = ""
        splits = set(rows["column"].to_pylist()) if "column" in rows.column_names else set()
        if len(splits) == 1 and (split := splits.pop()) is not None:
            hint = f" All of them are of the split {split!r}, which `use: {{{split}: none}}` leaves out."
        if what == "target" and config.kind == "multilabel" and isinstance(config.target, str):
            hint += " If an empty cell is a sample with none of the labels, write `empty: none`."
        title = (
            f"the {what} {name!r} {where}: {counted(len(rows), 'row has', 'rows have')} no {kind}. "
            f"Give them one, or leave them out of the data set.{hint} The first of them:"
        )
        said = rows["said"].to_pylist() if what == "target" else ["no value"] * len(rows)
        lines = [f"{path}: {value}" for path, value in sorted(zip(rows["path"].to_pylist(), said, strict=True))]
        raise DataError(bullets(title, lines[:SHOWN]))


def _one_row_a_key(table: pa.Table, config: SplitConfig, reporter: Reporter) -> pa.Table:
    """Keep the first row of a content that data sets share, of which a split is known; refuse two targets for one
    content.
    """
    keys, targets = table["key"].to_pylist(), table["target"].to_pylist()
    said = table["column"].to_pylist() if "column" in table.column_names else [None] * len(keys)
    first: dict[str, int] = {}
    conflicts, divided = [], set()
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if targets[before] != targets[row]:
            conflicts.append(f"{key}: {targets[before]!r} and {targets[row]!r}")
        if said[before] is None and said[row] is not None:
            first[key] = row
        elif said[row] not in (None, said[before]):
            divided.add(key)
    if divided:
        reporter.message(
            f"{', '.join(config.datasets)}: {counted(len(divided), 'content is', 'contents are')} of several splits; "
            "the first one counts."
        )
    if conflicts:
        title = f"{', '.join(config.datasets)}: {counted(len(conflicts), 'content has', 'contents have')} two targets"
        raise DataError(bullets(title, conflicts[:SHOWN]))
    return table.take(list(first.values()))


def _refuse_other_kind(table: pa.Table, config: SplitConfig, where: str) -> None:
    """Refuse one class, or as many classes as rows: the target may be a number, or the wrong column."""
    targets = table["target"].to_pylist()
    title = f"the target {config.target!r} {where}"
    if config.kind == "regression":
        if len(set(targets)) < 2:
            raise DataError(f"{title}: expected at least two numbers, got {sorted(set(targets)) or 'none'}.")
        return
    labels = [targets] if config.kind == "classification" else targets
    classes = sorted({label for row in labels for label in row})
    if len(classes) < 2:
        raise DataError(
            f"{title}: expected at least two classes, got {classes or 'none'}. A class is a folder, or a value of the "
            "column."
        )
    if config.kind == "classification" and len(targets) >= FEW_ROWS and 2 * len(classes) > len(targets):
        raise DataError(
            f"{title}: expected classes, got {counted(len(classes), 'value')} in {counted(len(targets), 'row')}. Say "
            "`kind: regression` if they are numbers, or choose another column."
        )


def _refuse_divided_classes(table: pa.Table, config: SplitConfig) -> None:
    """Refuse a class in two groups of a level: whether an error leaves the family could not be seen."""
    problems = []
    for level in config.levels:
        above: dict[str, set[str]] = {}
        for target, name in zip(table["target"].to_pylist(), table[LEVEL + level].to_pylist(), strict=True):
            above.setdefault(target, set()).add(name)
        problems += [
            f"{level}: class {target!r} lies in {', '.join(sorted(names))}"
            for target, names in sorted(above.items())
            if len(names) > 1
        ]
    if problems:
        title = f"`levels` of a task on {', '.join(config.datasets)}: expected each class in one value of a level"
        raise DataError(bullets(title, problems[:20]))
