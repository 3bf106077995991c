"""Training of networks: end to end from pixels, or from the middle on stored activations.

samples       what an epoch is made of: pixels or stored rows, in an order that follows from a seed
augment       seeded augmentation of pixels
cut           the nodes at which a network can be cut, and what comes after one as a module
freezing      what of a network is trained, and what is frozen for good
losses        losses by the kind of task, class weights, mixup and cutmix
optimisation  optimisers, schedules of the learning rate, the learning-rate range test
loop          the one training loop, on Lightning Fabric
breakeven     after how many epochs stored activations pay for themselves
finetune      a run: training sets, network, loop, predictions, and the network in the backbone format
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Settings

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
