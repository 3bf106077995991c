"""Distillation runs on a small data set: from stored scores and live ones, what they leave, and what they refuse."""

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from pydantic import ValidationError
from support import small_training
from support.projects import SHIPPED
from support.teachers import CLASSES, VIEWS, World

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import read_spec
from pipeline.distill.config import DistillConfig
from pipeline.distill.costs import footprints
from pipeline.distill.dataset import DistillSamples
from pipeline.distill.run import distill
from pipeline.distill.setup import build_job, load_distill_set, load_run
from pipeline.distill.sources import Paths
from pipeline.distill.targets import DistillTargets
from pipeline.engines import profiling
from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import read_json, write_json
from pipeline.finetune import setup
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.inference.trained_model import load
from pipeline.model_record import to_json
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.runtime import Reporter
from pipeline.store import key_arrays
from pipeline.task import KIND, Task, training_sets
from pipeline.teach.teacher import Teacher
from pipeline.training.data import normalise
from pipeline.training.loop import make_fabric
from stages import project

pytestmark = pytest.mark.usefixtures("one_thread")

SOFT = {"soft": {"weight": 0.9, "temperature": 2.0}}


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("distill") / "world")
    made.finetune("tuned", epochs=6, learning_rate=0.01, batch_norm="train")
    made.fit("heads")
    made.taught("tuned", made.root / "teachers" / "tuned", views=VIEWS, hints=["block2", "penultimate"])
    made.taught("heads", made.root / "teachers" / "heads", head="logistic", views=2)
    small_training.backbone(made.root / "small", widths=(3, 4, 4), seed=5)
    (made.root / "features-of").mkdir()
    (made.root / "features-of" / "net").symlink_to(made.root / "features")
    return made


@pytest.fixture
def paths(world: World, tmp_path: Path) -> Paths:
    return at(world.root, tmp_path)


def at(root: Path, out: Path) -> Paths:
    """A run that reads below `root` and writes below `out`."""
    return Paths(
        tasks=root,
        student=root / "small",
        manifests=root / "manifests",
        teachers=root / "teachers",
        models=root / "models",
        backbones=root,
        features=root / "features-of",
        model=out / "model",
        predictions=out / "run.parquet",
        curves=out / "curves",
        cache=out / "cache",
    )


def settings(**more: Any) -> dict[str, Any]:
    small = {"task": "task", "student": "small", "start": "scratch", "teacher": "tuned", "epochs": 2, "batch_size": 8}
    return small | {"losses": {"labels": 0.1, **SOFT}, "device": "cpu", "learning_rate": 0.01} | more


def config(**more: Any) -> DistillConfig:
    return DistillConfig.model_validate(settings(**more))


def run(paths: Paths, **more: Any) -> dict[str, Any]:
    return to_json(distill(config(**more), paths, datasets=["photos"]))


def predicted(path: Path) -> Predictions:
    (one,) = PredictionsFile.open(path)
    return one


def shown(paths: Paths, **more: Any) -> DistillSamples:
    """The training samples of the first training set."""
    asked = config(**more)
    loaded = load_run(asked, paths, datasets=["photos"])
    task = loaded.tasks[0].task
    training = next(training_sets(task, asked.labels_per_class, draws=1, where=""))
    found = build_job(loaded, load_distill_set(loaded, training), make_fabric(asked)).samples
    assert isinstance(found, DistillSamples)
    return found


def weights(model: Path) -> dict[str, torch.Tensor]:
    return serialization.read(model / "backbone").module.state_dict()


