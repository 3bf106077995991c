"""model.json: the record of a run is read typed, written as the same text, and refused where it is of another kind."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.features import Place, make

from pipeline.backbones.spec import TapSpec
from pipeline.errors import HeadError
from pipeline.files import write_json
from pipeline.heads import saved
from pipeline.inference.trained_model import spec_of
from pipeline.model_record import (
    JSON,
    HeadsRecord,
    NetworkRecord,
    find_fits,
    has_evaluated,
    is_student,
    parse_record,
    read_record,
    record_of,
    write_record,
)

KEPT = {"epoch": 3, "learning_rate": 0.001, "loss": 0.5, "validation_loss": 0.25}
TRAINED: dict[str, Any] = {
    "format": 2,
    "settings": {"task": "pets", "student": "small", "teacher": "large", "head": "distill"},
    "task": {"name": "pets", "sha256": "ab", "kind": "classification", "classes": ["cat", "dog"]},
    "features": {},
    "scores": {"distill": "probability"},
    "backbone": {"from": "cd", "weights": "ef", "labels": 4, "draw": 1},
    "student": "small",
    "teachers": [
        {
            "name": "large",
            "run": "heads",
            "backbone": "net",
            "head": "logistic",
            "input": "last",
            "labels": None,
            "draw": None,
            "identity": {"source": "head"},
        }
    ],
    "losses": {"labels": 1, "soft": {"weight": 0.9}},
    "extra_tasks": [
        {"name": "ages", "sha256": "12", "kind": "classification", "classes": ["old", "young"], "teachers": []}
    ],
    "fits": [
        {
            "head": "distill",
            "input": "pixels",
            "labels": 4,
            "draw": draw,
            "file": None,
            "params": {},
            "search": None,
            "temperature": None,
            "rows": 8,
            "epochs": 4,
            "stopped": "all epochs",
            "probes": [],
            "start": None,
            "kept": KEPT,
            "frozen": {"before": "34", "after": "34"},
            "samples": 8,
            "labelled": 8,
            "left_out": 0,
            "extra_tasks": {"ages": {"validation_rows": 2, "validation_accuracy": None}},
        }
        for draw in (0, 1)
    ],
    "versions": {"torch": "2.0", "a later one": "of another version"},
    "added later": {"by": "another version"},
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path, splits={"train": 8, "validation": 8, "test": 4})


def test_a_record_of_heads_is_read_and_written_as_the_same_text(place: Place) -> None:
    place.fit(inputs=["easy", "hard"], head=["logistic", "ridge"], calibrate=None, labels_per_class=[2])
    before = (place.models / JSON).read_bytes()
    record = read_record(place.models)
    assert isinstance(record, HeadsRecord)
    assert (record.kind, record.backbone, record.task.name) == ("heads", "tiny", "pets")
    assert record.task.kind == "classification"
    assert set(record.features) == {"easy", "hard"}
    assert record.scores == {"logistic": "probability", "ridge": "decision"}
    assert {fit.taps[0] for fit in record.fits} == {"easy", "hard"}
    assert (record.fits[0].labels, record.fits[0].draw) == (2, 0)
    write_record(place.models, record)
    assert (place.models / JSON).read_bytes() == before


def test_a_record_of_a_network_is_read_and_written_as_the_same_text(tmp_path: Path) -> None:
    write_json(tmp_path / JSON, TRAINED)
    before = (tmp_path / JSON).read_bytes()
    record = read_record(tmp_path)
    assert isinstance(record, NetworkRecord)
    assert (record.kind, record.backbone) == ("network", "small")
    assert (record.network.began_with, record.network.weights) == ("cd", "ef")
    assert record.kept_fit == record.fits[1]
    assert record.kept_fit.kept == KEPT
    assert [task.name for task in record.tasks] == ["pets", "ages"]
    assert (record.teachers[0].run, record.teachers[0].head) == ("heads", "logistic")
    write_record(tmp_path, record)
    assert (tmp_path / JSON).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "expected a model.json of format 2, got 1. Train the run again."),
        ({"format": None}, "expected a model.json of format 2, got None. Train the run again."),
        (
            {"fits": [{"head": "distill"}], "task": {"name": "pets", "kind": "detection"}},
            "expected the model.json of a run, got another. Train the run again\n  - task.sha256: field required\n"
            "  - task.kind: input should be 'classification', 'multilabel' or 'regression'\n",
        ),
    ],
)
def test_a_record_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / JSON).write_text(json.dumps(TRAINED | change))
    with pytest.raises(HeadError) as refused:
        read_record(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: {message}")


def test_further_tasks_of_an_older_record_are_read(tmp_path: Path) -> None:
    older = {"also" if name == "extra_tasks" else name: value for name, value in TRAINED.items()}
    write_json(tmp_path / JSON, older)
    record = read_record(tmp_path)
    assert isinstance(record, NetworkRecord)
    assert [task.name for task in record.tasks] == ["pets", "ages"]


def test_the_teachers_of_further_tasks_of_an_older_record_do_not_teach_the_task_of_the_run() -> None:
    [first] = TRAINED["teachers"]
    listed = [first, first | {"name": "of pets", "task": "pets"}, first | {"name": "of ages", "task": "ages"}]
    record = parse_record(TRAINED | {"teachers": listed}, where="a record")
    assert is_student(record)
    assert [teacher.name for teacher in record.own_teachers] == ["large", "of pets"]
    tuned = {name: value for name, value in TRAINED.items() if name not in ("student", "teachers", "losses")}
    assert not is_student(parse_record(tuned, where="a record"))


def test_an_evaluation_quotes_the_record_of_its_model() -> None:
    record, evaluation = parse_record(TRAINED, where="a record"), {"run": "small", "made_from": TRAINED}
    assert record_of(evaluation) == record
    older = {"also" if name == "extra_tasks" else name: value for name, value in TRAINED.items()}
    for values, same in ((TRAINED, True), (older, True), (TRAINED | {"losses": {}}, False), ({}, False), (None, False)):
        assert has_evaluated({"made_from": values}, record) is same
    message = r"^the evaluation of small: expected a model\.json of format 2, got None\. Fit the run again\.$"
    with pytest.raises(HeadError, match=message):
        record_of(evaluation | {"made_from": None})


def test_a_network_is_no_head(tmp_path: Path) -> None:
    write_json(tmp_path / JSON, TRAINED)
    with pytest.raises(
        HeadError, match="expected a run of fit, whose models are heads, got a run whose model is a network"
    ):
        saved.load(tmp_path)


def test_a_description_means_the_fits_with_its_values_and_else_those_of_all_labels(tmp_path: Path) -> None:
    values = copy.deepcopy(TRAINED)
    values["fits"].append(values["fits"][0] | {"labels": None, "draw": None})
    write_json(tmp_path / JSON, values)
    fits = read_record(tmp_path).fits
    assert find_fits(fits, head="distill") == [fits[2]]
    assert find_fits(fits, labels=4) == list(fits[:2])
    assert find_fits(fits, labels=4, draw=1, input=None) == [fits[1]]
    assert find_fits(fits, head="ridge") == []


def test_a_head_on_projected_features_finds_its_tap() -> None:
    identity = {"node": "layer4", "pool": "none", "dtype": "float16", "projection": {"dimensions": 3, "seed": 0}}
    assert spec_of(identity) == TapSpec(node="layer4", project=3)
