"""Settings of the stage `training`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.distill.knowledge import LossesConfig
from pipeline.readers.augment import AugmentConfig
from pipeline.settings.check import Settings
from pipeline.task import Kind
from pipeline.training import effects
from pipeline.training.parts import BatchNorms, Part

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class LoopConfig(Settings):
    """How a network is trained, whatever it is trained for."""

    epochs: Annotated[int, Field(ge=1)] = Field(default=20, description="passes over the training rows")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="samples per step")
    accumulate: Annotated[int, Field(ge=1, description="batches a step of the optimiser")] = 1
    learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="the highest one; auto: by the range test on the largest training set"
    )
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw or sgd")
    momentum: Annotated[Share, Field(description="of sgd")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="not on norms and biases")] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1, description="learning rate of a layer over that of the next")] = 1.0
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = Field(
        default="cosine", description="of the learning rate"
    )
    warmup: Annotated[Share, Field(description="share of all steps; one_cycle has its own")] = 0.1
    milestones: Annotated[tuple[Share, ...], Field(description="of step: shares of all steps")] = (0.5, 0.75)
    decay: Annotated[float, Field(gt=0, lt=1, description="of step and plateau: factor")] = 0.1
    plateau: Annotated[int, Field(ge=1, description="of plateau: epochs without a better validation")] = 3
    clip: Annotated[Rate | None, Field(description="largest norm of the gradient")] = None
    ema: Annotated[Share | None, Field(description="decay of the moving average of the weights")] = None
    label_smoothing: Share = Field(default=0.0, description="share of each target that goes to all classes")
    class_weights: Annotated[
        Literal["none", "balanced"] | dict[str, Rate], Field(description="or a weight a class, 1 for those left out")
    ] = "none"
    mixup: Annotated[float, Field(ge=0, description="alpha; 0: off")] = 0.0
    cutmix: Annotated[float, Field(ge=0, description="alpha; 0: off")] = 0.0
    monitor: Annotated[Literal["loss", "accuracy"], Field(description="validation, for best weights and patience")] = (
        "loss"
    )
    patience: Annotated[int | None, Field(ge=1, description="epochs without a better validation; none: all")] = None
    weights: Annotated[Literal["best", "last"], Field(description="which are kept; best needs validation rows")] = (
        "best"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the computation")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    devices: Annotated[int, Field(ge=1)] = Field(default=1, description="how many GPUs")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of the classifier, the order of samples and the augmentation"
    )

    @model_validator(mode="after")
    def _together(self) -> "LoopConfig":
        if idle := list(effects.idle_settings(self)):
            raise ValueError("; ".join(idle))
        return self

    @property
    def rate(self) -> float:
        """The learning rate, once it is a number: runs replace `auto` before they train."""
        assert self.learning_rate != "auto", "the range test comes first"
        return self.learning_rate

    def unsuited(self, kind: Kind, *, validation: bool) -> list[str]:
        """Return what does not suit a task of a kind, with or without validation rows; each begins with the setting."""
        return list(effects.unsuited(self, kind, validation=validation))


BACKBONE, SCRATCH = "backbone", "scratch"
FROM_BACKBONE = (BACKBONE, SCRATCH)
"""What a run may start from besides another run."""


class ClassifierConfig(Settings):
    """The new classifier: a linear layer, or more."""

    init: Literal["probe", "random"] = Field(
        default="probe",
        description="what one layer on a backbone's weights starts as: a head fitted to its inputs, or random weights",
    )

    dropout: Annotated[Share, Field(description="before each layer of it")] = 0.0
    hidden: Annotated[int | None, Field(ge=1, description="width of a layer before the last, with a ReLU")] = None
    convolution: Annotated[int | None, Field(ge=1, description="side of a convolution after the last maps")] = None

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        if "init" in self.model_fields_set and self.init == "probe" and (self.hidden or self.convolution):
            raise ValueError("`init: probe` is of one layer: leave `hidden` and `convolution` out, or `init`")
        return self

    def is_fitted(self, start: str) -> bool:
        """Whether the classifier of a network starts as a fitted head; `start`: of a run."""
        return self.init == "probe" and start == BACKBONE and not (self.hidden or self.convolution)


class RunConfig(LoopConfig):
    """A run: one network on one task, over some numbers of labels and draws."""

    task: str = Field(description="an entry of `split`")
    classifier: ClassifierConfig = Field(default=ClassifierConfig(), description="of the new last layer")
    labels_per_class: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="few-shot; empty: all of train")
    ] = ()
    draws: Annotated[int, Field(ge=1, description="few-shot draws of the task, from the first")] = 1
    augment: Annotated[AugmentConfig, Field(description="of pixels, anew in each epoch")] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.labels_per_class)) < len(self.labels_per_class):
            raise ValueError("`labels_per_class`: expected each number once")
        if idle := list(effects.idle_in_run(self)):
            raise ValueError("; ".join(idle))
        return self


class FinetuneConfig(RunConfig):
    """A network that is trained further on labels."""

    backbone: str = Field(description="an entry of `freeze`, or of `extract` for `input: features`")
    start: Annotated[
        str,
        Field(
            description="backbone: its weights; scratch: new ones; a run of fit: its weights, and that head; a run of "
            "finetune or distill: its network"
        ),
    ]
    input: Annotated[
        Literal["pixels", "features"], Field(description="features: stored rows of `tap`, what is before it is frozen")
    ] = "pixels"
    tap: Annotated[str | None, Field(description="of the extraction, with `pool: none`")] = None
    views: Annotated[int, Field(ge=0, description="stored augmented views of the tap, drawn from anew each epoch")] = 0
    train: Annotated[Part | None, Field(description="by default all, or all after the tap")] = None
    unfreeze: Annotated[
        dict[Annotated[int, Field(ge=1)], str], Field(description="from an epoch on, train what is after a node")
    ] = {}
    batch_norm: BatchNorms = Field(
        default="frozen",
        description="of the trained part: statistics as they are, trained, or measured anew at the end",
    )

    @model_validator(mode="after")
    def _of_one_input(self) -> "FinetuneConfig":
        if self.input == "features":
            if self.tap is None:
                raise ValueError("`input: features` needs a `tap`, an extraction's with `pool: none`")
            if self.start == SCRATCH:
                raise ValueError("`start: scratch` trains all weights: expected `input: pixels`")
            if self.augment or self.mixup or self.cutmix:
                raise ValueError(
                    "`augment`, `mixup` and `cutmix` are of pixels: expected `views` with `input: features`"
                )
        elif self.tap is not None or self.views:
            raise ValueError("`tap` and `views` are of stored rows: expected `input: features` with them")
        if self.start == SCRATCH and (self.batch_norm == "frozen" or self.train not in (None, "full") or self.unfreeze):
            raise ValueError("`start: scratch` has nothing to freeze: expected `train: full` and `batch_norm: train`")
        if self.unfreeze and self.devices > 1:
            raise ValueError("`unfreeze` changes what several devices keep equal: expected `devices: 1`")
        if idle := list(effects.idle_in_finetuning(self)):
            raise ValueError("; ".join(idle))
        return self


NONE = "none"
"""The teacher of those who have none."""

Teachers = str | Annotated[tuple[str, ...], Field(min_length=1)]


class DistillConfig(RunConfig):
    """A student that learns from stored scores of teachers, and from labels."""

    student: Annotated[str, Field(description="a backbone")]
    start: Annotated[Literal["backbone", "scratch"], Field(description="its weights, or new ones")]
    teacher: Annotated[
        Teachers, Field(description="of teach; several: the mean of their probabilities; none: labels alone")
    ]
    losses: LossesConfig = Field(description="what the student learns, with weights")
    unlabelled: Annotated[
        bool,
        Field(description="the other training rows too; without a teacher labelled rows come again in their place"),
    ] = False
    datasets: Annotated[tuple[str, ...], Field(description="whose samples are learned from too, without labels")] = ()
    views: Annotated[int, Field(ge=0, description="stored views of the teacher, drawn from anew each epoch")] = 0
    live: Annotated[bool, Field(description="the teacher's network runs in each step, the reference")] = False
    pixels: Annotated[
        Literal["same", "own"], Field(description="same: read as the teacher read them; own: as the student reads")
    ] = "same"
    also: Annotated[
        dict[str, Teachers], Field(description="further tasks with their teachers: a classifier of each side by side")
    ] = {}
    batch_norm: BatchNorms = Field(
        default="train", description="of the student: statistics as they are, trained, or measured anew at the end"
    )

    @property
    def teachers(self) -> dict[str, tuple[str, ...]]:
        """The names of the teachers of each task, that of the run first; () where there are none."""
        told = {self.task: self.teacher, **self.also}
        return {
            task: (() if names == NONE else (names,)) if isinstance(names, str) else names
            for task, names in told.items()
        }

    @property
    def taught(self) -> bool:
        """Whether there is any teacher."""
        return any(self.teachers.values())

    @property
    def reads_labels(self) -> bool:
        """Whether labels have a weight at some time."""
        return "labels" in self.losses.active

    @model_validator(mode="after")
    def _can_be_learned(self) -> Self:
        labels, told = self.reads_labels, self.losses.of_teacher
        if self.task in self.also:
            raise ValueError(f"`also`: expected tasks besides {self.task!r}")
        if not self.taught and not labels:
            raise ValueError("`teacher: none` and no weight of `labels`: there is nothing to learn from")
        if not self.taught and told:
            raise ValueError(f"`teacher: none` has nothing for `{told[0]}`: name a teacher, or leave that loss out")
        if self.taught and not told:
            raise ValueError("no loss reads what the teacher says: give `soft`, or say `teacher: none`")
        if self.losses.hint_names and len(self.teachers[self.task]) != 1:
            raise ValueError("`hints`, `attention` and `relational` are of one teacher of the task: name one")
        if self.labels_per_class and self.unlabelled and not labels:
            raise ValueError("`labels_per_class` changes nothing where `labels` have no weight: leave it out")
        if self.start == SCRATCH and self.batch_norm == "frozen":
            raise ValueError("`start: scratch` has no statistics to keep: expected `batch_norm: train`")
        if not labels and (self.label_smoothing or self.class_weights != "none"):
            raise ValueError("`label_smoothing` and `class_weights` are of `losses.labels`, which have no weight")
        if not self.taught and (self.datasets or self.pixels == "own"):
            raise ValueError("`datasets` and `pixels: own` are for what a teacher says: leave them out without one")
        if self.mixup or self.cutmix:
            raise ValueError("`mixup` and `cutmix` make samples that no stored score belongs to: leave them out")
        if idle := list(effects.idle_in_distillation(self)):
            raise ValueError("; ".join(idle))
        return self._pixels_fit()

    def _pixels_fit(self) -> Self:
        if self.live and (self.also or len(self.teachers[self.task]) != 1):
            raise ValueError("`live` runs the one teacher of the one task: expected no `also`, and one `teacher`")
        if self.views and (self.live or not self.taught):
            raise ValueError("`views` are stored with a teacher's scores: expected a teacher, and `live: false`")
        if self.views and self.augment:
            raise ValueError("`views` are the pixels that the teacher saw: leave `augment` out")
        if self.augment and self.taught and not self.live:
            raise ValueError(
                "`augment` makes pixels that the teacher's stored scores are not of: expected `views`, or `live: true`"
            )
        if self.pixels == "own" and (self.views or self.live):
            raise ValueError("`views` and `live` give student and teacher one image: expected `pixels: same`")
        return self