def other_task(world: World, root: Path, *, moved: int = 0) -> Paths:
    """A second task on the same samples beside the first: dark or not; so many training rows are test rows of it."""
    for name in ("manifests", "teachers", "models", "net", "small", "features", "features-of"):
        (root / name).symlink_to(world.root / name)
    shutil.copyfile(world.root / "task.parquet", root / "task.parquet")
    table = Task.read(root / "task.parquet").table
    names = ["dark" if label == "dark" else "light" for label in table["target"].to_pylist()]
    splits, left = table["split"].to_pylist(), moved
    for row, split in enumerate(splits):
        if split == "train" and left:
            splits[row], left = "test", left - 1
    table = table.set_column(1, "target", pa.array(names)).set_column(2, "split", pa.array(splits))
    Task(table.replace_schema_metadata({KIND: "classification"})).write(root / "brightness.parquet")
    return at(root, root)


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_a_student_learns_and_leaves_a_network_predictions_curves_and_a_record(paths: Paths, world: World) -> None:
    said: list[str] = []
    done: list[tuple[int, int]] = []
    best = distill(
        config(epochs=12),
        paths,
        datasets=["photos"],
        reporter=Reporter(message=said.append, progress=lambda *now: done.append(now)),
    )
    assert said == ["all: 24 samples per epoch, 24 with labels; teachers: tuned"]
    assert done[-1] == (36, 36)
    one = predicted(paths.predictions)
    assert (one.head, one.input, one.labels, one.draw) == ("distill", "pixels", None, None)
    teacher = Teacher.open(paths.teachers / "tuned")
    says = np.array(CLASSES)[teacher.logits(list(one.keys)).argmax(axis=1)]
    assert (one.predicted == says).mean() > 0.7
    made = read_json(paths.model / "model.json")
    assert made["student"] == "small"
    assert made["losses"]["soft"]["temperature"] == 2.0
    (told,) = made["teachers"]
    assert (told["name"], told["run"], told["head"]) == ("tuned", "tuned", None)
    assert told["identity"]["weights"] == read_spec(world.root / "models" / "tuned" / "backbone").weights_digest
    assert made["backbone"]["from"] == read_spec(world.root / "small").weights_digest
    assert made["fits"] == [to_json(best)]
    assert (best.samples, best.labelled, best.left_out) == (24, 24, 0)
    student = serialization.read(paths.model / "backbone")
    assert student.spec.classes == CLASSES
    assert student.spec.origin["source"] == "distilled"
    assert not [name for name in student.module.state_dict() if "projection" in name]
    assert (paths.curves / "all" / "plots" / "metrics" / "loss.tsv").is_file()


def test_evaluation_reads_what_a_run_leaves(paths: Paths, tmp_path: Path) -> None:
    run(paths, labels_per_class=[2, 4], unlabelled=True, epochs=1)
    found = evaluate(
        EvaluateConfig(resamples=100),
        predictions=paths.predictions,
        task=paths.tasks / "task.parquet",
        model=paths.model,
        confusion=tmp_path / "confusion.csv",
        curve=tmp_path / "curve.csv",
        numbers=tmp_path / "numbers.json",
        tables=tmp_path / "tables.json",
    )
    assert (found["labels"], found["test_rows"]) == (4, 6)


@pytest.mark.usefixtures("one_core")
def test_student_and_teachers_have_footprints_side_by_side(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "SECONDS", 0.02)
    times = dict.fromkeys(profiling.MIN_JOB_SECONDS, np.inf)  # times of torch are enough here
    monkeypatch.setattr(profiling, "MIN_JOB_SECONDS", times)
    asked = config(teacher=["tuned", "heads"], epochs=1)
    distill(asked, paths, datasets=["photos"])
    found = footprints(asked, paths)
    assert list(found["teachers"]) == ["tuned", "heads"]
    counts = [one["parameters"] for one in (found["student"], *found["teachers"].values())]
    assert counts[0] < counts[2] < counts[1]  # of a head no classifier of the network runs
    assert found["student"]["latency_ms"]["1"]["median"] > 0


def test_the_same_run_comes_from_the_cache(paths: Paths) -> None:
    run(paths)
    before = (paths.model / "backbone" / "weights.safetensors").read_bytes()
    shutil.rmtree(paths.model)
    told: list[Any] = []
    distill(config(), paths, datasets=["photos"], reporter=Reporter(progress=lambda *now: told.append(now)))
    assert told == []
    assert (paths.model / "backbone" / "weights.safetensors").read_bytes() == before


