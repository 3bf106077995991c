"""Settings of the stage `compare`."""

from typing import Annotated

from pydantic import Field

from pipeline.settings.check import Settings


class CompareConfig(Settings):
    """Settings of the paired tests."""

    significance: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="significance level of each family of tests, after Holm's correction"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(
        default=10_000, description="number of resamples of the paired bootstrap"
    )
    seed: int = Field(default=0, description="seed of the bootstrap")
