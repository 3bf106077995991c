"""Rename classes, and compare the names of classes, groups, domains and levels with one another."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, bullets, unknown
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig
from pipeline.task import LEVEL, TYPES
from pipeline.text import describe_alike, group_alike, normalise_lookalikes, quote_alike

SHOWN = 5  # the most names or sentences of the same kind in a message


def rename_classes(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Return the rows with classes renamed by `rename`; raises DataError for a name that no class has."""
    if config.kind == "regression":
        return table
    targets = table["target"].to_pylist()
    classes = set(targets) if config.kind == "classification" else {label for labels in targets for label in labels}
    if odd := [_describe_unknown(name, classes) for name in config.rename if name not in classes]:
        raise DataError(bullets(f"`rename` of a task on {', '.join(config.datasets)}", odd))
    if config.kind == "classification":
        renamed: list[Any] = [config.rename.get(target, target) for target in targets]
    else:
        renamed = [sorted({config.rename.get(label, label) for label in labels}) for labels in targets]
    return table.set_column(table.column_names.index("target"), "target", pa.array(renamed, TYPES[config.kind]))


def compare_names(table: pa.Table, config: SplitConfig, reporter: Reporter) -> None:
    """Report values of a column that look like another value; raises DataError for classes that look the same."""
    names: dict[str, list[str]] = {}
    if config.kind != "regression":
        column = table["target"].combine_chunks()
        names["target"] = pc.unique(column.flatten() if config.kind == "multilabel" else column).to_pylist()
        if alike := group_alike(names["target"]):
            title = (
                f"the target {config.target!r} of {', '.join(config.datasets)}: classes that look the same on a "
                "screen. Merge them with `rename`, or give them different names"
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


def _describe_unknown(name: str, classes: set[str]) -> str:
    twins = [known for known in classes if normalise_lookalikes(known) == normalise_lookalikes(name)]
    if twins:
        return f"class {name!a} looks the same as {quote_alike(sorted(twins))}: write its codes between double quotes."
    return unknown("class", name, classes)