def test_a_run_that_was_killed_goes_on_to_the_same_student(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import loop

    more: dict[str, Any] = {
        "epochs": 3,
        "views": 2,
        "losses": {"labels": [1.0, 0.0], **SOFT, "hints": [{"student": "block2", "teacher": "block2"}]},
    }
    run(dataclasses.replace(paths, model=tmp_path / "whole", cache=tmp_path / "other"), **more)
    step = loop.step

    def killed(network: Any, chosen: Any, group: Any, number: int, setting: Any) -> Any:
        if number == 4:  # within the second epoch
            raise KeyboardInterrupt
        return step(network, chosen, group, number, setting)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(paths, **more)
    assert not paths.model.exists()
    run(paths, **more)
    whole, other = weights(tmp_path / "whole"), weights(paths.model)
    assert all(torch.equal(value, other[name]) for name, value in whole.items())


# What the student is shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", [False, True])
def test_stored_scores_and_a_live_teacher_give_the_same_student(paths: Paths, tmp_path: Path, augmented: bool) -> None:
    more: dict[str, Any] = {
        "epochs": 4,
        "weights": "last",
        "losses": {"labels": 0.1, **SOFT, "hints": [{"student": "penultimate", "teacher": "penultimate"}]},
    }
    if augmented:  # with a live teacher any pixels can be learned from
        run(paths, **more | {"epochs": 1}, teacher_outputs="online", augment=[{"name": "rotation", "degrees": 5}])
        return
    cached = run(paths, **more)
    beside = dataclasses.replace(paths, model=tmp_path / "live", predictions=tmp_path / "live.parquet")
    live = run(beside, **more, teacher_outputs="online")
    assert live["kept"]["loss"] == pytest.approx(cached["kept"]["loss"], rel=1e-3)  # hints were stored as float16
    own, others = weights(paths.model), weights(beside.model)
    for name, value in own.items():
        assert torch.allclose(value.float(), others[name].float(), atol=5e-3), name
    soft = [
        run(paths, weights="last", losses=SOFT, epochs=4, teacher_outputs=way)["kept"]["loss"]
        for way in ("stored", "online")
    ]
    assert soft[0] == pytest.approx(soft[1], rel=1e-4)


@pytest.mark.parametrize("views", [0, 1, 2])
def test_scores_are_those_of_the_very_pixels_that_the_student_gets(paths: Paths, world: World, views: int) -> None:
    found = shown(paths, views=views)
    teacher = serialization.read(world.root / "models" / "tuned" / "backbone")
    seen = []
    for epoch in range(3):
        for batch in found.batches(8, epoch=epoch):
            assert isinstance(batch.targets, DistillTargets)
            with torch.inference_mode():
                live = teacher.module(normalise(batch.inputs, teacher.spec.input))
            assert torch.allclose(batch.targets.logits, live, atol=1e-4)
            seen.append((epoch, batch.inputs.float().mean().item()))
    assert len(seen) == 9
    clean = [batch.inputs for batch in found.batches(8)]
    assert torch.equal(torch.cat(clean), torch.from_numpy(found._pixels.array[found._rows]))


def test_rows_that_memory_should_not_hold_are_read_when_they_are_needed(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"views": 2, "losses": {**SOFT, "hints": [{"student": "block2", "teacher": "block2"}]}}
    held = list(shown(paths, **more).batches(8, epoch=1))
    monkeypatch.setattr("pipeline.distill.dataset.IN_MEMORY", 0)
    for one, other in zip(held, shown(paths, **more).batches(8, epoch=1), strict=True):
        assert isinstance(one.targets, DistillTargets)
        assert isinstance(other.targets, DistillTargets)
        assert torch.equal(one.targets.logits, other.targets.logits)
        assert torch.equal(one.targets.hints["block2"], other.targets.hints["block2"])


def test_of_few_labels_the_other_rows_are_learned_without(paths: Paths) -> None:
    found = shown(paths, labels_per_class=[2], unlabelled=True)
    (batch,) = found.batches(100)
    assert isinstance(batch.targets, DistillTargets)
    assert len(batch.keys) == 24
    assert int((batch.targets.labels >= 0).sum()) == 6
    assert batch.targets.known.all()
    assert len(shown(paths, labels_per_class=[2])) == 6


def test_labels_alone_take_as_many_steps_with_the_labelled_rows_again(paths: Paths) -> None:
    found = shown(paths, teacher="none", losses={"labels": 1.0}, labels_per_class=[2], unlabelled=True)
    (batch,) = found.batches(100)
    assert isinstance(batch.targets, DistillTargets)
    keys, counts = np.unique(batch.keys, return_counts=True)
    assert (len(keys), set(counts)) == (6, {4})
    assert (batch.targets.labels >= 0).all()
    assert not batch.targets.known.any()
    best = run(paths, teacher="none", losses={"labels": 1.0}, labels_per_class=[2], unlabelled=True, epochs=1)
    assert (best["samples"], best["labelled"]) == (24, 6)
    assert read_json(paths.model / "model.json")["teachers"] == []


@pytest.mark.parametrize(
    "losses", [{"labels_per_class": [4], "unlabelled": True}, {"losses": SOFT}], ids=["labels", "no labels"]
)
def test_a_pretrained_student_starts_as_a_head_on_what_it_is_shown(
    paths: Paths, world: World, losses: dict[str, Any]
) -> None:
    asked = config(start="backbone", **losses)
    loaded = load_run(asked, paths, datasets=["photos"])
    subject = loaded.tasks[0]
    training = next(training_sets(subject.task, asked.labels_per_class, draws=1, where=""))
    one = build_job(loaded, load_distill_set(loaded, training), make_fabric(asked))
    (probe,) = one.probes
    assert (probe.record["head"], probe.record["rows"]) == ("logistic", 24)  # where a row has no label, the teacher's
    assert one.context.fitted
    rows = subject.task.rows("train")
    said = Teacher.open(world.root / "teachers" / "tuned").logits(subject.keys[rows], None).argmax(axis=1)
    images = torch.from_numpy(loaded.pixels.eval_images(loaded.pixels.rows(subject.keys[rows])))
    learned = one.network.eval()(one.context.enter(images)).argmax(dim=1).numpy()
    assert (learned == said).mean() > 0.6


def test_several_teachers_teach_the_mean_of_their_probabilities(paths: Paths) -> None:
    found = shown(paths, teacher=["tuned", "heads"], views=2)
    own = [Teacher.open(paths.teachers / name) for name in ("tuned", "heads")]
    batch = next(iter(found.batches(24, epoch=0)))
    assert isinstance(batch.targets, DistillTargets)
    probabilities = batch.targets.logits.softmax(dim=1)
    means = [
        torch.stack([torch.from_numpy(one.logits(batch.keys, view)).softmax(dim=1) for one in own]).mean(dim=0)
        for view in range(2)
    ]
    fits = torch.stack([(probabilities - mean).abs().max(dim=1).values < 1e-5 for mean in means])
    assert fits.any(dim=0).all()
    assert fits.any(dim=1).all()


def test_other_data_sets_are_learned_from_without_labels(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "world", symlinks=True)
    more = copy.copy(world)
    more.root = tmp_path / "world"
    more.add("more", each=4, seed=9)
    paths = at(more.root, tmp_path)
    with pytest.raises(DataError, match=r"expected scores of all 36 samples that task is learned from, got 12 without"):
        run(paths, datasets=["more"])
    more.taught("tuned", more.root / "teachers" / "tuned", datasets=["photos", "more"])
    best = run(paths, datasets=["more"])
    assert (best["samples"], best["labelled"]) == (36, 24)


# Two phases ----------------------------------------------------------------------------------------------------------


def further(paths: Paths, out: Path, **more: Any) -> setup.Paths:
    """Fine-tuning that starts from the network of a run."""
    return setup.Paths(
        task=paths.tasks / "task.parquet",
        backbone=paths.student,
        manifests=paths.manifests,
        features=paths.features / "none",
        start=paths.model,
        model=out / "tuned",
        predictions=out / "tuned.parquet",
        curves=out / "tuned-curves",
        cache=paths.cache,
        **more,
    )


def tuned(paths: setup.Paths, **more: Any) -> dict[str, Any]:
    small = {"task": "task", "backbone": "small", "start": "run", "input": "pixels"}
    small |= {"epochs": 1, "batch_size": 8, "device": "cpu"}
    return finetune(FinetuneConfig.model_validate(small | more), paths, datasets=["photos"])


def test_a_student_without_labels_is_fine_tuned_on_the_labelled_target(paths: Paths, tmp_path: Path) -> None:
    run(paths, losses=SOFT, epochs=4)
    first = predicted(paths.predictions)
    second = further(paths, tmp_path)
    tuned(second, learning_rate=1e-9, weights="last")
    assert np.allclose(predicted(second.predictions).scores, first.scores, atol=1e-4)
    made = read_json(second.model / "model.json")
    assert made["backbone"]["from"] == read_spec(paths.model / "backbone").weights_digest
    tuned(second, labels_per_class=[2], learning_rate=0.01, batch_norm="train", weights="last")
    assert not np.allclose(predicted(second.predictions).scores, first.scores, atol=1e-3)
    third = dataclasses.replace(second, start=second.model, model=tmp_path / "third")
    tuned(third, learning_rate=1e-9, weights="last")
    assert read_spec(tmp_path / "third" / "backbone").classes == CLASSES


def test_a_run_on_another_task_and_a_new_classifier_are_refused(paths: Paths, tmp_path: Path) -> None:
    run(paths, epochs=1)
    second = further(paths, tmp_path)
    with pytest.raises(
        TrainingError, match=r"classifier: expected none with `start: run`, whose network has a classifier"
    ):
        tuned(second, classifier={"dropout": 0.5})
    made = read_json(paths.model / "model.json")
    write_json(paths.model / "model.json", made | {"task": {**made["task"], "name": "photos", "sha256": "0" * 64}})
    with pytest.raises(TrainingError, match="expected a run on the task task as it is now, got one on photos"):
        tuned(second)


def test_a_regression_goes_on_in_the_unit_of_the_task(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "world", symlinks=True)
    more = copy.copy(world)
    more.root = tmp_path / "world"
    values = [1000.0 + 100.0 * CLASSES.index(label) for label in world.labels]
    paths = at(more.root, tmp_path)
    start = more.finetune("numbers", kind="regression", targets=values, epochs=4, learning_rate=0.01)
    second = dataclasses.replace(further(paths, tmp_path), start=start, backbone=more.root / "net")
    tuned(second, learning_rate=1e-9, weights="last")
    before = predicted(more.root / "numbers.parquet")
    assert np.allclose(predicted(second.predictions).predicted, before.predicted, atol=0.5)
    with pytest.raises(TrainingError, match="expected a task with classes to learn from a teacher, got a regression"):
        run(paths)


# Several tasks -------------------------------------------------------------------------------------------------------


def test_one_student_learns_several_tasks_side_by_side(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path)
    weights = {"dark": 2.0}
    best = run(paths, extra_tasks={"brightness": "none"}, epochs=8, class_weights=weights)
    assert best["samples"] == 24
    assert best["extra_tasks"]["brightness"]["validation_rows"] == 6
    student = serialization.read(paths.model / "backbone")
    assert student.spec.classes == ("task:dark", "task:grey", "task:white", "brightness:dark", "brightness:light")
    own, other = predicted(paths.predictions), predicted(paths.model / "predictions" / "brightness.parquet")
    assert own.scores.shape == (12, 3)
    assert other.scores.shape == (12, 2)
    assert np.allclose(other.scores.sum(axis=1), 1, atol=1e-5)
    made = read_json(paths.model / "model.json")
    assert [one["name"] for one in made["extra_tasks"]] == ["brightness"]
    assert [(task.name, task.columns) for task in load(paths.model).tasks] == [
        ("task", slice(0, 3)),
        ("brightness", slice(3, 5)),
    ]
    # Fine-tuning takes the classifier of its task.
    second = further(paths, tmp_path)
    tuned(second, learning_rate=1e-9, weights="last")
    assert np.allclose(predicted(second.predictions).scores, own.scores, atol=1e-4)


def test_each_task_is_taught_by_its_own_teachers(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path)
    shutil.copyfile(tmp_path / "task.parquet", tmp_path / "again.parquet")
    found = shown(paths, extra_tasks={"again": "heads", "brightness": "none"}, labels_per_class=[4], unlabelled=True)
    (batch,) = found.batches(24, epoch=0)
    told = batch.targets
    assert isinstance(told, DistillTargets)
    for start, name in ((0, "tuned"), (3, "heads")):
        own = Teacher.open(paths.teachers / name).logits(batch.keys)
        assert np.allclose(told.logits[:, start : start + 3], own)
    assert not told.logits[:, 6:].any()
    assert told.known.all(dim=0).tolist() == [True, True, False]
    labelled = told.labels >= 0  # a labelled sample has its classes in all tasks
    assert (labelled.sum(dim=0) == 12).all()
    assert (labelled.all(dim=1) == labelled.any(dim=1)).all()


def test_what_any_task_tests_by_is_never_trained_on(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path, moved=5)
    said: list[str] = []
    asked = config(extra_tasks={"brightness": "none"}, epochs=1)
    best = distill(asked, paths, datasets=["photos"], reporter=Reporter(message=said.append))
    assert said == [
        "all: 19 samples per epoch, 19 with labels; 5 left out, which are validation or test rows of a task; "
        "teachers: tuned"
    ]
    assert (best.samples, best.left_out) == (19, 5)
    task = Task.read(tmp_path / "brightness.parquet")
    held = key_arrays.from_hex(task.keys_of("test"))
    assert not np.isin(shown(paths, extra_tasks={"brightness": "none"}).keys, held).any()


def test_a_multilabel_task_is_learned_from_its_own_kind_of_teacher(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "world", symlinks=True)
    more = copy.copy(world)
    more.root = tmp_path / "world"
    names = [["dark"] if label == "dark" else ["light", label] for label in world.labels]
    more.finetune("several", kind="multilabel", targets=names, epochs=2)
    more.taught("several", more.root / "teachers" / "several")
    paths = at(more.root, tmp_path)
    run(paths, teacher="several", class_weights="balanced")
    one = predicted(paths.predictions)
    assert one.scores.shape == one.targets.shape == (12, 4)
    with pytest.raises(
        TrainingError, match="expected a teacher of a multilabel, as the task task is, got one of a cla"
    ):
        run(paths, teacher="tuned")


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"extra_tasks": {"task": "tuned"}}, "`extra_tasks`: expected tasks besides 'task'"),
        ({"teacher": "none", "losses": SOFT}, "there is nothing to learn from"),
        ({"teacher": "none"}, "`soft` needs a teacher"),
        ({"losses": {"labels": 1.0}}, "no loss uses the teacher"),
        (
            {"teacher": ["a", "b"], "losses": {"hints": [{"student": "x", "teacher": "y"}]}},
            "`hints`, `attention` and `relational` need a single teacher",
        ),
        ({"losses": SOFT, "labels_per_class": [2], "unlabelled": True}, "`labels_per_class` has no effect"),
        ({"batch_norm": "frozen"}, "`start: scratch` has no statistics to keep"),
        ({"mixup": 0.2}, "`mixup` and `cutmix` create samples without stored scores"),
        ({"cutmix": 1.0}, "`mixup` and `cutmix` create samples without stored scores"),
        (
            {"teacher_outputs": "online", "teacher": ["a", "b"]},
            "`teacher_outputs: online` runs a single teacher of a single task",
        ),
        (
            {"teacher_outputs": "online", "extra_tasks": {"b": "c"}},
            "`teacher_outputs: online` runs a single teacher of a single task",
        ),
        ({"teacher_outputs": "online", "views": 2}, "`views` are stored with a teacher's scores"),
        ({"teacher": "none", "losses": {"labels": 1.0}, "views": 2}, "`views` are stored with a teacher's scores"),
        ({"views": 2, "augment": [{"name": "rotation"}]}, "`views` are the images that the teacher saw"),
        (
            {"augment": [{"name": "rotation"}]},
            "`augment` changes images, but the teacher's stored scores are for the original images",
        ),
        (
            {"views": 2, "preprocessing": "own"},
            "`views` and `teacher_outputs: online` give student and teacher the same image",
        ),
        ({"labels_per_class": [2, 2]}, "`labels_per_class`: expected each number once"),
        ({"losses": {"soft": {"temperature": 0}}}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**more)


