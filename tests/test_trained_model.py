"""Loading what a run learned: the predictions of the run itself, for every kind of model, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import small_training
from support.trained_models import HEADS, Models, same

from pipeline.errors import BackboneError, DataError, HeadError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import read_json, write_json
from pipeline.inference.answers import TaskOutput, describe_tasks
from pipeline.inference.trained_model import load
from pipeline.predictions import PredictionsFile

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models") / "data")


@pytest.mark.parametrize(
    "run", ["heads", "marks", "numbers", "drawn", "tuned", "tuned_marks", "tuned_numbers", "student"]
)
def test_predictions_are_those_of_the_run(models: Models, run: str) -> None:
    folder = models.run(run)
    files: list[str | None] = [one["file"] for one in read_json(folder / "model.json")["fits"]]
    if run == "heads":
        assert len(files) == 2 * len(HEADS)
    for file in files:
        model = load(folder, file=file)
        written = PredictionsFile.open(models.root / f"{run}.parquet")
        fit = model.record.head, model.record.input, model.record.labels, model.record.draw
        [expected] = [one for one in written if (one.head, one.input, one.labels, one.draw) == fit]
        test = expected.splits == "test"
        photos = [models.files[key] for key in expected.keys[test]]
        assert len(photos) == 6
        assert (model.kind, list(model.classes), model.scores) == (
            written.kind,
            written.classes,
            written.scores[fit[0]],
        )
        [answers, *_] = model.answer_rows(model.rows(photos, batch_size=64))
        assert same(answers.predicted, expected.predicted[test])
        assert np.allclose(answers.scores, expected.scores[test], rtol=0, atol=1e-6, equal_nan=True)
        assert same(model.predict(photos), expected.predicted[test])  # in a batch of six
        if model.scores == "probability":
            assert np.allclose(model.predict_proba(photos), expected.scores[test], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("marks", "logistic on last of net, 4 labels: {classes})"),
        ("numbers", "ridge on last of net, regression)"),
        ("tuned", "network glyphs, 3 classes: dark, grey, white)"),
        ("student", "network glyphs, 3 classes: dark, grey, white; 2 classes: dark, light)"),
    ],
)
def test_a_model_says_in_one_line_what_it_is(models: Models, run: str, expected: str) -> None:
    model = load(models.run(run))
    found = repr(model)
    assert found == f"TrainedModel({str(models.run(run))!r}, {expected.format(classes=', '.join(model.classes))}"
    many = TaskOutput("many", "classification", tuple(f"class\n{n}" for n in range(5000)), slice(0, 5000))
    assert describe_tasks([many]).startswith("5,000 classes: class 0, class 1, ")
    assert len(describe_tasks([many])) <= 75
    assert repr(model.backbone).endswith(f", {len(model.backbone.spec.taps)} nodes)")


def test_a_student_answers_each_of_its_tasks(models: Models) -> None:
    model = load(models.run("student"))
    assert [(one.name, one.classes) for one in model.tasks] == [
        ("task", ("dark", "grey", "white")),
        ("brightness", ("dark", "light")),
    ]
    [expected] = PredictionsFile.open(models.root / "models" / "student" / "predictions" / "brightness.parquet")
    photos = [models.files[key] for key in expected.keys]
    assert np.array_equal(model.predict(photos, task="brightness"), expected.predicted)
    assert np.allclose(model.predict_proba(photos, task="brightness"), expected.scores, rtol=0, atol=1e-5)
    with pytest.raises(DataError, match=r"unknown task 'bright'\. Did you mean 'brightness'"):
        model.predict(photos, task="bright")


def test_stored_rows_and_no_images_are_predicted_too(models: Models) -> None:
    model = load(models.run("marks"))
    rows = model.rows([models.files[key] for key in models.keys[:4]])
    assert rows["last"].shape == (4, 8)
    assert model.predict_rows(rows).shape == (4, len(model.classes))
    assert (model.predict([]).shape, model.predict_proba([]).shape) == ((0, 4), (0, 4))
    assert load(models.run("tuned_numbers")).predict([]).shape == (0,)
    with pytest.raises(HeadError, match="expected rows of last, got none of last"):
        model.predict_rows({})


def test_probabilities_are_refused_where_there_are_none(models: Models) -> None:
    photos = [models.files[models.keys[0]]]
    with pytest.raises(HeadError, match=r"got decision values from ridge\. Fit it with `calibrate: temperature`"):
        load(models.run("drawn")).predict_proba(photos)
    with pytest.raises(HeadError, match="a regression predicts numbers and has no probabilities"):
        load(models.run("numbers")).predict_proba(photos)


# Which head ----------------------------------------------------------------------------------------------------------


def evaluated(models: Models, run: str, folder: Path, **more: Any) -> str:
    """Evaluate a run whose model lies in `folder`; return the head and the input that were selected."""
    best = evaluate(
        EvaluateConfig(),
        predictions=models.root / f"{run}.parquet",
        task=models.root / "task.parquet",
        model=folder,
        numbers=folder.parent.parent / "numbers.json",
        tables=folder.parent.parent / "plots" / f"{folder.name}.json",
        confusion=folder.parent.parent / "confusion.csv",
        curve=folder.parent.parent / "curve.csv",
        **more,
    )
    return f"{best['head']}.{best['input']}.all.skops"


@pytest.fixture
def moved(models: Models, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies a run into a project of its own, which shares the backbones and the features."""

    def copy(run: str) -> Path:
        folder = tmp_path / "data" / "models" / run
        shutil.copytree(models.run(run), folder)
        for name in ("backbones", "features"):
            (tmp_path / "data" / name).symlink_to(models.root / name)
        return folder

    return copy


