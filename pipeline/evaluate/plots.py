"""The two plots of a run, as CSV for `dvc plots`: only a header where a plot does not apply."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_text


def write_confusion(path: Path, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Write target and prediction of each test row, for DVC's template `confusion`."""
    _write_csv(path, ("target", "predicted"), pairs)


def write_curve(path: Path, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], metric: str) -> None:
    """Write the metric of the selected head and input by labels per class, for DVC's template `linear`."""
    same = [row for row in rows if (row["head"], row["input"]) == (best["head"], best["input"]) and row["labels"]]
    points = sorted((row["labels"], row[metric]) for row in same if row[metric] is not None)
    _write_csv(path, ("labels", "value"), points)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