def test_views_that_were_never_stored_are_refused(paths: Paths) -> None:
    with pytest.raises(TrainingError) as caught:
        run(paths, views=3)
    assert str(caught.value) == (
        "the student would not see what its teachers saw\n"
        f"  - {paths.teachers / 'tuned'}: expected 3 views, got 2. Give the entry of `teach` `views` with `count: 3`, "
        "or ask for fewer."
    )


def test_teachers_with_other_views_than_each_other_are_refused(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path)
    (tmp_path / "teachers").unlink()
    shutil.copytree(world.root / "teachers", tmp_path / "teachers", symlinks=True)
    world.taught("tuned", tmp_path / "teachers" / "turned", views={**VIEWS, "seed": 1})
    table = Task.read(tmp_path / "task.parquet")
    table.write(tmp_path / "again.parquet")
    with pytest.raises(TrainingError, match=r"turned: expected the views of .*tuned, got others"):
        run(paths, extra_tasks={"again": "turned"}, views=2)


def test_a_teacher_that_read_other_pixels_is_refused_with_the_field(paths: Paths, tmp_path: Path) -> None:
    network = glyphs.GlyphNet(classes=3, widths=(3, 4))
    inputs = glyphs.INPUT.model_copy(
        update={"image": glyphs.INPUT.image.model_copy(update={"resize": (24, 24)}), "mean": (0.4,)}
    )
    architecture = {"family": "glyphs", "classes": 3, "widths": [3, 4]}
    serialization.write(tmp_path / "tiny", network, architecture=architecture, origin={}, inputs=inputs)
    other = dataclasses.replace(paths, student=tmp_path / "tiny")
    with pytest.raises(TrainingError) as caught:
        run(other)
    assert "tuned: expected images read as small reads them, got other pixels: " in str(caught.value)
    assert "resize" in str(caught.value)
    assert "mean" not in str(caught.value)
    best = run(other, preprocessing="own", epochs=1)
    assert best["samples"] == 24


