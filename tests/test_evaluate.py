"""Evaluation: what is chosen on validation rows, what is reported on test rows, and what the two files say."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.model_records import head_fit, heads

from pipeline.errors import DataError, HeadError
from pipeline.evaluate.config import EvaluateConfig, Metric
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.table import select
from pipeline.evaluate.up_to_date import inputs_digest, is_up_to_date
from pipeline.files import write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.report import leaderboard
from pipeline.report.config import ReportConfig
from pipeline.report.run import report
from pipeline.task import Kind, Task, column_of
from stages.evaluate import remove_other_runs

CLASSES = ["ape", "bee", "cat"]
QUICK = EvaluateConfig(resamples=100)


@dataclass
class Run:
    """A run of predictions that are made up: how many of the rows of each split are right."""

    folder: Path
    name: str = "run"
    classes: Sequence[str] = field(default_factory=lambda: CLASSES)
    scores: Scores = "probability"
    fits: list[Predictions] = field(default_factory=list)
    more: dict[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of the task."""
    record: dict[str, Any] = field(default_factory=lambda: heads("pets"))
    """Its model.json."""

    def add(
        self,
        tap: str,
        *,
        right: Mapping[str, int],
        of: Mapping[str, int],
        labels: int | None = None,
        draw: int | None = None,
        head: str = "logistic",
    ) -> "Run":
        """The first `right` rows of each split are predicted right, with 0.8, the others wrong, with 0.6."""
        splits = [split for split, rows in of.items() for _ in range(rows)]
        numbers = np.array([row % len(self.classes) for rows in of.values() for row in range(rows)])
        hit = np.array([row < right[split] for split, rows in of.items() for row in range(rows)])
        answers = np.where(hit, numbers, (numbers + 1) % len(self.classes))
        sure = np.where(hit, 0.8, 0.6)[:, None]
        scores = np.where(np.eye(len(self.classes), dtype=bool)[answers], sure, (1 - sure) / (len(self.classes) - 1))
        names = np.array(self.classes, dtype=object)
        self.fits.append(
            Predictions(
                head=head,
                input=tap,
                labels=labels,
                draw=draw,
                keys=np.array([f"{number:032x}" for number in range(len(splits))], dtype=object),
                splits=np.array(splits, dtype=object),
                targets=names[numbers],
                predicted=names[answers],
                scores=(np.full_like(scores, np.nan) if self.scores == "none" else scores).astype(np.float32),
            )
        )
        return self

    def evaluate(self, config: EvaluateConfig = QUICK) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the predictions and evaluate them; the numbers and the tables, as they stand on disk."""
        predictions, model = self.folder / f"{self.name}.parquet", self.folder / "model"
        scores: dict[str, Scores] = {
            one.head: "none" if np.isnan(one.scores).all() else self.scores for one in self.fits
        }
        with Writer(predictions, "classification", list(self.classes), scores) as writer:
            for one in self.fits:
                writer.add(one)
        self.write_task()
        write_json(model / "model.json", self.record)
        numbers, tables = self.folder / "metrics" / "run.json", self.folder / "plots" / "run.json"
        found = evaluate(
            config,
            predictions=predictions,
            task=self.folder / "pets.parquet",
            model=model,
            numbers=numbers,
            tables=tables,
            confusion=self.folder / "plots" / "confusion" / "run.csv",
            curve=self.folder / "plots" / "curves" / "run.csv",
        )
        written = json.loads(numbers.read_text())
        assert written == {name: value for name, value in found.items() if value is not None}
        return written, json.loads(tables.read_text())

    def write_task(self) -> None:
        """Write the task that the first fit answers, unless there is one; a row of each class trains."""
        path, one = self.folder / "pets.parquet", self.fits[0]
        if path.exists():
            return
        columns: dict[str, Any] = {
            "key": [*one.keys, *(f"f{number:031x}" for number in range(len(self.classes)))],
            "target": [*one.targets, *self.classes],
            "split": [*one.splits, *["train"] * len(self.classes)],
        }
        Task(pa.table(columns | self.more).replace_schema_metadata({"kind": "classification"})).write(path)


ROWS = {"validation": 6, "test": 12}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_input_that_is_best_on_validation_rows_is_selected_though_another_is_best_on_test_rows(run: Run) -> None:
    run.add("shallow", right={"validation": 5, "test": 7}, of=ROWS)
    run.add("deep", right={"validation": 3, "test": 12}, of=ROWS)
    numbers, tables = run.evaluate()
    assert numbers["input"] == "shallow"
    assert numbers["accuracy"] == pytest.approx(7 / 12)
    assert tables["selected"] in tables["table"]
    assert [(row["input"], row["accuracy"]) for row in tables["table"]] == [
        ("shallow", pytest.approx(7 / 12)),
        ("deep", 1.0),
    ]


rights = st.lists(st.integers(0, 12), min_size=3, max_size=3)


@settings(max_examples=8, deadline=None)
@given(validation=st.lists(st.integers(0, 6), min_size=3, max_size=3), once=rights, again=rights)
def test_test_rows_never_change_what_is_selected(
    tmp_path_factory: pytest.TempPathFactory, validation: list[int], once: list[int], again: list[int]
) -> None:
    chosen = []
    for test in (once, again):
        run = Run(tmp_path_factory.mktemp("run"))
        for number, (v, t) in enumerate(zip(validation, test, strict=True)):
            run.add(f"tap{number}", right={"validation": v, "test": t}, of=ROWS)
        chosen.append(run.evaluate()[0]["input"])
    # The best on validation rows, and the first of equals.
    assert chosen == [f"tap{validation.index(max(validation))}"] * 2


def test_the_selection_is_made_at_the_most_labels(run: Run) -> None:
    for draw in (0, 1):
        run.add("early", right={"validation": 6, "test": 6}, of=ROWS, labels=1, draw=draw)
        run.add("early", right={"validation": 4, "test": 9}, of=ROWS, labels=10, draw=draw)
        run.add("late", right={"validation": 1, "test": 6}, of=ROWS, labels=1, draw=draw)
        run.add("late", right={"validation": 5, "test": 8}, of=ROWS, labels=10, draw=draw)
    numbers, _ = run.evaluate()
    assert (numbers["input"], numbers["labels"], numbers["draws"], numbers["test_rows"]) == ("late", 10, 2, 12)


def test_the_numbers_are_means_over_the_draws(run: Run) -> None:
    for draw, right in enumerate((6, 9, 12)):
        run.add("tap", right={"validation": draw, "test": right}, of=ROWS, labels=5, draw=draw)
    numbers, tables = run.evaluate()
    [row] = tables["table"]
    assert numbers["accuracy"] == pytest.approx(9 / 12)
    assert row["accuracy_spread"] == pytest.approx(np.std([6 / 12, 9 / 12, 1], ddof=1))
    assert row["validation_accuracy"] == pytest.approx(1 / 6)
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_log_loss_and_calibration_error_are_those_of_the_test_rows(run: Run) -> None:
    numbers, tables = run.add("tap", right={"validation": 0, "test": 9}, of=ROWS).evaluate()
    # Nine rows right with 0.8; three wrong, their targets with (1 - 0.6) / 2.
    assert numbers["log_loss"] == pytest.approx(-(9 * math.log(0.8) + 3 * math.log(0.2)) / 12, rel=1e-5)
    assert numbers["ece"] == pytest.approx(9 / 12 * 0.2 + 3 / 12 * 0.6, rel=1e-5)
    assert [(row["count"], row["accuracy"]) for row in tables["reliability"]] == [(3, 0.0), (9, 1.0)]


def test_confusion_and_classes_are_those_of_the_selected_input_over_all_draws_of_test_rows(run: Run) -> None:
    for draw in (0, 1):
        run.add("good", right={"validation": 6, "test": 9}, of=ROWS, labels=5, draw=draw)
        run.add("bad", right={"validation": 0, "test": 0}, of=ROWS, labels=5, draw=draw)
    _, tables = run.evaluate()
    # The last three of the twelve test rows, one a class, are taken for the next class; twice, for two draws.
    assert tables["classes"] == CLASSES
    assert tables["confusion"] == [[6, 2, 0], [0, 6, 2], [2, 0, 6]]
    # Three of the four rows of a class come first by its score, 0.8; the fourth has 0.2, as two rows of others have.
    shares = {"precision": 0.75, "recall": 0.75, "f1": 0.75, "average_precision": pytest.approx(3 / 4 + 1 / 4 * 4 / 6)}
    assert tables["per_class"] == [{"class": name, **shares, "rows": 4} for name in CLASSES]


@pytest.mark.parametrize("scores", ["none", "decision"])
def test_heads_without_probabilities_have_neither_log_loss_nor_calibration(run: Run, scores: Scores) -> None:
    run.scores = scores
    numbers, tables = run.add("tap", right={"validation": 3, "test": 6}, of=ROWS).evaluate()
    assert not {"log_loss", "ece"} & set(numbers)
    assert (tables["selected"]["log_loss"], tables["selected"]["ece"]) == (None, None)
    assert tables["reliability"] is None
    assert tables["selected"]["accuracy"] == 0.5


def test_classes_that_sort_otherwise_as_text_keep_their_own_scores(run: Run) -> None:
    run.classes = ["2", "9", "10"]
    numbers, _ = run.add("tap", right={"validation": 6, "test": 12}, of=ROWS).evaluate()
    assert numbers["log_loss"] == pytest.approx(-math.log(0.8), rel=1e-5)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize("scores", ["probability", "decision", "none"])
@pytest.mark.parametrize("of", [ROWS, {"test": 1}, {"validation": 1, "test": 2}])
def test_both_files_hold_finite_numbers_only(run: Run, scores: Scores, of: dict[str, int]) -> None:
    run.scores = scores
    for draw in (0, 1):
        run.add("tap", right=dict.fromkeys(of, 0), of=of, labels=1, draw=draw)
        run.add("tap", right=of, of=of, labels=2, draw=draw)
    for written in run.evaluate():
        assert all(math.isfinite(leaf) for leaf in leaves(written) if isinstance(leaf, float | int))
    assert None not in leaves(run.evaluate()[0])


def test_the_tables_name_the_run_and_what_it_was_made_from(run: Run) -> None:
    run.name = "pets_logistic"
    _, tables = run.add("tap", right=ROWS, of=ROWS).evaluate(EvaluateConfig(confidence_level=0.8, resamples=100))
    assert tables["run"] == "pets_logistic"
    assert tables["made_from"] == run.record == heads("pets")
    assert tables["interval"] == 0.8


def test_settings_reach_the_interval(run: Run) -> None:
    run.add("tap", right={"validation": 3, "test": 8}, of=ROWS)
    narrow, _ = run.evaluate(EvaluateConfig(confidence_level=0.5, resamples=500))
    wide, _ = run.evaluate(EvaluateConfig(confidence_level=0.99, resamples=500))
    assert wide["accuracy_low"] < narrow["accuracy_low"]
    assert narrow["accuracy_high"] < wide["accuracy_high"]


def test_evaluating_twice_writes_the_same_numbers(run: Run) -> None:
    run.add("tap", right={"validation": 3, "test": 8}, of=ROWS)
    assert run.evaluate() == run.evaluate()


def test_a_run_is_current_until_its_settings_its_files_or_what_was_written_change(run: Run) -> None:
    run.add("tap", right={"validation": 3, "test": 8}, of=ROWS).evaluate()
    made_from = {name: run.folder / path for name, path in MADE_FROM.items()}
    tables, others = run.folder / "plots/run.json", [run.folder / "metrics/run.json"]

    def current(config: EvaluateConfig = QUICK) -> bool:
        return is_up_to_date(inputs_digest(config, **made_from), tables=tables, others=others)

    assert current()
    assert not current(EvaluateConfig(resamples=101))
    for path in (made_from["predictions"], made_from["task"], made_from["model"] / "model.json"):
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert not current()
        path.write_bytes(before)
        assert current()
    with pytest.MonkeyPatch.context() as patch:  # another version of scikit-learn may work out other numbers
        patch.setattr("pipeline.evaluate.up_to_date.versions", lambda *names: dict.fromkeys(names, "9.9"))
        assert not current()
    others[0].unlink()
    assert not current()
    run.evaluate()
    assert current()
    tables.unlink()
    assert not current()


def test_what_was_written_of_runs_that_are_gone_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = ("metrics/runs/{}.json", "plots/{}.json", "plots/confusion/{}.csv", "plots/curves/{}.csv")
    kept, gone = ([tmp_path / "data" / place.format(name) for place in places] for name in ("kept", "gone"))
    other = tmp_path / "data/metrics/extract/gone.json"
    for path in (*kept, *gone, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    remove_other_runs({"kept"})
    assert all(path.exists() for path in (*kept, other))
    assert not any(path.exists() for path in gone)


MADE_FROM = {"predictions": "run.parquet", "task": "pets.parquet", "model": "model"}


# Heads, groups, levels, plots ----------------------------------------------------------------------------------------


def test_the_best_of_several_heads_is_selected_and_one_without_probabilities_says_so(run: Run) -> None:
    run.add("tap", head="logistic", right={"validation": 3, "test": 12}, of=ROWS)
    run.scores = "none"
    run.add("tap", head="centroid", right={"validation": 5, "test": 7}, of=ROWS)
    run.scores = "probability"
    numbers, tables = run.evaluate()
    assert (numbers["head"], numbers["accuracy"]) == ("centroid", pytest.approx(7 / 12))
    assert [row["head"] for row in tables["table"]] == ["logistic", "centroid"]
    assert "degraded" not in tables["table"][0]
    assert tables["selected"]["degraded"] == {
        "auroc": "centroid gives no scores",
        "average_precision": "centroid gives no scores",
        "log_loss": "centroid gives no probabilities",
        "brier": "centroid gives no probabilities",
        "ece": "centroid gives no probabilities",
    }


def test_another_metric_may_decide(run: Run) -> None:
    # Of six validation rows, two a class: the one has three classes half right, the other one class wholly wrong.
    run.add("some", right={"validation": 3, "test": 9}, of=ROWS)
    run.add("more", right={"validation": 4, "test": 8}, of=ROWS)
    numbers, tables = run.evaluate(EvaluateConfig(resamples=100, metric=Metric(classification="macro_f1")))
    assert (numbers["metric"], numbers["input"]) == ("macro_f1", "more")
    assert numbers["macro_f1_low"] <= numbers["macro_f1"] <= numbers["macro_f1_high"]
    assert tables["selected"]["validation_macro_f1"] == max(row["validation_macro_f1"] for row in tables["table"])


def test_rows_are_measured_by_domain_and_by_group(run: Run) -> None:
    run.more = {"domain": ["web"] * 6 + ["shop"] * 9 + ["web"] * 6, "group": ["one"] * 21}
    _, tables = run.add("tap", right={"validation": 6, "test": 10}, of=ROWS).evaluate()
    [domains] = tables["groups"]  # all rows are of one group: there is nothing to tell apart
    assert (domains["column"], domains["values"]) == ("domain", 2)
    shop, web = domains["rows"]
    least = pytest.approx(0.025 ** (1 / 9))  # all nine rows are right
    assert (shop["value"], shop["rows"], shop["measured"], shop["low"], shop["high"]) == ("shop", 9, 1.0, least, 1.0)
    assert (web["value"], web["rows"], web["measured"]) == ("web", 3, pytest.approx(1 / 3))
    assert web["low"] <= 1 / 3 <= web["high"]


def test_of_many_groups_those_with_the_most_rows_are_measured(run: Run) -> None:
    run.more = {"group": [f"g{number:03d}" for number in range(60)] + ["g000"] * 20 + ["x"] * 3}
    _, tables = run.add("tap", right={"test": 40}, of={"test": 80}).evaluate()
    [groups] = tables["groups"]
    assert (groups["values"], len(groups["rows"])) == (60, 50)
    assert groups["rows"][0]["rows"] == 21


def test_errors_within_a_family_count_as_right_a_level_above(run: Run) -> None:
    family = {"ape": "mammal", "cat": "mammal", "bee": "insect"}
    names = [CLASSES[row % 3] for rows in ROWS.values() for row in range(rows)] + CLASSES
    run.more = {"level:family": [family[name] for name in names]}
    _, tables = run.add("tap", right={"validation": 6, "test": 9}, of=ROWS).evaluate()
    # Three errors: ape for bee, bee for cat, cat for ape; the last is within mammals.
    [level] = tables["levels"]
    assert (level["level"], level["classes"], level["accuracy"]) == ("family", 2, pytest.approx(10 / 12))
    assert level["accuracy_low"] <= 10 / 12 <= level["accuracy_high"]
    [groups] = tables["groups"]
    assert (groups["column"], [row["value"] for row in groups["rows"]]) == ("family", ["insect", "mammal"])


def test_a_class_under_two_classes_of_a_level_is_refused(run: Run) -> None:
    run.more = {"level:family": ["mammal"] * 20 + ["insect"]}
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS)
    with pytest.raises(DataError, match=r"level 'family': expected one class above 'cat', got 'insect' and 'mammal'\."):
        run.evaluate()


def test_the_plots_of_dvc_have_the_first_draw_and_the_selected_curve(run: Run) -> None:
    for labels in (5, 1):
        for draw in (0, 1):
            run.add("early", right={"validation": 5, "test": 6 + labels}, of=ROWS, labels=labels, draw=draw)
            run.add("late", right={"validation": 1, "test": 6}, of=ROWS, labels=labels, draw=draw)
    run.evaluate()
    plots = run.folder / "plots"
    header, *rows = (plots / "confusion" / "run.csv").read_text().splitlines()
    assert header == "target,predicted"
    assert len(rows) == 12
    assert rows[0] == "ape,ape"
    assert rows[-1] == "cat,ape"
    curve = (plots / "curves" / "run.csv").read_text().splitlines()
    assert curve == ["labels,value", f"1,{7 / 12}", f"5,{11 / 12}"]


# Other kinds of task -------------------------------------------------------------------------------------------------


def evaluated(
    folder: Path, kind: Kind, targets: np.ndarray, fits: Sequence[Predictions], scores: Mapping[str, Scores]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate the fits of a task of another kind; the numbers and the tables."""
    classes = [] if kind == "regression" else CLASSES
    with Writer(folder / "run.parquet", kind, classes, scores) as writer:
        for one in fits:
            writer.add(one)
    table = pa.table({"key": fits[0].keys, "target": column_of(targets, kind, classes), "split": fits[0].splits})
    Task(table.replace_schema_metadata({"kind": kind})).write(folder / "task.parquet")
    write_json(folder / "model" / "model.json", heads("task"))
    found = evaluate(
        QUICK,
        predictions=folder / "run.parquet",
        task=folder / "task.parquet",
        model=folder / "model",
        numbers=folder / "numbers.json",
        tables=folder / "tables.json",
        confusion=folder / "confusion.csv",
        curve=folder / "curve.csv",
    )
    for name, header in {"confusion": "target,predicted", "curve": "labels,value"}.items():
        assert (folder / f"{name}.csv").read_text() == f"{header}\n"
    return found, json.loads((folder / "tables.json").read_text())


