"""Choosing a parameter on validation rows: what is chosen, what is recorded, and that shared work changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from sklearn.preprocessing import StandardScaler
from support.features import Place, make

from pipeline import heads
from pipeline.errors import HeadError
from pipeline.heads import regularisation_path, scoring, search
from pipeline.heads import sweep as sweep_module
from pipeline.heads.outputs import kind_of_scores
from pipeline.heads.search import GRIDS, REGULARISES, SearchConfig, grid_values
from pipeline.heads.sweep import Fold, LabelledRows, SearchResult, Trial, sweep, within_one_error
from pipeline.heads.warm_start import warm_starts
from pipeline.streaming.logistic import StreamingLogisticRegression
from pipeline.streaming.logistic_loss import Loss, Point

CLASSES = ["a", "b", "c"]


def rows(number: int, *, width: int = 6, seed: int = 0, noise: float = 2.0, classes: int = 3) -> LabelledRows:
    """Rows of classes that overlap."""
    random = np.random.default_rng(seed)
    told = np.arange(number) % classes
    X = np.eye(classes, width)[told] * 2 + noise * random.normal(size=(number, width))
    return LabelledRows(X.astype(np.float32), np.array(CLASSES, dtype=object)[told])


def swept(head: str, parameter: str, values: list[Any], *, metric: str = "accuracy", **params: Any) -> SearchResult:
    pipeline = heads.create(head, params, scale="standard")
    folds, given = [Fold(rows(60), rows(90, seed=1))], kind_of_scores(pipeline, "classification")
    return sweep(pipeline, parameter, values, folds, metric=metric, classes=CLASSES, given=given)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path, splits={"train": 12, "validation": 10, "test": 4})


# What is chosen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "parameter", "values"),
    [
        ("logistic", "C", [1e-4, 1e-2, 1.0, 100.0]),
        ("ridge", "alpha", [1e4, 100.0, 1.0, 1e-3]),
        ("knn", "n_neighbors", [30, 10, 3, 1]),
        ("naive_bayes", "var_smoothing", [1.0, 1e-9]),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
def test_the_curve_is_what_each_value_gives_alone(head: str, parameter: str, values: list[Any], metric: str) -> None:
    if (head, metric) == ("ridge", "log_loss"):
        pytest.skip("ridge has no probabilities")
    found = swept(head, parameter, values, metric=metric)
    train, held = rows(60), rows(90, seed=1)
    expected = []
    for value in values:
        alone = heads.create(
            head, {parameter: value, **({"tol": 1e-8} if head == "logistic" else {})}, scale="standard"
        )
        alone.fit(train.X, train.y)
        by_name = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}
        if metric == "log_loss":
            expected.append(log_loss(held.y, alone.predict_proba(held.X)))
        elif metric == "macro_f1":
            expected.append(f1_score(held.y, alone.predict(held.X), average="macro"))
        else:
            expected.append(by_name[metric](held.y, alone.predict(held.X)))
    # Log loss moves with where L-BFGS stops within its tolerance; counts of right rows do not.
    np.testing.assert_allclose(found.record["validation"], expected, rtol=2e-3 if metric == "log_loss" else 1e-12)
    best = np.argmin(expected) if metric == "log_loss" else np.argmax(expected)
    close = found.record["within_one_standard_error"]
    assert values[best] in close
    assert found.value == found.record["chosen"]
    if metric == "log_loss":
        assert found.value == values[best]
    else:
        losses = dict(zip(values, found.record["log_loss"], strict=True))
        assert found.value == min(close, key=lambda value: losses[value])
    assert found.head[-1].get_params()[parameter] == found.value


def test_of_equally_accurate_values_the_one_with_the_least_log_loss_is_chosen(place: Place) -> None:
    for head in ("logistic", "ridge"):
        place.fit(head=head, search={"metric": "accuracy"})
        [record] = [one["search"] for one in place.model()["fits"]]
        values, scores, losses = (record[name] for name in ("values", "validation", "log_loss"))
        best = [value for value, score in zip(values, scores, strict=True) if score == max(scores)]
        assert len(best) > 1
        assert values == list(GRIDS[head][1])
        assert set(best) <= set(record["within_one_standard_error"])
        least = min(record["within_one_standard_error"], key=lambda value: losses[values.index(value)])
        assert record["chosen"] == least != values[0]


@pytest.mark.parametrize("name", GRIDS)
def test_every_sweep_goes_from_the_most_regularised_to_the_least(name: str) -> None:
    parameter, values = GRIDS[name]
    order = [REGULARISES[parameter] * value for value in values]
    assert order == sorted(set(order))
    heads.create(name, {parameter: values[0]}, scale="none")


def test_the_sweep_of_logistic_regression_is_45_values_over_11_decades() -> None:
    _, values = GRIDS["logistic"]
    np.testing.assert_allclose(values, np.logspace(-6, 5, 45), rtol=1e-5)


def test_values_are_tried_from_the_most_regularised_whatever_their_order() -> None:
    assert grid_values(SearchConfig(parameter="C", values=(1, 0.1, 10)), "logistic") == ("C", (0.1, 1, 10))
    assert grid_values(SearchConfig(parameter="alpha", values=(1, 0.1, 10)), "ridge") == ("alpha", (10, 1, 0.1))
    assert grid_values(SearchConfig(parameter="weights", values=("uniform", "distance")), "knn")[1][0] == "uniform"


def test_test_rows_choose_nothing(place: Place) -> None:
    place.fit(inputs=["hard"], search="sweep")
    before = place.model()["fits"]
    import pyarrow as pa
    from support.features import retarget

    from pipeline.task import Task

    task = Task.read(place.task)
    retarget(place, pa.array(np.where(task.table["split"].to_numpy() == "test", "ape", task.targets), pa.string()))
    place.fit(inputs=["hard"], search="sweep")
    assert place.model()["fits"] == before


def test_every_draw_has_a_search_of_its_own(place: Place) -> None:
    place.fit(inputs=["hard"], search={"parameter": "C", "values": [0.001, 0.1, 10]}, labels_per_class=[1, 5])
    found = place.model()["fits"]
    assert [(one["labels"], one["draw"]) for one in found] == [(1, 0), (1, 1), (5, 0), (5, 1)]
    assert {one["search"]["training_rows"] for one in found} == {3, 15}
    assert all(one["params"]["C"] == one["search"]["chosen"] for one in found)


def test_the_record_says_the_whole_protocol(place: Place) -> None:
    place.fit(inputs=["hard"], search={"parameter": "C", "values": [10, 0.1], "metric": "log_loss"})
    [one] = place.model()["fits"]
    record = one["search"]
    measured = ("validation", "chosen", "standard_error", "within_one_standard_error")
    assert {k: v for k, v in record.items() if k not in measured} == {
        "parameter": "C",
        "method": "grid",
        "metric": "log_loss",
        "training_rows": 36,
        "validation_rows": 30,
        "values": [0.1, 10],
        "left_out": [],
        "log_loss": None,
        "temperatures": None,
        "problems": [None, None],
        "at_the_end": False,
    }
    assert len(record["validation"]) == 2
    assert place.model()["settings"]["search"]["metric"] == "log_loss"


# Shared work ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 3), width=st.sampled_from([3, 6]))
def test_a_warm_start_ends_at_the_same_optimum(seed: int, classes: int, width: int) -> None:
    train = rows(40, seed=seed, classes=classes, width=width)
    X = train.X.astype(np.float64)  # of float32 rows scikit-learn's own search does not always come as close
    values = [1e-3, 1e-1, 10.0]
    # The loss is strongly convex: with a gradient below tol the coefficients are within C n tol of the optimum.
    head = LogisticRegression(tol=1e-7, max_iter=5000)
    for value, (warm, problem) in zip(values, regularisation_path.fit_path(head, "C", values, X, train.y), strict=True):
        cold = LogisticRegression(C=value, tol=1e-7, max_iter=5000).fit(X, train.y)
        assert problem is None
        assert (warm.C, warm.warm_start) == (value, False)
        np.testing.assert_allclose(warm.coef_, cold.coef_, rtol=1e-2, atol=1e-3)
        np.testing.assert_array_equal(warm.predict(X), cold.predict(X))


@pytest.mark.parametrize("scaled", [True, False])
def test_a_sweep_of_45_values_takes_at_most_ten_times_the_passes_of_a_median_fit(
    scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes over the rows: of the search along the axes, and of scikit-learn's, which are evaluations of its loss."""
    passes, evaluations = [1], []  # the one that takes the moments
    at, searching = Loss.at, optimize.minimize

    def counted(self: Loss, coef: np.ndarray, intercept: np.ndarray) -> Point:
        passes[0] += 1
        return at(self, coef, intercept)

    def evaluated(*args: Any, **options: Any) -> Any:
        found = searching(*args, **options)
        if options.get("callback") is None:  # not the search along the axes
            evaluations.append(found.nfev)
        return found

    monkeypatch.setattr(Loss, "at", counted)
    monkeypatch.setattr(optimize, "minimize", evaluated)
    X, y = load_digits(return_X_y=True)
    part = np.random.default_rng(0).permutation(len(X))[:1078]  # three fifths
    X, y = (StandardScaler().fit_transform(X[part]) if scaled else X[part]).astype(np.float32), y[part]
    _, values = GRIDS["logistic"]
    for value in values:
        LogisticRegression(C=value, max_iter=10_000).fit(X, y)
    assert passes == [1]
    cold = np.median(evaluations)
    evaluations.clear()
    found = [one for one, _ in regularisation_path.fit_path(LogisticRegression(max_iter=10_000), "C", values, X, y)]
    assert len(evaluations) == len(found) == 45
    assert passes[0] + sum(evaluations) <= 10 * cold
    if scaled:
        assert [int(one.n_iter_[0]) for one in found] == [0] * 45


