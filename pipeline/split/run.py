"""Make a task: rows and targets, a split for each, few-shot draws; and what is wrong with the outcome."""

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
from pipeline.split.assign import Assigned, assign, assign_by_domain, few_shot_ranks, limited
from pipeline.split.config import Domains, FewShot, SplitConfig
from pipeline.split.given import assign_given, names_splits
from pipeline.split.rare import settle_rare, what_splits
from pipeline.split.targets import read, strata
from pipeline.task import GIVEN, KIND, RARE, Task, name_some


def split(config: SplitConfig, manifests: AnyPath, *, reporter: Reporter = SILENT) -> Task:
    """Make the task; raises DataError with what is wrong with the manifests or the outcome.

    Values that may be mistakes are reported as messages.
    """
    manifests = as_path(manifests, "split: manifests")
    table = read(config, manifests, reporter)
    keys = table["key"].to_pylist()
    groups = table["group"].to_pylist() if config.group is not None else keys
    given: list[str] = []
    splits = _splits(config, table, groups, reporter, given)
    table, splits, rare = settle_rare(config, table, splits, reporter)
    targets = table["target"].to_pylist()
    if config.limit_per_class is not None:
        splits = limited(keys, targets, splits, config.limit_per_class, seed=config.seed)
    _check_outcome(config, splits)
    table = table.drop_columns([name for name in ("column",) if name in table.column_names])
    table = table.append_column("split", pa.array(splits, pa.string()))
    if config.few_shot is not None:
        _say_few(config.few_shot, targets, splits, reporter)
        for draw, ranks in enumerate(few_shot_ranks(keys, targets, splits, config.few_shot, seed=config.seed)):
            table = table.append_column(f"draw_{draw}", pa.array(ranks, pa.int32()))
    first = ("key", "path", "target", "split")
    order = [*first, *(name for name in table.column_names if name not in first)]
    table = table.select(order).filter(pc.is_valid(table["split"]))
    about = {KIND: config.kind, **({RARE: json.dumps(rare)} if rare else {})}
    about |= {GIVEN: json.dumps(given)} if given else {}
    return Task(table.replace_schema_metadata(about))


def check_names(config: SplitConfig, manifests: Path) -> None:
    """Raise DataError for what a task names and manifests lack: columns, classes, domains, splits; and for its targets.

    Which split a row has by its key is not looked at, so that keys may be those of paths.
    """
    table = read(config, manifests)
    groups = table["group"].to_pylist() if config.group is not None else table["key"].to_pylist()
    _splits(config, table, groups, SILENT, [])


def _splits(
    config: SplitConfig, table: pa.Table, groups: Sequence[str], reporter: Reporter, given: list[str]
) -> Assigned:
    """Return the split of each row; `given` gets what the data say of it, which is reported too."""

    def note(line: object) -> None:
        given.append(str(line))
        reporter.message(line)

    if config.domains is not None:
        domains = table["domain"].to_pylist()
        given.append(f"the domains say the split: {_list_domains(config.domains)}.")
        found = assign_by_domain(strata(table, config), groups, domains, config.domains, config)
        _refuse_divided(config, groups, found, "`domains` divide")
        return found
    values = table["column"].to_pylist() if config.by in ("auto", "column") else []
    if config.by == "column" or names_splits(values, config):
        found = assign_given(values, strata(table, config), groups, config, replace(reporter, message=note))
        _refuse_divided(config, groups, found, f"the split column {config.column!r} divides")
        return found
    if config.use:
        raise DataError(f"`use` of a task on {', '.join(config.datasets)}: the data say no split. Leave it out.")
    if odd := sorted({value for value in values if value is not None}):
        reporter.message(
            f"the values of `{config.column}` name no split ({', '.join(odd[:3])}): `sizes` cut all rows. If they are "
            f"splits, write what each is: `use: {{{odd[0]}: train}}`."
        )
    return assign(strata(table, config), groups, config)


def _list_domains(domains: Domains) -> str:
    """Return which domains each split has: `amazon train, webcam test`."""
    return ", ".join(f"{', '.join(names)} {split}" for split, names in domains if names)


def _say_few(few: FewShot, targets: Sequence[str], splits: Assigned, reporter: Reporter) -> None:
    """Say which classes have fewer training rows than `few_shot` has labels per class."""
    rows = Counter(target for target, name in zip(targets, splits, strict=True) if name == "train")
    if short := {name: rows[name] for name in sorted(rows) if rows[name] < few.labels_per_class}:
        reporter.message(
            f"{counted(len(short), 'class has', 'classes have')} fewer than the {few.labels_per_class:,} training rows "
            f"of `few_shot`, and all draws have these: {name_some(short)}."
        )


def _refuse_divided(config: SplitConfig, groups: Sequence[str], splits: Assigned, what: str) -> None:
    """Refuse a group that stands in two splits: its rows would be learnt from and measured on."""
    found: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        if name is not None:
            found.setdefault(group, set()).add(name)
    divided = [f"{group!r}: {', '.join(sorted(names))}" for group, names in sorted(found.items()) if len(names) > 1]
    if divided:
        raise DataError(bullets(f"{what} {counted(len(divided), 'group')} of {config.group!r}", divided[:5]))


def _check_outcome(config: SplitConfig, splits: Assigned) -> None:
    """Refuse a task without rows to learn from or to be measured on."""
    needed = config.needed if config.by != "auto" or "test" not in splits else ("train", "test")
    least = 2 if config.kind == "regression" else 1
    problems = [
        f"expected at least {counted(most, 'row')} in {name}, got {splits.count(name)}."
        for name, most in (("train", least), ("validation", 1), ("test", 1))
        if name in needed and splits.count(name) < most
    ]
    if problems:
        title = f"the split leaves train, validation or test without rows; add samples or change {what_splits(config)}"
        raise DataError(bullets(title, problems))
