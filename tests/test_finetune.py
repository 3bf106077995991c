"""Fine-tuning runs on a small data set: from pixels and from stored rows, what they leave, and what they refuse."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import skops.io
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import small_training

from pipeline import heads
from pipeline.backbones import serialization
from pipeline.errors import BackboneError, DataError, HeadError, StoreError, TrainingError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import read_json, write_json
from pipeline.finetune.breakeven import describe
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune, lr_range
from pipeline.finetune.setup import Paths, build_job, load_run
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit as fit_heads
from pipeline.heads import saved as model
from pipeline.manifest import ManifestPaths, read
from pipeline.model_record import to_json
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.runtime import Reporter
from pipeline.store.features import Features
from pipeline.task import KIND, TYPES, Kind, Task, training_sets
from pipeline.training.loop import make_fabric
from pipeline.training.targets import answers

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, EACH = ("dark", "grey", "white"), 14
TAPS = {
    "early": {"node": "block1", "dtype": "float32"},
    "late": {"node": "block2"},
    "pooled": {"node": "block2", "pool": "mean"},
    "projected": {"node": "block2", "project": 4},
    "last": {"node": "penultimate", "dtype": "float32"},
}
VIEWS = {"count": 2, "augment": [{"name": "horizontal_flip"}, {"name": "rotation", "degrees": 20}]}


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


class Project:
    """Pictures of three classes, a backbone, its features and tasks on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(0)
        for number, name in enumerate(CLASSES):
            for sample in range(EACH):
                path = root / "photos" / name / f"{sample:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(random.normal(60 + 60 * number, 40, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
        prepare(PrepareConfig(root=root / "photos"), ManifestPaths(root / "manifests", "photos"))
        self.backbone = small_training.backbone(root / "net", widths=(4, 6, 8))
        config = ExtractConfig.model_validate(
            {"datasets": ["photos"], "taps": TAPS, "views": VIEWS, "engine": "torch", "batch_size": 16}
        )
        extract(
            config,
            backbone=root / "net",
            manifests=root / "manifests",
            out=root / "features",
            cache_root=root / "feature-cache",
        )
        rows = read(root / "manifests", "photos").sort_by("key")
        self.keys, self.labels = rows["key"].to_pylist(), rows["label"].to_pylist()
        self.task("classification", self.labels)

    def task(self, kind: Kind, targets: list[Any]) -> Path:
        """Write a task: of each class 8 rows to train, 2 to validate and 4 to test, and two draws of 4."""
        splits, draws = [], []
        for row, label in enumerate(self.labels):
            place = self.labels[:row].count(label)
            splits.append("train" if place < 8 else "validation" if place < 10 else "test")
            draws.append(place if place < 4 else -1)
        columns = {
            "key": pa.array(self.keys),
            "target": pa.array(targets, TYPES[kind]),
            "split": pa.array(splits),
            "draw_0": pa.array(draws),
            "draw_1": pa.array(draws),
        }
        path = self.root / f"{kind}.parquet"
        Task(pa.table(columns).replace_schema_metadata({KIND: kind})).write(path)
        return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def paths(project: Project, tmp_path: Path) -> Paths:
    return Paths(
        task=project.root / "classification.parquet",
        backbone=project.root / "net",
        manifests=project.root / "manifests",
        features=project.root / "features",
        start=None,
        model=tmp_path / "model",
        predictions=tmp_path / "run.parquet",
        curves=tmp_path / "curves",
        cache=tmp_path / "cache",
    )


def config(**settings: Any) -> FinetuneConfig:
    """Settings of a short run; its new classifier starts at random values, as fitting one takes longer than the run."""
    small = {"task": "photos", "backbone": "net", "start": "backbone", "input": "pixels"}
    small |= {"epochs": 2, "batch_size": 8, "device": "cpu"}
    small["learning_rate"] = 0.001
    classifier = {"classifier": {"init": "random"}} if settings.get("start", "backbone") == "backbone" else {}
    return FinetuneConfig.model_validate(small | classifier | settings)


def run(paths: Paths, **settings: Any) -> dict[str, Any]:
    return to_json(finetune(config(**settings), paths, datasets=["photos"]))


