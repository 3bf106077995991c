"""Write the files of a run: one per head, and model.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import HeadError
from pipeline.files import atomic, sha256_file
from pipeline.fit.setup import FitRun
from pipeline.fit.single_fit import Data, FittedHead
from pipeline.heads.failures import cause_of_failure
from pipeline.heads.knn_rows import needs_rows, write_keys
from pipeline.heads.skops_import import skops_io
from pipeline.model_record import FORMAT, FailedFit, FeaturesRecord, HeadFit, HeadsRecord, TaskRecord, write_record
from pipeline.runtime import versions


def save_head(fitted: FittedHead, data: Data, models: Path) -> HeadFit:
    """Write a head and return its record; raises HeadError for a class that skops cannot save."""
    path = models / fitted.record.file
    more: dict[str, Any] = {}
    try:
        _save(fitted.head, path)
        if fitted.before_refit is not None:
            before = path.with_name(f"{path.stem}.before-refit.skops")
            _save(fitted.before_refit, before)
            more["before_refit"] = before.name
    except Exception as error:
        raise HeadError(f"{path}: the head cannot be saved: {cause_of_failure(error)}") from error
    if needs_rows(fitted.head):
        more["rows"] = write_keys(path.with_suffix(".keys.npy"), data.keys[fitted.rows])
    return fitted.record.model_copy(update=more)


def write_run(run: FitRun, task: Path, models: Path, *, fits: Sequence[HeadFit], failed: Sequence[FailedFit]) -> None:
    """Write model.json: the inputs of the run, and its fits."""
    record = HeadsRecord(
        format=FORMAT,
        settings=run.config.model_dump(mode="json", exclude={"run"}),  # workers do not change values
        scores={head.called: head.scores for head, _ in run.heads},
        task=TaskRecord(
            name=run.config.task, sha256=sha256_file(task), kind=run.task.kind, classes=tuple(run.task.classes)
        ),
        features={
            name: FeaturesRecord(address=tap.index.address, identity=tap.identity) for name, tap in run.taps.items()
        },
        versions=versions("scikit-learn", "numpy"),
        fits=tuple(fits),
        failed=tuple(failed),
    )
    write_record(models, record)


def _save(head: Any, path: Path) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        skops_io().dump(head, file)
