"""Read the rows of the manifests with their targets: classes, sets of labels, or numbers.

A row whose target is missing or of another kind raises an error that names the row. No row is dropped silently.
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
from pipeline.split.given import resolve_use
from pipeline.split.names import compare_names, rename_classes
from pipeline.split.separators import check_separator
from pipeline.task import LEVEL, TYPES

SHOWN = 5  # the most rows that an error names
FEW_ROWS = 20  # below this number of rows, each row may have a class of its own

_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}

WHAT = {"classification": "value", "multilabel": "list of labels", "regression": "finite number"}


def read(config: SplitConfig, manifests: Path, reporter: Reporter = SILENT) -> pa.Table:
    """Return the rows of all data sets, sorted by key: key, path, target, domain; group, column and levels if set.

    An image that several data sets contain is a single row. Values that may be mistakes are reported. Raises DataError
    where targets are wrong.
    """
    table = pa.concat_tables([_of_dataset(config, manifests, name, reporter) for name in config.datasets])
    table = table.sort_by([("key", "ascending"), ("domain", "ascending")])
    table = _without_unused(table, config)
    where = f"of {', '.join(config.datasets)}"
    _refuse_missing(table, config, where)
    table = rename_classes(table, config)
    compare_names(table, config, reporter)
    table = _merge_equal_keys(table.drop_columns(["raw"]), config, reporter)
    _refuse_other_kind(table, config, where)
    _refuse_divided_classes(table, config)
    return table


def _without_unused(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Return the rows without those of splits that `use` maps to none; such rows need no target.

    Raises DataError for splits in `use` that no row has.
    """
    if not config.use or table["column"].null_count == len(table):
        return table
    values = [value for value in pc.unique(table["column"]).to_pylist() if value is not None]
    unused = [value for value, split in resolve_use(values, config).items() if split == "none"]
    return table.filter(pc.invert(pc.is_in(table["column"], pa.array(unused, pa.string()))))


QUANTILES = 10
"""The number of strata of a regression: enough to follow the distribution, few enough to have rows in each split."""


def strata(table: pa.Table, config: SplitConfig) -> list[str]:
    """Return the stratum of each row.

    Classification: the class. Multilabel: the rarest label of the row, or "" for a row without labels. Regression: the
    quantile among `QUANTILES`, with equal numbers in the same stratum.
    """
    targets = table["target"].to_pylist()
    if config.kind == "classification":
        return [str(target) for target in targets]
    if config.kind == "regression":
        import numpy as np

        edges = np.quantile(targets, np.arange(1, QUANTILES) / QUANTILES)
        return [str(quantile) for quantile in np.searchsorted(edges, targets, side="right")]
    rows = Counter(label for labels in targets for label in labels)
    return [min(labels, key=lambda label: (rows[label], label), default="") for labels in targets]


def _of_dataset(config: SplitConfig, manifests: Path, dataset: str, reporter: Reporter) -> pa.Table:
    table = manifest.read(manifests, dataset)
    named = {LEVEL + level: level for level in config.levels}
    if config.group is not None:
        named["group"] = config.group
    labels = manifest.labels_in(table)
    if config.by == "column" or (config.by == "auto" and _has_split_column(labels, config)):
        named["column"] = config.column
    odd = [name for name in dict.fromkeys([*config.columns, *named.values()]) if name not in labels.column_names]
    if odd:
        problems = " ".join(_describe_unknown(name, labels.column_names) for name in odd)
        raise DataError(f"{manifests / dataset}.parquet: {problems}")
    if lists := [name for name in named.values() if pa.types.is_list(labels[name].type)]:
        raise DataError(f"{manifests / dataset}.parquet: expected a value per row, got lists in {', '.join(lists)}.")
    domain = labels["domain"] if "domain" in labels.column_names else pa.nulls(len(table), pa.string())
    return pa.table(
        {
            "key": table["key"],
            "path": table["path"],
            "target": _targets(labels, config, f"the target {config.target!r} of {dataset}", reporter),
            "raw": _describe_target(labels, config.columns),
            "domain": pc.fill_null(pc.cast(domain, pa.string()), dataset),
            **{name: _as_text(labels[column]) for name, column in named.items()},
            **({} if "column" in named or config.by != "auto" else {"column": pa.nulls(len(table), pa.string())}),
        }
    )


def _has_split_column(labels: pa.Table, config: SplitConfig) -> bool:
    """Return whether a data set has the split column, and the column is not the task's target."""
    name = config.column
    return name in labels.column_names and name not in config.columns and not pa.types.is_list(labels[name].type)


def _describe_unknown(name: str, columns: Sequence[str]) -> str:
    hint = f" (The manifest's own {name!r} is no label.)" if name in FIXED else ""
    return unknown("column", name, columns) + hint


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as text; NaN becomes null."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return pc.cast(column, pa.string())