@pytest.mark.parametrize(
    ("params", "values", "taken"),
    [
        ({}, [1.0, 0.1], slice(None)),
        ({}, [0.0, 1.0], slice(None)),
        ({"l1_ratio": 0.5, "solver": "saga", "tol": 0.1}, [0.1, 1.0], slice(None)),
        ({}, [0.1, 1.0], slice(3)),
    ],
)
def test_what_has_no_axes_is_searched_as_before(params: dict[str, Any], values: list[float], taken: slice) -> None:
    given = rows(60)
    X, y = given.X[taken], given.y[taken]
    head = LogisticRegression(max_iter=5000, **params)
    assert warm_starts(head, values, X, y) is None
    for value, (one, problem) in zip(values, regularisation_path.fit_path(head, "C", values, X, y), strict=True):
        assert (one is None) == (value == 0) == (problem is not None)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    classes=st.integers(2, 3),
    width=st.sampled_from([3, 50]),
    weight=st.sampled_from([None, "balanced"]),
    intercept=st.booleans(),
)
def test_one_decomposition_gives_the_ridge_classifier_of_every_penalty(
    seed: int, classes: int, width: int, weight: str | None, intercept: bool
) -> None:
    train = rows(32, seed=seed, classes=classes, width=width)
    X, values = train.X.astype(np.float64), [1e3, 1.0, 1e-2]
    head = RidgeClassifier(class_weight=weight, fit_intercept=intercept)
    for value, (found, _) in zip(values, regularisation_path.fit_path(head, "alpha", values, X, train.y), strict=True):
        expected = RidgeClassifier(alpha=value, class_weight=weight, fit_intercept=intercept).fit(X, train.y)
        # Both solve in float64; the condition number here is at most 1e5.
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=1e-7, atol=1e-9)
        assert (found.alpha, found.coef_.shape) == (value, expected.coef_.shape)
        np.testing.assert_array_equal(found.predict(X), expected.predict(X))


