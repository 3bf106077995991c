"""Settings of the stage `pretrain`."""

from typing import Annotated

from pydantic import Field

from pipeline.settings.check import Settings


class PretrainConfig(Settings):
    """A small network that is trained from scratch on one data set."""

    dataset: str = Field(description="an entry of `prepare`")
    target: str = Field(default="label", description="the label column to learn")
    steps: Annotated[int, Field(ge=1)] = Field(default=400, description="batches to train for")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=128, description="images per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=0.003, description="peak of the one-cycle schedule")
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=5)] = Field(
        default=(32, 64, 128), description="channels of each block"
    )
    seed: int = Field(default=0, description="seed of the weights, the sampling and the distortions")
