"""The record of a run's models, `data/models/<run>/model.json`: what they were made from, and each fit.

`fit` leaves heads on stored features, a `HeadsRecord`; `finetune` and `distill` leave a network, a `NetworkRecord`:

    record = read_record(folder)
    record.task.classes               the classes, in the order of scores
    record.kind                       "heads" or "network"
    find_fits(record.fits, labels=5)  the fits that a description means
    record.features["layer4"].reader  how the images of an input were read

What a version of icecore writes beyond these fields is kept: a record that is read and written again is the same text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

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
    """The task that a run learned. `classes`: in the order of scores; none of a regression."""

    name: str
    sha256: str
    kind: Kind
    classes: tuple[str, ...]


class FeaturesRecord(_Part):
    """Stored features that a run read: their address in the feature cache, and what they are."""

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
        """Return how images were read: the preprocessing before normalisation."""
        return dict(self.identity["reader"])


class Fit(_Part):
    """One model of a run. `labels`: per class, None for all; `draw`: of few labels, or the seed."""

    head: str
    input: str
    labels: int | None
    draw: int | None

    @property
    def taps(self) -> list[str]:
        """Return the taps that are joined to the input, in their order."""
        return self.input.split("+")

    def __str__(self) -> str:
        more = [f"{name} {getattr(self, name)}" for name in ("labels", "draw") if getattr(self, name) is not None]
        return ", ".join([f"{self.head} on {self.input}", *more])


class KeysFile(_Part):
    """The keys of the training rows that a head looks at, in a file of their own."""

    file: str
    count: int
    sha256: str


class HeadFit(Fit):
    """A fitted head. `rows`: of a head that looks at its training rows. `before_refit`: the file of the same head
    fitted to the training split alone. The fields with a default are lacking in older records.
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
    """A fit that could not be made, and why."""

    cause: str


class NetworkFit(Fit):
    """A trained network. `kept`: the epoch of its weights with its metrics; `start`: the same before the first epoch.

    `extra_tasks`: of a student of several tasks, what validation measured on each further one.
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
    """A teacher of a student: its name, the run it comes from, and which fit of that run, where it is a head."""

    name: str
    run: str
    backbone: str
    head: str | None
    input: str | None
    labels: int | None
    draw: int | None
    identity: dict[str, Any]


class ExtraTask(TaskRecord):
    """A further task that a student learned, with its teachers."""

    teachers: tuple[TeacherRecord, ...]


class KeptNetwork(_Part):
    """The network that a run kept, in `backbone/`: the weights it began with, its own, and which fit it is."""

    began_with: str = Field(alias="from")
    weights: str
    labels: int | None
    draw: int | None


class _Record(_Part):
    format: Literal[2] = 2
    settings: dict[str, Any]


class HeadsRecord(_Record):
    """The record of a run of `fit`. `scores`: what the scores of each head are."""

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
        """Return the entry of `extract` whose features the heads learned from."""
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
        """Return the backbone that the run began with."""
        return self.student or str(self.settings["backbone"])

    @property
    def kept_fit(self) -> NetworkFit:
        """Return the fit whose network the run kept."""
        wanted = (self.network.labels, self.network.draw)
        return next(fit for fit in self.fits if (fit.labels, fit.draw) == wanted)

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """Return all tasks that the network learned, that of the run first."""
        return (self.task, *self.extra_tasks)


ModelRecord = HeadsRecord | NetworkRecord
AnyFit = TypeVar("AnyFit", bound=Fit)


def find_fits(fits: Sequence[AnyFit], **asked: Any) -> list[AnyFit]:
    """Return the fits with these values of `head`, `input`, `labels` and `draw`, where None means any value.

    Where `labels` is left open and several fits remain, the fits on all labels are meant, if the run has some.
    """
    result = [fit for fit in fits if all(value in (None, getattr(fit, name)) for name, value in asked.items())]
    if asked.get("labels") is None and len(result) > 1:
        result = [fit for fit in result if fit.labels is None] or result
    return result


def has_record(folder: Path) -> bool:
    """Return whether a folder is that of a run that has ended."""
    return (folder / JSON).is_file()


def read_record(folder: Path) -> ModelRecord:
    """Read the record of a run's folder.

    Raises HeadError where there is none, where it has another format, and with the fields that it lacks.
    """
    if not has_record(folder):
        raise HeadError(
            f"{folder}: expected a run's folder with {JSON}, got none. Run `icecore repro fit@{folder.name}`."
        )
    return parse_record(read_json(folder / JSON), where=str(folder))


def parse_record(values: dict[str, Any], *, where: str) -> ModelRecord:
    """Return the record of plain values, as other files quote it; raises HeadError as `read_record` does."""
    network = "backbone" in values
    again = "Train" if network else "Fit"
    number = values.get("format") if isinstance(values, dict) else None
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
    """Write `out/digest.json`, of all files of a run's folder: what builds on the run depends on that.

    `start` and `run` in params.yaml name a run, or say `backbone` or `scratch`. DVC makes one path of either, and git
    keeps a folder for each of the two words: not among the models.
    """
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    write_json(out / "digest.json", {"model": digest(files)})


def to_json(record: BaseModel) -> dict[str, Any]:
    """Return a record, or a part of one, as plain values: the fields that were set, in their order."""
    return record.model_dump(mode="json", by_alias=True, exclude_unset=True)
