"""The settings that say which part of a network is trained. Values only, no torch."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.check import Settings


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
