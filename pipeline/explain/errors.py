"""The worst errors of a run: the evidence on each image, and the nearest training samples, as in `icecore explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.explain.mistakes import find_mistakes
from pipeline.heads.skops_import import skops_io
from pipeline.model_record import NetworkRecord, record_of
from pipeline.report.leaderboard import Run, by_task, task_of

MOST = 6
"""Number of errors that are shown."""

NEAR = 3
"""Number of nearest training samples of each error."""


def errors_of_best(runs: Sequence[Run], models: Path) -> dict[str, dict[str, Any]]:
    """Return the values of errors.html by run, for the best run of each task; runs without errors are left out.

    runs: from `leaderboard.read`.
    models: the folder of all runs' models, in a project.
    """
    best = [of_task[0] for of_task in by_task(runs).values()]
    return {run["run"]: values for run in best if (values := errors_of(run, models)) is not None}


def errors_of(run: Run, models: Path) -> dict[str, Any] | None:
    """Return the values of errors.html for a run; None if no test sample is predicted wrongly.

    models: the folder of all runs' models, in a project. The predictions, the task, the backbone, the features and the
    images are read from the same project. If one of them is missing or does not match, the values have the reason.
    """
    data, name = models.absolute().parent, run["run"]
    try:
        record = record_of(run)
        mistakes = find_mistakes(
            run,
            predictions=data / "predictions" / f"{name}.parquet",
            task=data / "tasks" / f"{task_of(run)}.parquet",
            taps=lambda _: (),  # `explain_mistakes` finds the nearest samples, with their pictures
            most=MOST,
            draw=record.network.draw if isinstance(record, NetworkRecord) else None,  # heads of all draws are stored
        )
        if not mistakes.count:
            return None
        if record.kind == "heads":
            skops_io()  # before torch: importing skops inspects all loaded modules
        from pipeline.explain.mistake_evidence import explain_mistakes  # a page without errors needs no torch

        explained = explain_mistakes(models / name, mistakes, near=NEAR)
    except (PipelineError, OSError) as error:
        return {"why_not": str(error).replace(f"{data.parent}/", "")}
    return {
        "why_not": "",
        "no_near": explained.no_near.replace(f"{data.parent}/", ""),
        "mistakes": mistakes,
        "views": explained.views,
        "reasons": explained.reasons,
    }
