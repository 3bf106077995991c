"""The names of classes, groups, domains and levels: renamed, and compared with one another."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets, unknown
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig
from pipeline.task import LEVEL, TYPES
from pipeline.text import describe_alike, group_alike, normalise_lookalikes, quote_alike

SHOWN = 5  # names or sentences of a kind


def rename_classes(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Return the rows with the class names of `rename`; raises DataError for a name that no class has."""
    if config.kind == "regression":
        return table
    targets = table["target"].to_pylist()
    there = set(targets) if config.kind == "classification" else {label for labels in targets for label in labels}
    if odd := [_say_no_class(name, there) for name in config.rename if name not in there]:
        raise DataError(bullets(f"`rename` of a task on {', '.join(config.datasets)}", odd))
    if config.kind == "classification":
        found: list[Any] = [config.rename.get(target, target) for target in targets]
    else:
        found = [sorted({config.rename.get(label, label) for label in labels}) for labels in targets]
    return table.set_column(table.column_names.index("target"), "target", pa.array(found, TYPES[config.kind]))


def compare_names(table: pa.Table, config: SplitConfig, reporter: Reporter) -> None:
    """Say which values of a column look like another one; raises DataError where two classes do."""
    names: dict[str, list[str]] = {}
    if config.kind != "regression":
        column = table["target"].combine_chunks()
        names["target"] = pc.unique(column.flatten() if config.kind == "multilabel" else column).to_pylist()
        if alike := group_alike(names["target"]):
            title = (
                f"the target {config.target!r} of {', '.join(config.datasets)}: classes that look the same on a "
                "screen. Make one of them with `rename`, or give them names that differ"
            )
            raise DataError(bullets(title, [quote_alike(group) for group in alike[:SHOWN]]))
    for name in ("group", "domain", *(LEVEL + level for level in config.levels)):
        if name in table.column_names:
            names[name] = pc.unique(table[name]).to_pylist()
    for name, values in names.items():
        lines = describe_alike(values)
        for line in lines[:SHOWN]:
            reporter.message(f"the {name} of {', '.join(config.datasets)}: {line}")
        if len(lines) > SHOWN:
            reporter.message(f"the {name} of {', '.join(config.datasets)}: {len(lines) - SHOWN:,} more of the kind.")


def _say_no_class(name: str, there: set[str]) -> str:
    twins = [one for one in there if normalise_lookalikes(one) == normalise_lookalikes(name)]
    if twins:
        return f"class {name!a} looks the same as {quote_alike(sorted(twins))}: write its codes between double quotes."
    return unknown("class", name, there)
