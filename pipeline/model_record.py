"""The record of a run's models, `data/models/<run>/model.json`: their inputs, and each fit.

`fit` writes a `HeadsRecord` for heads on stored features; `finetune` and `distill` write a `NetworkRecord`:

    record = read_record(folder)
    record.task.classes               the classes, in the order of scores
    record.kind                       "heads" or "network"
    find_fits(record.fits, labels=5)  the fits with these values
    record.features["layer4"].reader  the preprocessing of the images of an input

Unknown fields of other versions of icecore are kept: reading and writing a record does not change its text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import HeadError, bullets
from pipeline.files import digest, read_json, sha256_file, write_json
from pipeline.predictions import Scores
from pipeline.task import Kind

JSON = "model.json"
FORMAT: Final = 2

Number = int | float  # whole numbers stay whole in the text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Give values of older records their present names."""
        if isinstance(values, dict) and "also" in values:
            return {"extra_tasks" if name == "also" else name: value for name, value in values.items()}
        return values


class TaskRecord(_Part):
    """The task of a run. `classes`: in the order of scores; empty for a regression."""

    name: str
    sha256: str
    kind: Kind
    classes: tuple[str, ...]


class FeaturesRecord(_Part):
    """Stored features that a run read: their address in the feature cache, and their identity."""

    address: str
    identity: dict[str, Any]

    @property
    def weights(self) -> str:
        """Return the digest of the weights of the backbone that computed the features."""
        return str(self.identity["weights"])

    @property
    def node(self) -> str:
        """Return the node of the backbone that the features were taken from."""
        return str(self.identity["node"])

    @property
    def reader(self) -> dict[str, Any]:
        """Return the preprocessing of the images, without normalisation."""
        return dict(self.identity["reader"])


class Fit(_Part):
    """One model of a run. `labels`: labels per class, None for all; `draw`: the few-shot draw, or the seed."""

    head: str
    input: str
    labels: int | None
    draw: int | None

    @property
    def taps(self) -> list[str]:
        """Return the taps of the input, in the order in which they are joined."""
        return self.input.split("+")

    def __str__(self) -> str:
        more = [f"{name} {getattr(self, name)}" for name in ("labels", "draw") if getattr(self, name) is not None]
        return ", ".join([f"{self.head} on {self.input}", *more])


class KeysFile(_Part):
    """The file with the keys of the training rows that a head needs to predict."""

    file: str
    count: int
    sha256: str


class HeadFit(Fit):
    """A fitted head. Older records lack the fields that have a default.

    before_refit: the file of the same head, fitted to the training split only.
    rows:         the training rows of a head that needs them to predict.
    """

    file: str
    params: dict[str, Any]
    validation: dict[str, Any] = {}
    search: dict[str, Any] | None = None
    temperature: Number | None = None
    refit: bool | None = None
    learned_rows: int | None = None
    not_converged: str | None = None
    before_refit: str | None = None
    rows: KeysFile | None = None


class FailedFit(Fit):
    """A fit that failed, and the cause."""

    cause: str


class NetworkFit(Fit):
    """A trained network.

    kept:        the epoch of the saved weights, with its metrics.
    start:       the metrics before the first epoch.
    extra_tasks: the validation metrics of each further task of a student.
    """

    file: None
    params: dict[str, Any]
    search: None
    temperature: None
    rows: int
    epochs: int
    stopped: str
    probes: tuple[dict[str, Any], ...]
    start: dict[str, Number] | None
    kept: dict[str, Number]
    frozen: dict[str, str]
    samples: int | None = None
    labelled: int | None = None
    left_out: int | None = None
    extra_tasks: dict[str, dict[str, Any]] = {}


class TeacherRecord(_Part):
    """A teacher of a student: its name, the run it comes from, and which fit of that run, where it is a head.

    `task`: the task that it teaches, in older records, which list the teachers of all tasks of a student together.
    """

    name: str
    run: str
    backbone: str
    head: str | None
    input: str | None
    labels: int | None
    draw: int | None
    identity: dict[str, Any]
    task: str | None = None


class ExtraTask(TaskRecord):
    """A further task of a student, with its teachers."""

    teachers: tuple[TeacherRecord, ...]


class KeptNetwork(_Part):
    """The network in `backbone/` of a run: the digests of its initial and its trained weights, and its fit."""

    began_with: str = Field(alias="from")
    weights: str
    labels: int | None
    draw: int | None


class _Record(_Part):
    format: Literal[2] = 2
    settings: dict[str, Any]


class HeadsRecord(_Record):
    """The record of a run of `fit`. `scores`: the kind of scores of each head."""

    scores: dict[str, Scores]
    task: TaskRecord
    features: dict[str, FeaturesRecord]
    versions: dict[str, str]
    fits: tuple[HeadFit, ...]
    failed: tuple[FailedFit, ...] = ()

    @property
    def kind(self) -> Literal["heads"]:
        """Return what the run left."""
        return "heads"

    @property
    def backbone(self) -> str:
        """Return the entry of `extract` whose features the heads were fitted to."""
        return str(self.settings["backbone"])


