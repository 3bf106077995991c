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
    """How tasks are audited."""

    REMOVED = {
        "near": "Write `duplicate_threshold`.",
        "contradicted": "Write `disagreement`.",
        "most_rows": "Write `max_rows`.",
        "features": "One `tap` is for all tasks; its narrowest rows are read where several backbones have it.",
        "seed": "The sample of a task is always the same one: leave it out.",
    }

    duplicate_threshold: Annotated[
        float, Field(gt=0, le=1, description="cosine from which two rows of different splits are near duplicates")
    ] = 0.95
    neighbours: Annotated[
        int, Field(ge=1, description="nearest rows whose classes are compared with a row's label")
    ] = 10
    disagreement: Annotated[
        float, Field(gt=0.5, le=1, description="share of these rows that must have one other class: a suspect label")
    ] = 0.8
    tap: str | None = Field(
        None, description="of an extraction that has the task's data sets; default: the narrowest pooled tap of all"
    )
    max_rows: Annotated[int, Field(ge=2, description="of a larger task the audit reads a random sample")] = 100_000


class Extracted(NamedTuple):
    """What an extraction is of."""

    datasets: Sequence[str]
    taps: Sequence[str]


def choose(config: AuditConfig, datasets: Sequence[str], extracted: Mapping[str, Extracted]) -> list[Source] | str:
    """Return the features that may be audited for a task; or why there are none.

    Every extraction that has all data sets of the task counts: its tap `config.tap`, or all taps where none has that.
    """
    there = [
        Source(backbone=backbone, tap=tap)
        for backbone, extraction in extracted.items()
        if set(datasets) <= set(extraction.datasets)
        for tap in extraction.taps
    ]
    named = [source for source in there if source.tap == config.tap]
    return named or there or f"no extraction has all data sets of the task: {', '.join(datasets)}"
