"""Load what a run learned, a head on its backbone or a trained network, and predict images that are in no data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.engines import BATCH
from pipeline.errors import BackboneError, DataError, HeadError, bullets, unknown
from pipeline.files import AnyPath, as_path
from pipeline.heads import saved
from pipeline.inference.answers import Answers, TaskOutput, answers_of_head, answers_of_logits, describe_tasks
from pipeline.inference.fit_choice import choose_fit
from pipeline.inference.rows import InMemoryExtractor
from pipeline.model_record import ModelRecord, NetworkRecord, has_record, read_record, to_json
from pipeline.predictions import Scores
from pipeline.store.identity import differences, identity
from pipeline.task import Kind

LOGITS = "logits"


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A head with its backbone, or a network that was fine-tuned or distilled, ready to predict.

    `taps`: in the order of the head's input; of a network the one tap `logits`. `head`: the fitted scikit-learn
    estimator, None of a network. `scores`: what the scores are. `record`: the entry of `fits` in model.json that is
    used. `tasks`: the task of the run, and the further ones of a student that learned several.

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
    record: Mapping[str, Any]
    tasks: tuple[TaskOutput, ...]
    backbone_folder: Path
    precision: str = "float32"
    """In which the network ran when the head's features were extracted."""

    def __repr__(self) -> str:
        if self.head is None:
            learned = f"network {self.backbone.spec.network}"
        else:
            learned = f"{self.record['head']} on {'+'.join(self.taps)} of {self.backbone_folder.name}"
        return f"TrainedModel({str(self.folder)!r}, {learned}, {describe_tasks(self.tasks)})"

    def rows(self, images: Any, *, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Run the backbone up to the last tap, and return the rows (images, ...) of each tap.

        images: what `pipeline.loading.images.pixel_batches` takes. batch_size: images that the network takes at once;
        by default 64 as in an extraction, or the number of the images where these are fewer. Raises DataError for an
        image that cannot be used.
        """
        if batch_size is None:
            known = len(images) if hasattr(images, "__len__") and not hasattr(images, "batch_size") else BATCH
            batch_size = max(1, min(BATCH, known))
        return InMemoryExtractor(self.backbone, self.taps, batch_size=batch_size, precision=self.precision)(images)

    def predict(self, images: Any, *, task: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Predict images: classes as text (n,), of several labels bool (n, classes), of a regression float64 (n,).

        images, batch_size: as `rows` takes them. task: one of `tasks`, by default the first. Raises DataError for an
        image that cannot be used.
        """
        return self.predict_rows(self.rows(images, batch_size=batch_size), task=task)

    def predict_proba(self, images: Any, *, task: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Return probabilities float32 (n, classes) in the order of `classes`, of `task` where that is given.

        Raises HeadError where the model gives no probabilities, and DataError as `predict` does.
        """
        number = self._number(task)
        if self.scores != "probability" or self.tasks[number].kind == "regression":
            self._refuse_probabilities()
        return self.answer_rows(self.rows(images, batch_size=batch_size))[number].scores

    def predict_rows(self, rows: Mapping[str, np.ndarray], *, task: str | None = None) -> np.ndarray:
        """Predict from rows of each tap, such as stored ones, in the form of `predict`."""
        number = self._number(task)
        return self.answer_rows(rows)[number].predicted

    def answer_rows(self, rows: Mapping[str, np.ndarray]) -> list[Answers]:
        """Return what the model predicts of rows of each tap, with scores, for each of `tasks`.

        Raises HeadError where a tap is missing, and where scores are no finite numbers.
        """
        if missing := [tap for tap in self.taps if tap not in rows]:
            raise HeadError(
                f"{self.folder}: expected rows of {', '.join(self.taps)}, got none of {', '.join(missing)}."
            )
        columns = [np.asarray(rows[tap], np.float32) for tap in self.taps]
        flat = [one.reshape(len(one), int(np.prod(one.shape[1:]))) for one in columns]
        X = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        if self.head is None:
            return [answers_of_logits(X[:, task.columns], task) for task in self.tasks]
        try:
            return [answers_of_head(self.head, X, self.tasks[0], self.scores)]
        except ValueError as error:
            raise HeadError(f"{self.folder}: {self.record['head']}: {error}") from None

    def _number(self, task: str | None) -> int:
        names = [one.name for one in self.tasks]
        if task is not None and task not in names:
            raise DataError(f"{self.folder}: {unknown('task', task, names)}")
        return 0 if task is None else names.index(task)

    def _refuse_probabilities(self) -> None:
        if self.kind == "regression":
            raise HeadError(f"{self.folder}: a regression predicts numbers and has no probabilities: use `predict`.")
        what = "decision values" if self.scores == "decision" else "no scores"
        raise HeadError(
            f"{self.folder}: expected a head with probabilities, got {what} from {self.record['head']}. Fit it with "
            "`calibrate: temperature`, or take another head, such as logistic."
        )


def load(
    run: AnyPath, *, file: str | None = None, backbone: AnyPath | None = None, trusted: Sequence[str] = ()
) -> TrainedModel:
    """Load the model of a run's folder `data/models/RUN`: a head of `fit`, or the network of `finetune` or `distill`.

    file: the head, by the name of its file; by default the one that `evaluate` selected, or would select. backbone: the
    folder of the head's backbone, by default that of the project which the run is in. trusted: further types that the
    head's file may hold, such as a class by import path. A head of nearest neighbours reads its training rows from the
    project's features.

    Raises DataError for what is no run's folder, HeadError for a head that cannot be chosen or loaded, BackboneError
    with the fields where the backbone has other weights, nodes, poolings or preprocessing than the run.
    """
    folder = as_path(run, "load: run")
    record = read_run(folder)
    if isinstance(record, NetworkRecord):
        return _load_network(folder, record, backbone=backbone, file=file)
    data = folder.absolute().parent.parent
    fit = choose_fit(folder, record, data=data, file=file)
    name = record.backbone
    where = data / "backbones" / name if backbone is None else as_path(backbone, "load: backbone")
    if not (where / serialization.JSON).is_file():
        raise BackboneError(
            f"{where}: expected the backbone {name!r}, whose features {folder} was fitted on, got none. Run `icecore "
            f"repro freeze@{name}`, or give the folder of the backbone."
        )
    identities = {tap: record.features[tap].identity for tap in fit.taps}
    taps = {tap: spec_of(one) for tap, one in identities.items()}
    refuse_other_backbone(serialization.read_spec(where), identities, taps, where=where, folder=folder)
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
        record=to_json(fit),
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
        record=to_json(record.kept_fit),
        tasks=tuple(tasks),
        backbone_folder=folder / "backbone",
    )


def read_run(folder: Path) -> ModelRecord:
    """Read the record of a run; raises DataError with near names where there is none, and what `read_record` raises."""
    if has_record(folder):
        return read_record(folder)
    there = folder.parent.glob("*/model.json") if folder.parent.is_dir() else ()
    others = [one.parent.name for one in there]
    if (folder / serialization.JSON).is_file():
        raise DataError(f"{folder}: expected a run's folder with model.json, got a backbone. Name a run on it.")
    if folder.is_dir() or not others:
        what = "a folder without it" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise DataError(
            f"{folder}: expected a run's folder with model.json, such as data/models/RUN, got {what}. `icecore "
            "repro` makes the runs of a project."
        )
    raise DataError(f"{folder.parent}: {unknown('run', folder.name, others)}")


def spec_of(made_from: Mapping[str, Any]) -> TapSpec:
    """Return the tap whose features have an identity."""
    drawn = made_from.get("projection")
    project = {} if drawn is None else {"project": drawn["dimensions"]}
    return TapSpec(node=made_from["node"], pool=made_from["pool"], dtype=made_from["dtype"], **project)


def precision_of(made_from: Mapping[str, Any]) -> str:
    """Return the precision of the features that have an identity; TensorFloat-32 is float32 where no GPU is."""
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
    """Raise BackboneError with the fields where a backbone's taps are others than those of a run, by their identities.

    expected: the identity of each tap that the run in `folder` learned from. where: the folder of the backbone.
    """
    problems: list[str] = []
    for tap, one in expected.items():
        if spec.node(one["node"]) not in spec.taps:
            problems.append(f"{tap}: node: expected {one['node']!r}, which the backbone does not have")
            continue
        found = differences(one, identity(spec, taps[tap], precision=one["precision"]))
        problems += [f"{tap}: {line}" for line in found]
    if problems:
        title = (
            f"{where}: expected the backbone that {folder} was fitted on, got another. Freeze that one, or fit again"
        )
        raise BackboneError(bullets(title, problems[:12]))
