"""Splits that come with the data: from folders, from a column, from the files of a hub."""

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
    """Return the split of each row: its value in the split column, or by `sizes` where it has none.

    values: the split column, None for a missing value. strata, groups: as in `assign`.

    `by: auto` fills three gaps, each with a message:
    1) If all rows are of the same split, `sizes` cut all rows.
    2) If there are no test rows, the validation rows become the test rows.
    3) A split without rows gets training rows, in the proportion of `sizes`. Validation rows are taken only if `sizes`
       is set, since heads are cross-validated without them.

    Raises DataError for values that name no split.
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
        reporter.message(f"{where} gives the split: {_describe_rows(splits)}.")
        return _without_none(splits)
    given = {name for name in splits if name is not None}
    if config.by == "auto" and (not given or (len(given) == 1 and None not in splits)):
        if given:
            reporter.message(f"{where}: all rows are {given.pop()} rows, so `sizes` cut them.")
        return assign(strata, groups, config)
    summary = _describe_rows(splits)
    _fill_rows(splits, strata, groups, config)
    reporter.message(
        f"{where} gives the split: {summary}. It comes from folders, files or a column; `by: hash` ignores it."
    )
    if config.by == "auto":
        if "test" not in splits and {"train", "validation"} <= set(splits) and "validation" not in config.use.values():
            splits = ["test" if name == "validation" else name for name in splits]
            reporter.message(
                "there are no test rows: the validation rows become the test rows, as with `use: {validation: test}`. "
                "To keep them, and take test rows from the training rows, write `use: {validation: validation}`."
            )
        splits = _cut_training_rows(splits, strata, groups, config, reporter)
    return _without_none(splits)


def _read_names(values: Sequence[str | None], config: SplitConfig) -> dict[str, str]:
    """Return the split of each value; raises DataError for values that name no split."""
    distinct = [value for value in dict.fromkeys(values) if value is not None]
    use = {key: split for key, split in config.use.items() if split != "none"}  # rows of `none` were removed before
    used = resolve_use(distinct, config.model_copy(update={"use": use}))
    names: dict[str, str | None] = {value: used.get(value, split_of(value)) for value in distinct}
    odd = sorted(value for value, name in names.items() if name is None)
    if config.by == "column" and None in values and "sizes" not in config.model_fields_set:
        odd.append("no value")
    if odd:
        known = "; ".join(f"{', '.join(words)} for {split}" for split, words in SPLIT_NAMES.items())
        raise DataError(
            f"the split column {config.column!r}: expected {known}, in upper or lower case; got also "
            f"{', '.join(odd[:5])}. Map each with `use: {{{odd[0]}: train}}`, leave rows out with `none`, or ignore "
            "the column with `by: hash`."
        )
    return {value: name for value, name in names.items() if name is not None}


def resolve_use(values: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """Return the split that `use` gives to values of the split column.

    A key of `use` is a value of the column or another name of the same split, such as `val` for `validation`. Raises
    DataError for a key that matches no value.
    """
    used: dict[str, str] = {}
    for key, split in config.use.items():
        alike = [value for value in values if split_of(key) is not None and split_of(value) == split_of(key)]
        matches = [key] if key in values else alike
        if not matches:
            raise DataError(f"`use` of a task on {', '.join(config.datasets)}: {unknown('split', key, values)}")
        used.update(dict.fromkeys(matches, split))
    return used


def has_splits(values: Sequence[str | None], config: SplitConfig) -> bool:
    """Return whether some value of a column names a split, by itself or through `use`."""
    return any(value is not None and (split_of(value) or value in config.use) for value in set(values))


def _describe_rows(splits: Sequence[str | None]) -> str:
    """Return the number of rows of each split as text: `244 train, 153 test, 10 without one`."""
    rows = Counter(splits)
    names = [*reversed(ORDER), "none", None]
    return ", ".join(f"{rows[name]:,} {'without one' if name is None else name}" for name in names if rows[name])


def _fill_rows(splits: Assigned, strata: Sequence[str], groups: Sequence[str], config: SplitConfig) -> None:
    """Fill in missing splits in place: with the split of the row's group if it has one, else by `sizes`."""
    of_group: Mapping[str, str] = {g: n for g, n in zip(groups, splits, strict=True) if n is not None}
    missing = []
    for row, name in enumerate(splits):
        if name is None and config.group is not None:
            splits[row] = of_group.get(groups[row])
        if splits[row] is None:
            missing.append(row)
    assigned = assign([strata[row] for row in missing], [groups[row] for row in missing], config)
    for row, name in zip(missing, assigned, strict=True):
        splits[row] = name if name is not None else "none"


def _cut_training_rows(
    splits: Assigned, strata: Sequence[str], groups: Sequence[str], config: SplitConfig, reporter: Reporter
) -> Assigned:
    """Return the splits with training rows moved to each split without rows, in the proportion of `sizes`."""
    sizes, stated = config.sizes, "sizes" in config.model_fields_set
    wanted = {
        "test": 0.0 if "test" in splits else sizes.test,
        "validation": sizes.validation if stated and "validation" not in splits else 0.0,
        "train": sizes.train,
    }
    missing = [name for name in ("validation", "test") if wanted[name]]
    rows = [row for row, name in enumerate(splits) if name == "train"]
    if not missing or not wanted["train"] or not rows:
        return splits
    wanted = wanted if config.sizes.as_counts else normalise(wanted)
    parts = assign_shares([strata[row] for row in rows], [groups[row] for row in rows], config, wanted)
    cut = list(splits)
    for row, part in zip(rows, parts, strict=True):
        cut[row] = part if part is not None else "none"
    counts = " and ".join(f"{cut.count(name):,} {name}" for name in missing)
    reporter.message(
        f"{counts} rows are taken from the training rows, by `sizes`: the data have no {' or '.join(missing)} rows."
    )
    return cut


def _without_none(splits: Assigned) -> Assigned:
    """Return the splits with None in place of "none", for rows outside the task."""
    return [None if name == "none" else name for name in splits]
