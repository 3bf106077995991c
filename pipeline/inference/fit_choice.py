"""Choose which of the fits of a run predicts: the one that `evaluate` selected, or would select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import HeadError, unknown
from pipeline.files import read_json

MOST_NAMED = 8


def choose_fit(folder: Path, made: Mapping[str, Any], *, data: Path, file: str | None = None) -> dict[str, Any]:
    """Return the entry of `fits` in model.json that predicts, of several draws or seeds the first.

    folder: of the run. made: its model.json. data: the folder `data` of its project. file: the file of the head that a
    user named. Among several methods with the most labels the evaluation decides; where there is none of this model,
    validation rows decide by the same rule. Raises HeadError for a file that there is not, and with the heads where
    there is nothing to decide by.
    """
    fits: list[dict[str, Any]] = made["fits"]
    if file is not None:
        files = {one["file"]: one for one in fits}
        if file not in files:
            raise HeadError(f"{folder}: {unknown('head', file, files)}")
        return files[file]
    most = max((one["labels"] for one in fits if one["labels"] is not None), default=None)
    largest = [one for one in fits if one["labels"] == most]
    if len({_method(one) for one in largest}) == 1:
        return largest[0]
    best = _selected(folder.name, made, data) or _select(folder.name, made, data)
    found = [one for one in largest if best is not None and _method(one) == _method(best)]
    if not found:
        names = [one["file"] for one in largest]
        more = f", … ({len(names)} in all)" if len(names) > MOST_NAMED else ""
        raise HeadError(
            f"{folder}: expected one head, or an evaluation that chooses among {len(names)}, got none. Run `dvc repro "
            f"evaluate`, or name one of the files {', '.join(names[:MOST_NAMED])}{more}."
        )
    return found[0]


def _method(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return one["head"], one["input"], one["labels"]


def _selected(run: str, made: Mapping[str, Any], data: Path) -> dict[str, Any] | None:
    """Return the method that the evaluation of exactly this model selected, if there is one."""
    path = data / "plots" / f"{run}.json"
    if not path.is_file():
        return None
    evaluation = read_json(path)
    if evaluation.get("made_from") != made:
        return None
    found: dict[str, Any] | None = evaluation.get("selected")
    return found


def _select(run: str, made: Mapping[str, Any], data: Path) -> dict[str, Any] | None:
    """Return the method that an evaluation by the usual settings selects, if the run's predictions are there."""
    predictions, task = data / "predictions" / f"{run}.parquet", data / "tasks" / f"{made['task']['name']}.parquet"
    if not (predictions.is_file() and task.is_file()):
        return None
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.methods import read
    from pipeline.evaluate.run import select, table

    config = EvaluateConfig()
    methods = read(predictions, task)
    metric: str = getattr(config.metric, methods.file.kind)
    return select(table(methods, metric, config), metric=metric)