@pytest.mark.parametrize("width", [4, 60])
@pytest.mark.parametrize("targets", [1, 3])
def test_one_decomposition_gives_the_regression_of_every_penalty(width: int, targets: int) -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(40, width)) + 5, random.normal(size=(40, targets))
    y = y[:, 0] if targets == 1 else y
    for value, (found, _) in zip(
        [10.0, 0.1], regularisation_path.fit_path(Ridge(), "alpha", [10.0, 0.1], X, y), strict=True
    ):
        expected = Ridge(alpha=value).fit(X, y)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.predict(X), expected.predict(X), rtol=1e-7)


# Values that cannot be used ------------------------------------------------------------------------------------------


def test_a_value_that_does_not_converge_is_recorded_and_not_chosen() -> None:
    found = swept("logistic", "C", [1e-6, 1e-5, 1.0], max_iter=3, metric="log_loss")
    assert found.record["problems"][:2] == [None, None]
    assert "did not converge" in found.record["problems"][2]
    assert found.record["validation"][2] < min(found.record["validation"][:2])
    assert found.value == 1e-5


def test_a_value_that_scikit_learn_refuses_is_recorded() -> None:
    found = swept("knn", "n_neighbors", [100, 5])
    assert found.record["validation"][0] is None
    assert "n_neighbors" in found.record["problems"][0]
    assert found.value == 5


def test_whatever_a_class_raises_with_a_value_is_recorded_and_the_search_goes_on() -> None:
    told = {
        "HeadError": "the fit ends",
        "LinAlgError": "the fit ends",
        "FloatingPointError": "FloatingPointError: the fit ends",
        "NotImplementedError": "NotImplementedError: the fit ends",
        "MemoryError": "MemoryError: the fit ends",
        "predict HeadError": "the fit ends",
        "predict KeyError": r"KeyError: 'the fit ends\nhere'",
    }
    found = swept("support.failing_heads:Failing", "error", [*told, "none", "TypeError"])
    assert found.record["problems"] == [*told.values(), None, "TypeError: the fit ends"]
    assert found.value == "none"
    for error in ("StoreError", "ClusterError", "PermissionError"):  # of the rows, not of a head
        with pytest.raises(Exception, match="the fit ends") as ended:
            swept("support.failing_heads:Failing", "error", ["none", error])
        assert ended.typename == error


