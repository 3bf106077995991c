"""Compare trained networks with heads on frozen features, at each number of labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import counted
from pipeline.evaluate.choice import best_by_validation
from pipeline.model_record import HeadsRecord, is_student, record_of
from pipeline.report.leaderboard import NAMES, Run

Row = dict[str, Any]

FROZEN, CLASSIFIER, PART, TAP, LP_FT, FULL, DISTILLED, LABELS_ONLY, SCRATCH = range(9)
"""The approaches in the order of the table, from all layers frozen to random weights."""


def approach(run: Run, all_runs: Mapping[str, Run]) -> tuple[int, str]:
    """Return a run's position in the table, and how it was trained, as text. all_runs: all runs by name."""
    record = record_of(run)
    if is_student(record):
        names = " and ".join(teacher.name for teacher in record.teachers)
        if names:
            return DISTILLED, f"{record.student}, distilled from {names}"
        return LABELS_ONLY, f"{record.student}, trained on labels only"
    if isinstance(record, HeadsRecord):
        return FROZEN, f"frozen features of {record.backbone}"
    settings = record.settings
    start, what = settings["start"], _trained_part(settings["train"])
    from_tap = settings["input"] == "features"
    if from_tap and settings["train"] in (None, "full"):
        what = f"the layers after the stored tap {settings['tap']}"
    if settings["unfreeze"]:
        what += ", unfrozen step by step"
    if start == "scratch":
        return SCRATCH, f"{record.backbone} from scratch"
    if start != "backbone":
        if start in all_runs and record_of(all_runs[start]).kind == "network":
            return FULL, f"from the network of {start}: {what}"
        return LP_FT, f"LP-FT: the head of {start} first, then {what}"
    if any(fit.probes for fit in record.fits):
        what += ", from a fitted classifier"
    if from_tap:
        return TAP, f"fine-tuned: {what}"
    position = FULL if settings["train"] in (None, "full") else CLASSIFIER if settings["train"] == "head" else PART
    return position, f"fine-tuned: {what}"


def _trained_part(train: Any) -> str:
    """Return the part of a network that is trained, in words."""
    if train in (None, "full"):
        return "all layers"
    if train == "head":
        return "only a new classifier"
    [(name, value)] = train.items()
    if name == "last_k":
        return f"the last {value} blocks" if value > 1 else "the last block"
    return f"the layers after {value}" if name == "from_tap" else f"parameters {', '.join(value)}"


def table_of_networks(runs: Sequence[Run], all_runs: Mapping[str, Run]) -> dict[str, Any] | None:
    """Return the table of a task: one line per run, one cell per number of labels; None where no network was trained.

    A cell is the row of `evaluate` for the best method on validation rows at that number of labels.
    """
    lines = []
    for run in runs:
        position, how = approach(run, all_runs)
        cells = {count: best(run, count) for count in dict.fromkeys(row["labels"] for row in run["table"])}
        lines.append(
            {
                "run": run["run"],
                "how": how,
                "position": position,
                "frozen": position == FROZEN,
                "cells": {count: row for count, row in cells.items() if row},
            }
        )
    if all(line["position"] == FROZEN for line in lines):
        return None
    counts = sorted({count for line in lines for count in line["cells"]}, key=lambda count: (count is None, count or 0))
    return {
        "labels": counts,
        "below": below_probe(runs),
        "lines": sorted(lines, key=lambda line: (line["position"], line["run"])),
    }


def below_probe(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each trained network of a task that scores below the frozen probe of its own backbone.

    Held-out rows choose the method of both runs, at the largest number of labels that both have. The scores are those
    on test rows.
    """
    lines = []
    records = {run["run"]: record_of(run) for run in runs}
    probes = [run for run in runs if records[run["run"]].kind == "heads"]
    for run in runs:
        backbone = records[run["run"]].backbone
        for probe in () if run in probes else probes:
            counts = [count for count in _counts(run) if count in _counts(probe)]
            if records[probe["run"]].backbone != backbone or not counts:
                continue
            labels = max(counts, key=lambda count: float("inf") if count is None else count)
            rows = best(run, labels), best(probe, labels)
            values = [None if row is None else row[run["metric"]] for row in rows]
            if values[0] is None or values[1] is None:
                continue
            if values[0] >= values[1] if run["higher_is_better"] else values[0] <= values[1]:
                continue
            lines.append(
                f"{run['run']} is below the frozen probe of its own backbone, {probe['run']}: {NAMES[run['metric']]} "
                f"{values[0]:.3f} against {values[1]:.3f}, "
                f"{'all labels' if labels is None else counted(labels, 'label') + ' per class'}"
            )
    return lines


def _counts(run: Run) -> list[int | None]:
    return list(dict.fromkeys(row["labels"] for row in run["table"]))


def best(run: Run, labels: int | None) -> Row | None:
    """Return the row of the best method on validation rows at a number of labels, or of the only method; else None."""
    metric = run["metric"]
    rows = [row for row in run["table"] if row["labels"] == labels and row[metric] is not None]
    return best_by_validation(rows, metric, higher=run["higher_is_better"])