def test_classes_that_differ_are_refused_by_name(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path)
    with pytest.raises(
        TrainingError, match=r"tuned: expected a teacher of the 2 classes of the task, got one of 3: .*gr"
    ):
        run(paths, task="brightness")


def test_a_head_can_neither_run_live_nor_give_hints(paths: Paths) -> None:
    with pytest.raises(TrainingError, match=r"heads: expected a network as the teacher, .* got a head on stored feat"):
        run(paths, teacher="heads", teacher_outputs="online")
    with pytest.raises(TrainingError, match=r"heads: expected a network as the teacher"):
        run(paths, teacher="heads", losses={"hints": [{"student": "block2", "teacher": "block2"}]})
    with pytest.raises(TrainingError, match="unknown hint 'block3'"):
        run(paths, losses={"hints": [{"student": "block2", "teacher": "block3"}]})


def test_scores_of_a_network_that_was_trained_again_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "world", symlinks=True)
    more = copy.copy(world)
    more.root = tmp_path / "world"
    more.finetune("tuned", epochs=1, seed=3, weights="last")
    with pytest.raises(TrainingError, match=r"expected scores of the teacher as it is now(?s:.*)weights: expected "):
        run(at(more.root, tmp_path))


def test_nothing_to_learn_from_is_refused(world: World, tmp_path: Path) -> None:
    paths = other_task(world, tmp_path, moved=24)
    with pytest.raises(TrainingError, match="expected samples to learn from, got none: 24 are validation or test rows"):
        run(paths, extra_tasks={"brightness": "none"})


