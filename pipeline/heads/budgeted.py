"""Searches with a budget: successive halving by scikit-learn, and trials of Optuna.

Both fit to training rows and are scored on validation rows, as a sweep is. Halving gives every value a few rows, keeps
the best third and gives these three times as many (Jamieson and Talwalkar 2016).
"""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.heads import criteria
from pipeline.heads.criteria import Held
from pipeline.heads.paths import copy_of, fitted
from pipeline.heads.sweep import Fold, Found, sweep
from pipeline.predictions import Scores
from pipeline.task import Kind


def halving(
    pipeline: Any,
    parameter: str,
    values: Sequence[Any],
    fold: Fold,
    *,
    metric: str,
    kind: Kind,
    classes: Sequence[str],
    given: Scores,
) -> Found:
    """Successive halving over the values; the winner is fitted to all training rows.

    Raises HeadError where it does not converge there, and ValueError, scikit-learn's own, where every fit failed.
    """
    from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV, PredefinedSplit

    def score(head: Any, X: Any, y: np.ndarray) -> float:
        held = Held.of(head, X, y, kind=kind, classes=classes, given=given)
        return criteria.sign(metric) * criteria.measure(metric, held, kind=kind, classes=classes)

    train, validation = fold.train, fold.held
    step = f"{pipeline.steps[-1][0]}__{parameter}"
    fold = PredefinedSplit(np.repeat([-1, 0], [len(train.y), len(validation.y)]))
    race = HalvingGridSearchCV(
        pipeline, {step: list(values)}, scoring=score, cv=fold, refit=False, random_state=0, error_score=np.nan
    )
    with warnings.catch_warnings():
        # What fails with few rows is out of the race, and says so by a score that is not a number.
        for category in (ConvergenceWarning, FitFailedWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", "(Scoring failed|One or more of the)", UserWarning)
        race.fit(np.concatenate([train.X, validation.X]), np.concatenate([train.y, validation.y]))
    results = race.cv_results_
    rounds: list[dict[str, Any]] = []
    last: dict[Any, float | None] = {}
    for number in range(race.n_iterations_):
        there = np.flatnonzero(results["iter"] == number)
        tried = [results["params"][i][step] for i in there]
        scores = [_told(results["mean_test_score"][i] * criteria.sign(metric)) for i in there]
        last |= dict(zip(tried, scores, strict=True))
        rounds.append({"rows": int(race.n_resources_[number]), "values": tried, "validation": scores})
    value = race.best_params_[step]
    head, problem = fitted(copy_of(pipeline, **{step: value}), train.X, train.y)
    if head is None or problem is not None:
        raise HeadError(f"search: {parameter} {value} won the halving, but on all training rows: {problem}")
    record = {
        "values": list(values),
        "validation": [last.get(one) for one in values],
        "rounds": rounds,
        "chosen": value,
    }
    return Found([head], parameter, value, record)


def optuna(
    pipeline: Any,
    parameter: str,
    values: Sequence[Any],
    fold: Fold,
    *,
    metric: str,
    kind: Kind,
    classes: Sequence[str],
    given: Scores,
    trials: int,
) -> Found:
    """Trials between the smallest and the largest of numbers, or among `values` of any other kind.

    Raises HeadError where Optuna is not installed, and where no trial gave a head.
    """
    if importlib.util.find_spec("optuna") is None:
        raise HeadError("search: expected Optuna for `method: optuna`, got none. Run `pip install 'icecore[optuna]'`.")
    import optuna as library

    library.logging.set_verbosity(library.logging.WARNING)
    tried: list[Found] = []
    failed: list[str] = []

    def act(trial: Any) -> float:
        value = _suggested(trial, parameter, values)
        try:
            found = sweep(pipeline, parameter, [value], [fold], metric=metric, kind=kind, classes=classes, given=given)
        except HeadError as error:
            failed.append(str(error))
            raise library.TrialPruned from None
        tried.append(found)
        return float(found.record["validation"][0])

    direction = "maximize" if criteria.sign(metric) > 0 else "minimize"
    study = library.create_study(direction=direction, sampler=library.samplers.TPESampler(seed=0))
    study.optimize(act, n_trials=trials)
    if not tried:
        raise HeadError(f"search: none of {trials} trials gave a head. The first: {failed[0]}")
    best = max(tried, key=lambda found: criteria.sign(metric) * found.record["validation"][0])
    scores = [found.record["validation"][0] for found in tried]
    record = {"values": [found.value for found in tried], "validation": scores, "chosen": best.value}
    return Found([best.head], parameter, best.value, record)


def _suggested(trial: Any, parameter: str, values: Sequence[Any]) -> Any:
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return trial.suggest_int(parameter, min(values), max(values))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return trial.suggest_float(parameter, min(values), max(values), log=min(values) > 0)
    return trial.suggest_categorical(parameter, list(values))


def _told(score: float) -> float | None:
    return None if np.isnan(score) else float(score)
