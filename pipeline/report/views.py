"""The values that the templates show: of a task, of its networks, and of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_record import HeadsRecord, ModelRecord, record_of
from pipeline.report import curves, figures, leaderboard, selection, students, trained
from pipeline.report.costs import costs as costs_of
from pipeline.report.leaderboard import Run


def view_task(name: str, runs: list[Run], compared: Any, audit: Any) -> dict[str, Any]:
    """Return the values of a task for task.html."""
    first = runs[0]
    values = [run["selected"][f"{run['metric']}_{end}"] for run in runs for end in ("low", "high")]
    bounded = first["kind"] != "regression" and None not in values
    return {
        "name": name,
        "runs": runs,
        "kind": first["kind"],
        "metric": first["metric"],
        "interval": first["interval"],
        "columns": leaderboard.others(first, leaderboard.PAGE_METRICS),
        "scored": [metric for metric in ("ece", "log_loss") if metric in first["selected"]],
        "degraded": sorted({why for run in runs for why in run["selected"].get("degraded", {}).values()}),
        "bars": bounded,
        "exact": leaderboard.EXACT if any(leaderboard.is_exact(run["selected"], run["metric"]) for run in runs) else "",
        "given": list(dict.fromkeys(line for run in runs for line in run.get("given", []))),
        "compared": compared,
        "audit": audit,
    }


def view_networks(
    name: str, runs: list[Run], all_runs: Mapping[str, Run], compared: Any, costs: students.Costs
) -> dict[str, Any]:
    """Return the values of a task for trained.html and students.html; None where they do not apply."""
    from markupsafe import Markup

    table = trained.table_of_networks(runs, all_runs)
    if table is not None:
        svg = curves.by_training(runs, table["lines"], name=name)
        table |= {"figure": None if svg is None else Markup(svg)}
    taught = compared.get("taught", []) if compared else []
    return {"trained": table, "students": students.tables_of_students(runs, taught, costs)}


def view_run(run: Run, task: Mapping[str, Any], all_runs: Mapping[str, Run], backbones: Path | None) -> dict[str, Any]:
    """Return the values of a run for run.html."""
    from markupsafe import Markup

    record = record_of(run)
    metric = leaderboard.NAMES[run["metric"]]
    name = metric[0].upper() + metric[1:]
    figures_of_run = {
        f"{name} against labels": curves.by_labels(run),
        "Inputs at the most labels": curves.by_input(run),
        "Hyperparameter search": curves.by_search(run),
        "Confusion, percent of each target": figures.confusion(run),
        "Calibration": figures.reliability(run),
        "Predictions of test rows": figures.scatter(run),
    }
    wide = {
        f"{name} against the costs of inputs": curves.by_cost(run, costs_of(run, backbones)) if backbones else None,
    }
    compared = task["compared"]
    return {
        **run,
        "record": record,
        "how": trained.approach(run, all_runs)[1],
        "chosen": selection.reason(run),
        "warnings": selection.warnings(run),
        "undecided": run.get("undecided"),
        "name": name,
        "columns": leaderboard.others(run, leaderboard.PAGE_METRICS),
        "figures": {title: Markup(svg) for title, svg in figures_of_run.items() if svg is not None},
        "wide": {title: Markup(svg) for title, svg in wide.items() if svg is not None},
        "confused": _most_confused(run),
        "within": compared["within"].get(run["run"], []) if compared else [],
        "compared": compared,
        "degraded": sorted({why for row in run["table"] for why in row.get("degraded", {}).values()}),
        "unfinished": _unfinished(record),
        "rare": run.get("rare", []),
        "exact": leaderboard.EXACT if any(leaderboard.is_exact(row, run["metric"]) for row in run["table"]) else "",
    }


def _unfinished(record: ModelRecord) -> list[str]:
    """Return a sentence for each head of a run that did not converge or could not be fitted."""
    if not isinstance(record, HeadsRecord):
        return []
    stopped = [fit for fit in record.fits if fit.not_converged is not None]
    lines = [f"{fit.file} did not converge: {fit.not_converged}" for fit in stopped]
    return [*lines, *(f"not fitted: {failure.cause}" for failure in record.failed)]


def _most_confused(run: Run, *, most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs of classes that are most often confused, with counts over all draws."""
    if run["confusion"] is None:
        return []
    counts = np.array(run["confusion"])
    np.fill_diagonal(counts, 0)
    order = np.argsort(counts, axis=None, kind="stable")[::-1][:most]
    pairs = [np.unravel_index(cell, counts.shape) for cell in order]
    return [
        {"target": run["classes"][t], "predicted": run["classes"][p], "count": int(counts[t, p])}
        for t, p in pairs
        if counts[t, p]
    ]
