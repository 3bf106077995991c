"""The worst errors of a run: the evidence on each image, and the nearest training samples, as in `icecore explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.explain.mistakes import find_mistakes
from pipeline.heads.skops_import import skops_io
from pipeline.report.leaderboard import Run, by_task, task_of

MOST = 6
"""Errors that are shown."""

NEAR = 3
"""Nearest training samples of each."""


def errors_of_best(runs: Sequence[Run], models: Path) -> dict[str, dict[str, Any]]:
    """Return the values of errors.html for the best run of each task, by its name; a run without errors has none.

    runs: from `leaderboard.read`. models: the folder of all runs' models, in a project.
    """
    best = [of_task[0] for of_task in by_task(runs).values()]
    return {run["run"]: values for run in best if (values := errors_of(run, models)) is not None}


def errors_of(run: Run, models: Path) -> dict[str, Any] | None:
    """Return the values of errors.html for a run; None where no test sample is predicted wrongly.

    models: the folder of all runs' models. The predictions, the task, the backbone, the features and the images are
    those of its project; where one of them is missing or is another, the values have the reason.
    """
    data, name = models.absolute().parent, run["run"]
    try:
        mistakes = find_mistakes(
            run,
            predictions=data / "predictions" / f"{name}.parquet",
            task=data / "tasks" / f"{task_of(run)}.parquet",
            taps=lambda _: (),  # the nearest samples come with their pictures
            most=MOST,
            draw=run["made_from"].get("backbone", {}).get("draw"),  # the network of one draw is kept, and all heads
        )
        if not mistakes.count:
            return None
        if "backbone" not in run["made_from"]:
            skops_io()  # before torch: skops looks through all modules that are loaded
        from pipeline.explain.mistake_evidence import explain_mistakes  # a page without errors needs no torch

        found = explain_mistakes(models / name, mistakes, near=NEAR)
    except (PipelineError, OSError) as error:
        return {"why_not": str(error).replace(f"{data.parent}/", "")}
    return {
        "why_not": "",
        "no_near": found.no_near.replace(f"{data.parent}/", ""),
        "mistakes": mistakes,
        "views": found.views,
        "reasons": found.reasons,
    }
