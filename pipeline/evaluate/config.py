"""Settings of the stage `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.check import Settings


class Metric(Settings):
    """The deciding metric by kind of task: it orders the leaderboard and has intervals.

    For accuracy and map, log loss chooses among methods on held-out rows if every method gives probabilities.
    """

    classification: Literal["accuracy", "balanced_accuracy", "macro_f1"] = Field(
        default="accuracy", description="metric of a classification"
    )
    multilabel: Literal["map", "macro_f1"] = Field(
        default="map", description="metric of a task with several labels per sample"
    )
    regression: Literal["r2", "mae"] = Field(default="r2", description="metric of a regression")


class EvaluateConfig(Settings):
    """Settings of the evaluation of runs."""

    REMOVED = {
        "interval": "Write `confidence_level`, with the same value.",
        "calibration_bins": "The calibration error uses 15 bins, as in the literature: leave it out.",
    }

    metric: Metric = Field(default=Metric(), description="the deciding metric, by kind of task")
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.95, description="confidence level of the intervals"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(default=2000, description="number of bootstrap resamples")
    seed: int = Field(default=0, description="seed of the bootstrap")