def _targets(table: pa.Table, config: SplitConfig, where: str, reporter: Reporter) -> pa.Array:
    """Return the targets in the type of the task's kind; null for a missing target."""
    column = table[config.columns[0]]
    many = pa.types.is_list(column.type)
    if config.kind == "classification":
        if many:
            raise DataError(f"{where}: expected a class per row, got lists. Set `kind: multilabel`.")
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
        rows = [_empty_labels(row, config) if row is None or None in row else sorted(set(row)) for row in labels]
    elif _is_text(column.type):
        texts = column.to_pylist()
        rows = [_empty_labels(text, config) if text is None else _labels_in(text, config.separator) for text in texts]
        check_separator(rows, config, reporter, where=where)
    else:
        raise DataError(
            f"{where}: expected lists, or texts with labels separated by {config.separator!r}, got {column.type}. "
            "Name several columns of 0 and 1, or another column."
        )
    return pa.array(rows, TYPES["multilabel"])


def _empty_labels(value: Any, config: SplitConfig) -> list[str] | None:
    """Return an empty list for an empty cell if `empty: none` is set; else None, for a missing target."""
    return [] if value is None and config.empty == "none" else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _labels_in(text: str, separator: str) -> list[str]:
    return sorted({label.strip() for label in text.split(separator)} - {""})


def _numbers(column: pa.ChunkedArray) -> Iterator[float | None]:
    """Yield each value as a finite number, texts parsed as Python's `float` does; None where a value is none."""
    for value in column.to_pylist():
        try:
            number = math.nan if value is None or "_" in str(value) else float(value)
        except ValueError:
            number = math.nan
        yield number if math.isfinite(number) else None


def _flags(table: pa.Table, columns: Sequence[str], where: str) -> list[list[str] | None]:
    """Return for each row the names of the columns with 1 or true, None where a value is missing; raises DataError for
    columns with other values.
    """
    problems, values = [], {}
    for name in columns:
        values[name] = [_parse_flag(value) for value in table[name].to_pylist()]
        odd = {str(value): None for value in values[name] if value is not None and value not in (0, 1)}
        if odd:
            problems.append(f"{name}: {', '.join(list(odd)[:SHOWN])}")
    if problems:
        raise DataError(bullets(f"{where}: expected columns of 0 and 1, or true and false, got also", problems))
    rows = zip(*values.values(), strict=True)
    return [None if None in row else sorted(n for n, flag in zip(columns, row, strict=True) if flag) for row in rows]


def _parse_flag(value: Any) -> Any:
    """Return 0 or 1 for a flag as CSV files write it, and any other value unchanged."""
    return _FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _describe_target(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Return the raw values of each row's target as text, for errors."""
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
            hint = f" All of them are {split!r} rows, which `use: {{{split}: none}}` leaves out."
        if what == "target" and config.kind == "multilabel" and isinstance(config.target, str):
            hint += " If an empty cell means that a sample has none of the labels, write `empty: none`."
        title = (
            f"the {what} {name!r} {where}: {counted(len(rows), 'row has', 'rows have')} no {kind}. "
            f"Add it, or leave the rows out of the data set.{hint} The first of them:"
        )
        raw = rows["raw"].to_pylist() if what == "target" else ["no value"] * len(rows)
        lines = [f"{path}: {value}" for path, value in sorted(zip(rows["path"].to_pylist(), raw, strict=True))]
        raise DataError(bullets(title, lines[:SHOWN]))


def _merge_equal_keys(table: pa.Table, config: SplitConfig, reporter: Reporter) -> pa.Table:
    """Return one row per key, the first row with a given split if several data sets share an image; raises DataError if
    their targets differ.
    """
    keys, targets = table["key"].to_pylist(), table["target"].to_pylist()
    splits = table["column"].to_pylist() if "column" in table.column_names else [None] * len(keys)
    first: dict[str, int] = {}
    conflicts, divided = [], set()
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if targets[before] != targets[row]:
            conflicts.append(f"{key}: {targets[before]!r} and {targets[row]!r}")
        if splits[before] is None and splits[row] is not None:
            first[key] = row
        elif splits[row] not in (None, splits[before]):
            divided.add(key)
    if divided:
        reporter.message(
            f"{', '.join(config.datasets)}: {counted(len(divided), 'image is', 'images are')} in several splits; "
            "the first split counts."
        )
    if conflicts:
        title = f"{', '.join(config.datasets)}: {counted(len(conflicts), 'image has', 'images have')} two targets"
        raise DataError(bullets(title, conflicts[:SHOWN]))
    return table.take(list(first.values()))


def _refuse_other_kind(table: pa.Table, config: SplitConfig, where: str) -> None:
    """Raise DataError for a single class, and for nearly as many classes as rows: a number, or the wrong column."""
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
            f"{title}: expected classes, got {counted(len(classes), 'value')} in {counted(len(targets), 'row')}. Set "
            "`kind: regression` if they are numbers, or choose another column."
        )


def _refuse_divided_classes(table: pa.Table, config: SplitConfig) -> None:
    """Raise DataError for a class with two coarser classes in a level: its errors could not be attributed."""
    problems = []
    for level in config.levels:
        above: dict[str, set[str]] = {}
        for target, name in zip(table["target"].to_pylist(), table[LEVEL + level].to_pylist(), strict=True):
            above.setdefault(target, set()).add(name)
        problems += [
            f"{level}: class {target!r} is in {', '.join(sorted(names))}"
            for target, names in sorted(above.items())
            if len(names) > 1
        ]
    if problems:
        title = f"`levels` of a task on {', '.join(config.datasets)}: expected one value of a level per class"
        raise DataError(bullets(title, problems[:20]))
