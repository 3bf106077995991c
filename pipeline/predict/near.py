"""Open the training rows of a run for `--near`, and the network that computes comparable rows of new images."""

from pipeline.backbones import serialization
from pipeline.backbones.spec import read_spec
from pipeline.errors import DataError, bullets
from pipeline.files import sha256_file
from pipeline.inference.trained_model import (
    TrainedModel,
    precision_of,
    read_run,
    refuse_other_backbone,
    spec_of,
)
from pipeline.predict.row_source import RowSource
from pipeline.predict.training_rows import TrainingRows, fitted_rows, open_taps
from pipeline.store.identity import differences
from pipeline.task import Task


def open_training_rows(model: TrainedModel) -> tuple[TrainingRows, RowSource | None]:
    """Return the training rows of a model's run, and the network for new rows, None if the model's own network serves.

    A head compares the features of its run. A trained network has no stored features, so that those of the backbone it
    started from are compared. Raises DataError if the task or the features are missing or were changed, and
    BackboneError for another backbone.
    """
    record, folder = read_run(model.folder), model.folder
    data = folder.absolute().parent.parent
    path = data / "tasks" / f"{record.task.name}.parquet"
    task = Task.read(path)
    if sha256_file(path) != record.task.sha256:
        raise DataError(f"{path}: expected the task that {folder} learned, but it was changed. Repeat the run.")
    name = record.backbone
    taps = open_taps(data / "features" / name, model.record.input, task)
    training = TrainingRows.read(task, fitted_rows(task, model.record.labels, model.record.draw), taps)
    if training is None:
        raise DataError(
            f"{data / 'features' / name}: expected features of the training rows of {folder}, which are compared with "
            f"new images, got none. Run `icecore repro extract@{name}`."
        )
    identities = {tap.folder.name: tap.identity for tap in taps}
    if model.head is not None:
        problems = [
            f"{tap}: {line}"
            for tap, own in identities.items()
            for line in differences(record.features[tap].identity, own)
        ]
        if problems:
            title = f"{data / 'features' / name}: expected the features that {folder} was fitted on, got others"
            raise DataError(bullets(title, problems[:12]))
        return training, None
    where = data / "backbones" / name
    specs = {tap: spec_of(own) for tap, own in identities.items()}
    refuse_other_backbone(read_spec(where), identities, specs, where=where, folder=folder)
    precision = precision_of(next(iter(identities.values())))
    return training, RowSource(where, serialization.read(where), specs, precision)
