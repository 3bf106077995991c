"""Split a task: which rows train, which choose, which report.

By default a row's split is a function of its key (or its group) and the task's seed alone: rows that are added later
move no row that was there. With `stratify` every class is cut at exact shares or counts of its own; then rows that are
added can move rows of their class over the cuts, over each cut at most as many as were added. A column, or folders
named train, validation and test, can say the split instead.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline import manifest
from pipeline.config import Settings
from pipeline.errors import DataError, bullets, unknown
from pipeline.task import SPLITS, Task

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SplitSizes(Settings):
    """Shares of all rows that sum to 1, or, all above 1 or zero, exact rows a class."""

    train: Size = 0.6
    validation: Size = 0.2
    test: Size = 0.2

    @property
    def as_counts(self) -> bool:
        """Whether the sizes are rows a class."""
        return max(self.train, self.validation, self.test) > 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = (self.train, self.validation, self.test)
        if self.as_counts:
            if any(size != int(size) for size in sizes):
                raise ValueError("expected whole numbers of rows a class, or shares that sum to 1")
        elif abs(sum(sizes) - 1) > 1e-6:
            raise ValueError(f"expected shares that sum to 1, they sum to {sum(sizes):g}")
        return self


class FewShot(Settings):
    """Small training sets: `draws` seeded orders of the training rows of each class, up to `labels_per_class`."""

    labels_per_class: Annotated[int, Field(ge=1)]
    draws: Annotated[int, Field(ge=1)] = 5


class SplitConfig(Settings):
    """A task over one or several data sets."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    target: str = "label"
    rename: dict[str, str] = Field({}, description="class names to merge or rename; others stay as they are")
    by: Literal["hash", "column"] = Field("hash", description="`column` takes the split from `column`")
    column: str = "split"
    sizes: SplitSizes = SplitSizes()
    stratify: bool = False
    group: str | None = Field(None, description="a column; rows that share its value stay together")
    few_shot: FewShot | None = None
    seed: int = 0


def split(config: SplitConfig, manifests: Path) -> Task:
    """Make the task; raises DataError with what is wrong with the manifests or the outcome."""
    table = _rows(config, manifests)
    targets = table["target"].to_pylist()
    if len(set(targets)) < 2:
        raise DataError(
            f"the target {config.target!r} of {', '.join(config.datasets)}: expected at least two classes, "
            f"got {sorted(set(targets)) or 'none'}. A class is a folder, or a value of the column."
        )
    keys = table["key"].to_pylist()
    groups = table["group"].to_pylist() if "group" in table.column_names else keys
    if config.by == "column":
        splits = _from_column(config, table["column"].to_pylist())
        _refuse_divided(config, groups, splits)
        table = table.drop_columns(["column"])
    else:
        splits = assign(targets, groups, config)
    _check_outcome(config, targets, splits)
    table = table.append_column("split", pa.array(splits, pa.string()))
    if config.few_shot is not None:
        for draw, ranks in enumerate(few_shot_ranks(keys, targets, splits, config.few_shot, seed=config.seed)):
            table = table.append_column(f"draw_{draw}", pa.array(ranks, pa.int32()))
    order = ["key", "target", "split", *(n for n in table.column_names if n not in ("key", "target", "split"))]
    return Task(table.select(order).filter(pc.is_valid(table["split"])))


def position(text: str, *, salt: str) -> float:
    """A place in [0, 1) that depends on the text and the salt alone (the first 53 bits of BLAKE2b)."""
    number = hashlib.blake2b(text.encode(), digest_size=8, key=salt.encode()).digest()
    return (int.from_bytes(number, "big") >> 11) / 2**53


def assign(targets: Sequence[str], groups: Sequence[str], config: SplitConfig) -> list[str | None]:
    """A split for each row; None where counts are asked for and a class has rows left over."""
    sizes, salt = config.sizes, f"split-{config.seed}"
    places = {group: position(group, salt=salt) for group in dict.fromkeys(groups)}
    if not (config.stratify or sizes.as_counts):
        # Test first: a place below 0.2 is test whatever the shares of the other two are.
        cuts = np.cumsum([sizes.test, sizes.validation, 1.0])
        names = ("test", "validation", "train")
        return [names[int(np.searchsorted(cuts, places[group], side="right"))] for group in groups]
    members: dict[str, list[str]] = {}
    for group, target in zip(groups, targets, strict=True):
        members.setdefault(group, []).append(target)
    by_class: dict[str, list[str]] = {}
    for group in sorted(members, key=lambda g: (places[g], g)):
        by_class.setdefault(Counter(members[group]).most_common(1)[0][0], []).append(group)
    chosen: dict[str, str | None] = {}
    for ordered in by_class.values():
        chosen.update(_cut(ordered, [len(members[group]) for group in ordered], sizes))
    return [chosen[group] for group in groups]


