"""Make a task: rows and targets, a split for each, few-shot draws; and what is wrong with the outcome."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets
from pipeline.manifest import SPLIT_NAMES, split_of
from pipeline.split import SplitConfig
from pipeline.split.assign import Assigned, assign, assign_by_domain, few_shot_ranks, limited
from pipeline.split.targets import read, strata
from pipeline.task import KIND, Task

MOST = 20  # problems that one error lists


def split(config: SplitConfig, manifests: Path, *, say: Callable[[str], None] = lambda _: None) -> Task:
    """Make the task; raises DataError with what is wrong with the manifests or the outcome.

    `say` is called with sentences about values that may be mistakes.
    """
    table = read(config, manifests, say)
    keys, targets = table["key"].to_pylist(), table["target"].to_pylist()
    groups = table["group"].to_pylist() if config.group is not None else keys
    splits = _splits(config, table, groups)
    if config.limit_per_class is not None:
        splits = limited(keys, targets, splits, config.limit_per_class, seed=config.seed)
    _check_outcome(config, targets, splits)
    if config.by == "column":
        table = table.drop_columns(["column"])
    table = table.append_column("split", pa.array(splits, pa.string()))
    if config.few_shot is not None:
        for draw, ranks in enumerate(few_shot_ranks(keys, targets, splits, config.few_shot, seed=config.seed)):
            table = table.append_column(f"draw_{draw}", pa.array(ranks, pa.int32()))
    first = ("key", "path", "target", "split")
    order = [*first, *(name for name in table.column_names if name not in first)]
    table = table.select(order).filter(pc.is_valid(table["split"]))
    return Task(table.replace_schema_metadata({KIND: config.kind}))


def _splits(config: SplitConfig, table: pa.Table, groups: Sequence[str]) -> Assigned:
    if config.by == "column":
        found = _from_column(config, table["column"].to_pylist())
        _refuse_divided(config, groups, found, f"the split column {config.column!r} divides")
        return found
    if config.domains is not None:
        domains = table["domain"].to_pylist()
        found = assign_by_domain(strata(table, config), groups, domains, config.domains, config)
        _refuse_divided(config, groups, found, "`domains` divide")
        return found
    return assign(strata(table, config), groups, config)


def _from_column(config: SplitConfig, values: list[Any]) -> Assigned:
    names = {value: split_of(str(value)) for value in set(values) if value is not None}
    odd = sorted(str(value) for value, name in names.items() if name is None)
    if None in values:
        odd.append("no value")
    if odd:
        known = "; ".join(f"{', '.join(names)} for {split}" for split, names in SPLIT_NAMES.items())
        raise DataError(
            f"the split column {config.column!r}: expected {known}, in any case; got also {', '.join(odd[:5])}."
        )
    return [names[value] for value in values]


def _refuse_divided(config: SplitConfig, groups: Sequence[str], splits: Assigned, what: str) -> None:
    """A group must not stand in two splits: its rows would be learnt from and measured on."""
    found: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        if name is not None:
            found.setdefault(group, set()).add(name)
    divided = [f"{group!r}: {', '.join(sorted(names))}" for group, names in sorted(found.items()) if len(names) > 1]
    if divided:
        raise DataError(bullets(f"{what} {len(divided)} groups of {config.group!r}", divided[:5]))


def _check_outcome(config: SplitConfig, targets: Sequence[Any], splits: Assigned) -> None:
    """Every class needs rows to learn from and rows to be measured on; of labels also rows without them."""
    if config.kind == "regression":
        problems = [
            f"expected at least {least} rows in {name}, got {splits.count(name)}."
            for name, least in (("train", 2), ("validation", 1), ("test", 1))
            if name in config.needed and splits.count(name) < least
        ]
        what = "train, validation or test"
    elif config.kind == "multilabel":
        problems, what = _labels_without_rows(config, targets, splits), "labels"
    else:
        problems, what = _classes_without_rows(config, targets, splits), "classes"
    if problems:
        change = {"column": f"the column {config.column!r}", "domain": "`domains`"}.get(config.by, "`sizes`")
        title = f"the split leaves {what} without rows; add samples or change {change}"
        raise DataError(bullets(title, problems[:MOST]))


def _classes_without_rows(config: SplitConfig, targets: Sequence[str], splits: Assigned) -> list[str]:
    have = Counter(zip(targets, splits, strict=True))
    counts = config.sizes.as_counts and config.by != "column"
    problems = []
    for target in sorted(set(targets)):
        for name in config.needed:
            want = max(1, int(getattr(config.sizes, name))) if counts else 1
            got = have[target, name]
            if got < want and not (config.group and got):
                problems.append(f"class {target!r}: expected at least {want} rows in {name}, got {got}.")
    return problems


def _labels_without_rows(config: SplitConfig, targets: Sequence[Sequence[str]], splits: Assigned) -> list[str]:
    rows = Counter(splits)
    have = Counter((label, name) for labels, name in zip(targets, splits, strict=True) for label in labels)
    problems = []
    for label in sorted({label for labels in targets for label in labels}):
        for name in config.needed:
            if not have[label, name]:
                problems.append(f"label {label!r}: expected at least 1 rows with it in {name}, got 0.")
            elif name == "train" and have[label, name] == rows[name]:
                problems.append(f"label {label!r}: expected at least 1 rows without it in {name}, got 0.")
    return problems
