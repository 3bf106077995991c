"""Make a task: read rows and targets, assign splits and few-shot draws, check the result."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets, counted
from pipeline.files import AnyPath, as_path
from pipeline.runtime import SILENT, Reporter
from pipeline.split.assign import Assigned, assign, assign_by_domain, few_shot_ranks, limit_training_rows
from pipeline.split.config import Domains, FewShot, SplitConfig
from pipeline.split.given import assign_given, has_splits
from pipeline.split.rare import split_setting, treat_rare
from pipeline.split.targets import read, strata
from pipeline.task import GIVEN, KIND, RARE, Task, name_some


def split(config: SplitConfig, manifests: AnyPath, *, reporter: Reporter = SILENT) -> Task:
    """Make a task from manifests; raises DataError where targets or splits are wrong.

    Reports a message for each value that may be a mistake.
    """
    manifests = as_path(manifests, "split: manifests")
    table = read(config, manifests, reporter)
    keys = table["key"].to_pylist()
    groups = table["group"].to_pylist() if config.group is not None else keys
    given: list[str] = []
    splits = _assign_splits(config, table, groups, reporter, given)
    table, splits, rare = treat_rare(config, table, splits, reporter)
    targets = table["target"].to_pylist()
    if config.limit_per_class is not None:
        splits = limit_training_rows(keys, targets, splits, config.limit_per_class, seed=config.seed)
    _check_splits(config, splits)
    table = table.drop_columns([name for name in ("column",) if name in table.column_names])
    table = table.append_column("split", pa.array(splits, pa.string()))
    if config.few_shot is not None:
        _report_few(config.few_shot, targets, splits, reporter)
        for draw, ranks in enumerate(few_shot_ranks(keys, targets, splits, config.few_shot, seed=config.seed)):
            table = table.append_column(f"draw_{draw}", pa.array(ranks, pa.int32()))
    first = ("key", "path", "target", "split")
    order = [*first, *(name for name in table.column_names if name not in first)]
    table = table.select(order).filter(pc.is_valid(table["split"]))
    about = {KIND: config.kind, **({RARE: json.dumps(rare)} if rare else {})}
    about |= {GIVEN: json.dumps(given)} if given else {}
    return Task(table.replace_schema_metadata(about))


def check_names(config: SplitConfig, manifests: Path) -> None:
    """Raise DataError for columns, classes, domains and splits that the manifests lack, and for wrong targets.

    The result does not depend on which split a key falls into, so that the keys may be digests of paths.
    """
    table = read(config, manifests)
    groups = table["group"].to_pylist() if config.group is not None else table["key"].to_pylist()
    _assign_splits(config, table, groups, SILENT, [])


def _assign_splits(
    config: SplitConfig, table: pa.Table, groups: Sequence[str], reporter: Reporter, given: list[str]
) -> Assigned:
    """Return the split of each row. Sentences about splits of the data are reported and appended to `given`."""

    def note(line: object) -> None:
        given.append(str(line))
        reporter.message(line)

    if config.domains is not None:
        domains = table["domain"].to_pylist()
        given.append(f"the domains give the split: {_list_domains(config.domains)}.")
        splits = assign_by_domain(strata(table, config), groups, domains, config.domains, config)
        _refuse_divided(config, groups, splits, "`domains` divide")
        return splits
    values = table["column"].to_pylist() if config.by in ("auto", "column") else []
    if config.by == "column" or has_splits(values, config):
        splits = assign_given(values, strata(table, config), groups, config, replace(reporter, message=note))
        _refuse_divided(config, groups, splits, f"the split column {config.column!r} divides")
        return splits
    if config.use:
        raise DataError(f"`use` of a task on {', '.join(config.datasets)}: the data have no splits. Leave it out.")
    if odd := sorted({value for value in values if value is not None}):
        reporter.message(
            f"the values of `{config.column}` name no split ({', '.join(odd[:3])}): `sizes` cut all rows. If they are "
            f"splits, map each to one: `use: {{{odd[0]}: train}}`."
        )
    return assign(strata(table, config), groups, config)


def _list_domains(domains: Domains) -> str:
    """Return the domains of each split as text: `amazon train, webcam test`."""
    return ", ".join(f"{', '.join(names)} {split}" for split, names in domains if names)


def _report_few(few: FewShot, targets: Sequence[str], splits: Assigned, reporter: Reporter) -> None:
    """Report the classes with fewer training rows than `few_shot` has labels per class."""
    rows = Counter(target for target, name in zip(targets, splits, strict=True) if name == "train")
    if short := {name: rows[name] for name in sorted(rows) if rows[name] < few.labels_per_class}:
        reporter.message(
            f"{counted(len(short), 'class has', 'classes have')} fewer than the {few.labels_per_class:,} training rows "
            f"of `few_shot`, so every draw has the same rows of them: {name_some(short)}."
        )


def _refuse_divided(config: SplitConfig, groups: Sequence[str], splits: Assigned, what: str) -> None:
    """Raise DataError for a group with rows in several splits: a model would be tested on groups it was fitted on."""
    by_group: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        if name is not None:
            by_group.setdefault(group, set()).add(name)
    divided = [f"{group!r}: {', '.join(sorted(names))}" for group, names in sorted(by_group.items()) if len(names) > 1]
    if divided:
        raise DataError(bullets(f"{what} {counted(len(divided), 'group')} of {config.group!r}", divided[:5]))


def _check_splits(config: SplitConfig, splits: Assigned) -> None:
    """Raise DataError for a task without training rows, or without validation or test rows that it needs."""
    needed = config.needed if config.by != "auto" or "test" not in splits else ("train", "test")
    fewest = {"train": 2 if config.kind == "regression" else 1, "validation": 1, "test": 1}
    problems = [
        f"expected at least {counted(count, 'row')} in {name}, got {splits.count(name)}."
        for name, count in fewest.items()
        if name in needed and splits.count(name) < count
    ]
    if problems:
        title = (
            f"the split leaves train, validation or test without rows; add samples or change {split_setting(config)}"
        )
        raise DataError(bullets(title, problems))
