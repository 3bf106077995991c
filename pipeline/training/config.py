"""Settings that fine-tuning and distillation share: the loop, the new classifier, training sets, trained parts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.readers.transforms import AugmentConfig
from pipeline.settings.check import Settings
from pipeline.task import Kind
from pipeline.training import effects

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class LoopConfig(Settings):
    """How a network is trained, whatever it is trained for."""

    REMOVED = {
        "milestones": "`schedule: step` falls after half and three quarters of the steps: leave it out.",
        "decay": "`schedule: step` and `plateau` fall to a tenth each time: leave it out.",
        "plateau": "`schedule: plateau` falls after 3 epochs without a better validation: leave it out.",
    }

    epochs: Annotated[int, Field(ge=1)] = Field(default=20, description="passes over the training rows")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="samples per step")
    accumulate: Annotated[int, Field(ge=1, description="batches per step of the optimiser")] = 1
    learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="the highest one; auto: by the range test on the largest training set"
    )
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw or sgd")
    momentum: Annotated[Share, Field(description="of sgd")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="not on norms and biases")] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1, description="learning rate of a layer over that of the next")] = 1.0
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = Field(
        default="cosine",
        description="of the learning rate; step: a tenth after half and three quarters of the steps; plateau: a tenth "
        "after 3 epochs without a better validation",
    )
    warmup: Annotated[Share, Field(description="share of all steps; one_cycle has its own")] = 0.1
    clip: Annotated[Rate | None, Field(description="largest norm of the gradient")] = None
    ema: Annotated[Share | None, Field(description="decay of the moving average of the weights")] = None
    label_smoothing: Share = Field(default=0.0, description="share of each target that goes to all classes")
    class_weights: Annotated[
        Literal["none", "balanced"] | dict[str, Rate], Field(description="or a weight per class, 1 for those left out")
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
        """Return the learning rate, once it is a number: runs replace `auto` before they train."""
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
        """Return whether the classifier of a network starts as a fitted head; `start`: of a run."""
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


class LastBlocks(Settings):
    """The last blocks: residual blocks, blocks of transformers, and layers outside of such blocks."""

    last_k: Annotated[int, Field(ge=1)] = Field(description="so many last blocks are trained")


class FromTap(Settings):
    """Everything that runs after a node; a node at which the network can be cut in two."""

    from_tap: str = Field(description="what comes after this node is trained")


class Patterns(Settings):
    """The parameters whose names, or the names of modules around them, match one of some patterns with `*` and `?`.

    The classifier of a run is trained too, whatever they say.
    """

    patterns: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="names of parameters that are trained, with * for anything"
    )


Part = Literal["head", "full"] | LastBlocks | FromTap | Patterns

BatchNorms = Literal["frozen", "train", "recalibrate"]
"""What the BatchNorm layers of the trained part do; those of the frozen part are frozen, and so are those of `frozen`.

frozen        statistics, scale and shift stay
train         they use and follow the statistics of the batches
recalibrate   as `train`; at the end their statistics are computed anew over the training samples
"""