def answers(head: str, targets: np.ndarray, predicted: np.ndarray, scores: np.ndarray) -> Predictions:
    """The predictions of one fit, a third of the rows for validation."""
    keys = np.array([f"{number:032x}" for number in range(len(targets))], dtype=object)
    splits = np.where(np.arange(len(targets)) % 3 == 0, "validation", "test").astype(object)
    return Predictions(head, "tap", None, None, keys, splits, targets, predicted, scores)


def test_a_regression_is_chosen_by_r2_and_has_an_interval_of_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets = random.normal(size=90)
    rough, fine = (targets + random.normal(0, spread, size=90) for spread in (1.0, 0.1))
    none = np.empty((90, 0))
    fits = [answers("rough", targets, rough, none), answers("fine", targets, fine, none)]
    numbers, tables = evaluated(tmp_path, "regression", targets, fits, {"rough": "none", "fine": "none"})
    assert (numbers["metric"], numbers["head"], numbers["test_rows"]) == ("r2", "fine", 60)
    assert 0.97 < numbers["r2_low"] < numbers["r2"] < numbers["r2_high"] < 1
    assert (tables["confusion"], tables["per_class"], tables["reliability"], tables["levels"]) == (None, None, None, [])
    assert len(tables["scatter"]) == 60


def test_several_labels_are_chosen_by_map_and_a_head_without_scores_is_passed_over(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets = random.uniform(size=(90, 3)) < 0.4
    scores = (targets + random.normal(0, 0.5, size=(90, 3))).astype(np.float32)
    tree = answers("tree", targets, targets, np.full((90, 3), np.nan))
    logistic = answers("logistic", targets, scores > 0.5, scores)
    heads: dict[str, Scores] = {"tree": "none", "logistic": "probability"}
    numbers, tables = evaluated(tmp_path, "multilabel", targets, [tree, logistic], heads)
    assert (numbers["metric"], numbers["head"]) == ("map", "logistic")
    assert numbers["map_low"] < numbers["map"] < numbers["map_high"]
    row = next(row for row in tables["table"] if row["head"] == "tree")
    assert (row["map"], row["map_low"], row["subset_accuracy"]) == (None, None, 1.0)
    assert row["degraded"]["map"] == "tree gives no scores"
    assert np.mean([row["average_precision"] for row in tables["per_class"]]) == pytest.approx(numbers["map"])


def test_where_no_method_has_the_metric_that_decides_the_run_is_recorded_as_unavailable(tmp_path: Path) -> None:
    targets = np.eye(3, dtype=bool).repeat(3, axis=0)
    tree = answers("tree", targets, targets, np.full((9, 3), np.nan))
    numbers, tables = evaluated(tmp_path, "multilabel", targets, [tree], {"tree": "none"})
    assert numbers["unavailable"] == tables["unavailable"]
    assert numbers["unavailable"].startswith("map cannot be measured for any method: tree gives no scores. Choose ano")
    assert tables["table"][0]["subset_accuracy"] == 1.0
    (tmp_path / "run.json").write_text((tmp_path / "tables.json").read_text())
    assert leaderboard.read(tmp_path, ["run"]) == []
    assert leaderboard.unmeasured(tmp_path, ["run"]) == {"run": numbers["unavailable"]}
    report(ReportConfig(), [], tmp_path / "index.html", unmeasured={"run": numbers["unavailable"]})
    assert "run is not measured: map cannot be measured" in (tmp_path / "index.html").read_text()


def test_the_stages_pass_over_a_run_that_cannot_be_measured_and_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.projects import default

    from stages import compare as compare_stage
    from stages import evaluate as evaluate_stage
    from stages import report as report_stage

    params = default() | {name: {} for name in ("finetune", "teach", "distill")}
    params["split"] = {name: {"datasets": ["digits"], "target": "a", "kind": "multilabel"} for name in ("tags", "rest")}
    fit = {"backbone": "glyphs", "inputs": ["block3"], "head": ["forest", "ridge"]}
    tasks = {"tree": "tags", "right": "tags", "wrong": "tags", "lone": "rest"}
    params["fit"] = {name: {"task": task, **fit} for name, task in tasks.items()}
    params["evaluate"]["resamples"] = params["compare"]["resamples"] = 100
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    targets = np.eye(3, dtype=bool).repeat(12, axis=0)
    scores = targets * 0.8 + np.linspace(0, 0.1, 36)[:, None]
    for name, task in tasks.items():
        known = name in ("right", "wrong")
        given = scores if name == "right" else np.roll(scores, 4, axis=0) if known else np.full_like(scores, np.nan)
        one = answers("head", targets, given > 0.5 if known else targets, given)
        with Writer(
            Path(f"data/predictions/{name}.parquet"),
            "multilabel",
            CLASSES,
            {"head": "probability" if known else "none"},
        ) as writer:
            writer.add(one)
        table = pa.table(
            {"key": one.keys, "target": column_of(targets, "multilabel", CLASSES), "split": one.splits}
        ).replace_schema_metadata({"kind": "multilabel"})
        Task(table).write(Path(f"data/tasks/{task}.parquet"))
        fits = [head_fit("head", file=f"{name}.skops", not_converged="max_iter" if name == "right" else None)]
        failure = {"head": "knn", "input": "block3", "labels": None, "draw": None}
        failure |= {"cause": "knn on block3, all: too few rows"}
        record = heads(task, settings=fit, fits=fits, failed=[failure] if name == "right" else [])
        write_json(Path(f"data/models/{name}/model.json"), record)

    def printed(stage: Any, *names: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["stage", *names])
        stage.main()
        return capsys.readouterr().out.splitlines()

    cause = "map cannot be measured for any method: head gives no scores."
    lines = printed(evaluate_stage)
    assert [line.partition(": ")[0] for line in lines] == list(tasks)
    assert [line.partition(": ")[2].startswith(f"not measured: {cause}") for line in lines] == [
        True,
        False,
        False,
        True,
    ]
    assert lines[1].startswith("right: map 1.000 [0.631, 1.000]")
    lines = printed(compare_stage)
    assert [line[: len(line.partition(cause)[0])] for line in lines] == [
        "tags: tree is left out: ",
        "tags: 1 of 1 differences between runs are significant",
        "rest: lone is left out: ",
    ]
    assert [path.name for path in Path("data/comparisons").iterdir()] == ["tags.json"]
    [pair] = json.loads(Path("data/comparisons/tags.json").read_text())["across"]
    assert pair["better"] == "right: head on tap"
    lines = printed(report_stage)
    assert [line for line in lines if "not measured" in line] == [
        line for line in lines if line.startswith((f"tree: not measured: {cause}", f"lone: not measured: {cause}"))
    ]
    assert sum("not measured" in line for line in lines) == 2
    assert [line.split()[:2] for line in lines[2:4]] == [["tags", "right"], ["tags", "wrong"]]
    text = Path("data/report/index.html").read_text()
    assert "right.skops did not converge: max_iter" in text
    assert "not fitted: knn on block3, all: too few rows" in text
    assert f"tree is not measured: {cause}" in text


# What cannot be evaluated --------------------------------------------------------------------------------------------


def test_several_inputs_and_no_validation_rows_are_refused(run: Run) -> None:
    run.add("one", right={"test": 3}, of={"test": 6}).add("two", right={"test": 6}, of={"test": 6})
    with pytest.raises(
        DataError,
        match=r"2 methods to choose from, but the task has no validation rows to measure accuracy on, and the test",
    ):
        run.evaluate()


def test_the_model_json_of_another_version_is_refused(run: Run) -> None:
    run.add("tap", right=ROWS, of=ROWS).record["format"] = 1
    with pytest.raises(HeadError, match=r"model: expected a model\.json of format 2, got 1\. Fit the run again\.$"):
        run.evaluate()
    assert not (run.folder / "plots").exists()


def test_a_single_input_needs_no_validation_rows(run: Run) -> None:
    numbers, tables = run.add("one", right={"test": 3}, of={"test": 6}).evaluate()
    assert (numbers["input"], numbers["accuracy"]) == ("one", 0.5)
    assert tables["selected"]["validation_accuracy"] is None


def test_no_test_rows_are_refused(run: Run) -> None:
    run.add("one", right={"validation": 3}, of={"validation": 6})
    with pytest.raises(DataError, match=r"run\.parquet: the task has no test rows\. Give its `sizes` a test share"):
        run.evaluate()


def test_missing_predictions_name_the_stage_that_makes_them(tmp_path: Path) -> None:
    message = r"pets\.parquet: no such predictions\. Run `icecore repro`, or only the run 'pets'"
    with pytest.raises(DataError, match=message):
        evaluate(
            QUICK,
            predictions=tmp_path / "pets.parquet",
            task=tmp_path / "task.parquet",
            model=tmp_path,
            numbers=tmp_path / "numbers.json",
            tables=tmp_path / "tables.json",
            confusion=tmp_path / "confusion.csv",
            curve=tmp_path / "curve.csv",
        )
    assert not list(tmp_path.glob("*.json"))


def test_predictions_of_another_version_of_the_task_are_refused(run: Run) -> None:
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS).write_task()
    [one] = run.fits
    run.fits = [replace(one, targets=np.roll(one.targets, 1))]
    with pytest.raises(
        DataError,
        match=r"(?s)predictions that do not fit .*pets\.parquet\. Run 'run' again.*tap: 18 of 18 targets",
    ):
        run.evaluate()


