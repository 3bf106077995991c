"""Students beside their teachers: who taught whom, agreement and divergence against numbers worked out by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.model_records import heads, network, teacher

from pipeline.compare.config import CompareConfig
from pipeline.compare.run import compare
from pipeline.compare.teachers import divergence
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.task import Kind, Task

QUICK = CompareConfig(resamples=400)
NAMES = np.array(["no", "yes"], dtype=object)
ROWS, VALIDATION = 100, 20
KEYS = np.array([f"{number:032x}" for number in range(VALIDATION + ROWS)], dtype=object)
SPLITS = np.array(["validation"] * VALIDATION + ["test"] * ROWS, dtype=object)
TARGETS = NAMES[np.arange(VALIDATION + ROWS) % 2]


class Bench:
    """A task of 100 test rows and two classes, and runs that answer it."""

    def __init__(self, folder: Path, kind: Kind = "classification") -> None:
        self.folder, self.kind, self.evaluated = folder, kind, dict[str, Any]()
        table = pa.table({"key": KEYS, "target": TARGETS, "split": SPLITS})
        if kind == "multilabel":
            table = table.set_column(1, "target", pa.array([[name] for name in TARGETS]))
        Task(table.replace_schema_metadata({"kind": kind})).write(folder / "task.parquet")

    def run(
        self,
        name: str,
        wrong: Sequence[range],
        *,
        head: str = "distill",
        sure: float = 0.9,
        labels: Sequence[int | None] = (None,),
        scores: Scores = "probability",
        classes: Sequence[str] = ("no", "yes"),
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """A run with a fit for each range of test rows that it has wrong, and each number of labels, draws from 0.

        record: its model.json, by default of heads.
        """
        predictions = self.folder / f"{name}.parquet"
        columns = [list(NAMES).index(name) for name in classes]
        with Writer(predictions, self.kind, list(classes), {head: scores}) as writer:
            for count in labels:
                for draw, mistaken in enumerate(wrong):
                    right = np.ones(len(KEYS), bool)
                    right[VALIDATION + np.array(mistaken, int)] = False
                    numbers = np.where(right, np.arange(len(KEYS)), np.arange(len(KEYS)) + 1) % 2
                    found = np.where(np.arange(2) == numbers[:, None], sure, 1 - sure).astype(np.float32)
                    several = self.kind == "multilabel"
                    found = found[:, columns]
                    targets = TARGETS[:, None] == NAMES[columns] if several else TARGETS
                    predicted = found > 0.5 if several else NAMES[numbers]
                    shown = None if count is None and len(wrong) == 1 else draw
                    writer.add(Predictions(head, "pixels", count, shown, KEYS, SPLITS, targets, predicted, found))
        write_json(self.folder / name / "model.json", record or heads("task"))
        evaluate(
            EvaluateConfig(resamples=100),
            predictions=predictions,
            task=self.folder / "task.parquet",
            model=self.folder / name,
            numbers=self.folder / "numbers.json",
            tables=self.folder / "tables.json",
            confusion=self.folder / "confusion.csv",
            curve=self.folder / "curve.csv",
        )
        self.evaluated[name] = json.loads((self.folder / "tables.json").read_text())

    def taught(self) -> list[dict[str, Any]]:
        out = self.folder / "comparison.json"
        task = self.folder / "task.parquet"
        compare(QUICK, task=task, predictions=self.folder, runs=self.evaluated, out=out)
        return json.loads(out.read_text())["taught"]


def student(name: str, *teachers: dict[str, Any]) -> dict[str, Any]:
    return network("task", student=name, teachers=list(teachers))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_student_stands_beside_its_teacher_and_beside_labels_alone(bench: Bench) -> None:
    bench.run("tuned", [range(0, 4)], head="finetune", record=network("task"))
    bench.run("alone", [range(0, 40)], record=student("small"))
    bench.run("other", [range(0, 50)], record=student("large"))
    bench.run("learned", [range(2, 12)], record=student("small", teacher("wise", "tuned")))
    one, two = bench.taught()
    assert (one["student"], one["kind"], one["name"], one["run"]) == ("learned", "teacher", "wise", "tuned")
    assert (one["a"], one["b"]) == ("learned: distill on pixels", "wise")
    assert one["agreement"] == pytest.approx(1 - 10 / 100), "0, 1 and 4 to 11 are answered otherwise"
    assert one["agreement_low"] < one["agreement"] < one["agreement_high"]
    assert one["difference"] == pytest.approx(0.90 - 0.96)
    assert (one["mcnemar"]["only_a"], one["mcnemar"]["only_b"]) == (2, 8)
    assert one["better"] is None
    assert (two["kind"], two["name"], two["agreement"], two["divergence"]) == ("labels", "alone", None, None)
    assert two["difference"] == pytest.approx(0.3)
    assert two["better"] == "learned: distill on pixels"


def test_runs_that_are_no_students_have_nobody_beside_them(bench: Bench) -> None:
    bench.run("tuned", [range(0, 4)], head="finetune")
    bench.run("alone", [range(0, 40)], record=student("small"))
    assert bench.taught() == []


def test_the_network_that_was_kept_is_the_teacher(bench: Bench) -> None:
    kept = network("task", labels=50, draw=1)
    bench.run("tuned", [range(0, 30), range(0, 10)], head="finetune", labels=(10, 50), record=kept)
    bench.run("learned", [range(0, 10)], record=student("small", teacher("wise", "tuned")))
    [one] = bench.taught()
    assert (one["labels"], one["draw"]) == (50, 1)
    assert one["agreement"] == 1.0
    assert one["divergence"] == pytest.approx(0, abs=1e-6)


def test_a_head_that_several_fits_could_be_is_left_out(bench: Bench) -> None:
    bench.run("heads", [range(0, 30), range(0, 10)], head="logistic", labels=(10, 50))
    named = teacher("head", "heads", head="logistic", input="pixels")
    bench.run("learned", [range(0, 10)], record=student("small", named))
    assert bench.taught() == []
    bench.run("learned", [range(0, 10)], record=student("small", named | {"labels": 10, "draw": 0}))
    [one] = bench.taught()
    assert (one["labels"], one["draw"], one["agreement"]) == (10, 0, 0.8)


def test_a_head_on_all_labels_goes_before_those_on_few(bench: Bench) -> None:
    bench.run("heads", [range(0, 10)], head="logistic", labels=(10, None))
    named = teacher("head", "heads", head="logistic", input="pixels", labels=None)
    bench.run("learned", [range(0, 10)], record=student("small", named))
    [one] = bench.taught()
    assert one["labels"] is None


def test_a_teacher_without_predictions_of_the_task_is_left_out(bench: Bench) -> None:
    bench.run("learned", [range(0, 10)], record=student("small", teacher("own", "backbone")))
    assert bench.taught() == []


def test_several_teachers_are_followed_by_their_average(bench: Bench) -> None:
    bench.run("one", [range(0, 10)], head="finetune", sure=0.6)
    bench.run("two", [range(10, 20)], head="finetune", sure=0.8)
    teachers = [teacher("first", "one"), teacher("second", "two")]
    bench.run("learned", [range(10, 20)], sure=0.8, record=student("small", *teachers))
    first, second, mean = bench.taught()
    assert [one["name"] for one in (first, second, mean)] == ["first", "second", "first + second"]
    assert (mean["kind"], mean["run"], mean["agreement"]) == ("average", None, 1.0)
    assert first["agreement"] == pytest.approx(0.8)
    assert mean["value_b"] == pytest.approx(0.9), "it goes with the surer of the two"


def test_decision_values_have_no_divergence_and_no_average(bench: Bench) -> None:
    bench.run("ridge", [range(0, 10)], head="ridge", scores="decision")
    bench.run("tuned", [range(0, 10)], head="finetune")
    teachers = [teacher("first", "ridge", head="ridge"), teacher("second", "tuned")]
    bench.run("learned", [range(10, 20)], record=student("small", *teachers))
    first, second = bench.taught()
    assert first["divergence"] is None
    assert second["divergence"] > 0


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_classes_are_matched_by_name_in_whatever_order_a_file_has_them(tmp_path: Path, kind: Kind) -> None:
    bench = Bench(tmp_path, kind)
    bench.run("tuned", [range(0, 4)], head="finetune", classes=("yes", "no"))
    bench.run("learned", [range(0, 14)], record=student("small", teacher("wise", "tuned")))
    [one] = bench.taught()
    assert one["agreement"] == pytest.approx(0.9)
    sure = {"classification": 1, "multilabel": 2}[kind] * 0.8 * math.log(9)  # 0.9 log 9 + 0.1 log (1/9) a pair
    assert one["divergence"] == pytest.approx(0.1 * sure)
    assert bench.evaluated["tuned"]["classes"] == ["no", "yes"]


def test_draws_of_a_student_are_averaged(bench: Bench) -> None:
    bench.run("tuned", [range(0, 0)], head="finetune")
    bench.run("learned", [range(0, 10), range(0, 30)], labels=(10,), record=student("small", teacher("wise", "tuned")))
    [one] = bench.taught()
    assert one["agreement"] == pytest.approx(0.8)
    assert one["mcnemar"] is None


def test_labels_alone_are_as_many_labels(bench: Bench) -> None:
    bench.run("tuned", [range(0, 0)], head="finetune")
    bench.run("few", [range(0, 60)], labels=(5,), record=student("small"))
    bench.run("learned", [range(0, 10)], labels=(10,), record=student("small", teacher("wise", "tuned")))
    assert [one["kind"] for one in bench.taught()] == ["teacher"]


def test_of_several_labels_agreement_is_that_of_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "multilabel")
    bench.run("tuned", [range(0, 0)], head="finetune", sure=0.8)
    bench.run("learned", [range(0, 10)], sure=0.8, record=student("small", teacher("wise", "tuned")))
    [one] = bench.taught()
    assert one["agreement"] == pytest.approx(0.9)
    assert one["agreement_low"] is None
    each = 0.8 * math.log(0.8 / 0.2) + 0.2 * math.log(0.2 / 0.8)
    assert one["divergence"] == pytest.approx(0.1 * 2 * each, rel=1e-5)


# The divergence ------------------------------------------------------------------------------------------------------


def test_the_divergence_is_what_the_definition_says() -> None:
    t, s = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.9, 0.1], [0.5, 0.5]])
    by_hand = [0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), math.log(2)]
    assert divergence(t, s, "classification") == pytest.approx(np.mean(by_hand))
    assert divergence(s, t, "classification") > divergence(t, s, "classification"), "it is not symmetric"


def test_the_divergence_of_a_pair_is_the_sum_of_yes_and_no() -> None:
    found = divergence(np.array([[0.9, 0.2]]), np.array([[0.5, 0.2]]), "multilabel")
    assert found == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def test_a_student_that_rules_out_what_its_teacher_says_diverges_far_but_not_for_ever() -> None:
    found = divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]], np.float32), "classification")
    assert found == pytest.approx(-math.log(np.finfo(np.float32).tiny), rel=1e-6)
