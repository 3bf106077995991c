"""Tables of students and their teachers: costs, accuracy, agreement."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.model_record import is_student, record_of
from pipeline.report.leaderboard import Run
from pipeline.text import human

Costs = Mapping[str, Mapping[str, Any]]
"""The footprints that `distill` measured, by run: of its `student`, and of its `teachers` by name."""


def tables_of_students(runs: Sequence[Run], taught: Sequence[Mapping[str, Any]], costs: Costs) -> dict[str, Any] | None:
    """Return the tables of a task for the template; None where the task has no student.

    The tables: `networks` has the teachers, then the students, each with its costs and its row of `evaluate`; `pairs`
    has the comparisons of students that `compare` wrote; `unseen` has the names of teachers without predictions for the
    task.
    """
    records = {run["run"]: record for run in runs if is_student(record := record_of(run))}
    if not records:
        return None
    students = [run for run in runs if run["run"] in records]
    teachers = {name: [teacher.name for teacher in record.own_teachers] for name, record in records.items()}
    known = {run["run"]: run for run in runs}
    footprints = {
        name: footprint for run in students for name, footprint in costs.get(run["run"], {}).get("teachers", {}).items()
    }
    compared = {pair["name"]: pair for pair in taught if pair["kind"] == "teacher"}
    names = list(dict.fromkeys(itertools.chain(*teachers.values())))
    networks = []
    for name in names:
        run = known[compared[name]["run"]] if name in compared else None
        row = None if run is None else _row(run, compared[name])
        networks.append(_network("teacher", name, run, row, footprints.get(name)))
    for run in sorted(students, key=lambda run: not teachers[run["run"]]):
        cost = costs.get(run["run"], {}).get("student")
        names_of_teachers = " + ".join(teachers[run["run"]]) or None
        networks.append(_network("student", run["run"], run, run["selected"], cost) | {"taught_by": names_of_teachers})
    return {
        "networks": networks,
        "pairs": taught,
        "unseen": [name for name in names if name not in compared],
        "threads": sorted({network["cost"]["threads"] for network in networks if network["cost"]}),
    }


def _row(run: Run, teacher: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row that `evaluate` wrote for a teacher's method, or None."""
    keys = ("head", "input", "labels")
    return next((row for row in run["table"] if all(row[key] == teacher[key] for key in keys)), None)


def _network(
    role: str, name: str, run: Run | None, row: Mapping[str, Any] | None, cost: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return a line of the table: a teacher or student with its row of `evaluate` and its costs."""
    shown = None
    if cost is not None:
        latency = {int(size): times for size, times in cost["latency_ms"].items()}
        shown = dict(cost) | {"size": human(cost["bytes"]), "latency_ms": latency}
    return {"role": role, "name": name, "run": run and run["run"], "row": row, "cost": shown, "taught_by": None}