# Settings of the project ---------------------------------------------------------------------------------------------

STUDENT = {
    "task": "digits",
    "student": "small",
    "start": "scratch",
    "teacher": "tuned",
    "losses": SOFT,
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "distill.digits_full",
            STUDENT,
            "distill.digits_full: expected a name that no run of `fit` or `finetune` has.",
        ),
        ("distill.one", STUDENT | {"student": "smal"}, "distill.one.student: unknown backbone 'smal'. Did you mean"),
        ("distill.one", STUDENT | {"task": "digit"}, "distill.one.task: unknown task 'digit'. Did you mean 'digits'?"),
        ("distill.one", STUDENT | {"teacher": "tune"}, "distill.one.teacher: unknown teacher 'tune'. Did you mean"),
        (
            "distill.one",
            STUDENT | {"extra_tasks": {"parit": "none"}},
            "distill.one.extra_tasks: unknown task 'parit'. Did you mean",
        ),
        (
            "distill.one",
            STUDENT | {"extra_tasks": {"parity": "x"}},
            "distill.one.extra_tasks.parity: unknown teacher 'x'. Expected",
        ),
        ("distill.one", STUDENT | {"datasets": ["glyphs"]}, "distill.one.teacher: tuned does not score glyphs. Add it"),
        (
            "distill.one",
            STUDENT | {"datasets": ["glyph"], "teacher": "none", "losses": {"labels": 1}},
            "distill.one: `datasets` and `preprocessing: own` need a teacher: leave them out, or set `teacher`.",
        ),
        (
            "distill.one",
            STUDENT | {"views": 2},
            "distill.one.views: expected at most the 0 of tuned, got 2. Give it `vi",
        ),
        (
            "distill.one",
            STUDENT | {"teacher": "head", "teacher_outputs": "online"},
            "distill.one.teacher: expected a network for `teacher_outputs: online`",
        ),
        (
            "distill.one",
            STUDENT | {"losses": {"hints": [{"student": "block2", "teacher": "block2"}]}},
            "distill.one.losses: unknown hint 'block2'. Expected one of: (there are none). Add it to `teach.tuned.",
        ),
        (
            "finetune.digits_tuned.start",
            "student_tuned",
            "finetune.digits_tuned.backbone: expected 'small', that of student_tuned, got 'glyphs'.",
        ),
        (
            "finetune.again",
            {"task": "parity", "backbone": "small", "start": "student_head", "input": "pixels"},
            "finetune.again.task: expected 'digits', that of student_head, got 'parity'.",
        ),
        (
            "finetune.again",
            {
                "task": "digits",
                "backbone": "glyphs",
                "start": "digits_tuned",
                "input": "features",
                "tap": "block1_whole",
            },
            "finetune.again.input: expected pixels, since rows are stored of the backbone, not of digits_tuned.",
        ),
    ],
)
def test_names_that_another_section_lacks_are_told(tmp_path: Path, path: str, value: Any, message: str) -> None:
    assert any(line.startswith(message) for line in problems(tmp_path, {path: value}))


