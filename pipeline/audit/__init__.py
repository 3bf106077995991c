"""Audit a task: what its splits hold, what leaks between them, and which labels look wrong.

Nothing is changed and nothing is chosen by what is found; the report shows it.

counts      rows of each class, domain and split; distances between their distributions; copies that were left out
neighbours  near duplicates across splits, and labels that the nearest rows contradict, by cached features
run         all of it, as `data/audits/<task>.json`
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from pipeline.config import Settings


class Source(Settings):
    """The features that an audit looks at."""

    backbone: str = Field(description="an entry of `extract`")
    tap: str = Field(description="a tap of that entry")


class AuditConfig(Settings):
    """How tasks are audited."""

    near: Annotated[float, Field(gt=0, le=1, description="cosine from which two rows are near duplicates")] = 0.95
    neighbours: Annotated[int, Field(ge=1, description="nearest rows that are asked for a row's class")] = 10
    contradicted: Annotated[float, Field(gt=0.5, le=1, description="share of them that must name one other class")] = (
        0.8
    )
    tap: str = Field("penultimate", description="of the first extraction that has the task's data sets")
    features: dict[str, Source] = Field({}, description="other features, by task")
    most_rows: Annotated[int, Field(ge=2, description="above, a sample of the rows is looked at")] = 100_000
    seed: int = Field(default=0, description="of the sample of larger tasks")


class Extracted(NamedTuple):
    """What an extraction is of."""

    datasets: Sequence[str]
    taps: Sequence[str]


def choose(
    config: AuditConfig, name: str, datasets: Sequence[str], extracted: Mapping[str, Extracted]
) -> tuple[str, Sequence[str]] | str:
    """The backbone for a task, and its taps of which the narrowest is to be taken; or why there is none.

    What the settings name for the task comes first, then the first extraction of all its data sets.
    """
    if name in config.features:
        source = config.features[name]
        return source.backbone, [source.tap]
    for backbone, one in extracted.items():
        if set(datasets) <= set(one.datasets):
            return backbone, [config.tap] if config.tap in one.taps else list(one.taps)
    return f"no extraction has all data sets of the task: {', '.join(datasets)}"