def predicted(paths: Paths) -> list[Predictions]:
    return list(PredictionsFile.open(paths.predictions))


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_a_network_predictions_curves_and_a_record(paths: Paths) -> None:
    said: list[str] = []
    told: list[tuple[int, int]] = []
    best = finetune(
        config(epochs=8, learning_rate=0.01, batch_norm="train", classifier={}),
        paths,
        datasets=["photos"],
        reporter=Reporter(message=said.append, progress=lambda *now: told.append(now)),
    )
    assert said == ["pixels: 24 rows; stored rows cannot replace any part of the network here"]
    assert told[-1] == (24, 24)
    (one,) = predicted(paths)
    assert (one.head, one.input, one.labels, one.draw) == ("finetune", "pixels", None, None)
    assert set(one.splits) == {"validation", "test"}
    assert len(one.keys) == 18
    assert (one.predicted == one.targets).mean() > 0.6
    assert np.allclose(one.scores.sum(axis=1), 1, atol=1e-5)
    made = read_json(paths.model / "model.json")
    assert made["fits"] == [to_json(best)]
    assert made["task"]["classes"] == list(CLASSES)
    assert made["settings"]["task"] == "photos"
    assert best.stopped == "all epochs"
    assert best.frozen["before"] == best.frozen["after"]
    assert (paths.curves / "all" / "plots" / "metrics" / "loss.tsv").is_file()


def test_the_network_is_a_backbone_that_gives_the_predictions_again(paths: Paths, project: Project) -> None:
    run(paths, classifier={"dropout": 0.2, "hidden": 5})
    tuned = serialization.read(paths.model / "backbone")
    assert tuned.spec.classes == CLASSES
    assert tuned.spec.origin["from"] == project.backbone.spec.weights_digest
    assert tuned.spec.weights_digest != project.backbone.spec.weights_digest
    (one,) = predicted(paths)
    extract(
        ExtractConfig.model_validate({"datasets": ["photos"], "taps": {"logits": {"node": "logits"}}}),
        backbone=paths.model / "backbone",
        manifests=paths.manifests,
        out=paths.model / "features",
        cache_root=paths.cache,
    )
    logits = Features.open(paths.model / "features" / "logits").load(list(one.keys))
    assert np.allclose(torch.from_numpy(logits).float().softmax(dim=1), one.scores, atol=2e-3)


def test_evaluation_reads_what_a_run_leaves(paths: Paths, tmp_path: Path) -> None:
    run(paths, labels_per_class=[2, 4], draws=2, epochs=1)
    found = evaluate(
        EvaluateConfig(resamples=100),
        predictions=paths.predictions,
        task=paths.task,
        model=paths.model,
        confusion=tmp_path / "confusion.csv",
        curve=tmp_path / "curve.csv",
        numbers=tmp_path / "numbers.json",
        tables=tmp_path / "tables.json",
    )
    assert (found["labels"], found["draws"], found["test_rows"]) == (4, 2, 12)


def test_each_number_of_labels_and_draw_is_trained_and_one_of_the_most_labels_is_kept(paths: Paths) -> None:
    best = run(paths, labels_per_class=[4, 2], draws=2)
    fits = read_json(paths.model / "model.json")["fits"]
    assert [(one["labels"], one["draw"], one["rows"]) for one in fits] == [
        (4, 0, 12), (4, 1, 12), (2, 0, 6), (2, 1, 6),
    ]  # fmt: skip
    assert [(one.labels, one.draw) for one in predicted(paths)] == [(4, 0), (4, 1), (2, 0), (2, 1)]
    assert best["kept"]["validation_loss"] == min(one["kept"]["validation_loss"] for one in fits[:2])


def test_the_same_run_comes_from_the_cache_and_another_seed_is_another_run(paths: Paths) -> None:
    told: list[Any] = []
    run(paths, weights="last")
    weights = (paths.model / "backbone" / "weights.safetensors").read_bytes()
    shutil.rmtree(paths.model)
    paths.predictions.unlink()
    finetune(
        config(weights="last"), paths, datasets=["photos"], reporter=Reporter(progress=lambda *now: told.append(now))
    )
    assert told == []
    assert (paths.model / "backbone" / "weights.safetensors").read_bytes() == weights
    run(paths, seed=1, weights="last")
    assert (paths.model / "backbone" / "weights.safetensors").read_bytes() != weights


