"""Check that the texts of a multilabel task have the separator that the settings name."""

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.errors import DataError
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig

SEPARATORS = (";", ",", "|", "/", "\t")
"""What people write between labels."""

IN_LABELS = (",", "/")
"""Those that stand in single labels too."""


def check_separator(
    labels: Sequence[Sequence[str] | None],
    config: SplitConfig,
    reporter: Reporter,
    *,
    where: str,
) -> None:
    """Say which other separator the labels of a task have where that is plain from the values.

    Raises DataError where no row has the separator, unless the settings name it: then each text would be one label.
    """
    distinct = {label for row in labels for label in row or ()}
    brackets = sorted(label for label in distinct if label[:1] == "[" and label[-1:] == "]")
    if brackets and 2 * len(brackets) > len(distinct):
        raise DataError(
            f"{where}: texts such as {brackets[0]!r} are lists written as text. Write them "
            f"as lists in Parquet, or with {config.separator!r} between labels."
        )
    other = next((one for one in SEPARATORS if one != config.separator and _separates(one, distinct)), None)
    if other is None:
        return
    example = min(label for label in distinct if other in label.strip())
    text = (
        f"{where}: labels such as {example!r} are read as one label each, since `separator` "
        f"is {config.separator!r}, and look like several with {other!r} between them."
    )
    if any(len(row or ()) > 1 for row in labels) or "separator" in config.model_fields_set:
        reporter.message(f"{text} If they are, set `separator: {other!r}`.")
    else:
        raise DataError(
            f"{text} Set `separator: {other!r}`, or `separator: {config.separator!r}` if each is one label."
        )


def _separates(mark: str, labels: Iterable[str]) -> bool:
    """Return whether labels with this mark are several labels, plainly.

    A comma or a slash may well be part of a label: then most parts of such labels are labels elsewhere too.
    """
    parts = {label: {part.strip() for part in label.split(mark)} - {""} for label in labels}
    several = [found for found in parts.values() if len(found) > 1]
    if mark not in IN_LABELS:
        return bool(several)
    times = Counter(part for found in parts.values() for part in found)
    again = [times[part] > 1 for found in several for part in found]
    return bool(again) and 2 * sum(again) >= len(again)
