"""Examples of params.yaml run, over small data: those of `split`, `fit`, `finetune`, `teach` and `distill`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import features, small_training, teachers
from test_examples import CASES, DISTILL, FIT, TUNED
from test_finetune import Project
from test_finetune import config as small_tuned

from pipeline.distill.config import DistillConfig
from pipeline.distill.run import distill
from pipeline.distill.sources import Paths as DistillPaths
from pipeline.files import read_json
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.finetune.setup import Paths
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.split.config import SplitConfig
from pipeline.split.run import split
from pipeline.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")

Settings = Mapping[str, Any]

VIEWS = {"count": 4, "augment": [{"name": "horizontal_flip"}]}
PROCESSES = "run: {workers: 4}"
"""The example that starts processes: `test_fit_streaming.py` has workers."""


def examples(section: str, *, model: Any = None) -> Any:
    """Parametrize a test by the examples of a section; those that say a default of `model` are left out."""
    fields = {} if model is None else model.model_fields
    cases = [
        pytest.param({**needed, **meant}, id=f"{place}-{text}-{number}")
        for number, (place, needed, text, meant) in enumerate(CASES)
        if place.startswith(section)
        and text != PROCESSES
        and not all(name in fields and fields[name].default == value for name, value in meant.items())
    ]
    assert cases
    return pytest.mark.parametrize("asked", cases)


# Tasks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests of two data sets: `digits`, and `used`, which has a split `val` and none for tests."""
    folder = tmp_path_factory.mktemp("manifests")
    for name in ("digits", "used"):
        numbers = range(300)
        columns: dict[str, list[Any]] = {
            "key": [content_key(f"{name}{number}".encode()) for number in numbers],
            "path": [f"{number}.png" for number in numbers],
            "size": [1] * len(numbers),
            "label": [str(number % 3) for number in numbers],
            "family": ["odd" if number % 3 == 1 else "even" for number in numbers],
            "genus": [f"genus {number % 3}" for number in numbers],
            "age": [float(number) for number in numbers],
            "tags": [["a", "b"][: number % 3] for number in numbers],
            "patient": [f"{number // 3}" for number in numbers],
            "domain": ["amazon" if number % 2 else "webcam" for number in numbers],
            "chosen": [("train", "validation", "test")[number // 3 % 3] for number in numbers],
        }
        if name == "used":
            columns["split"] = ["val" if number % 2 else "train" for number in numbers]
        path = ManifestPaths(folder, name).rows
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    return folder


@examples("split", model=SplitConfig)
def test_a_commented_setting_of_a_task_splits(manifests: Path, asked: Settings) -> None:
    dataset = "used" if "use" in asked else "digits"
    column = {"column": "chosen"} if asked.get("by") == "column" else {}
    task = split(SplitConfig.model_validate({**column, **asked, "datasets": [dataset]}), manifests)
    assert {"train", "test"} <= set(task.table["split"].to_pylist())
    assert task.kind == asked.get("kind", "classification")


# Heads ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> features.Place:
    """A task of 120 training rows, and a tap of 80 columns that tells its classes apart."""
    made = features.make(tmp_path_factory.mktemp("fit"), splits={"train": 40, "validation": 10, "test": 5})
    task = Task.read(made.task)
    random = np.random.default_rng(0)
    values = 2 * random.normal(size=(3, 80))[np.unique(task.targets, return_inverse=True)[1]]
    values += random.normal(size=values.shape)
    features.write_features(made.features / "wide", list(task.keys), values)
    return made


@examples(FIT)
def test_a_commented_setting_of_a_head_fits(place: features.Place, asked: Settings) -> None:
    predictions = place.fit(**{"inputs": ["wide"], "head": "logistic", **asked})
    assert len(predictions) == asked.get("seeds", 1) * (
        1 if isinstance(asked.get("head", ""), str) else len(asked["head"])
    )
    assert place.model()["failed"] == []
    for fit in predictions:
        assert (fit.predicted == fit.targets)[fit.splits == "test"].mean() > 0.9


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A data set with a network and its features."""
    return Project(tmp_path_factory.mktemp("project"))


@examples(TUNED, model=FinetuneConfig)
def test_a_commented_setting_of_finetuning_trains(tuned: Project, tmp_path: Path, asked: Settings) -> None:
    made = finetune(
        small_tuned(**{"epochs": 5 if "unfreeze" in asked else 1, "batch_size": 12, **asked}),
        Paths(
            task=tuned.root / "classification.parquet",
            backbone=tuned.root / "net",
            manifests=tuned.root / "manifests",
            features=tuned.root / "features",
            start=None,
            model=tmp_path / "model",
            predictions=tmp_path / "run.parquet",
            curves=tmp_path / "curves",
            cache=tmp_path / "cache",
        ),
        datasets=["photos"],
    )
    assert made.rows == 24
    assert (made.frozen["before"] == made.frozen["after"]) is True


# Teachers and students -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> teachers.World:
    """Two data sets, two tasks, a fine-tuned network and a head as teachers, and a smaller network."""
    made = teachers.World(tmp_path_factory.mktemp("distill"), views=VIEWS)
    made.add("more", seed=1)
    made.finetune("digits_tuned", epochs=2, learning_rate=0.01)
    made.fit("parity", search="none")
    hints = ["block2", "penultimate"]
    out = made.root / "teachers"
    made.taught("digits_tuned", out / "tuned", views=VIEWS, hints=hints, datasets=["photos", "more"])
    made.taught("parity", out / "head_parity", head="logistic")
    made.task().rename(made.root / "parity.parquet")
    made.task()
    small_training.backbone(made.root / "small", widths=(3, 4, 4), seed=5)
    (made.root / "features-of").mkdir()
    (made.root / "features-of" / "net").symlink_to(made.root / "features")
    return made


@examples("teach")
def test_a_commented_setting_of_a_teacher_teaches(world: teachers.World, tmp_path: Path, asked: Settings) -> None:
    settings = dict(asked.get("own", asked))
    run = settings.pop("run", "digits_tuned")
    teacher = world.teacher(run, tmp_path / "teacher", **settings | {"backbone": "net", "datasets": ["photos"]})
    assert teacher.logits(world.keys).shape == (36, 3)


@examples(DISTILL)
def test_a_commented_setting_of_a_student_trains(
    world: teachers.World, tmp_path: Path, request: pytest.FixtureRequest, asked: Settings
) -> None:
    losses: dict[str, Any] = {"labels": 0.1, "soft": {"weight": 0.9, "temperature": 4.0}}
    if f"{DISTILL}.losses" in request.node.name:
        asked = {"losses": losses | asked}
    settings = {"task": "task", "student": "small", "start": "scratch", "teacher": "tuned", "losses": losses}
    settings |= {"epochs": 1, "batch_size": 12, "device": "cpu", "learning_rate": 0.01, "labels_per_class": [4]}
    config = DistillConfig.model_validate(settings | {"unlabelled": True} | asked)
    record = distill(
        config,
        DistillPaths(
            tasks=world.root,
            student=world.root / "small",
            manifests=world.root / "manifests",
            teachers=world.root / "teachers",
            models=world.root / "models",
            backbones=world.root,
            features=world.root / "features-of",
            model=tmp_path / "model",
            predictions=tmp_path / "run.parquet",
            curves=tmp_path / "curves",
            cache=tmp_path / "cache",
        ),
        datasets=["photos"],
    )
    assert record.samples == 24 + 36 * ("datasets" in asked)
    made = read_json(tmp_path / "model" / "model.json")
    assert made["losses"] == config.losses.model_dump(mode="json")
    assert [task["name"] for task in made["extra_tasks"]] == list(asked.get("extra_tasks", {}))
