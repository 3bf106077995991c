"""Settings of the stage `finetune`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.training.config import SCRATCH, BatchNorms, Part, RunConfig
from pipeline.training.effects import idle_init


class FinetuneConfig(RunConfig):
    """Fine-tuning of a network on a labelled task."""

    backbone: str = Field(description="an entry of `freeze`, or of `extract` for `input: features`")
    start: Annotated[
        str,
        Field(
            description="backbone: its weights; scratch: new weights; a run of fit: the backbone with that head; a run "
            "of finetune or distill: its network"
        ),
    ]
    input: Annotated[
        Literal["pixels", "features"],
        Field(description="pixels: the images; features: stored rows of `tap`, what is before the tap is frozen"),
    ]
    tap: Annotated[str | None, Field(description="tap of the extraction, with `pool: none`")] = None
    views: Annotated[
        int, Field(ge=0, description="stored augmented views of the tap; each epoch draws one per sample")
    ] = 0
    train: Annotated[Part | None, Field(description="part to train; default: all, or all after the tap")] = None
    unfreeze: Annotated[
        dict[Annotated[int, Field(ge=1)], str],
        Field(description="{epoch: node}: from that epoch on, train everything after the node"),
    ] = {}
    batch_norm: BatchNorms = Field(
        default="frozen",
        description="BatchNorm of the trained part: frozen, trained, or recomputed at the end",
    )

    @model_validator(mode="after")
    def _check_input(self) -> "FinetuneConfig":
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
        if idle := list(idle_in_finetuning(self)):
            raise ValueError("; ".join(idle))
        return self


def idle_in_finetuning(config: FinetuneConfig) -> Iterator[str]:
    """Yield the settings of fine-tuning that nothing follows from."""
    yield from idle_init(config.classifier, config.start)
    late = sorted(epoch for epoch in config.unfreeze if epoch >= config.epochs)
    if late:
        last = config.epochs - 1
        yield f"`unfreeze` from epoch {late[0]} on never happens: expected at most {last}, the last of `epochs`, from 0"
    if config.unfreeze and config.input == "pixels" and config.train in (None, "full"):
        yield "`unfreeze` has nothing to add where all is trained: expected `train` with less, such as `train: head`"
