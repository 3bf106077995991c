"""Settings of the stage `audit`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from pipeline.settings.check import Settings


class Source(NamedTuple):
    """The features that an audit reads: an entry of `extract`, and one of its taps."""

    backbone: str
    tap: str


class AuditConfig(Settings):
    """Settings of the audits, which are the same for every task."""

    REMOVED = {
        "near": "Write `duplicate_threshold`.",
        "contradicted": "Write `disagreement`.",
        "most_rows": "Write `max_rows`.",
        "features": "One `tap` serves all tasks; if several backbones have it, the narrowest features are read.",
        "seed": "A task always has the same sample: leave it out.",
    }

    duplicate_threshold: Annotated[
        float, Field(gt=0, le=1, description="rows of different splits with at least this cosine are near duplicates")
    ] = 0.95
    neighbours: Annotated[
        int, Field(ge=1, description="number of nearest neighbours that are compared with a row's label")
    ] = 10
    disagreement: Annotated[
        float,
        Field(gt=0.5, le=1, description="a label is suspect if this share of the neighbours agrees on another class"),
    ] = 0.8
    tap: str | None = Field(
        None, description="the tap whose features are compared; default: the narrowest pooled tap of all backbones"
    )
    max_rows: Annotated[
        int, Field(ge=2, description="an audit of a larger task reads a random sample of this size")
    ] = 100_000


class Extracted(NamedTuple):
    """The data sets and taps of an extraction."""

    datasets: Sequence[str]
    taps: Sequence[str]


def choose(config: AuditConfig, datasets: Sequence[str], extracted: Mapping[str, Extracted]) -> list[Source] | str:
    """Return the features that may be used to audit a task, or the reason why there are none.

    Candidates are the extractions with all data sets of the task: their tap `config.tap`, or all taps if no extraction
    has that tap.
    """
    candidates = [
        Source(backbone=backbone, tap=tap)
        for backbone, extraction in extracted.items()
        if set(datasets) <= set(extraction.datasets)
        for tap in extraction.taps
    ]
    named = [source for source in candidates if source.tap == config.tap]
    return named or candidates or f"no extraction has all data sets of the task: {', '.join(datasets)}"
