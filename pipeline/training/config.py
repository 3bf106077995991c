"""Settings shared by fine-tuning and distillation: training loop, classifier, training sets, trainable parts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.readers.transforms import AugmentConfig
from pipeline.settings.check import Settings
from pipeline.task import Kind
from pipeline.training import effects

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class LoopConfig(Settings):
    """The training loop: optimizer, schedule, regularisation, early stopping, device."""

    REMOVED = {
        "milestones": "`schedule: step` falls after half and three quarters of the steps: leave it out.",
        "decay": "`schedule: step` and `plateau` fall to a tenth each time: leave it out.",
        "plateau": "`schedule: plateau` falls after 3 epochs without a better validation: leave it out.",
    }

    epochs: Annotated[int, Field(ge=1)] = Field(default=20, description="passes over the training rows")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="samples per step")
    accumulate: Annotated[int, Field(ge=1, description="batches per optimizer step")] = 1
    learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="peak learning rate; auto: from the range test on the largest training set"
    )
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="optimizer")
    momentum: Annotated[Share, Field(description="momentum of sgd")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, except on norms and biases")] = 0.01
    layer_decay: Annotated[
        float, Field(gt=0, le=1, description="ratio of the learning rates of a block and the next block")
    ] = 1.0
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = Field(
        default="cosine",
        description="learning-rate schedule; step: divided by 10 after 1/2 and 3/4 of the steps; plateau: divided "
        "by 10 after 3 epochs without a better validation",
    )
    warmup: Annotated[Share, Field(description="share of steps with linear warm-up; not for one_cycle")] = 0.1
    clip: Annotated[Rate | None, Field(description="maximum norm of the gradient")] = None
    ema: Annotated[Share | None, Field(description="decay of the exponential moving average of weights")] = None
    label_smoothing: Share = Field(default=0.0, description="share of each target that is spread over all classes")
    class_weights: Annotated[
        Literal["none", "balanced"] | dict[str, Rate],
        Field(description="none, balanced, or a weight per class (default 1)"),
    ] = "none"
    mixup: Annotated[float, Field(ge=0, description="alpha of mixup; 0: off")] = 0.0
    cutmix: Annotated[float, Field(ge=0, description="alpha of cutmix; 0: off")] = 0.0
    monitor: Annotated[
        Literal["loss", "accuracy"], Field(description="validation metric for best weights and patience")
    ] = "loss"
    patience: Annotated[
        int | None, Field(ge=1, description="epochs without improvement before stopping; null: never stop early")
    ] = None
    weights: Annotated[
        Literal["best", "last"], Field(description="epoch whose weights are saved; best needs validation rows")
    ] = "best"
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="precision of the computation")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    devices: Annotated[int, Field(ge=1)] = Field(default=1, description="number of GPUs")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="seed of the classifier, the order of samples and the augmentation"
    )

    @model_validator(mode="after")
    def _check_effects(self) -> "LoopConfig":
        if idle := list(effects.idle_settings(self)):
            raise ValueError("; ".join(idle))
        return self

    @property
    def rate(self) -> float:
        """Return the learning rate as a number: runs replace `auto` before they train."""
        assert self.learning_rate != "auto", "the range test comes first"
        return self.learning_rate

    def unsuited(self, kind: Kind, *, validation: bool) -> list[str]:
        """Return the problems of the settings for a kind of task; each begins with the setting."""
        return list(effects.unsuited(self, kind, validation=validation))


BACKBONE, SCRATCH = "backbone", "scratch"
FROM_BACKBONE = (BACKBONE, SCRATCH)
"""Values of `start` other than the name of a run."""


class ClassifierConfig(Settings):
    """The new classifier: a linear layer, with optional dropout, hidden layer and convolution."""

    init: Literal["probe", "random"] = Field(
        default="probe",
        description="initial weights of a one-layer classifier on a pretrained backbone: a fitted head, or random",
    )

    dropout: Annotated[Share, Field(description="dropout before each layer of the classifier")] = 0.0
    hidden: Annotated[int | None, Field(ge=1, description="width of a hidden layer with ReLU")] = None
    convolution: Annotated[
        int | None, Field(ge=1, description="kernel size of a convolution after the last feature maps")
    ] = None

    @model_validator(mode="after")
    def _probe_is_one_layer(self) -> Self:
        if "init" in self.model_fields_set and self.init == "probe" and (self.hidden or self.convolution):
            raise ValueError("`init: probe` needs a one-layer classifier: drop `hidden`, `convolution`, or `init`")
        return self

    def is_fitted(self, start: str) -> bool:
        """Return whether the classifier is initialised by a fitted head; `start`: setting of the run."""
        return self.init == "probe" and start == BACKBONE and not (self.hidden or self.convolution)


class RunConfig(LoopConfig):
    """A training run: a network on a task, with one training set per number of labels and draw."""

    task: str = Field(description="a task: an entry of `split`")
    classifier: ClassifierConfig = Field(default=ClassifierConfig(), description="the new classifier")
    labels_per_class: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="numbers of labels per class (few-shot); empty: all training rows"),
    ] = ()
    draws: Annotated[int, Field(ge=1, description="number of few-shot draws of the task to use")] = 1
    augment: Annotated[AugmentConfig, Field(description="random transforms of the images in each epoch")] = ()

    @model_validator(mode="after")
    def _check_labels_and_draws(self) -> Self:
        if len(set(self.labels_per_class)) < len(self.labels_per_class):
            raise ValueError("`labels_per_class`: expected each number once")
        if idle := list(effects.idle_in_run(self)):
            raise ValueError("; ".join(idle))
        return self


class LastBlocks(Settings):
    """Train the last blocks: residual blocks, transformer blocks, and layers outside of such blocks."""

    last_k: Annotated[int, Field(ge=1)] = Field(description="number of last blocks to train")


class FromTap(Settings):
    """Train everything after a node at which the network can be split."""

    from_tap: str = Field(description="train everything after this node")


class Patterns(Settings):
    """Train the parameters whose name, or the name of a module around them, matches a pattern with `*` and `?`.

    A new classifier is always trained.
    """

    patterns: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="patterns for names of parameters or modules, such as layer4.*"
    )


Part = Literal["head", "full"] | LastBlocks | FromTap | Patterns

BatchNorms = Literal["frozen", "train", "recalibrate"]
"""The mode of the BatchNorm layers in the trained part; those of the frozen part are always frozen.

frozen        statistics, scale and shift do not change
train         statistics follow the batches
recalibrate   as `train`; at the end, statistics are recomputed over the training samples
"""
