"""Evaluate the runs that changed: `python -m stages.evaluate`; or named runs: `… digits_logistic parity_logistic`."""

import itertools
from collections.abc import Collection
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.up_to_date import inputs_digest, is_up_to_date
from pipeline.files import read_json
from stages import project


def main() -> None:
    """Write `data/metrics/runs/<run>.json` (numbers), `data/plots/<run>.json` (tables for the report), two DVC plots.

    The files of unchanged runs stay as they are. The files of runs that params.yaml no longer has are removed.
    """
    values = project.settings()
    runs = project.runs(values)
    names = project.entries("evaluate", runs)
    remove_other_runs(runs)
    for folder in (project.NUMBERS, project.TABLES):  # outs of the stage, also where there are no runs
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{name}: {_evaluate_run(values['evaluate'], name, runs[name].task)}")
        if undecided := read_json(project.TABLES / f"{name}.json").get("undecided"):
            print(f"{name}: {undecided}.")


def remove_other_runs(runs: Collection[str]) -> None:
    """Remove the files of runs that are not in `runs`."""
    files = (project.NUMBERS.glob("*.json"), project.TABLES.glob("*.json"), project.TABLES.glob("*/*.csv"))
    for path in itertools.chain(*files):
        if path.stem not in runs:
            path.unlink()


def _evaluate_run(config: EvaluateConfig, name: str, task: str) -> str:
    """Evaluate a run unless it is up to date, and return its numbers in a line."""
    tables = project.TABLES / f"{name}.json"
    others = {
        "numbers": project.NUMBERS / f"{name}.json",
        "confusion": project.TABLES / "confusion" / f"{name}.csv",
        "curve": project.TABLES / "curves" / f"{name}.csv",
    }
    inputs = {
        "predictions": project.PREDICTIONS / f"{name}.parquet",
        "task": project.TASKS / f"{task}.parquet",
        "model": project.MODELS / name,
    }
    if is_up_to_date(inputs_digest(config, **inputs), tables=tables, others=list(others.values())):
        return f"{_line(read_json(others['numbers']))}, as before"
    return _line(evaluate(config, **inputs, tables=tables, **others))


def _line(numbers: dict[str, Any]) -> str:
    if "unavailable" in numbers:
        return f"not measured: {numbers['unavailable']}"
    metric = numbers["metric"]
    ends = [numbers.get(f"{metric}_{end}") for end in ("low", "high")]
    return f"{metric} {numbers[metric]:.3f}" + ("" if None in ends else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


if __name__ == "__main__":
    project.run(main)
