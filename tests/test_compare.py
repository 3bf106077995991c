"""Comparisons: both tests against numbers worked out by hand, which differences are called real, what is refused."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.model_records import heads

from pipeline.compare.config import CompareConfig
from pipeline.compare.run import compare
from pipeline.compare.significance import bootstrap_p_value, holm, mcnemar
from pipeline.errors import DataError
from pipeline.evaluate import bootstrap
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import write_json
from pipeline.predictions import Predictions, Writer
from pipeline.task import Kind, Task

QUICK = CompareConfig(resamples=400)
NAMES = np.array(["no", "yes"], dtype=object)


@dataclass
class Bench:
    """A task of 100 test and 20 validation rows, and runs that answer it."""

    folder: Path
    kind: Kind = "classification"
    evaluated: dict[str, Any] = field(default_factory=dict)
    rows: int = 100

    @property
    def task(self) -> Path:
        return self.folder / "task.parquet"

    def targets(self) -> np.ndarray:
        """The targets of all rows: of the validation rows first."""
        numbers = np.arange(self.rows + 20)
        return numbers.astype(float) if self.kind == "regression" else NAMES[numbers % 2]

    def write_task(self) -> None:
        columns = {
            "key": self.keys(),
            "target": self.targets(),
            "split": ["validation"] * 20 + ["test"] * self.rows,
        }
        Task(pa.table(columns).replace_schema_metadata({"kind": self.kind})).write(self.task)

    def keys(self) -> np.ndarray:
        return np.array([f"{number:032x}" for number in range(self.rows + 20)], dtype=object)

    def run(self, name: str, methods: Mapping[str, Sequence[Any]], *, draws: Sequence[int | None] = (None,)) -> None:
        """A run with a method an input: which test rows it has right, or its errors where this is a regression."""
        if not self.task.exists():
            self.write_task()
        targets, splits = self.targets(), np.array(["validation"] * 20 + ["test"] * self.rows, dtype=object)
        scores = "none" if self.kind == "regression" else "decision"
        classes = [] if self.kind == "regression" else list(NAMES)
        with Writer(self.folder / f"{name}.parquet", self.kind, classes, {"head": scores}) as writer:
            for tap, told in methods.items():
                for draw in draws:
                    given = np.concatenate([np.zeros(20) if self.kind == "regression" else np.ones(20, bool), told])
                    wrong = NAMES[::-1][np.arange(len(targets)) % 2]
                    predicted = targets + given if self.kind == "regression" else np.where(given, targets, wrong)
                    found = np.zeros((len(targets), len(classes)), dtype=np.float32)
                    labels = None if draw is None else 5
                    writer.add(Predictions("head", tap, labels, draw, self.keys(), splits, targets, predicted, found))
        write_json(self.folder / name / "model.json", heads("task"))
        evaluate(
            EvaluateConfig(resamples=100),
            predictions=self.folder / f"{name}.parquet",
            task=self.task,
            model=self.folder / name,
            numbers=self.folder / "numbers.json",
            tables=self.folder / "tables.json",
            confusion=self.folder / "confusion.csv",
            curve=self.folder / "curve.csv",
        )
        self.evaluated[name] = json.loads((self.folder / "tables.json").read_text())

    def compare(self, config: CompareConfig = QUICK) -> dict[str, Any]:
        out = self.folder / "comparisons" / "task.json"
        found = compare(config, task=self.task, predictions=self.folder, runs=self.evaluated, out=out)
        assert json.loads(out.read_text()) == found
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def right(count: int, *, of: int = 100, start: int = 0) -> np.ndarray:
    """So many rows right, from `start` on."""
    return (np.arange(of) >= start) & (np.arange(of) < start + count)


def test_a_large_difference_is_real_and_a_small_one_is_not(bench: Bench) -> None:
    bench.run("worst", {"tap": right(60)})
    bench.run("good", {"tap": right(92)})
    bench.run("best", {"tap": right(93)})
    found = bench.compare()
    assert (found["metric"], found["test_rows"], found["resamples"]) == ("accuracy", 100, 400)
    verdicts = {(row["a"].split(":")[0], row["b"].split(":")[0]): row["better"] for row in found["across"]}
    assert verdicts == {
        ("best", "good"): None,
        ("best", "worst"): "best: head on tap",
        ("good", "worst"): "good: head on tap",
    }
    [first, *_] = found["across"]
    assert first["difference"] == pytest.approx(0.01)
    assert first["low"] <= first["difference"] <= first["high"]
    assert (first["mcnemar"]["only_a"], first["mcnemar"]["only_b"], first["mcnemar"]["p"]) == (1, 0, 1.0)


def test_an_interval_is_corrected_as_its_p_value_is(bench: Bench) -> None:
    for count in (60, 80, 83, 90):
        bench.run(f"right{count}", {"tap": right(count)})
    rows = bench.compare(CompareConfig(significance=0.1, resamples=2000))["across"]
    by_p = sorted(rows, key=lambda row: row["bootstrap"]["p"])
    assert sorted(row["level"] for row in rows) == pytest.approx([1 - 0.1 / left for left in (1, 2, 3, 4, 5, 6)])
    assert by_p[-1]["level"] == pytest.approx(0.9)
    for row in rows:
        apart = row["low"] > 0 or row["high"] < 0
        assert apart == (row["bootstrap"]["p_holm"] < 0.1), row


def test_methods_that_answer_alike_do_not_differ(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.run(name, {"tap": right(70)})
    [row] = bench.compare()["across"]
    assert (row["difference"], row["low"], row["high"], row["better"]) == (0.0, 0.0, 0.0, None)
    assert row["bootstrap"]["p"] == row["mcnemar"]["p"] == 1.0
    assert row["equal"] == "predictions"


def test_pairing_sees_what_the_intervals_of_either_do_not(bench: Bench) -> None:
    bench.run("one", {"tap": right(70)})
    bench.run("two", {"tap": right(80)})
    ends = [[run["selected"][f"accuracy_{end}"] for end in ("low", "high")] for run in bench.evaluated.values()]
    assert ends[0][1] > ends[1][0], "the intervals overlap"
    [row] = bench.compare()["across"]
    assert row["better"] == "two: head on tap"
    assert row["low"] > 0
    assert row["mcnemar"]["p"] == pytest.approx(2 * 0.5**10)


def test_within_a_run_the_chosen_method_stands_against_each_other_one(bench: Bench) -> None:
    bench.run("run", {"early": right(90), "middle": right(50), "late": right(88)})
    found = bench.compare()
    assert found["across"] == []
    pairs = {(row["a"], row["b"]): row["better"] for row in found["within"]["run"]}
    # All are right on all validation rows: the first is chosen.
    assert pairs == {
        ("run: head on early", "run: head on middle"): "run: head on early",
        ("run: head on early", "run: head on late"): None,
    }


def test_several_draws_have_no_test_of_a_single_one(bench: Bench) -> None:
    bench.run("one", {"tap": right(50)}, draws=(0, 1))
    bench.run("two", {"tap": right(90)}, draws=(0, 1))
    [row] = bench.compare()["across"]
    assert row["mcnemar"] is None
    assert row["better"] == "two: head on tap"


def test_errors_of_a_regression_are_compared_and_the_smaller_is_the_better(bench: Bench) -> None:
    bench.kind = "regression"
    random = np.random.default_rng(0)
    bench.run("rough", {"tap": random.normal(0, 3, size=100)})
    bench.run("fine", {"tap": random.normal(0, 1, size=100)})
    found = bench.compare()
    [row] = found["across"]
    assert (found["metric"], row["mcnemar"]) == ("mae", None)
    assert row["a"] == row["better"] == "fine: head on tap"
    assert row["difference"] < 0
    assert row["equal"] is None
    bench.evaluated.clear()
    for name, error in (("above", 1.0), ("below", -1.0)):
        bench.run(name, {"tap": np.full(100, error)})
    [row] = bench.compare()["across"]
    assert (row["low"], row["high"], row["equal"]) == (0.0, 0.0, "results")


def test_no_run_was_tested_on_other_rows_than_another(bench: Bench) -> None:
    bench.run("one", {"tap": right(50)})
    first = bench.task.read_bytes()
    bench.rows = 90
    bench.write_task()
    bench.run("two", {"tap": right(50, of=90)})
    bench.task.write_bytes(first)
    with pytest.raises(
        DataError,
        match=r"task\.parquet: expected runs that were tested on the same rows, got 100 test rows of one and 90 of two,"
        r" of which 90 are the same\. Run `icecore repro`",
    ):
        bench.compare()


def test_the_settings_decide_what_is_real_and_how_often_is_resampled(bench: Bench) -> None:
    bench.run("one", {"tap": right(80)})
    bench.run("two", {"tap": right(87)})
    strict, loose = (bench.compare(CompareConfig(significance=level, resamples=300)) for level in (0.001, 0.2))
    assert (strict["resamples"], strict["significance"]) == (300, 0.001)
    [strictly], [loosely] = strict["across"], loose["across"]
    assert (strictly["better"], loosely["better"]) == (None, "two: head on tap")
    assert strictly["low"] <= loosely["low"] <= loosely["high"] <= strictly["high"]


@pytest.mark.parametrize("wrong", [{"significance": 0}, {"significance": 1}, {"resamples": 1}])
def test_settings_refuse_what_means_nothing(wrong: dict[str, Any]) -> None:
    [key] = wrong
    with pytest.raises(ValidationError, match=key):
        CompareConfig(**wrong)


# The tests themselves ------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True] * 5, dtype=bool)
    b = np.array([False] * only_a + [True] * only_b + [True] * 5, dtype=bool)
    found = mcnemar(a, b)
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["p"] == pytest.approx(min(1.0, 2 * tail))


def test_holm_equals_what_was_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lowers_no_p_keeps_their_order_and_is_no_stricter_than_bonferroni(values: list[float]) -> None:
    found = holm(values)
    assert all(p <= q <= min(1.0, p * len(values)) + 1e-12 for p, q in zip(values, found, strict=True))
    assert [found[place] for place in np.argsort(values)] == sorted(found)


def test_the_p_of_a_bootstrap_counts_the_smaller_side_twice_and_the_sample_once() -> None:
    assert bootstrap_p_value(np.array([1.0] * 96 + [-1.0] * 3)) == pytest.approx(2 * 4 / 100)
    assert bootstrap_p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.array([-1.0, 1.0, np.nan])) == 1.0


def test_methods_that_are_equally_good_are_told_apart_as_often_as_the_level_says() -> None:
    """200 pairs drawn from one distribution, not corrected: 10 are expected below 0.05, more than 20 by 1 in 1,000."""
    random = np.random.default_rng(0)
    names, rows = np.array(["no", "yes"], dtype=object), np.arange(200)

    def drawn() -> list[Predictions]:
        predicted = names[(random.uniform(size=200) < 0.8).astype(int)]
        keys, splits = rows.astype(str).astype(object), np.full(200, "test", dtype=object)
        return [Predictions("head", "tap", None, None, keys, splits, names[np.ones(200, int)], predicted, np.empty(0))]

    methods = [drawn() for _ in range(400)]
    values = bootstrap.resample_metric("accuracy", methods, list(names), resamples=500, seed=0)
    told = sum(bootstrap_p_value(a - b) < 0.05 for a, b in zip(values[::2], values[1::2], strict=True))
    assert 1 <= told <= 20
