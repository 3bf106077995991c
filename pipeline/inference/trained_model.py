"""Load the model of a run, a head on its backbone or a trained network, and predict new images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import SPEC_FILE, BackboneSpec, TapSpec, read_spec
from pipeline.engines import BATCH
from pipeline.errors import BackboneError, DataError, HeadError, bullets, unknown
from pipeline.files import AnyPath, as_path
from pipeline.heads import saved
from pipeline.inference.answers import Answers, TaskOutput, answers_of_head, answers_of_logits, describe_tasks
from pipeline.inference.fit_choice import choose_fit
from pipeline.inference.rows import InMemoryExtractor
from pipeline.model_record import JSON, HeadFit, ModelRecord, NetworkFit, NetworkRecord, has_record, read_record
from pipeline.predictions import Scores
from pipeline.store.identity import differences, identity
from pipeline.task import Kind

LOGITS = "logits"


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A head with its backbone, or a network that was fine-tuned or distilled, ready to predict.

    taps: in the order of the head's input; for a network, the single tap `logits`.
    head: the fitted scikit-learn estimator; None for a network.
    scores: the kind of the scores.
    record: the entry of the model in `fits` of model.json, such as `record.labels`.
    tasks: the task of the run, and further tasks of a student that learned several.

        model = load("data/models/pets")
        model.predict(["cat.jpg", "dog.jpg"])         # the classes
        model.predict_proba(["cat.jpg", "dog.jpg"])   # (2, len(model.classes))
    """

    folder: Path
    kind: Kind
    classes: tuple[str, ...]
    backbone: Backbone
    taps: Mapping[str, TapSpec]
    head: Any | None
    scores: Scores
    record: HeadFit | NetworkFit
    tasks: tuple[TaskOutput, ...]
    backbone_folder: Path
    precision: str = "float32"
    """The precision of the network when the head's features were extracted."""

    def __repr__(self) -> str:
        if self.head is None:
            learned = f"network {self.backbone.spec.network}"
        else:
            learned = f"{self.record.head} on {'+'.join(self.taps)} of {self.backbone_folder.name}"
        return f"TrainedModel({str(self.folder)!r}, {learned}, {describe_tasks(self.tasks)})"

    def rows(self, images: Any, *, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Run the backbone up to the last tap, and return the rows (images, ...) of each tap.

        images: paths, bytes, PIL images, arrays or tensors, as for `pipeline.loading.images.pixel_batches`.
        batch_size: images per batch; by default 64 as in an extraction, or the number of images if that is smaller.

        Raises DataError for an unusable image.
        """
        if batch_size is None:
            known = len(images) if hasattr(images, "__len__") and not hasattr(images, "batch_size") else BATCH
            batch_size = max(1, min(BATCH, known))
        return InMemoryExtractor(self.backbone, self.taps, batch_size=batch_size, precision=self.precision)(images)

    def predict(self, images: Any, *, task: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Predict images: classes as text (n,), multilabel tasks as bool (n, classes), regressions as float64 (n,).

        images, batch_size: as for `rows`.
        task: the name of one of `tasks`; by default the first.

        Raises DataError for an unusable image.
        """
        return self.predict_rows(self.rows(images, batch_size=batch_size), task=task)

    def predict_proba(self, images: Any, *, task: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Return probabilities as float32 (n, classes), in the order of the classes of the task.

        Raises HeadError if the model has no probabilities, and DataError as `predict` does.
        """
        number = self._number(task)
        if self.scores != "probability" or self.tasks[number].kind == "regression":
            self._refuse_probabilities()
        return self.answer_rows(self.rows(images, batch_size=batch_size))[number].scores

    def predict_rows(self, rows: Mapping[str, np.ndarray], *, task: str | None = None) -> np.ndarray:
        """Predict from rows of each tap, such as stored features; returns the same form as `predict`."""
        number = self._number(task)
        return self.answer_rows(rows)[number].predicted

    def answer_rows(self, rows: Mapping[str, np.ndarray]) -> list[Answers]:
        """Return predictions and scores from rows of each tap, for each of `tasks`.

        Raises HeadError if a tap is missing or scores are not finite.
        """
        if missing := [tap for tap in self.taps if tap not in rows]:
            raise HeadError(
                f"{self.folder}: expected rows of {', '.join(self.taps)}, got none of {', '.join(missing)}."
            )
        columns = [np.asarray(rows[tap], np.float32) for tap in self.taps]
        flat = [values.reshape(len(values), int(np.prod(values.shape[1:]))) for values in columns]
        X = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        if self.head is None:
            return [answers_of_logits(X[:, task.columns], task) for task in self.tasks]
        try:
            return [answers_of_head(self.head, X, self.tasks[0], self.scores)]
        except ValueError as error:
            raise HeadError(f"{self.folder}: {self.record.head}: {error}") from None

    def _number(self, task: str | None) -> int:
        names = [output.name for output in self.tasks]
        if task is not None and task not in names:
            raise DataError(f"{self.folder}: {unknown('task', task, names)}")
        return 0 if task is None else names.index(task)

    def _refuse_probabilities(self) -> None:
        if self.kind == "regression":
            raise HeadError(f"{self.folder}: a regression predicts numbers and has no probabilities: use `predict`.")
        what = "decision values" if self.scores == "decision" else "no scores"
        raise HeadError(
            f"{self.folder}: expected a head with probabilities, got {what} from {self.record.head}. Fit it with "
            "`calibrate: temperature`, or take another head, such as logistic."
        )


def load(
    run: AnyPath, *, file: str | None = None, backbone: AnyPath | None = None, trusted: Sequence[str] = ()
) -> TrainedModel:
    """Load the model of a run's folder `data/models/RUN`: a head of `fit`, or the network of `finetune` or `distill`.

    file: the file name of the head; by default the head that `evaluate` selected, or would select.
    backbone: the folder of the head's backbone; by default the backbone in the run's project.
    trusted: further types that the head's file may contain, such as a class by import path.

    A nearest-neighbour head reads its training rows from the project's features. Raises DataError if the folder is not
    a run's folder, HeadError if no head can be chosen or loaded, and BackboneError if the weights, nodes, poolings or
    preprocessing of the backbone differ from the run's, with the fields.
    """
    folder = as_path(run, "load: run")
    record = read_run(folder)
    if isinstance(record, NetworkRecord):
        return _load_network(folder, record, backbone=backbone, file=file)
    data = folder.absolute().parent.parent
    fit = choose_fit(folder, record, data=data, file=file)
    name = record.backbone
    where = data / "backbones" / name if backbone is None else as_path(backbone, "load: backbone")
    if not (where / SPEC_FILE).is_file():
        raise BackboneError(
            f"{where}: expected the backbone {name!r}, whose features {folder} was fitted on, got none. Run `icecore "
            f"repro freeze@{name}`, or give the folder of the backbone."
        )
    identities = {tap: record.features[tap].identity for tap in fit.taps}
    taps = {tap: spec_of(tap_identity) for tap, tap_identity in identities.items()}
    refuse_other_backbone(read_spec(where), identities, taps, where=where, folder=folder)
    head = saved.load(folder, fit.file, trusted=trusted, features=data / "features" / name)
    classes = record.task.classes
    task = TaskOutput(record.task.name, record.task.kind, classes, slice(0, len(classes)))
    return TrainedModel(
        folder=folder,
        kind=record.task.kind,
        classes=classes,
        backbone=serialization.read(where),
        taps=taps,
        head=head.head,
        scores=head.scores_are,
        record=fit,
        tasks=(task,),
        backbone_folder=where,
        precision=precision_of(next(iter(identities.values()))),
    )


def _load_network(folder: Path, record: NetworkRecord, *, backbone: AnyPath | None, file: str | None) -> TrainedModel:
    if backbone is not None or file is not None:
        given = "`backbone`" if file is None else "`file`"
        raise DataError(f"{folder}: a trained network has its own backbone and no head: leave {given} out.")
    network = serialization.read(folder / "backbone")
    expected = record.network.weights
    if network.spec.weights_digest != expected:
        raise BackboneError(
            f"{folder}: expected the network that model.json names, with the weights {expected[:16]}…, got "
            f"{network.spec.weights_digest[:16]}…. Train the run again: `icecore repro -f` with its stage."
        )
    tasks: list[TaskOutput] = []
    start = 0
    for task in record.tasks:
        stop = start + (len(task.classes) or 1)
        tasks.append(TaskOutput(task.name, task.kind, task.classes, slice(start, stop)))
        start = stop
    return TrainedModel(
        folder=folder,
        kind=tasks[0].kind,
        classes=tasks[0].classes,
        backbone=network,
        taps={LOGITS: TapSpec(node=LOGITS, dtype="float32")},
        head=None,
        scores=record.scores[record.kept_fit.head],
        record=record.kept_fit,
        tasks=tuple(tasks),
        backbone_folder=folder / "backbone",
    )


def read_run(folder: Path) -> ModelRecord:
    """Read the record of a run; raises DataError with similar names, and the errors of `read_record`."""
    if has_record(folder):
        return read_record(folder)
    records = folder.parent.glob(f"*/{JSON}") if folder.parent.is_dir() else ()
    others = [path.parent.name for path in records]
    if (folder / SPEC_FILE).is_file():
        raise DataError(f"{folder}: expected a run's folder with model.json, got a backbone. Name a run on it.")
    if folder.is_dir() or not others:
        what = "a folder without it" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise DataError(
            f"{folder}: expected a run's folder with model.json, such as data/models/RUN, got {what}. `icecore "
            "repro` makes the runs of a project."
        )
    raise DataError(f"{folder.parent}: {unknown('run', folder.name, others)}")


def spec_of(made_from: Mapping[str, Any]) -> TapSpec:
    """Return the tap settings in the identity of features."""
    projection = made_from.get("projection")
    project = {} if projection is None else {"project": projection["dimensions"]}
    return TapSpec(node=made_from["node"], pool=made_from["pool"], dtype=made_from["dtype"], **project)


def precision_of(made_from: Mapping[str, Any]) -> str:
    """Return the precision in the identity of features; without a GPU, TensorFloat-32 becomes float32."""
    import torch

    precision: str = made_from["precision"]
    return "float32" if precision == "tf32" and not torch.cuda.is_available() else precision


def refuse_other_backbone(
    spec: BackboneSpec,
    expected: Mapping[str, Mapping[str, Any]],
    taps: Mapping[str, TapSpec],
    *,
    where: Path,
    folder: Path,
) -> None:
    """Raise BackboneError if the taps of a backbone differ from those of a run, with the fields that differ.

    expected: the identity of each tap that the run in `folder` learned from.
    where: the folder of the backbone.
    """
    problems: list[str] = []
    for tap, stored in expected.items():
        if spec.node(stored["node"]) not in spec.taps:
            problems.append(f"{tap}: node: expected {stored['node']!r}, which the backbone does not have")
            continue
        lines = differences(stored, identity(spec, taps[tap], precision=stored["precision"]))
        problems += [f"{tap}: {line}" for line in lines]
    if problems:
        title = (
            f"{where}: expected the backbone that {folder} was fitted on, got another. Freeze that one, or fit again"
        )
        raise BackboneError(bullets(title, problems[:12]))
