"""Settings of the stage `compare`."""

from typing import Annotated

from pydantic import Field

from pipeline.settings.check import Settings


class CompareConfig(Settings):
    """How methods are compared."""

    significance: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="level of the tests, all together"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(default=10_000, description="of the paired bootstrap")
    seed: int = Field(default=0, description="of the bootstrap")
