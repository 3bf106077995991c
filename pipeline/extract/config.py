"""Settings of the stage `extract`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.backbones.spec import TapSpec
from pipeline.engines import BATCH, Name, Precision
from pipeline.readers.augment import Views
from pipeline.settings.check import NAME, Settings
from pipeline.workers import WorkersConfig


def folder_of(tap: str, view: int | None = None) -> str:
    """Return the folder name of a tap, or of one of its views, below `data/features/<backbone>/`."""
    return tap if view is None else f"{tap}.view{view}"


class RunConfig(WorkersConfig):
    """Where the work is done; values differ at most by rounding, as with another number of threads."""

    decode: Annotated[
        Literal["auto", "threads", "processes"],
        Field(description="how images are decoded; auto: by processes with a GPU or many cores"),
    ] = "auto"


class ExtractConfig(Settings):
    """The data sets and taps to extract with a backbone."""

    REMOVED = {
        "limits": "How near an engine must be to torch float32 is fixed: leave it out, or write `engine: torch`."
    }

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="entries of `prepare`")
    taps: Annotated[dict[str, TapSpec], Field(min_length=1)] = Field(
        description="name of a tap to its node and pooling"
    )
    views: Annotated[
        Views | None, Field(description="augmented copies of every sample, extracted in addition to the originals")
    ] = None
    batch_size: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(description="auto: 64 on a CPU, measured on a GPU")
    ] = "auto"
    engine: Annotated[Literal[Name, "auto"], Field(description="auto: the fastest here whose parity holds")] = "auto"
    precision: Annotated[Precision, Field(description="of the network; features of another are other features")] = (
        "float32"
    )
    shard_mb: Annotated[int, Field(ge=1, description="the size that a shard of the widest tap should have")] = 128
    max_rejected: Annotated[float, Field(ge=0, le=1, description="share of samples without features")] = 0.01
    disk: Annotated[
        Literal["refuse", "warn"], Field(description="what happens where the features do not fit; maps may compress")
    ] = "refuse"

    run: RunConfig = Field(default=RunConfig(), description="who computes; no value depends on it")

    @property
    def batch(self) -> int:
        """The size of batches, unless a faster size is measured."""
        return BATCH if self.batch_size == "auto" else self.batch_size

    @field_validator("taps")
    @classmethod
    def _named(cls, taps: dict[str, TapSpec]) -> dict[str, TapSpec]:
        for name in taps:
            if not NAME.fullmatch(name):
                raise ValueError(f"the tap {name!r}: a name has letters, digits, '-' and '_' only: a folder gets it")
        return taps