def _cut(ordered: list[str], rows: list[int], sizes: SplitSizes) -> dict[str, str | None]:
    """Cut the groups of one class, in their order, at the rows that each split may have."""
    total = sum(rows)
    scale = 1 if sizes.as_counts else total
    cuts = np.cumsum([sizes.test * scale, sizes.validation * scale, sizes.train * scale]).round()
    names: tuple[str | None, ...] = ("test", "validation", "train", None if sizes.as_counts else "train")
    before = np.concatenate([[0], np.cumsum(rows)[:-1]])
    return {g: names[int(np.searchsorted(cuts, start, side="right"))] for g, start in zip(ordered, before, strict=True)}


def few_shot_ranks(
    keys: Sequence[str], targets: Sequence[str], splits: Sequence[str | None], few: FewShot, *, seed: int
) -> list[list[int]]:
    """For each draw the rank of every training row within its class, -1 for the others and past the limit."""
    draws = []
    for draw in range(few.draws):
        salt = f"draw-{seed}-{draw}"
        order = sorted(range(len(keys)), key=lambda row: position(keys[row], salt=salt))
        ranks, seen = [-1] * len(keys), Counter[str]()
        for row in order:
            if splits[row] == "train":
                rank = seen[targets[row]]
                seen[targets[row]] += 1
                ranks[row] = rank if rank < few.labels_per_class else -1
        draws.append(ranks)
    return draws


def _rows(config: SplitConfig, manifests: Path) -> pa.Table:
    """key, target, and domain, group and column where asked for, of all data sets, sorted by key."""
    tables = []
    for dataset in config.datasets:
        named = {"target": config.target}
        if config.group is not None:
            named["group"] = config.group
        if config.by == "column":
            named["column"] = config.column
        table = manifest.read(manifests, dataset)
        for column in named.values():
            if column not in table.column_names:
                raise DataError(f"{manifests / dataset}.parquet: {unknown('column', column, table.column_names)}")
        domain = table["domain"] if "domain" in table.column_names else pa.array([dataset] * len(table))
        columns = {name: pc.cast(table[column], pa.string()) for name, column in named.items()}
        tables.append(pa.table({"key": table["key"], "domain": domain, **columns}))
    table = pa.concat_tables(tables).sort_by([("key", "ascending"), ("domain", "ascending")])
    for what, name in (("target", config.target), ("group", config.group)):
        missing = table[what].null_count if name is not None else 0
        if missing:
            raise DataError(
                f"the {what} {name!r} of {', '.join(config.datasets)}: {missing:,} rows have no value. "
                "Give them one, or leave them out of the data set."
            )
    targets = table["target"].to_pylist()
    if odd := [unknown("class", name, set(targets)) for name in config.rename if name not in set(targets)]:
        raise DataError(bullets(f"`rename` of a task on {', '.join(config.datasets)}", odd))
    renamed = [config.rename.get(target, target) for target in targets]
    table = table.set_column(table.column_names.index("target"), "target", pa.array(renamed, pa.string()))
    return _one_row_a_key(table, config)


def _one_row_a_key(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Data sets may share contents: keep the first, refuse two targets for one content."""
    keys, targets = table["key"].to_pylist(), table["target"].to_pylist()
    first: dict[str, int] = {}
    conflicts = []
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if targets[before] != targets[row]:
            conflicts.append(f"{key}: {targets[before]!r} and {targets[row]!r}")
    if conflicts:
        title = f"{', '.join(config.datasets)}: {len(conflicts)} contents have two targets"
        raise DataError(bullets(title, conflicts[:5]))
    return table.take(list(first.values()))


def _from_column(config: SplitConfig, values: list[Any]) -> list[str | None]:
    odd = sorted({str(value) for value in values if value not in SPLITS})
    if odd:
        raise DataError(
            f"the split column {config.column!r}: expected {', '.join(SPLITS)}, got also {', '.join(odd[:5])}."
        )
    return list(values)


def _refuse_divided(config: SplitConfig, groups: Sequence[str], splits: Sequence[str | None]) -> None:
    """A group must not be divided by the column: its rows would be learnt from and measured on."""
    found: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(str(name))
    divided = [f"{group!r}: {', '.join(sorted(names))}" for group, names in sorted(found.items()) if len(names) > 1]
    if divided:
        title = f"the split column {config.column!r} divides {len(divided)} groups of {config.group!r}"
        raise DataError(bullets(title, divided[:5]))


def _check_outcome(config: SplitConfig, targets: Sequence[str], splits: Sequence[str | None]) -> None:
    """Every class needs rows to learn from and rows to be measured on."""
    have = Counter(zip(targets, splits, strict=True))
    by_column = config.by == "column"
    needed = ["train", "test"] if by_column else [name for name in SPLITS if getattr(config.sizes, name) > 0]
    problems = []
    for target in sorted(set(targets)):
        for name in needed:
            want = int(getattr(config.sizes, name)) if config.sizes.as_counts and not by_column else 1
            got = have[target, name]
            if got < want and not (config.group and got):
                problems.append(f"class {target!r}: expected at least {want} rows in {name}, got {got}.")
    if problems:
        change = f"the column {config.column!r}" if by_column else "`sizes`"
        raise DataError(
            bullets(f"the split leaves classes without rows; add samples or change {change}", problems[:20])
        )
