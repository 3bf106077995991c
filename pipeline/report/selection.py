"""Describe how the method of a run was chosen: by which metric and on which rows, with warnings."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import counted
from pipeline.model_record import HeadFit, HeadsRecord, record_of
from pipeline.report.leaderboard import NAMES, Run


def searches(run: Run) -> list[Mapping[str, Any]]:
    """Return the search records of the selected method, one per draw; an empty list where nothing was searched."""
    return [fit.search for fit in _fits(run) if fit.search]


def reason(run: Run) -> str | None:
    """Return how a run's method and its parameters were chosen, without a full stop; None without a choice."""
    best, parts = run["selected"], []
    methods = [row for row in run["table"] if row["labels"] == best["labels"] and row.get("decided_by")]
    if len(methods) > 1 and best.get("validation_rows"):
        name = NAMES.get(best["decided_by"], best["decided_by"])
        name = name if name[:2].isupper() else name[0].upper() + name[1:]
        parts.append(
            f"{name} on {best['validation_rows']:,} held-out rows chose among {counted(len(methods), 'method')}"
        )
    searched = searches(run)
    if searched:
        values = ", ".join(
            dict.fromkeys(
                f"{search['chosen']:.4g}" if _is_number(search) else str(search["chosen"]) for search in searched
            )
        )
        name = NAMES.get(searched[0]["metric"], searched[0]["metric"])
        parts.append(f"{searched[0]['parameter']} {values} by {name}")
    validation = next((fit.validation for fit in _fits(run) if fit.validation), None)
    if validation is not None:
        parts.append(_describe_rows(validation))
    return "; ".join(parts) or None


def warnings(run: Run) -> list[str]:
    """Return sentences on searches whose best value is the first or the last, and on folds that could not be used."""
    lines = []
    ends = [search for search in searches(run) if search.get("at_the_end")]
    if ends:
        share = f"{len(ends):,} of {len(searches(run)):,} fits"
        lines.append(f"The best {ends[0]['parameter']} is at the end of its values in {share}.")
    failed = [fit.validation["folds_failed"] for fit in _fits(run) if fit.validation.get("folds_failed")]
    if failed:
        lines.append(f"No folds were used, since a head could not be fitted to them: {failed[0]}")
    return lines


def _fits(run: Run) -> list[HeadFit]:
    """Return the heads of the selected method; an empty list of a network, whose parameters are not searched."""
    record, best = record_of(run), run["selected"]
    if not isinstance(record, HeadsRecord):
        return []
    method = (best["head"], best["input"], best["labels"])
    return [fit for fit in record.fits if (fit.head, fit.input, fit.labels) == method]


def _is_number(search: Mapping[str, Any]) -> bool:
    return isinstance(search["chosen"], int | float)


def _describe_rows(validation: Mapping[str, Any]) -> str:
    """Return which rows were held out, as text."""
    if validation["method"] == "folds":
        return f"held out by {validation['splitter']} in {validation['folds']} folds, seed {validation['seed']}"
    return "held out: the validation split" if validation["method"] == "split" else "nothing was held out"