def test_runs_that_wait_for_each_other_are_told_with_a_way_out(tmp_path: Path) -> None:
    teacher = {"run": "again", "backbone": "glyphs", "datasets": ["digits"]}
    again = {"task": "digits", "backbone": "small", "start": "student_tuned", "input": "pixels"}
    (line,) = (one for one in problems(tmp_path, {"finetune.again": again, "teach.new": teacher}) if "a cycle" in one)
    assert "expected runs that do not wait for each other, got a cycle; every run of distill waits for all" in line
    assert all(name in line for name in ("again", "student_", "teach.new"))


def problems(folder: Path, changes: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of the project after some changes."""
    raw = yaml.safe_load(SHIPPED.read_text())
    for path, value in changes.items():
        *above, last = path.split(".")
        here = raw
        for part in above:
            here = here[part]
        here[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as caught:
        project.settings(folder / "params.yaml")
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_the_student_of_the_default_run_has_at_most_a_fifth_of_the_parameters() -> None:
    raw = yaml.safe_load(SHIPPED.read_text())
    arguments = raw["freeze"]["small"]["arguments"]
    large = glyphs.GlyphNet(classes=10, widths=tuple(raw["pretrain"]["glyphs"]["widths"]))
    small = glyphs.GlyphNet(classes=arguments["classes"], widths=tuple(arguments["widths"]))
    counts = [sum(one.numel() for one in network.parameters()) for network in (large, small)]
    assert 5 * counts[1] <= counts[0]