def test_trainings_and_pixels_that_nobody_used_for_long_leave_the_cache(paths: Paths) -> None:
    old, pixels = paths.cache / "training" / "old", paths.cache / "pixels" / "pixels-old.npy"
    for path in (old / "last.ckpt", pixels):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    for path in (old, pixels):
        os.utime(path, (0, 0))
    run(paths, epochs=1)
    run(paths, epochs=1)
    (kept,) = (paths.cache / "training").iterdir()
    assert (kept / "last.ckpt").is_file()
    assert not pixels.exists()


# From the middle -----------------------------------------------------------------------------------------------------


def test_from_stored_rows_is_from_pixels_with_what_is_before_frozen(paths: Paths, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "learning_rate": 0.01, "batch_norm": "train"}
    said: list[str] = []
    finetune(
        config(input="features", tap="early", **settings),
        paths,
        datasets=["photos"],
        reporter=Reporter(message=said.append),
    )
    assert said[0].startswith("block1: 24 rows, 0.1 MiB stored; ")
    pixels = dataclasses.replace(paths, model=tmp_path / "pixels", predictions=tmp_path / "pixels.parquet")
    run(pixels, train={"from_tap": "block1"}, **settings)
    (one,), (other,) = predicted(paths), predicted(pixels)
    assert one.input == "early"
    assert list(one.keys) == list(other.keys)
    assert np.allclose(one.scores, other.scores, atol=1e-4)
    frozen = [read_json(folder / "model.json")["fits"][0]["frozen"] for folder in (paths.model, pixels.model)]
    assert frozen[0] == frozen[1]
    whole, twin = (serialization.read(folder / "backbone") for folder in (paths.model, pixels.model))
    for name, value in whole.module.state_dict().items():
        assert torch.allclose(value.float(), twin.module.state_dict()[name].float(), atol=1e-4), name


def test_epochs_draw_among_views(paths: Paths) -> None:
    run(paths, input="features", tap="early", views=2, epochs=1)
    made = read_json(paths.model / "model.json")
    assert list(made["features"]) == ["early", "early.view0", "early.view1"]


def test_stored_rows_that_are_not_what_the_network_computes_fail_the_run(paths: Paths, project: Project) -> None:
    loaded = load_run(config(input="features", tap="early"), paths, datasets=["photos"])
    training = next(training_sets(loaded.task, (), draws=1, where=""))
    one = build_job(loaded, training, make_fabric(loaded.config))
    with torch.no_grad():
        one.network.block1[0].weight.add_(0.1)  # as if something had trained what was frozen
    from pipeline.finetune.inputs import FromFeatures, compare_stored_rows
    from pipeline.loading.image_cache import load_pixels
    from pipeline.loading.samples import locate_samples

    assert isinstance(loaded.inputs, FromFeatures)
    some = locate_samples(paths.manifests, ["photos"], loaded.inputs.keys[:4])
    live = load_pixels(project.backbone.spec.input, some, folder=paths.cache)
    with pytest.raises(TrainingError, match="expected stored rows of 'block1' to be what the network computes"):
        compare_stored_rows(one.network, project.backbone.spec, live, loaded.inputs.clean, "block1")


