"""Settings of the stage `distill`."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.distill.losses_config import LossesConfig
from pipeline.training.config import SCRATCH, BatchNorms, RunConfig
from pipeline.training.effects import idle_init

NONE = "none"
"""The value of `teacher` for no teacher."""


Teachers = str | Annotated[tuple[str, ...], Field(min_length=1)]


class DistillConfig(RunConfig):
    """Distillation: a student learns from outputs of teachers, and from labels."""

    REMOVED = RunConfig.REMOVED | {
        "live": "Write `teacher_outputs: online` for `live: true`, and leave it out for `live: false`.",
        "pixels": "Write `preprocessing`, with the same value.",
        "also": "Write `extra_tasks`, with the same value.",
    }

    student: Annotated[str, Field(description="the student network: a backbone")]
    start: Annotated[
        Literal["backbone", "scratch"], Field(description="backbone: pretrained weights; scratch: new weights")
    ]
    teacher: Annotated[
        Teachers, Field(description="entry of `teach`; a list: the mean of their probabilities; none: labels only")
    ]
    losses: LossesConfig = Field(description="the losses, with weights")
    unlabelled: Annotated[
        bool,
        Field(description="use the other training rows too; without a teacher, labelled rows are repeated instead"),
    ] = False
    datasets: Annotated[tuple[str, ...], Field(description="data sets with further unlabelled samples")] = ()
    views: Annotated[
        int, Field(ge=0, description="number of the teacher's stored views; each epoch draws one per sample")
    ] = 0
    teacher_outputs: Annotated[
        Literal["stored", "online"],
        Field(description="stored: scores from the stage `teach`; online: the teacher network runs in each step"),
    ] = "stored"
    preprocessing: Annotated[
        Literal["same", "own"],
        Field(description="of the student's images; same: that of the teachers; own: the student's `input`"),
    ] = "same"
    extra_tasks: Annotated[
        dict[str, Teachers],
        Field(description="{task: teachers}: further tasks; the student has a classifier for each"),
    ] = {}
    batch_norm: BatchNorms = Field(
        default="train", description="BatchNorm of the student: frozen, trained, or recomputed at the end"
    )

    @property
    def teachers(self) -> dict[str, tuple[str, ...]]:
        """Return {task: names of its teachers}, the run's task first; () for no teachers."""
        teachers = {self.task: self.teacher, **self.extra_tasks}
        return {
            task: (() if names == NONE else (names,)) if isinstance(names, str) else names
            for task, names in teachers.items()
        }

    @property
    def online(self) -> bool:
        """Return whether the teacher's network runs in each training step."""
        return self.teacher_outputs == "online"

    @property
    def taught(self) -> bool:
        """Return whether there is any teacher."""
        return any(self.teachers.values())

    @property
    def reads_labels(self) -> bool:
        """Return whether labels have a weight at any time."""
        return "labels" in self.losses.active

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        labels, teacher_losses = self.reads_labels, self.losses.of_teacher
        if self.task in self.extra_tasks:
            raise ValueError(f"`extra_tasks`: expected tasks besides {self.task!r}")
        if not self.taught and not labels:
            raise ValueError("`teacher: none` and no weight for `labels`: there is nothing to learn from")
        if not self.taught and teacher_losses:
            raise ValueError(
                f"`{teacher_losses[0]}` needs a teacher, but `teacher: none` is set: set one, or drop that loss"
            )
        if self.taught and not teacher_losses:
            raise ValueError("no loss uses the teacher: add `soft`, or set `teacher: none`")
        if self.losses.hint_names and len(self.teachers[self.task]) != 1:
            raise ValueError("`hints`, `attention` and `relational` need a single teacher of the task: set one")
        if self.labels_per_class and self.unlabelled and not labels:
            raise ValueError("`labels_per_class` has no effect if `labels` have no weight: leave it out")
        if self.start == SCRATCH and self.batch_norm == "frozen":
            raise ValueError("`start: scratch` has no statistics to keep: expected `batch_norm: train`")
        if not labels and (self.label_smoothing or self.class_weights != "none"):
            raise ValueError("`label_smoothing` and `class_weights` belong to `losses.labels`, which has no weight")
        if not self.taught and (self.datasets or self.preprocessing == "own"):
            raise ValueError("`datasets` and `preprocessing: own` need a teacher: leave them out, or set `teacher`")
        if self.mixup or self.cutmix:
            raise ValueError("`mixup` and `cutmix` create samples without stored scores: leave them out")
        if idle := list(idle_in_distillation(self)):
            raise ValueError("; ".join(idle))
        return self._check_images()

    def _check_images(self) -> Self:
        if self.online and (self.extra_tasks or len(self.teachers[self.task]) != 1):
            raise ValueError(
                "`teacher_outputs: online` runs a single teacher of a single task: expected no "
                "`extra_tasks`, and one `teacher`"
            )
        if self.views and (self.online or not self.taught):
            raise ValueError(
                "`views` are stored with a teacher's scores: expected a teacher, and `teacher_outputs: stored`"
            )
        if self.views and self.augment:
            raise ValueError("`views` are the images that the teacher saw: leave out `augment`")
        if self.augment and self.taught and not self.online:
            raise ValueError(
                "`augment` changes images, but the teacher's stored scores are for the original images: use `views`, "
                "or `teacher_outputs: online`"
            )
        if self.preprocessing == "own" and (self.views or self.online):
            raise ValueError(
                "`views` and `teacher_outputs: online` give student and teacher the same image: expected "
                "`preprocessing: same`"
            )
        return self


def idle_in_distillation(config: DistillConfig) -> Iterator[str]:
    """Yield the settings of distillation without effect."""
    yield from idle_init(config.classifier, config.start)
    if config.unlabelled and not config.labels_per_class:
        yield "`unlabelled` adds the rows that `labels_per_class` leaves out: expected both, or leave it out"
    losses = config.losses
    idle = {name for name in losses.weights if name != "labels" and name not in losses.active}
    if not {"relational.distance", "relational.angle"} <= idle:  # one of the two may be off
        idle -= {"relational.distance", "relational.angle"}
    if losses.decoupled is not None and not losses.decoupled.alpha and not losses.decoupled.beta:
        idle.add("decoupled")
    for name in sorted(idle):
        yield f"`losses.{name}` has no weight: expected one above 0, or leave it out"
