"""Choose a parameter of a head on held-out rows: by a sweep over values.

The head is fitted for each value to the training rows of a split, or of each fold; the rows that are held out choose;
test rows are not seen. Heads with probabilities are chosen by log loss, others by the metric of their kind of task; of
values within one standard error of the best by such a metric, the one with the least log loss is chosen. The log loss
of logistic regression is that at the best temperature, which then divides its coefficients. What was tried and how
stands in the record, which `model.json` keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from pipeline import heads
from pipeline.errors import HeadError, unknown
from pipeline.heads import scoring
from pipeline.heads.sweep import Fold, SearchResult, sweep
from pipeline.predictions import Scores
from pipeline.settings.check import Settings
from pipeline.task import Kind

GRIDS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "boosting": ("max_leaf_nodes", (2, 4, 8, 16, 31, 64)),
    "forest": ("min_samples_leaf", (20, 10, 5, 2, 1)),
    "knn": ("n_neighbors", (100, 50, 20, 10, 5, 3, 1)),
    "lda": ("shrinkage", tuple(round(1 - 0.1 * i, 1) for i in range(11))),
    # 45 values of C over 11 decades: Radford et al. 2021 (CLIP) used 96 over 12, dinov2 uses these 45.
    "logistic": ("C", tuple(float(f"{10**x:.6g}") for x in np.linspace(-6, 5, 45))),
    "mlp": ("alpha", tuple(10.0**x for x in range(1, -7, -1))),
    "naive_bayes": ("var_smoothing", tuple(10.0**x for x in range(0, -13, -1))),
    "ridge": ("alpha", tuple(float(f"{10**-x:.6g}") for x in np.linspace(-6, 5, 45))),
    "svm": ("C", tuple(float(f"{10**x:.6g}") for x in np.linspace(-6, 2, 17))),
}
"""The parameter that `sweep` chooses of each head, and its values from the most regularised to the least."""

REGULARISES: Mapping[str, int] = {
    **dict.fromkeys(("C", "max_leaf_nodes", "max_depth", "max_iter", "learning_rate"), 1),
    **dict.fromkeys(("alpha", "n_neighbors", "shrinkage", "var_smoothing", "min_samples_leaf"), -1),
}
"""Whether the small (1) or the large (-1) values of a parameter regularise more; of others the given order counts."""

AUTO: tuple[str, ...] = ("logistic", "ridge", "streaming_logistic", "streaming_ridge")
"""Heads that are searched where no `search` is named: all values of theirs cost about as much as a few single fits."""


class SearchConfig(Settings):
    """What to choose on held-out rows, and how."""

    REMOVED = {
        "method": "Every value is tried: write those to try into `values`, and leave this out.",
        "trials": "Every value is tried: write those to try into `values`, and leave this out.",
    }

    parameter: str | None = Field(None, description="of the head's class; by default that of the head's own sweep")
    values: tuple[Any, ...] = Field((), description="by default those of the head's own sweep")
    metric: str | None = Field(
        None, description="by default log_loss; without probabilities accuracy, of many labels map, of a regression r2"
    )

    @model_validator(mode="after")
    def _both(self) -> "SearchConfig":
        if (self.parameter is None) != (not self.values):
            raise ValueError("expected both `parameter` and `values`, or neither of them")
        if self.values and len(set(map(repr, self.values))) < max(2, len(self.values)):
            raise ValueError("expected two or more `values`, each once")
        return self


TEMPERED: tuple[str, ...] = ("logistic", "streaming_logistic")
"""Heads whose values are compared at their best temperatures, which then divides their coefficients."""


class AutoSearch(SearchConfig):
    """The search of a head for which none is named: by log loss it ends where that rises for good."""


def grid_of(config: SearchConfig, name: str) -> tuple[str, tuple[Any, ...]]:
    """Return the parameter and its values, from the most regularised; raises HeadError for a head without a sweep."""
    if config.parameter is None:
        plain = name.removeprefix("streaming_")
        if plain not in GRIDS:
            raise HeadError(
                f"search: {name} has no sweep of its own, these have: {', '.join(GRIDS)}. "
                "Name a `parameter` and its `values`, or give the head a run without a search."
            )
        return GRIDS[plain]
    direction = REGULARISES.get(config.parameter)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in config.values)
    if direction is None or not numbers:
        return config.parameter, config.values
    return config.parameter, tuple(sorted(config.values, key=lambda value: direction * value))


def automatic(name: str, params: Mapping[str, Any]) -> AutoSearch | None:
    """Return the search of a head for which none is named: every second value of its own sweep.

    None for heads without an automatic search, and where `params` say what the search would choose.
    """
    if name not in AUTO:
        return None
    parameter, values = GRIDS[name.removeprefix("streaming_")]
    if {parameter, "alphas"} & set(params):
        return None
    return AutoSearch.model_validate({"parameter": parameter, "values": values[::2]})


def search(
    pipeline: Any,
    name: str,
    config: SearchConfig,
    folds: Sequence[Fold],
    *,
    kind: Kind,
    classes: Sequence[str],
    given: Scores,
    on: str | None = None,
    calibrated: bool = False,
) -> SearchResult:
    """Choose a value of an unfitted pipeline's head; `on` is a torch device for `device.tensors`.

    `given`: what the scores of the head are. Where no metric is named, the values of `TEMPERED` heads are compared at
    their best temperatures, unless the head is `calibrated` later. Raises HeadError where the head lacks the parameter,
    cannot give what the metric needs, or fits with no value.
    """
    parameter, values = grid_of(config, name)
    learner = heads.inner(pipeline)
    inner = "" if learner is pipeline[-1] else "estimator__"
    known = learner.get_params()
    if parameter not in known:
        raise HeadError(f"search: head {name!r}: {unknown('parameter', parameter, known)}")
    metric = scoring.criterion(config.metric, kind, given)
    scoring.check(metric, pipeline, kind=kind)
    tempered = config.metric is None and metric == "log_loss" and name in TEMPERED and not calibrated
    result = sweep(
        pipeline,
        inner + parameter,
        values,
        folds,
        metric=metric,
        kind=kind,
        classes=classes,
        given=given,
        on=on,
        stops=isinstance(config, AutoSearch),
        tempered=tempered,
    )
    held = sum(len(fold.held.y) for fold in folds)
    protocol = {"parameter": parameter, "method": "grid", "metric": metric}
    rows = {"training_rows": len(folds[0].train.y), "validation_rows": held}
    return replace(result, parameter=parameter, record={**protocol, **rows, **result.record})