def test_a_frozen_part_that_moves_fails_the_run(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import loop

    step = loop.step

    def spoil(network: Any, *more: Any) -> Any:
        with torch.no_grad():
            network.module.block1[0].weight.add_(0.1)
        return step(network, *more)

    monkeypatch.setattr(loop, "step", spoil)
    with pytest.raises(TrainingError, match="all: expected an unchanged frozen part with the digest"):
        run(paths, train="head", weights="last")


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("pooled", "expected whole rows of 'block2', got rows with `pool: mean`. Extract the tap with `pool: none`"),
        ("projected", "expected whole rows of 'block2', got rows with `pool: none` and a projection."),
        ("earl", "unknown tap 'earl'. Did you mean 'early'?"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(paths: Paths, tap: str, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        run(paths, input="features", tap=tap)
    assert message in str(caught.value)


def test_views_that_were_never_extracted_are_refused(paths: Paths) -> None:
    with pytest.raises(TrainingError) as caught:
        run(paths, input="features", tap="early", views=5)
    assert str(caught.value) == (
        f"{paths.features}: expected 5 views of 'early', got 2: there is no early.view2. Give the entry of `extract` "
        "`views` with `count: 5`, or ask for fewer."
    )


def test_features_of_other_weights_are_refused_with_the_fields(paths: Paths, tmp_path: Path) -> None:
    small_training.backbone(tmp_path / "other", widths=(4, 6, 8), seed=1)
    with pytest.raises(StoreError) as caught:
        run(dataclasses.replace(paths, backbone=tmp_path / "other"), input="features", tap="early")
    lines = str(caught.value).split("\n")
    assert lines[0] == (
        f"{paths.features / 'early'}: expected features of the backbone as it is, got others. Extract again"
    )
    assert len(lines) == 2
    assert lines[1].startswith("  - weights: expected ")


def test_a_cut_that_the_graph_does_not_allow_is_refused(paths: Paths) -> None:
    with pytest.raises(BackboneError, match="unknown node 'block9'"):
        run(paths, train={"from_tap": "block9"})


def test_training_what_is_before_the_tap_is_refused(paths: Paths) -> None:
    with pytest.raises(TrainingError, match=r"expected a part that runs after the stored tap 'block2', got \d+ param"):
        run(paths, input="features", tap="late", unfreeze={1: "block1"})


# From a fitted head --------------------------------------------------------------------------------------------------


def fitted(paths: Paths, folder: Path, *, tap: str = "last", head: Any = None, **more: Any) -> Path:
    """A run of `fit` as it lies on disk, of one head on one tap."""
    task = Task.read(paths.task)
    rows = task.rows("train")
    features = Features.open(paths.features / tap)
    X = features.load(list(task.keys[rows])).reshape(len(rows), -1)
    pipeline = make_pipeline(StandardScaler(), head or LogisticRegression(C=10.0))
    pipeline.fit(X, task.targets[rows])
    folder.mkdir(parents=True)
    skops.io.dump(pipeline, folder / "head.skops")
    fit = {"head": "logistic", "input": tap, "labels": None, "draw": None, "file": "head.skops", "params": {}}
    made = {
        "format": 2,
        "settings": {},
        "scores": {"logistic": "probability"},
        "versions": {},
        "features": {tap: {"address": features.index.address, "identity": features.identity}},
        "fits": [fit],
        "task": {"name": "photos", "sha256": "", "kind": task.kind, "classes": task.classes},
    }
    write_json(folder / "model.json", {**made, **more})
    return folder


def test_a_network_starts_with_the_head_that_was_fitted(paths: Paths, tmp_path: Path) -> None:
    start = fitted(paths, tmp_path / "probe")
    (file,) = start.glob("*.skops")
    head = skops.io.load(file)
    loaded = load_run(config(start="probe"), dataclasses.replace(paths, start=start), datasets=["photos"])
    training = next(training_sets(loaded.task, (), draws=1, where=""))
    one = build_job(loaded, training, make_fabric(loaded.config))
    assert one.validation is not None
    (batch,) = one.validation.batches(32)
    logits = one.network.eval()(one.context.enter(batch.inputs)).softmax(dim=1).detach().numpy()
    rows = Features.open(paths.features / "last").load(batch.keys)
    assert np.allclose(logits, head.predict_proba(rows), atol=1e-4)
    run(dataclasses.replace(paths, start=start), start="probe", learning_rate=1e-9, weights="last")
    (tuned,) = predicted(paths)
    rows = Features.open(paths.features / "last").load(list(tuned.keys))
    assert np.allclose(tuned.scores, head.predict_proba(rows), atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"input": "features", "tap": "early", "views": 2}])
def test_a_new_classifier_starts_as_the_head_that_fit_finds_on_the_training_rows(
    paths: Paths, more: dict[str, Any]
) -> None:
    lines: list[str] = []
    asked = config(learning_rate=1e-9, weights="last", classifier={}, **more)
    made = finetune(asked, paths, datasets=["photos"], reporter=Reporter(log=lines.append))
    (probe,) = made.probes
    assert (probe["head"], probe["rows"], probe["width"]) == ("logistic", 24, 8)
    assert lines[0] == f"all: classifier: starts as logistic on 24 rows of 8 values, C {probe['params']['C']:.3g}"
    assert lines[1].startswith("all: epoch 0 of 2: validation loss ")
    given = {"task": "photos", "backbone": "net", "inputs": ["last"], "validation": "folds", "refit": False}
    out = paths.model / "heads.parquet"
    places = {"task": paths.task, "features": paths.features, "models": paths.model / "heads", "predictions": out}
    fit_heads(FitConfig.model_validate(given), **places)
    (head,), (tuned,) = list(PredictionsFile.open(out)), predicted(paths)
    test, other = tuned.splits == "test", head.splits == "test"
    assert tuned.keys[test].tolist() == head.keys[other].tolist()
    assert np.allclose(tuned.scores[test], head.scores[other], atol=2e-2)
    assert read_json(paths.model / "heads" / "model.json")["fits"][0]["params"]["C"] == probe["params"]["C"]


def test_a_network_that_no_epoch_makes_better_stays_as_it_started(paths: Paths) -> None:
    lines: list[str] = []
    finetune(config(learning_rate=1e-9, weights="last", classifier={}), paths, datasets=["photos"])
    start = predicted(paths)[0].scores
    made = finetune(
        config(learning_rate=0.3, batch_norm="recalibrate", classifier={}),
        paths,
        datasets=["photos"],
        reporter=Reporter(log=lines.append),
    )
    assert made.kept == made.start
    assert made.kept["epoch"] == -1
    assert made.epochs == 2
    assert lines[-1] == (
        "all: kept: the network before the first epoch; none was better by more than 2 standard errors on 6 "
        "validation rows"
    )
    np.testing.assert_allclose(predicted(paths)[0].scores, start, atol=1e-4)
    random = run(paths, learning_rate=0.3)
    assert (random["probes"], random["start"]) == ([], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tap": "late"},
            "expected a linear head on `penultimate` of this backbone, with `labels_per_class: all`, got: ",
        ),
        ({"settings": {"refit": True}}, "expected a head that was not fitted to validation rows"),
        ({"fits": []}, "expected a linear head on `penultimate`"),
    ],
)
def test_a_run_without_a_head_that_fits_is_refused(
    paths: Paths, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    start = fitted(paths, tmp_path / "probe", **settings)
    with pytest.raises(HeadError) as caught:
        run(dataclasses.replace(paths, start=start), start="probe")
    assert message in str(caught.value)


def test_two_heads_to_start_from_and_none_at_all_are_refused(paths: Paths, tmp_path: Path) -> None:
    start = fitted(paths, tmp_path / "probe", head=RidgeClassifier())
    made = read_json(start / "model.json")
    write_json(start / "model.json", {**made, "fits": [*made["fits"], {**made["fits"][0], "file": "other.skops"}]})
    with pytest.raises(HeadError, match=r"expected a single head to start from, got 2: head\.skops, other\.skops"):
        run(dataclasses.replace(paths, start=start), start="probe")
    with pytest.raises(
        HeadError, match=r"expected a run's folder with model\.json, got none\. Run `icecore repro fit@no`"
    ):
        run(dataclasses.replace(paths, start=tmp_path / "no"), start="no")


def test_a_file_with_types_that_are_not_trusted_is_not_loaded(paths: Paths, tmp_path: Path) -> None:
    start = fitted(paths, tmp_path / "probe")
    skops.io.dump(config, start / "head.skops")
    with pytest.raises(HeadError, match=r"expected types that icecore trusts, got .*It was not loaded"):
        run(dataclasses.replace(paths, start=start), start="probe")


# Other kinds of tasks ------------------------------------------------------------------------------------------------


def test_a_regression_predicts_in_the_unit_of_the_task(paths: Paths, project: Project) -> None:
    values = [1000.0 + 100.0 * CLASSES.index(label) for label in project.labels]
    task = project.task("regression", values)
    run(dataclasses.replace(paths, task=task), epochs=8, learning_rate=0.01, batch_norm="train")
    (one,) = predicted(paths)
    assert one.scores.shape == (18, 0)
    assert np.abs(one.predicted - one.targets).mean() < 80
    tuned = serialization.read(paths.model / "backbone")
    loaded = load_run(config(), dataclasses.replace(paths, task=task), datasets=["photos"])
    rows = np.concatenate([loaded.task.rows("validation"), loaded.task.rows("test")])
    (batch,) = loaded.inputs.samples(rows, torch.zeros(18), training=False, seed=0).batches(32)
    with torch.inference_mode():
        again = tuned.module(loaded.inputs.enter(batch.inputs)).squeeze(1)
    assert np.allclose(again.numpy(), one.predicted, atol=0.1)


def test_a_multilabel_task_gives_independent_probabilities(paths: Paths, project: Project) -> None:
    names = [["dark"] if label == "dark" else ["light", label] for label in project.labels]
    task = project.task("multilabel", names)
    run(dataclasses.replace(paths, task=task), class_weights="balanced")
    (one,) = predicted(paths)
    assert one.targets.shape == one.predicted.shape == one.scores.shape == (18, 4)
    assert np.array_equal(one.predicted, one.scores > 0.5)


@pytest.mark.parametrize("head", ["logistic", "ridge", "svm", "streaming_ridge"])
@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_network_answers_as_the_head_that_it_starts_from(
    paths: Paths, project: Project, tmp_path: Path, kind: Kind, head: str
) -> None:
    if kind == "regression" and head == "logistic":
        pytest.skip("logistic regression predicts no numbers")
    names: list[Any] = [["dark"] if label == "dark" else ["light", label] for label in project.labels]
    values: list[Any] = [1000.0 + 100.0 * CLASSES.index(label) + row for row, label in enumerate(project.labels)]
    task = project.task(kind, values if kind == "regression" else names)
    place = dataclasses.replace(paths, task=task)
    estimator = heads.create(head, {}, scale="none", kind=kind)[-1]
    start = fitted(place, tmp_path / "probe", head=estimator)
    loaded = load_run(config(start="probe"), dataclasses.replace(place, start=start), datasets=["photos"])
    training = next(training_sets(loaded.task, (), draws=1, where=""))
    one = build_job(loaded, training, make_fabric(loaded.config))
    assert one.validation is not None
    (batch,) = one.validation.batches(32)
    with torch.no_grad():
        outputs = one.network.eval()(one.context.enter(batch.inputs))
    X = Features.open(paths.features / "last").load(batch.keys)
    saved = model.read(start / "head.skops")
    if kind == "regression":
        found, _ = answers(loaded.task, outputs, one.targets)
        np.testing.assert_allclose(found, saved.predict(X), rtol=1e-4)
    else:
        np.testing.assert_allclose(outputs.numpy(), saved.decision_function(X), atol=1e-3)


def test_a_head_of_another_kind_of_task_is_no_start(paths: Paths, project: Project, tmp_path: Path) -> None:
    start = fitted(paths, tmp_path / "probe")
    task = project.task("regression", [float(len(label)) for label in project.labels])
    with pytest.raises(HeadError, match="expected a head of a regression with the classes of this task, got a classif"):
        run(dataclasses.replace(paths, task=task, start=start), start="probe")


def test_tasks_that_do_not_fit_are_refused(paths: Paths, project: Project, tmp_path: Path) -> None:
    task = project.task("regression", [float(len(label)) for label in project.labels])
    with pytest.raises(DataError, match="`labels_per_class` needs classes, and the task is a regression"):
        run(dataclasses.replace(paths, task=task), labels_per_class=[2])
    with pytest.raises(DataError, match="expected 3 few-shot draws, got 2"):
        run(paths, labels_per_class=[2], draws=3)
    with pytest.raises(DataError, match="expected 9 training rows of each of 3 classes, got 12 in all"):
        run(paths, labels_per_class=[9])
    table = Task.read(paths.task).table
    for split, message in (("train", "validation or test rows to predict"), ("test", "training rows, got none")):
        column = pa.array([split] * len(table))
        Task(table.set_column(table.column_names.index("split"), "split", column)).write(tmp_path / "t.parquet")
        with pytest.raises(DataError, match=message):
            run(dataclasses.replace(paths, task=tmp_path / "t.parquet"))
    strange = table.set_column(0, "key", pa.array([*table["key"].to_pylist()[1:], "f" * 32]))
    Task(strange).write(tmp_path / "strange.parquet")
    with pytest.raises(DataError, match="but 1 sample is missing; the first is ffff"):
        run(dataclasses.replace(paths, task=tmp_path / "strange.parquet"))


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "features"}, "`input: features` needs a `tap`"),
        ({"input": "features", "tap": "early", "start": "scratch"}, "`start: scratch` trains all weights"),
        ({"input": "features", "tap": "early", "mixup": 0.2}, "expected `views` with `input: features`"),
        ({"tap": "early"}, "`tap` and `views` are of stored rows"),
        ({"start": "scratch"}, "`start: scratch` has nothing to freeze"),
        ({"unfreeze": {1: "input"}, "devices": 2}, "`unfreeze` changes what several devices keep equal"),
        ({"labels_per_class": [2, 2]}, "`labels_per_class`: expected each number once"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_from_scratch_nothing_of_the_backbone_is_left(paths: Paths, project: Project) -> None:
    loaded = load_run(config(start="scratch", batch_norm="train", seed=5), paths, datasets=["photos"])
    training = next(training_sets(loaded.task, (), draws=1, where=""))
    one = build_job(loaded, training, make_fabric(loaded.config))
    known = project.backbone.module.state_dict()
    assert not torch.equal(one.network.state_dict()["block1.0.weight"], known["block1.0.weight"])


def test_the_range_test_of_a_run_writes_nothing(paths: Paths) -> None:
    found = lr_range(config(), paths, datasets=["photos"])
    assert found.suggested > 0
    assert not paths.model.exists()


def test_without_a_learning_rate_the_range_test_chooses_one_and_is_not_run_twice(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    chosen = config(learning_rate="auto")
    assert FinetuneConfig.model_fields["learning_rate"].default == "auto"
    finetune(chosen, paths, datasets=["photos"], reporter=Reporter(message=shown.append))
    suggested = lr_range(chosen, paths, datasets=["photos"]).suggested
    found = rf"learning rate: {suggested:.2g}, by a range test of \d+ steps, [\d.]+ s \(`learning_rate: auto`\)"
    assert re.fullmatch(found, shown[0])
    assert json.loads((paths.model / "model.json").read_text())["settings"]["learning_rate"] == suggested
    before = predicted(paths)[0].scores

    monkeypatch.setattr("pipeline.training.lr_finder.range_test", None)
    again = run(paths, learning_rate="auto")
    np.testing.assert_array_equal(predicted(paths)[0].scores, before)
    assert again["kept"] == run(paths, learning_rate=suggested)["kept"]


# Break-even ----------------------------------------------------------------------------------------------------------


def test_the_break_even_is_where_reading_has_saved_what_storing_cost() -> None:
    given: dict[str, Any] = {"rows": 1000, "row_bytes": 2**20, "epochs": 10, "frozen": 4e-3, "reading": 1e-3}
    assert describe("block1", **given, stored=False) == (
        "block1: 1,000 rows, 1,000.0 MiB stored; 4 ms per row to compute, 1 ms to read; pays after: 2 epochs. It pays "
        "here, in 10 epochs."
    )
    views = describe("block1", **given, views=8, stored=False)
    assert "pays after: 11 epochs. It does not pay here, in 10 epochs: train from pixels, as it is." in views
    slow = describe("block1", **given | {"reading": 5e-3, "rows": 1024})
    assert slow.endswith("pays after: never. It does not pay here, in 10 epochs: `input: pixels` is faster.")
    assert "1.0 GiB" in slow


def test_model_json_is_plain_json(paths: Paths) -> None:
    run(paths, epochs=1, augment=[{"name": "rotation", "degrees": 5}])
    assert json.loads((paths.model / "model.json").read_text())["settings"]["augment"][0]["name"] == "rotation"
