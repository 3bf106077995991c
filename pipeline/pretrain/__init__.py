"""Pretraining of the small source network of the default run, on distorted pictures of printed characters.

distort   random distortions of a batch, on tensors
train     the training loop, and the network in the backbone format
"""

from typing import Annotated

from pydantic import Field

from pipeline.config import Settings


class PretrainConfig(Settings):
    """A small network trained from scratch on one data set."""

    dataset: str
    target: str = "label"
    steps: Annotated[int, Field(ge=1)] = 400
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.003
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=5)] = (32, 64, 128)
    seed: int = 0
