"""Treat rare classes, those without training rows or without test rows, as the setting `rare` says.

A class without training rows cannot be learned: its rows are removed from the task. A label of a multilabel task
without training rows, or with all of them, is removed from the rows that have it. A class without test rows is learned,
but not measured.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError, bullets, counted
from pipeline.runtime import Reporter
from pipeline.split.assign import Assigned
from pipeline.split.config import SplitConfig
from pipeline.task import OTHER, SPLITS, TYPES, describe_rare, name_some

MOST = 20  # the most problems that an error lists

Rows = Mapping[tuple[str, str | None], int]
"""The number of rows of each class or label in each split."""


def treat_rare(
    config: SplitConfig, table: pa.Table, splits: Assigned, reporter: Reporter
) -> tuple[pa.Table, Assigned, dict[str, dict[str, int]]]:
    """Return rows and splits with rare classes treated as `rare` says, and a record of the changes (`Task.rare`).

    Reports a message for each change. Raises DataError with every rare class for `rare: refuse`, and where fewer than
    two classes, or no labels, are left.
    """
    if config.kind == "regression":
        return table, splits, {}
    targets = table["target"].to_pylist()
    many = config.kind == "multilabel"
    rows = _count_rows(targets, splits, many=many)
    if config.rare == "refuse":
        _refuse_rare(config, rows, Counter(splits), many=many)
        return table, splits, {}
    record: dict[str, dict[str, int]] = {}
    if config.rare == "merge" and (rare := [*_without_training(rows, splits, many=many), *_without_test(rows, splits)]):
        if OTHER in {name for name, _ in rows}:
            raise DataError(
                f"`rare: merge` of a task on {', '.join(config.datasets)}: expected no class {OTHER!r}, which is the "
                "name of the merged class. Give the class another name with `rename`."
            )
        record["merged"] = {name: _all_rows(rows, name) for name in sorted(rare)}
        targets = _replace(targets, dict.fromkeys(rare, OTHER), many=many)
        rows = _count_rows(targets, splits, many=many)
    for line in _describe_short(config, rows) if config.sizes.as_counts else ():
        reporter.message(line)
    untested = sorted(_without_test(rows, splits))
    removed = {"unlearnt": sorted(_without_training(rows, splits, many=many))}
    if config.rare == "drop":
        removed["dropped"], untested = untested, []
    removed_names = {name for names in removed.values() for name in names}
    record |= {why: {name: _all_rows(rows, name) for name in names} for why, names in removed.items() if names}
    if untested := [name for name in untested if name not in removed_names]:
        record["unmeasured"] = {name: rows[name, "train"] for name in untested}
    if not record:
        return table, splits, record
    _refuse_too_few(config, rows, removed_names, many=many)
    for line in describe_rare(record, config.kind):
        reporter.message(line)
    if many:
        targets = _replace(targets, dict.fromkeys(removed_names), many=True)
    else:
        splits = [None if target in removed_names else name for target, name in zip(targets, splits, strict=True)]
    index, column = table.column_names.index("target"), pa.array(targets, TYPES[config.kind])
    return table.set_column(index, "target", column), splits, record


def split_setting(config: SplitConfig) -> str:
    """Return the setting that decides the split, for an error message."""
    return {"column": f"the column {config.column!r}", "domain": "`domains`"}.get(config.by, "`sizes`")


def _describe_short(config: SplitConfig, rows: Rows) -> list[str]:
    """Return a sentence for each split in which classes have fewer rows than `sizes` asks for."""
    lines = []
    for split in SPLITS:
        want = int(getattr(config.sizes, split))
        counts = {name: rows.get((name, split), 0) for name in sorted(_classes(rows))}
        short = {name: count for name, count in counts.items() if count < want}
        if short and config.by in ("auto", "hash") and not config.group:
            lines.append(
                f"{counted(len(short), 'class has', 'classes have')} fewer than {counted(want, 'row')} in {split}: "
                f"{name_some(short)}."
            )
    return lines


def _count_rows(targets: Sequence[Any], splits: Assigned, *, many: bool) -> Counter[tuple[str, str | None]]:
    if not many:
        return Counter(zip(targets, splits, strict=True))
    return Counter((label, name) for labels, name in zip(targets, splits, strict=True) for label in labels)


def _all_rows(rows: Rows, name: str) -> int:
    return sum(count for (label, split), count in rows.items() if label == name and split is not None)


def _classes(rows: Rows) -> list[str]:
    """Return the classes that have rows in the task."""
    return list(dict.fromkeys(name for (name, split) in rows if split is not None))


def _without_training(rows: Rows, splits: Assigned, *, many: bool) -> list[str]:
    """Return the classes without training rows, and the labels that all training rows have."""
    every = splits.count("train") if many else -1
    return [name for name in _classes(rows) if not rows.get((name, "train")) or rows[name, "train"] == every]


def _without_test(rows: Rows, splits: Assigned) -> list[str]:
    """Return the classes with training rows and no test rows; an empty list for a task without test rows."""
    if "test" not in splits:
        return []
    return [name for name in _classes(rows) if rows.get((name, "train")) and not rows.get((name, "test"))]


def _replace(targets: Sequence[Any], names: Mapping[str, str | None], *, many: bool) -> list[Any]:
    """Return the targets with some classes renamed; None removes a label from its rows."""
    if not many:
        return [names.get(target, target) for target in targets]
    replaced = ({names.get(label, label) for label in labels} for labels in targets)
    return [sorted(label for label in labels if label is not None) for labels in replaced]


def _refuse_too_few(config: SplitConfig, rows: Rows, removed: Collection[str], *, many: bool) -> None:
    left = sorted(set(_classes(rows)) - set(removed))
    if len(left) < (1 if many else 2):
        what = "labels" if many else "classes"
        title = (
            f"the split leaves {', '.join(left) or 'none'} of the {what} to learn; add samples or change "
            f"{split_setting(config)}"
        )
        raise DataError(bullets(title, _without_rows(config, rows, {}, many=many)[:MOST]))


def _refuse_rare(config: SplitConfig, rows: Rows, all_rows: Mapping[str | None, int], *, many: bool) -> None:
    """Raise DataError with each class that lacks rows in a split."""
    if problems := _without_rows(config, rows, all_rows, many=many):
        what = "labels" if many else "classes"
        title = f"the split leaves {what} without rows; add samples or change {split_setting(config)}"
        raise DataError(bullets(title, problems[:MOST]))


def _without_rows(config: SplitConfig, rows: Rows, all_rows: Mapping[str | None, int], *, many: bool) -> list[str]:
    counts = config.sizes.as_counts and config.by != "column"
    kind, with_it = ("label", " with it") if many else ("class", "")
    problems = []
    for name in sorted(_classes(rows)):
        for split in config.needed:
            want = max(1, int(getattr(config.sizes, split))) if counts else 1
            got = rows.get((name, split), 0)
            if got < want and not (config.group and got):
                problems.append(
                    f"{kind} {name!r}: expected at least {counted(want, 'row')}{with_it} in {split}, got {got}."
                )
            elif many and split == "train" and got == all_rows.get(split):
                problems.append(f"label {name!r}: expected at least 1 row without it in {split}, got 0.")
    return problems
