"""Students and their teachers: what each costs and can do, and how a student differs from those it stands beside."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.leaderboard import Run
from pipeline.text import human

Costs = Mapping[str, Mapping[str, Any]]
"""Of each run that has them what `distill` measured: the footprint of its `student`, and of its `teachers` by name."""


def tables_of_students(runs: Sequence[Run], taught: Sequence[Mapping[str, Any]], costs: Costs) -> dict[str, Any] | None:
    """The tables of a task, as the template wants them; None where it has no student.

    `networks`: teachers, then students, each with its costs and its row of `evaluate`; `pairs`: what `compare` says of
    students; `unseen`: teachers without predictions of the task.
    """
    students = [run for run in runs if "student" in run["made_from"]]
    if not students:
        return None
    known = {run["run"]: run for run in runs}
    footprints = {name: one for run in students for name, one in costs.get(run["run"], {}).get("teachers", {}).items()}
    seen = {one["name"]: one for one in taught if one["kind"] == "teacher"}
    names = list(dict.fromkeys(one["name"] for run in students for one in _teachers(run)))
    networks = []
    for name in names:
        run = known[seen[name]["run"]] if name in seen else None
        row = None if run is None else _row(run, seen[name])
        networks.append(_network("teacher", name, run, row, footprints.get(name)))
    for run in sorted(students, key=lambda run: not _teachers(run)):
        cost = costs.get(run["run"], {}).get("student")
        who = " + ".join(one["name"] for one in _teachers(run)) or None
        networks.append(_network("student", run["run"], run, run["selected"], cost) | {"taught_by": who})
    return {
        "networks": networks,
        "pairs": taught,
        "unseen": [name for name in names if name not in seen],
        "threads": sorted({one["cost"]["threads"] for one in networks if one["cost"]}),
    }


def _teachers(run: Run) -> list[dict[str, Any]]:
    """A student's teachers of the task of its run; it may have others of further tasks."""
    made = run["made_from"]
    return [one for one in made["teachers"] if one.get("task", made["settings"]["task"]) == made["settings"]["task"]]


def _row(run: Run, teacher: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of `evaluate` of the method that a teacher is a fit of."""
    keys = ("head", "input", "labels")
    return next((row for row in run["table"] if all(row[key] == teacher[key] for key in keys)), None)


def _network(
    role: str, name: str, run: Run | None, row: Mapping[str, Any] | None, cost: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A line of the table; `run`: whose `row` of `evaluate` it is."""
    shown = None
    if cost is not None:
        latency = {int(size): one for size, one in cost["latency_ms"].items()}
        shown = dict(cost) | {"size": human(cost["bytes"]), "latency_ms": latency}
    return {"role": role, "name": name, "run": run and run["run"], "row": row, "cost": shown, "taught_by": None}
