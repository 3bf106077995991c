"""The splits that the data say: of folders, of a column, of the files of a hub."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.errors import DataError, unknown
from pipeline.manifest import SPLIT_NAMES, split_of
from pipeline.runtime import SILENT, Reporter
from pipeline.split.assign import ORDER, Assigned, assign, assign_shares, normalise
from pipeline.split.config import SplitConfig


def assign_given(
    values: Sequence[str | None],
    strata: Sequence[str],
    groups: Sequence[str],
    config: SplitConfig,
    reporter: Reporter = SILENT,
) -> Assigned:
    """Return the split of each row: the one that the data say, and by `sizes` where they say none.

    values: what the split column says of each row, None for nothing. strata and groups: as `assign` has them.

    With `by: auto` three gaps are filled, each with a message. One split alone divides nothing: all rows are
    then cut by `sizes`. Validation rows report where there are no test rows. A split without rows takes them from the
    training rows, in the proportion of `sizes`; validation rows only where `sizes` are stated, since heads are
    cross-validated without them. Raises DataError for values that name no split.
    """
    names = _read_names(values, config)
    splits: Assigned = [None if value is None else names[value] for value in values]
    for key, split in config.use.items():
        if split_of(key) not in (None, split):
            reporter.message(
                f"{key} rows are {'left out' if split == 'none' else f'used as {split} rows'}, as `use` says."
            )
    where = f"`{config.column}` of {', '.join(config.datasets)}"
    if config.by == "column" and "sizes" not in config.model_fields_set:
        reporter.message(f"{where} says the split: {_describe_rows(splits)}.")
        return _left_out(splits)
    there = {name for name in splits if name is not None}
    if config.by == "auto" and (not there or (len(there) == 1 and None not in splits)):
        if there:
            reporter.message(f"{where}: all rows are of {there.pop()}, which divides nothing. `sizes` cut them.")
        return assign(strata, groups, config)
    told = _describe_rows(splits)
    _fill_rows(splits, strata, groups, config)
    reporter.message(
        f"{where} says the split: {told}. It is read off folders, files or a column; `by: hash` passes over it."
    )
    if config.by == "auto":
        if "test" not in splits and {"train", "validation"} <= set(splits) and "validation" not in config.use.values():
            splits = ["test" if name == "validation" else name for name in splits]
            reporter.message(
                "no row is of test: the validation rows report, as with `use: {validation: test}`. To choose on them "
                "and report on a part of the training rows, write `use: {validation: validation}`."
            )
        splits = _cut_training_rows(splits, strata, groups, config, reporter)
    return _left_out(splits)


def _read_names(values: Sequence[str | None], config: SplitConfig) -> dict[str, str]:
    """Return the split of each value; raises DataError for values that name no split."""
    there = [value for value in dict.fromkeys(values) if value is not None]
    left = {key: split for key, split in config.use.items() if split != "none"}  # rows of the others are gone
    used = find_used(there, config.model_copy(update={"use": left}))
    names: dict[str, str | None] = {value: used.get(value, split_of(value)) for value in there}
    odd = sorted(value for value, name in names.items() if name is None)
    if config.by == "column" and None in values and "sizes" not in config.model_fields_set:
        odd.append("no value")
    if odd:
        known = "; ".join(f"{', '.join(words)} for {split}" for split, words in SPLIT_NAMES.items())
        raise DataError(
            f"the split column {config.column!r}: expected {known}, in any case; got also {', '.join(odd[:5])}. Say "
            f"what they are with `use: {{{odd[0]}: train}}`, or `none` to leave them out, or cut all rows with "
            "`by: hash`."
        )
    return {value: name for value, name in names.items() if name is not None}


def find_used(values: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """Return what `use` makes of values of the split column; a key is a value, or another name of its split.

    Raises DataError for a key that no value has.
    """
    used: dict[str, str] = {}
    for key, split in config.use.items():
        alike = [value for value in values if split_of(key) is not None and split_of(value) == split_of(key)]
        meant = [key] if key in values else alike
        if not meant:
            raise DataError(f"`use` of a task on {', '.join(config.datasets)}: {unknown('split', key, values)}")
        used.update(dict.fromkeys(meant, split))
    return used


def names_splits(values: Sequence[str | None], config: SplitConfig) -> bool:
    """Return whether a column says splits: some value of it names one, by itself or with `use`."""
    return any(value is not None and (split_of(value) or value in config.use) for value in set(values))


def _describe_rows(splits: Sequence[str | None]) -> str:
    """Return how many rows each split has, and how many have none: `244 train, 153 test`."""
    rows = Counter(splits)
    names = [*reversed(ORDER), "none", None]
    return ", ".join(f"{rows[name]:,} {'without one' if name is None else name}" for name in names if rows[name])


def _fill_rows(splits: Assigned, strata: Sequence[str], groups: Sequence[str], config: SplitConfig) -> None:
    """Give the rows without a split one: that of their group where it has one, else by `sizes`."""
    of_group: Mapping[str, str] = {g: n for g, n in zip(groups, splits, strict=True) if n is not None}
    left = []
    for row, name in enumerate(splits):
        if name is None and config.group is not None:
            splits[row] = of_group.get(groups[row])
        if splits[row] is None:
            left.append(row)
    found = assign([strata[row] for row in left], [groups[row] for row in left], config)
    for row, name in zip(left, found, strict=True):
        splits[row] = name if name is not None else "none"


def _cut_training_rows(
    splits: Assigned, strata: Sequence[str], groups: Sequence[str], config: SplitConfig, reporter: Reporter
) -> Assigned:
    """Return the splits with rows for those that have none, out of the training rows, in the proportion of `sizes`."""
    sizes, stated = config.sizes, "sizes" in config.model_fields_set
    wanted = {
        "test": 0.0 if "test" in splits else sizes.test,
        "validation": sizes.validation if stated and "validation" not in splits else 0.0,
        "train": sizes.train,
    }
    lacking = [name for name in ("validation", "test") if wanted[name]]
    rows = [row for row, name in enumerate(splits) if name == "train"]
    if not lacking or not wanted["train"] or not rows:
        return splits
    wanted = wanted if config.sizes.as_counts else normalise(wanted)
    parts = assign_shares([strata[row] for row in rows], [groups[row] for row in rows], config, wanted)
    cut = list(splits)
    for row, part in zip(rows, parts, strict=True):
        cut[row] = part if part is not None else "none"
    told = " and ".join(f"{cut.count(name):,} {name}" for name in lacking)
    reporter.message(
        f"{told} rows are cut from the training rows, by `sizes`: no row is said to be of {' or '.join(lacking)}."
    )
    return cut


def _left_out(splits: Assigned) -> Assigned:
    """Return the splits with None for rows that are not in the task."""
    return [None if name == "none" else name for name in splits]