def test_predictions_of_samples_that_the_task_has_not_are_refused(run: Run) -> None:
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS).write_task()
    [one] = run.fits
    run.fits = [replace(one, keys=np.array([key.replace("0", "e", 1) for key in one.keys], dtype=object))]
    with pytest.raises(DataError, match=r"logistic tap: 18 of 18 samples are not in the task"):
        run.evaluate()


def test_predictions_of_a_class_that_the_task_has_not_are_refused(run: Run) -> None:
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS).write_task()
    [one] = run.fits
    run.fits = [replace(one, predicted=np.full(18, "dog", dtype=object))]
    with pytest.raises(DataError, match=r"logistic tap: predicted classes that the task does not have: dog"):
        run.evaluate()


def test_scores_of_a_class_that_the_task_has_not_are_refused(run: Run) -> None:
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS).write_task()
    run.classes = [*CLASSES, "dog"]
    [one] = run.fits
    run.fits = [replace(one, scores=np.full((18, 4), 0.25, dtype=np.float32))]
    with pytest.raises(
        DataError, match=r"run\.parquet: expected classes of .*pets\.parquet, got dog\. Run 'run' again"
    ):
        run.evaluate()


def test_predictions_of_another_kind_than_the_task_are_refused(run: Run) -> None:
    run.add("tap", right={"validation": 6, "test": 9}, of=ROWS)
    keys, splits = run.fits[0].keys, run.fits[0].splits
    columns = {"key": keys, "target": np.arange(18.0), "split": splits}
    Task(pa.table(columns).replace_schema_metadata({"kind": "regression"})).write(run.folder / "pets.parquet")
    with pytest.raises(DataError, match=r"expected predictions of a regression task, got classification\. Run '"):
        run.evaluate()


