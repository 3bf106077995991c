"""Evaluate the runs that changed: `python -m stages.evaluate`, or some by name: `… digits_logistic parity_logistic`."""

import itertools
from collections.abc import Collection
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.up_to_date import inputs_digest, is_up_to_date
from pipeline.files import read_json
from stages import project


def main() -> None:
    """Write `data/metrics/runs/<run>.json` (numbers), `data/plots/<run>.json` (what the report draws), two DVC plots.

    Of a run that nothing changed for they stay as they are. What there is of runs that params.yaml has no more goes.
    """
    values = project.settings()
    runs = project.runs(values)
    names = project.entries("evaluate", runs)
    forget_all_but(runs)
    for folder in (project.NUMBERS, project.TABLES):  # outs of the stage, also where there are no runs
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{name}: {_evaluated(values['evaluate'], name, runs[name].task)}")
        if undecided := read_json(project.TABLES / f"{name}.json").get("undecided"):
            print(f"{name}: {undecided}.")


def forget_all_but(runs: Collection[str]) -> None:
    """Remove what was written of other runs."""
    found = (project.NUMBERS.glob("*.json"), project.TABLES.glob("*.json"), project.TABLES.glob("*/*.csv"))
    for path in itertools.chain(*found):
        if path.stem not in runs:
            path.unlink()


def _evaluated(config: EvaluateConfig, name: str, task: str) -> str:
    """Return the numbers of a run in a line, measured if need be."""
    tables = project.TABLES / f"{name}.json"
    others = {
        "numbers": project.NUMBERS / f"{name}.json",
        "confusion": project.TABLES / "confusion" / f"{name}.csv",
        "curve": project.TABLES / "curves" / f"{name}.csv",
    }
    made_from = {
        "predictions": project.PREDICTIONS / f"{name}.parquet",
        "task": project.TASKS / f"{task}.parquet",
        "model": project.MODELS / name,
    }
    if is_up_to_date(inputs_digest(config, **made_from), tables=tables, others=list(others.values())):
        return f"{_line(read_json(others['numbers']))}, as before"
    return _line(evaluate(config, **made_from, tables=tables, **others))


def _line(found: dict[str, Any]) -> str:
    if "unavailable" in found:
        return f"not measured: {found['unavailable']}"
    metric = found["metric"]
    ends = [found.get(f"{metric}_{end}") for end in ("low", "high")]
    return f"{metric} {found[metric]:.3f}" + ("" if None in ends else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


if __name__ == "__main__":
    project.run(main)
