"""Training of networks: end to end from pixels, or from the middle on stored activations.

samples       batches of pixels or of stored rows, in orders that follow from a seed
pixels        every sample decoded once
tracer        the graph of a network, taken from its own code
graph         what runs in a network, in which order, and what needs what
cut           the nodes at which a network can be cut in two, and what runs on either side
suffix        what comes after a cut, as a module
parts         the setting that says which part of a network is trained
phases        which parameters and modules are trained from an epoch on
freezing      what of a network is trained, and what is frozen for good
losses        losses by the kind of task, class weights, mixup and cutmix
signals       what teachers say of the samples of a batch, and labels
knowledge     the settings of the losses of distillation
imitation     losses by which a student imitates a teacher
pairs         nodes of student and teacher that are compared, and in which form
live          a teacher's network that runs in every step
student       a network that learns from a teacher, with learned projections
distillation  what a student minimises
optimisation  optimisers, and schedules of the learning rate
lr_range      the learning-rate range test
history       what happens, epoch by epoch
checkpoint    everything that a run goes on with
finite        the watch over losses that are no numbers
loop          the one training loop, on Lightning Fabric
targets       the targets of a task as tensors
inputs        pixels or stored rows, and the part of a network that runs on them
breakeven     after how many epochs stored rows pay for themselves
start         what a network begins with
ready         a run before it is trained
finetune      a run: training sets, network, loop, predictions, and the network in the backbone format
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Settings
from pipeline.readers.augment import AugmentConfig
from pipeline.training.parts import BatchNorms, Part

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class LoopConfig(Settings):
    """How a network is trained, whatever it is trained for."""

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 32
    accumulate: Annotated[int, Field(ge=1, description="batches a step of the optimiser")] = 1
    learning_rate: Rate = 0.001
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[Share, Field(description="of sgd")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="not on norms and biases")] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1, description="learning rate of a layer over that of the next")] = 1.0
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = "cosine"
    warmup: Annotated[Share, Field(description="share of all steps; one_cycle has its own")] = 0.1
    milestones: Annotated[tuple[Share, ...], Field(description="of step: shares of all steps")] = (0.5, 0.75)
    decay: Annotated[float, Field(gt=0, lt=1, description="of step and plateau: factor")] = 0.1
    plateau: Annotated[int, Field(ge=1, description="of plateau: epochs without a better validation")] = 3
    clip: Annotated[Rate | None, Field(description="largest norm of the gradient")] = None
    ema: Annotated[Share | None, Field(description="decay of the moving average of the weights")] = None
    label_smoothing: Share = 0.0
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
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _together(self) -> "LoopConfig":
        if self.optimiser == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError("`momentum` belongs to `optimiser: sgd`, adamw has its own: leave it out")
        if self.monitor == "accuracy" and (self.schedule, self.weights, self.patience) == ("constant", "last", None):
            raise ValueError("nothing looks at `monitor` where the last weights are kept: leave it out")
        return self


class ClassifierConfig(Settings):
    """The new classifier: a linear layer, or more."""

    dropout: Annotated[Share, Field(description="before each layer of it")] = 0.0
    hidden: Annotated[int | None, Field(ge=1, description="width of a layer before the last, with a ReLU")] = None
    convolution: Annotated[int | None, Field(ge=1, description="side of a convolution after the last maps")] = None


BACKBONE, SCRATCH = "backbone", "scratch"
FROM_BACKBONE = (BACKBONE, SCRATCH)
"""What a run may start from besides the head of a fit run."""


class FinetuneConfig(LoopConfig):
    """A run: one network on one task, over some numbers of labels and draws."""

    task: str
    backbone: str
    start: Annotated[
        str, Field(description="backbone: its weights; scratch: new ones; a run of fit: its weights, and that head")
    ]
    input: Annotated[
        Literal["pixels", "features"], Field(description="features: stored rows of `tap`, what is before it is frozen")
    ] = "pixels"
    tap: Annotated[str | None, Field(description="of the extraction, with `pool: none`")] = None
    views: Annotated[int, Field(ge=0, description="stored augmented views of the tap, drawn from anew each epoch")] = 0
    augment: Annotated[AugmentConfig, Field(description="of pixels, anew in each epoch")] = ()
    train: Annotated[Part | None, Field(description="by default all, or all after the tap")] = None
    unfreeze: Annotated[
        dict[Annotated[int, Field(ge=1)], str], Field(description="from an epoch on, train what is after a node")
    ] = {}
    batch_norm: BatchNorms = "frozen"
    classifier: ClassifierConfig = ClassifierConfig()
    labels_per_class: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="few-shot; empty: all of train")
    ] = ()
    draws: Annotated[int, Field(ge=1, description="few-shot draws of the task, from the first")] = 1

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
        if len(set(self.labels_per_class)) < len(self.labels_per_class):
            raise ValueError("`labels_per_class`: expected each number once")
        return self