@pytest.mark.parametrize(
    ("head", "parameter"), [("streaming_ridge", "alpha"), ("streaming_logistic", "C"), ("ridge", "alpha")]
)
def test_a_value_out_of_range_leaves_the_others_as_they_are_alone(head: str, parameter: str) -> None:
    found = swept(head, parameter, [-1.0, 2.0, "auto"])
    alone = swept(head, parameter, [2.0])
    assert [problem is None for problem in found.record["problems"]] == [False, True, False]
    assert found.record["validation"][1] == alone.record["validation"][0]
    assert np.allclose(found.head[-1].coef_, alone.head[-1].coef_, rtol=1e-5)


class FailsAtOne(StreamingLogisticRegression):
    """Ends where C is 1, after the first pass."""

    def _search(self, *args: Any, **more: Any) -> Point:
        if self.C == 1.0:
            raise FloatingPointError("overflow")
        return super()._search(*args, **more)


def test_passes_go_on_behind_a_value_of_c_that_fails() -> None:
    given = rows(60)
    alone = [StreamingLogisticRegression(C).fit(given.X, given.y) for C in (0.1, 10.0)]
    first, failed, last = regularisation_path.fit_path(FailsAtOne(), "C", [0.1, 1.0, 10.0], given.X, given.y)
    assert failed == (None, "FloatingPointError: overflow")
    for (found, problem), wanted in zip((first, last), alone, strict=True):
        assert found is not None
        assert problem is None
        assert np.allclose(found.predict_proba(given.X), wanted.predict_proba(given.X), atol=2e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_whose_squares_cannot_be_added_end_no_search() -> None:
    head, given = heads.create("logistic", {"max_iter": 2}, scale="none")[-1], rows(60)
    with pytest.raises(HeadError, match="expected values whose squares can be added"):
        next(warm_starts(head, [0.1, 1.0], given.X * np.float32(1e25), given.y))  # type: ignore[arg-type]
    found = list(regularisation_path.fit_path(head, "C", [0.1, 1.0], given.X * np.float32(1e25), given.y))
    assert [problem is not None for _, problem in found] == [True, True]


def test_values_of_which_none_can_be_used_are_told_one_by_one() -> None:
    with pytest.raises(HeadError, match=r"(?s)the fits of all values of C failed\.\n  - -1: .*\n  - -2: "):
        swept("logistic", "C", [-1, -2])
    with pytest.raises(HeadError, match=r"(?s)the fits of all values of alpha failed.*'alpha' parameter"):
        swept("ridge", "alpha", [-1.0, -2.0])


# What a head cannot give ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["ridge", "svm"])
def test_log_loss_needs_probabilities(place: Place, head: str) -> None:
    message = r"expected a head with probabilities for log_loss, .* has none\. Search with another metric: accuracy,"
    with pytest.raises(HeadError, match=message):
        place.fit(head=head, search={"metric": "log_loss"})
    assert not place.models.exists()


def test_a_metric_of_another_kind_of_task_is_refused(place: Place) -> None:
    with pytest.raises(HeadError, match=r"search: a classification: unknown metric 'r2'"):
        place.fit(search={"metric": "r2"})


def test_a_head_without_a_sweep_wants_values(place: Place) -> None:
    with pytest.raises(
        HeadError, match=r"search: centroid has no grid of its own; heads with a grid are boosting, forest"
    ):
        place.fit(head="centroid", search="sweep")
    found = place.fit(head="centroid", search={"parameter": "shrink_threshold", "values": [None, 0.5]})
    assert len(found) == 1


def test_a_parameter_that_the_head_lacks_is_refused(place: Place) -> None:
    with pytest.raises(HeadError, match=r"knn on easy, all: search: head 'knn': unknown parameter 'C'"):
        place.fit(head="knn", search={"parameter": "C", "values": [1, 2]})


def test_every_metric_of_a_search_knows_its_sign() -> None:
    smaller = {name for found in scoring.CRITERIA.values() for name in found if scoring.sign(name) < 0}
    assert smaller == {"log_loss", "mae", "rmse"}
    assert search.sweep is sweep


@pytest.mark.parametrize(("second", "at_the_end"), [(0.11, False), (0.5, True)])
def test_the_end_of_the_values_is_told_only_where_the_value_before_it_is_worse(second: float, at_the_end: bool) -> None:
    def tried(loss: float, *rows: float) -> Trial:
        return Trial(loss, by_row=loss * np.array(rows), uncertainty=loss)

    every = [tried(0.1, 0, 2, 0, 2), tried(second, 2, 0, 2, 0), tried(0.9, 2, 0, 2, 0)]
    close = within_one_error(every, "log_loss")
    record = sweep_module._search_record([1, 2, 3], every, 0, close, "log_loss")
    assert record["at_the_end"] is at_the_end
    assert record["within_one_standard_error"] == ([1] if at_the_end else [1, 2])