class NetworkRecord(_Record):
    """The record of a run of `finetune` or `distill`. `features`: of a run that trained on stored rows."""

    task: TaskRecord
    features: dict[str, FeaturesRecord]
    scores: dict[str, Scores]
    network: KeptNetwork = Field(alias="backbone")
    student: str | None = None
    teachers: tuple[TeacherRecord, ...] = ()
    losses: dict[str, Any] | None = None
    extra_tasks: tuple[ExtraTask, ...] = ()
    fits: tuple[NetworkFit, ...]
    versions: dict[str, str]

    @property
    def kind(self) -> Literal["network"]:
        """Return what the run left."""
        return "network"

    @property
    def backbone(self) -> str:
        """Return the backbone that training started from."""
        return self.student or str(self.settings["backbone"])

    @property
    def kept_fit(self) -> NetworkFit:
        """Return the fit of the saved network."""
        wanted = (self.network.labels, self.network.draw)
        return next(fit for fit in self.fits if (fit.labels, fit.draw) == wanted)

    @property
    def own_teachers(self) -> tuple[TeacherRecord, ...]:
        """Return the teachers for the task of the run, without those for further tasks of a student."""
        return tuple(teacher for teacher in self.teachers if teacher.task in (None, self.task.name))

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """Return all tasks of the network, the task of the run first."""
        return (self.task, *self.extra_tasks)


ModelRecord = HeadsRecord | NetworkRecord
AnyFit = TypeVar("AnyFit", bound=Fit)


def is_student(record: ModelRecord) -> TypeGuard[NetworkRecord]:
    """Return whether a record is that of `distill`, with or without a teacher."""
    return isinstance(record, NetworkRecord) and record.student is not None


def find_fits(fits: Sequence[AnyFit], **asked: Any) -> list[AnyFit]:
    """Return the fits with these values of `head`, `input`, `labels` and `draw`; None means any value.

    If `labels` is None and several fits match, only the fits on all labels are returned, if there are any.
    """
    result = [fit for fit in fits if all(value in (None, getattr(fit, name)) for name, value in asked.items())]
    if asked.get("labels") is None and len(result) > 1:
        result = [fit for fit in result if fit.labels is None] or result
    return result


def has_record(folder: Path) -> bool:
    """Return whether a folder has the record of a finished run."""
    return (folder / JSON).is_file()


def read_record(folder: Path) -> ModelRecord:
    """Read the record of a run's folder.

    Raises HeadError if the folder has no record, or one of another format, or one with wrong fields, which it names.
    """
    if not has_record(folder):
        raise HeadError(
            f"{folder}: expected a run's folder with {JSON}, got none. Run `icecore repro fit@{folder.name}`."
        )
    return parse_record(read_json(folder / JSON), where=str(folder))


def record_of(evaluation: Mapping[str, Any]) -> ModelRecord:
    """Return the record that `evaluate` quotes in the tables of a run; raises HeadError as `read_record` does."""
    return parse_record(evaluation["made_from"], where=f"the evaluation of {evaluation['run']}")


def has_evaluated(evaluation: Mapping[str, Any], record: ModelRecord) -> bool:
    """Return whether tables of `evaluate` are those of the model with this record, not of an earlier model."""
    try:
        return parse_record(evaluation.get("made_from"), where="the evaluation") == record
    except HeadError:
        return False


def parse_record(values: Any, *, where: str) -> ModelRecord:
    """Return the record from JSON values, as other files contain it; raises HeadError as `read_record` does."""
    values = values if isinstance(values, dict) else {}
    network = "backbone" in values
    again = "Train" if network else "Fit"
    number = values.get("format")
    if number != FORMAT:
        raise HeadError(f"{where}: expected a {JSON} of format {FORMAT}, got {number}. {again} the run again.")
    try:
        return NetworkRecord.model_validate(values) if network else HeadsRecord.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, line['loc']))}: {line['msg'].lower()}" for line in error.errors()]
        raise HeadError(
            bullets(f"{where}: expected the {JSON} of a run, got another. {again} the run again", lines)
        ) from None


def write_record(folder: Path, record: ModelRecord) -> None:
    """Write the record of a run's folder."""
    write_json(folder / JSON, to_json(record))


def write_digest(folder: Path, out: Path) -> None:
    """Write `out/digest.json`, the digest of all files of a run's folder; stages that use the run depend on this file.

    `start` and `run` in params.yaml name a run, or are `backbone` or `scratch`. DVC inserts either into a path, so git
    has a folder with a digest for each of the two words, outside the models.
    """
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    write_json(out / "digest.json", {"model": digest(files)})


def to_json(record: BaseModel) -> dict[str, Any]:
    """Return a record, or a part of a record, as JSON values: the fields that were set, in their order."""
    return record.model_dump(mode="json", by_alias=True, exclude_unset=True)
