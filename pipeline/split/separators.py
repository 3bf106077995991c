"""Check that the labels of a multilabel text column are separated by the setting `separator`."""

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.errors import DataError
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig

SEPARATORS = (";", ",", "|", "/", "\t")
"""Common separators of labels."""

IN_LABELS = (",", "/")
"""Separators that also occur inside single labels."""


def check_separator(
    labels: Sequence[Sequence[str] | None],
    config: SplitConfig,
    reporter: Reporter,
    *,
    where: str,
) -> None:
    """Report another separator if the values plainly use it.

    labels: the labels of each row, split at the setting `separator`. where: the target column, for messages.

    Raises DataError if, in addition, no row contains `separator` and the settings do not set it: each text would become
    a single label.
    """
    distinct = {label for row in labels for label in row or ()}
    brackets = sorted(label for label in distinct if label[:1] == "[" and label[-1:] == "]")
    if brackets and 2 * len(brackets) > len(distinct):
        raise DataError(
            f"{where}: texts such as {brackets[0]!r} are lists written as text. Write them "
            f"as lists in Parquet, or separate labels by {config.separator!r}."
        )
    other = next((mark for mark in SEPARATORS if mark != config.separator and _separates(mark, distinct)), None)
    if other is None:
        return
    example = min(label for label in distinct if other in label.strip())
    text = (
        f"{where}: texts such as {example!r} are read as a single label, since `separator` "
        f"is {config.separator!r}, and look like several labels separated by {other!r}."
    )
    if any(len(row or ()) > 1 for row in labels) or "separator" in config.model_fields_set:
        reporter.message(f"{text} If they are, set `separator: {other!r}`.")
    else:
        raise DataError(
            f"{text} Set `separator: {other!r}`, or `separator: {config.separator!r}` if each is a single label."
        )


def _separates(mark: str, labels: Iterable[str]) -> bool:
    """Return whether a mark plainly separates labels.

    A comma or a slash may be part of a label. It counts as a separator only if at least half of the parts occur in
    several texts.
    """
    parts = {label: {part.strip() for part in label.split(mark)} - {""} for label in labels}
    several = [names for names in parts.values() if len(names) > 1]
    if mark not in IN_LABELS:
        return bool(several)
    counts = Counter(part for names in parts.values() for part in names)
    repeated = [counts[part] > 1 for names in several for part in names]
    return bool(repeated) and 2 * sum(repeated) >= len(repeated)
