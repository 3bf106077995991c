"""Settings of the stage `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.check import Settings


class Metric(Settings):
    """The deciding metric by kind of task: for the order of the leaderboard, and the intervals.

    Accuracy and map leave the choice on held-out rows to log loss where every method gives probabilities.
    """

    classification: Literal["accuracy", "balanced_accuracy", "macro_f1"] = Field(
        default="accuracy", description="of a classification"
    )
    multilabel: Literal["map", "macro_f1"] = Field(
        default="map", description="of a task with several labels per sample"
    )
    regression: Literal["r2", "mae"] = Field(default="r2", description="of a regression")


class EvaluateConfig(Settings):
    """How runs are measured."""

    REMOVED = {
        "interval": "Write `confidence_level`, with the same value.",
        "calibration_bins": "The calibration error is of 15 bins, as in the literature: leave it out.",
    }

    metric: Metric = Field(default=Metric(), description="the deciding metric, by kind of task")
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.95, description="confidence level of the intervals"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(default=2000, description="number of bootstrap resamples")
    seed: int = Field(default=0, description="seed of the bootstrap")
