"""Choose the fit of a run that predicts: the fit that `evaluate` selected, or would select."""

from pathlib import Path
from typing import Any

from pipeline.errors import HeadError, unknown
from pipeline.files import read_json
from pipeline.model_record import HeadFit, HeadsRecord, has_evaluated

MOST_NAMED = 8


def choose_fit(folder: Path, record: HeadsRecord, *, data: Path, file: str | None = None) -> HeadFit:
    """Return the fit of a run that predicts; of several draws or seeds, the first.

    folder: the run's folder.
    data: the folder `data` of the run's project.
    file: the file of the head, if the user named one.

    The methods with the most labels are considered. If there are several, the evaluation of this model selects one; if
    there is no evaluation, validation rows select one by the same rule. Raises HeadError for an unknown file, and if
    nothing can select a head.
    """
    if file is not None:
        files = {fit.file: fit for fit in record.fits}
        if file not in files:
            raise HeadError(f"{folder}: {unknown('head', file, files)}")
        return files[file]
    most = max((fit.labels for fit in record.fits if fit.labels is not None), default=None)
    largest = [fit for fit in record.fits if fit.labels == most]
    if len({_method(fit) for fit in largest}) == 1:
        return largest[0]
    best = _selected(folder, record, data) or _select(folder.name, record.task.name, data)
    wanted = None if best is None else (best["head"], best["input"], best["labels"])
    chosen = [fit for fit in largest if _method(fit) == wanted]
    if not chosen:
        names = [fit.file for fit in largest]
        more = f", … ({len(names)} in all)" if len(names) > MOST_NAMED else ""
        raise HeadError(
            f"{folder}: expected one head, or an evaluation that chooses among {len(names)}, got none. Run `icecore "
            f"repro evaluate`, or name one of the files {', '.join(names[:MOST_NAMED])}{more}."
        )
    return chosen[0]


def _method(fit: HeadFit) -> tuple[Any, ...]:
    return fit.head, fit.input, fit.labels


def _selected(folder: Path, record: HeadsRecord, data: Path) -> dict[str, Any] | None:
    """Return the method that the evaluation of this model selected, if there is an evaluation."""
    path = data / "plots" / f"{folder.name}.json"
    if not path.is_file():
        return None
    evaluation = read_json(path)
    if not has_evaluated(evaluation, record):
        return None
    selected: dict[str, Any] | None = evaluation.get("selected")
    return selected


def _select(run: str, task_name: str, data: Path) -> dict[str, Any] | None:
    """Return the method that an evaluation with default settings selects, if the run has predictions."""
    predictions, task = data / "predictions" / f"{run}.parquet", data / "tasks" / f"{task_name}.parquet"
    if not (predictions.is_file() and task.is_file()):
        return None
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.methods import read
    from pipeline.evaluate.table import select, table

    config = EvaluateConfig()
    methods = read(predictions, task)
    metric: str = getattr(config.metric, methods.file.kind)
    return select(table(methods, metric, config), metric=metric)
