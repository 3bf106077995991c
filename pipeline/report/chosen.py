"""How a run was chosen, in words: on which rows, by what, and what of it a person should know."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import counted
from pipeline.report.leaderboard import NAMES, Run


def searches(run: Run) -> list[Mapping[str, Any]]:
    """Return the records of the searches of the selected method, one per draw; none where nothing was searched."""
    return [one["search"] for one in _fits(run) if one.get("search")]


def reason(run: Run) -> str | None:
    """Return what chose the method of a run and its parameter, in a sentence without its full stop."""
    best, parts = run["selected"], []
    methods = [row for row in run["table"] if row["labels"] == best["labels"] and row.get("decided_by")]
    if len(methods) > 1 and best.get("validation_rows"):
        name = NAMES.get(best["decided_by"], best["decided_by"])
        name = name if name[:2].isupper() else name[0].upper() + name[1:]
        parts.append(
            f"{name} on {best['validation_rows']:,} held-out rows chose among {counted(len(methods), 'method')}"
        )
    found = searches(run)
    if found:
        values = ", ".join(
            dict.fromkeys(f"{one['chosen']:.4g}" if _is_number(one) else str(one["chosen"]) for one in found)
        )
        name = NAMES.get(found[0]["metric"], found[0]["metric"])
        parts.append(f"{found[0]['parameter']} {values} by {name}")
    how = next((one["validation"] for one in _fits(run) if one.get("validation")), None)
    if how is not None:
        parts.append(_rows(how))
    return "; ".join(parts) or None


def warnings(run: Run) -> list[str]:
    """Return sentences about searches that ended at the end of their values, and folds that could not be used."""
    lines = []
    ends = [one for one in searches(run) if one.get("at_the_end")]
    if ends:
        share = f"{len(ends):,} of {len(searches(run)):,} fits"
        lines.append(f"The best {ends[0]['parameter']} is at the end of its values in {share}.")
    failed = [one["validation"]["folds_failed"] for one in _fits(run) if one.get("validation", {}).get("folds_failed")]
    if failed:
        lines.append(f"Without folds, since a head could not be fitted to them: {failed[0]}")
    return lines


def _fits(run: Run) -> list[Mapping[str, Any]]:
    """The fits of the selected method, as model.json has them."""
    best = run["selected"]
    keys = ("head", "input", "labels")
    return [one for one in run["made_from"].get("fits", []) if all(one.get(key) == best[key] for key in keys)]


def _is_number(search: Mapping[str, Any]) -> bool:
    return isinstance(search["chosen"], int | float)


def _rows(how: Mapping[str, Any]) -> str:
    if how["method"] == "folds":
        return f"held out by {how['splitter']} in {how['folds']} folds, seed {how['seed']}"
    return "held out: the validation split" if how["method"] == "split" else "nothing was held out"
