"""Settings of the stage `audit`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from pipeline.settings.check import Settings


class Source(Settings):
    """The features that an audit looks at."""

    backbone: str = Field(description="an entry of `extract`")
    tap: str = Field(description="a tap of that entry")


class AuditConfig(Settings):
    """How tasks are audited."""

    REMOVED = {
        "near": "Write `duplicate_threshold`.",
        "contradicted": "Write `disagreement`.",
        "most_rows": "Write `max_rows`.",
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
    features: dict[str, Source] = Field({}, description="other features, by task")
    max_rows: Annotated[int, Field(ge=2, description="of a larger task the audit reads a random sample")] = 100_000
    seed: int = Field(default=0, description="of the sample of larger tasks")


class Extracted(NamedTuple):
    """What an extraction is of."""

    datasets: Sequence[str]
    taps: Sequence[str]


def choose(
    config: AuditConfig, name: str, datasets: Sequence[str], extracted: Mapping[str, Extracted]
) -> list[Source] | str:
    """Return the features of which the narrowest are to be taken for a task; or why there are none.

    What the settings name for the task comes first, then the tap that they name, of all extractions that have the data
    sets of the task.
    """
    if name in config.features:
        return [config.features[name]]
    there = [
        Source(backbone=backbone, tap=tap)
        for backbone, one in extracted.items()
        if set(datasets) <= set(one.datasets)
        for tap in one.taps
    ]
    named = [source for source in there if source.tap == config.tap]
    return named or there or f"no extraction has all data sets of the task: {', '.join(datasets)}"
