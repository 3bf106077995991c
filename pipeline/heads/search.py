"""Choose a parameter of a head on held-out rows: by a sweep over values.

The head is fitted with each value to the training rows of a split, or of each fold; the value is chosen on the held-out
rows; test rows are not used. Heads with probabilities are compared by log loss, others by the metric of their kind of
task; of values within one standard error of the best by such a metric, the value with the smallest log loss is chosen.
For logistic regression, the log loss is that at the best temperature, which then divides its coefficients. The trials
are recorded in `model.json`.
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
"""{head: (parameter, values from the most to the least regularised)}."""

REGULARISES: Mapping[str, int] = {
    **dict.fromkeys(("C", "max_leaf_nodes", "max_depth", "max_iter", "learning_rate"), 1),
    **dict.fromkeys(("alpha", "n_neighbors", "shrinkage", "var_smoothing", "min_samples_leaf"), -1),
}
"""Whether small (1) or large (-1) values of a parameter regularise more; other parameters keep the given order."""

AUTO: tuple[str, ...] = ("logistic", "ridge", "streaming_logistic", "streaming_ridge")
"""Heads that are searched by default: all their values cost about as much as a few single fits."""


class SearchConfig(Settings):
    """The search for a head's parameter on held-out rows."""

    REMOVED = {
        "method": "All `values` are tried: list the values to try, and leave this out.",
        "trials": "All `values` are tried: list the values to try, and leave this out.",
    }

    parameter: str | None = Field(None, description="parameter of the head; default: that of the head's own grid")
    values: tuple[Any, ...] = Field((), description="values to try; default: the head's own grid")
    metric: str | None = Field(
        None,
        description="metric; default: log_loss, or without probabilities accuracy, map (multilabel), r2 (regression)",
    )

    @model_validator(mode="after")
    def _check_values(self) -> "SearchConfig":
        if (self.parameter is None) != (not self.values):
            raise ValueError("expected both `parameter` and `values`, or neither of them")
        if self.values and len(set(map(repr, self.values))) < max(2, len(self.values)):
            raise ValueError("expected two or more different `values`")
        return self


TEMPERED: tuple[str, ...] = ("logistic", "streaming_logistic")
"""Heads that are compared at their best temperature, which then divides their coefficients."""


class AutoSearch(SearchConfig):
    """The default search of a head; it ends when the log loss keeps rising."""


def grid_values(config: SearchConfig, name: str) -> tuple[str, tuple[Any, ...]]:
    """Return the parameter and its values, from the most regularised; raises HeadError for a head without a sweep."""
    if config.parameter is None:
        plain = name.removeprefix("streaming_")
        if plain not in GRIDS:
            raise HeadError(
                f"search: {name} has no grid of its own; heads with a grid are {', '.join(GRIDS)}. "
                "Set `parameter` and `values`, or move the head to a run without a search."
            )
        return GRIDS[plain]
    direction = REGULARISES.get(config.parameter)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in config.values)
    if direction is None or not numbers:
        return config.parameter, config.values
    return config.parameter, tuple(sorted(config.values, key=lambda value: direction * value))


def automatic_search(name: str, params: Mapping[str, Any]) -> AutoSearch | None:
    """Return the default search of a head: every second value of its grid.

    None for heads without a default search, and if `params` set the parameter.
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
    """Choose the value of a parameter of an unfitted pipeline's head on held-out rows.

    given: the kind of the head's scores. on: a torch device, or None. Without a metric in the settings, `TEMPERED`
    heads are compared at their best temperatures, unless the head is `calibrated` later. Raises HeadError if the head
    lacks the parameter or the scores for the metric, or if the fit fails for every value.
    """
    parameter, values = grid_values(config, name)
    learner = heads.inner_head(pipeline)
    inner = "" if learner is pipeline[-1] else "estimator__"
    known = learner.get_params()
    if parameter not in known:
        raise HeadError(f"search: head {name!r}: {unknown('parameter', parameter, known)}")
    metric = scoring.choose_metric(config.metric, kind, given)
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