def test_fits_that_were_tested_on_different_rows_are_refused_with_counts(run: Run) -> None:
    run.add("one", right={"validation": 6, "test": 9}, of=ROWS)
    run.add("two", right={"validation": 6, "test": 9}, of=ROWS)
    splits = run.fits[1].splits.copy()
    splits[-2:] = "validation"
    run.fits[1] = replace(run.fits[1], splits=splits)
    with pytest.raises(
        DataError, match=r"logistic two: expected the 12 test rows of the first fit, got 10; 10 are in both"
    ):
        run.evaluate()


@pytest.mark.parametrize("wrong", [{"confidence_level": 1.0}, {"confidence_level": 0}, {"resamples": 1}])
def test_settings_refuse_what_means_nothing(wrong: dict[str, Any]) -> None:
    [key] = wrong
    with pytest.raises(ValidationError, match=key):
        EvaluateConfig(**wrong)


@given(st.lists(st.tuples(st.sampled_from([1, 5, 10]), st.integers(0, 4)), min_size=1, max_size=8))
def test_select_takes_the_first_best_of_those_with_the_most_labels(rows: list[tuple[int, int]]) -> None:
    table = [{"input": n, "labels": labels, "validation_accuracy": v / 4} for n, (labels, v) in enumerate(rows)]
    chosen = select(table)
    most = [row for row in table if row["labels"] == max(labels for labels, _ in rows)]
    assert chosen["labels"] == most[0]["labels"]
    best = [row for row in most if row["validation_accuracy"] == max(row["validation_accuracy"] for row in most)]
    assert chosen is best[0]