def test_the_selected_head_predicts(models: Models, moved: Callable[[str], Path]) -> None:
    folder = moved("heads")
    models.task()
    with pytest.raises(
        HeadError,
        match=r"expected one head, or an evaluation that chooses among 6, got none\. Run `icecore repro evaluate`",
    ):
        load(folder)
    selected = evaluated(models, "heads", folder)
    assert load(folder).record.file == selected
    # The evaluation's word counts for the model that was evaluated, and for no other.
    tables = folder.parent.parent / "plots" / "heads.json"
    said = read_json(tables)
    assert json.dumps(said["made_from"]) == json.dumps(read_json(folder / "model.json"))
    other = next(one for one in said["made_from"]["fits"] if one["file"] != selected)
    write_json(tables, said | {"selected": {name: other[name] for name in ("head", "input", "labels")}})
    assert load(folder).record.file == other["file"]
    write_json(tables, said | {"made_from": {}, "selected": other})
    for name in ("tasks", "predictions"):
        (folder.parent.parent / name).symlink_to(models.root)
    assert load(folder).record.file == selected
    with pytest.raises(HeadError, match=r"unknown head 'logistic'\. .* Expected one of: logistic\.last\.all"):
        load(folder, file="logistic")


def test_the_most_labels_and_the_first_draw_predict(models: Models) -> None:
    record = load(models.run("drawn")).record
    assert (record.labels, record.draw) == (4, 0)


# What is refused -----------------------------------------------------------------------------------------------------


def changed(path: Path, change: Callable[[Any], None]) -> None:
    values = read_json(path)
    change(values)
    path.write_text(json.dumps(values))


def test_another_backbone_is_refused_with_the_fields(
    models: Models, moved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = moved("marks")
    small_training.backbone(tmp_path / "other", widths=(4, 6, 8), seed=1)
    with pytest.raises(BackboneError, match=r"got another\. Freeze .*\n  - last: weights: expected '.*', got '"):
        load(folder, backbone=tmp_path / "other")
    assert load(folder, backbone=str(models.root / "net")).classes == load(folder).classes

    def pool(made: Any) -> None:
        made["features"]["last"]["identity"]["pool"] = "cls"

    def node(made: Any) -> None:
        made["features"]["last"]["identity"]["node"] = "block9"

    def reader(made: Any) -> None:
        made["features"]["last"]["identity"]["reader"]["resize"] = 7

    for change, message in (
        (node, "last: node: expected 'block9', which the backbone does not have"),
        (reader, "last: reader.resize: expected 7, got"),
    ):
        shutil.copyfile(models.run("marks") / "model.json", folder / "model.json")
        changed(folder / "model.json", change)
        with pytest.raises(BackboneError, match=message):
            load(folder)
    shutil.copyfile(models.run("marks") / "model.json", folder / "model.json")
    (folder.parent.parent / "backbones").unlink()
    with pytest.raises(
        BackboneError, match=r"expected the backbone 'net', .* got none\. Run `icecore repro freeze@net`, or"
    ):
        load(folder)


def test_a_network_that_model_json_does_not_name_is_refused(moved: Callable[[str], Path]) -> None:
    folder = moved("tuned")
    for given, name in (({"backbone": folder}, "`backbone`"), ({"file": "x"}, "`file`")):
        with pytest.raises(DataError, match=f"a trained network has its own backbone and no head: leave {name} out"):
            load(folder, **given)
    changed(folder / "model.json", lambda made: made["backbone"].update(weights="0" * 64))
    with pytest.raises(BackboneError, match=r"expected the network that model\.json names, with the weights 0000"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models/mark", r"models: unknown run 'mark'\. Did you mean 'marks'.*\? Expected one of: "),
        ("models", r"expected a run's folder with model\.json, such as data/models/RUN, got a folder without it"),
        (
            "nowhere/marks",
            r"such as data/models/RUN, got no such folder\. `icecore repro` makes the runs of a project\.",
        ),
        ("net", r"expected a run's folder with model\.json, got a backbone\. Name a run on it\."),
    ],
)
def test_what_is_no_run_is_refused(models: Models, name: str, message: str) -> None:
    models.run("marks")
    with pytest.raises(DataError, match=message):
        load(models.root / name)


def test_a_run_of_another_version_is_refused(moved: Callable[[str], Path]) -> None:
    folder = moved("marks")
    changed(folder / "model.json", lambda made: made.update(format=1))
    with pytest.raises(HeadError, match=r"marks: expected a model\.json of format 2, got 1\. Fit the run again\."):
        load(folder)
    (folder / "model.json").write_text("[]")
    with pytest.raises(HeadError, match=r"marks: expected a model\.json of format 2, got None\. Fit the run again\."):
        load(folder)
    with pytest.raises(TypeError, match="load: run: expected a path as str or Path, got int 3"):
        load(3)  # type: ignore[arg-type]
