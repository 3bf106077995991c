"""Teachers: scores stored by key, what they were made from, what is refused, and what is computed again."""

import dataclasses
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import shards
from support.projects import SHIPPED
from support.teachers import AUGMENT, CLASSES, TAPS, VIEWS, World, config, copied

from pipeline.backbones import serialization
from pipeline.backbones.spec import read_spec
from pipeline.errors import ConfigError, DataError, HeadError, StoreError, TrainingError
from pipeline.extract.commit import commit
from pipeline.files import read_json, write_json
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.heads import saved
from pipeline.heads.saved import Model
from pipeline.loading.image_cache import Pixels, load_pixels
from pipeline.loading.samples import locate_samples, read_samples
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.augment import Views
from pipeline.runtime import Reporter
from pipeline.store import cache, key_arrays
from pipeline.store.features import Features
from pipeline.teach import top_k
from pipeline.teach.config import TeachConfig
from pipeline.teach.ensemble import average_logits, match_classes
from pipeline.teach.logits import describe_logits, logits_of
from pipeline.teach.outputs import Paths
from pipeline.teach.run import teach
from pipeline.teach.teacher import Teacher, check_compatible
from pipeline.teach.top_k import TopK
from pipeline.teach.verify import Sources, recompute
from pipeline.training.data import normalise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world") / "world")
    made.finetune("tuned")
    made.fit("heads", inputs=["last", ["late", "last"]])
    return made


@pytest.fixture(scope="module")
def pixels(world: World) -> Pixels:
    inputs = read_spec(world.root / "net").input
    keys = key_arrays.from_hex(world.keys)
    return load_pixels(inputs, locate_samples(world.root / "manifests", ["photos"], keys), folder=world.root)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    found = read_json(path)
    change(found)
    write_json(path, found)


def live(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """The logits of a network."""
    network = serialization.read(folder)
    with torch.inference_mode():
        found: np.ndarray = network.module(normalise(torch.from_numpy(pixels), network.spec.input)).numpy()
    return found


# What a teacher has --------------------------------------------------------------------------------------------------


def test_a_network_teaches_by_its_own_logits(world: World, pixels: Pixels, tmp_path: Path) -> None:
    done = world.taught("tuned", tmp_path / "t", views={**VIEWS, "seed": 3}, hints=["block2", "penultimate"])
    assert (done.rows, done.rejected, done.computed, done.views) == (36, 0, 36 * 9, 2)
    assert str(done) == (
        "36 samples and 2 views of each, 0 rejected; 3 classes: the network's logits; 324 rows computed"
    )
    found = Teacher.open(tmp_path / "t")
    folder = world.root / "models" / "tuned" / "backbone"
    assert (found.name, found.kind, found.classes) == ("t", "classification", CLASSES)
    assert found.identity["weights"] == read_spec(folder).weights_digest
    assert found.views == Views.model_validate({**VIEWS, "seed": 3})
    np.testing.assert_allclose(found.logits(pixels.keys), live(folder, pixels.array), rtol=1e-4, atol=1e-5)
    for view in range(2):
        seen = found.view(view)(pixels.array, pixels.keys)
        assert (seen != pixels.array).any()
        np.testing.assert_allclose(found.logits(pixels.keys, view), live(folder, seen), rtol=1e-4, atol=1e-5)
    assert found.hint_shape("block2") == found.hints("block2", world.keys[:3], 1).shape[1:] == (6, 8, 8)
    assert found.hints("penultimate", world.keys).shape == (36, 8)
    assert found.has(world.keys).all()
    np.testing.assert_array_equal(found.keys, pixels.keys)


def test_the_order_of_keys_is_no_matter(world: World, tmp_path: Path) -> None:
    found = world.teacher("tuned", tmp_path / "t")
    order = np.random.default_rng(0).permutation(36)
    shuffled = key_arrays.from_hex(world.keys)[order]
    np.testing.assert_array_equal(found.logits(shuffled), found.logits(world.keys)[order])


def test_a_head_teaches_by_the_log_of_its_probabilities(world: World, tmp_path: Path) -> None:
    found = world.teacher("heads", tmp_path / "t", input="late+last", head="logistic", views=2)
    head = saved.load(world.root / "models" / "heads", "logistic.late+last.all.skops")
    taps = [Features.open(world.root / "features" / name) for name in ("late", "last")]
    probabilities = head.scores(*taps, keys=world.keys)
    np.testing.assert_allclose(torch.from_numpy(found.logits(world.keys)).softmax(dim=1), probabilities, rtol=1e-5)
    assert found.identity["scores"] == "log of the probabilities"
    assert found.identity["features"] == {tap.folder.name: tap.index.address for tap in taps}
    assert found.views == Views.model_validate(VIEWS)
    joined = [Features.open(world.root / "features" / f"{name}.view1").load(world.keys) for name in ("late", "last")]
    rows = np.concatenate([one.reshape(36, -1).astype(np.float32) for one in joined], axis=1)
    np.testing.assert_allclose(found.logits(world.keys, 1), np.log(head.head.predict_proba(rows)), rtol=1e-4)
    assert read_json(tmp_path / "t" / "teacher.json")["source"]["file"] == "logistic.late+last.all.skops"


def test_neighbours_teach_by_the_training_rows_that_they_find_again(
    world: World, pixels: Pixels, tmp_path: Path
) -> None:
    world.fit("near", head="streaming_knn")
    found = world.teacher("near", tmp_path / "teacher")
    assert found.logits(world.keys).shape == (len(world.keys), len(found.classes))
    assert recompute(found, world.sources("near"), pixels).error < 1e-5


def test_a_backbone_teaches_by_its_own_classifier(world: World, pixels: Pixels, tmp_path: Path) -> None:
    found = world.teacher("backbone", tmp_path / "t")
    assert found.classes == ("a", "b", "c")
    np.testing.assert_allclose(found.logits(world.keys), live(world.root / "net", pixels.array), rtol=1e-4, atol=1e-5)


# Nothing is computed twice -------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("run", "asked", "each"),
    [
        ("tuned", {"views": VIEWS, "hints": ["block2"]}, 6),
        ("tuned", {"views": VIEWS, "top_k": 2}, 3),
        ("heads", {"input": "last", "views": 2}, 3),
        ("heads", {"input": "last", "top_k": 1}, 1),
    ],
)
def test_teaching_again_computes_nothing_and_new_data_only_its_own_rows(
    world: World, tmp_path: Path, run: str, asked: dict[str, Any], each: int
) -> None:
    own = copied(world, tmp_path / "world")
    shutil.rmtree(own.root / "cache")
    first, out = own.taught(run, tmp_path / "t", **asked), tmp_path / "t"
    before = files(out)
    assert first.computed == 36 * each
    again = own.taught(run, out, **asked)
    assert (again.computed, again.deviation) == (0, first.deviation)
    assert files(out) == before
    shutil.rmtree(out)  # as DVC does
    assert own.taught(run, out, **asked).computed == 0
    assert files(out) == before
    own.add("more", each=2, seed=1)
    own.extract(("photos", "more"))
    more = own.taught(run, out, datasets=["photos", "more"], **asked)
    assert (more.rows, more.computed) == (42, 6 * each)
    assert not (own.root / "cache" / "teach").is_dir() or not [*(own.root / "cache" / "teach").iterdir()]


def test_fewer_views_leave_no_folders_of_the_others(world: World, tmp_path: Path) -> None:
    world.taught("tuned", tmp_path / "t", views=VIEWS)
    assert world.taught("tuned", tmp_path / "t", views={**VIEWS, "count": 1}).computed == 0
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["logits", "logits.view0", "teacher.json"]


def test_a_run_that_ends_in_between_leaves_no_teacher(world: World, tmp_path: Path) -> None:
    world.taught("tuned", tmp_path / "t")
    with pytest.raises(DataError):
        teach(config("heads", input="last", datasets=["photos", "none"]), world.paths("heads", tmp_path / "t"))
    shutil.copytree(world.root / "manifests", tmp_path / "manifests")
    with pytest.raises(HeadError):
        world.taught("heads", tmp_path / "t", input="lost")
    with pytest.raises(
        TrainingError, match=r"expected a teacher with teacher\.json, got none\. Run `icecore repro teach@t`"
    ):
        Teacher.open(tmp_path / "t")


# How scores become logits --------------------------------------------------------------------------------------------


def head_of(world: World, run: str, **asked: Any) -> tuple[Model, np.ndarray]:
    """A head of a run of its own, and the rows that it was fitted on."""
    folder = world.fit(run, **asked)
    return saved.load(folder), Features.open(world.root / "features" / "last").load().reshape(36, -1)


def test_decision_values_are_logits_as_they_are(world: World) -> None:
    head, X = head_of(world, "svm", head="svm")
    assert describe_logits(head) == "decision values as they are"
    np.testing.assert_allclose(logits_of(head, X), head.head.decision_function(X), rtol=1e-5)


def test_one_decision_value_of_two_classes_is_halved(world: World) -> None:
    two = ["dark" if label == "dark" else "light" for label in world.labels]
    head, X = head_of(world, "two", head="ridge", targets=two)
    d = head.head.decision_function(X)
    np.testing.assert_allclose(logits_of(head, X), np.stack([-d / 2, d / 2], axis=1), rtol=1e-5)
    likely = torch.from_numpy(logits_of(head, X)).softmax(dim=1)[:, 1]
    np.testing.assert_allclose(likely, 1 / (1 + np.exp(-d)), rtol=1e-5)


def test_probabilities_of_several_labels_are_log_odds(world: World) -> None:
    several = [["light", "all"] if label == "white" else ["all"] if label == "grey" else [] for label in world.labels]
    head, X = head_of(world, "several", kind="multilabel", targets=several)
    assert describe_logits(head) == "log odds of the probabilities"
    probabilities = head.head.predict_proba(X)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits_of(head, X))), probabilities, rtol=1e-4)
    head, X = head_of(world, "margins", kind="multilabel", targets=several, head="svm")
    np.testing.assert_allclose(logits_of(head, X), head.head.decision_function(X), rtol=1e-5)


def test_probabilities_of_zero_stay_finite(world: World) -> None:
    head, X = head_of(world, "votes", head="knn", params={"n_neighbors": 1})
    found = logits_of(head, X)
    assert found.min() == np.log(np.finfo(np.float32).tiny)
    assert found.max() == 0


def test_heads_without_scores_and_of_numbers_are_refused(world: World, tmp_path: Path) -> None:
    world.fit("centroid", head="centroid")
    with pytest.raises(
        HeadError, match=r"expected a head with probabilities or decision values as a teacher, got one w"
    ):
        world.taught("centroid", tmp_path / "t", head="centroid")
    world.fit("numbers", kind="regression", targets=[float(row) for row in range(36)], head="ridge")
    with pytest.raises(HeadError, match=r"expected a head that knows classes as a teacher, got one of a regression\."):
        world.taught("numbers", tmp_path / "t", head="ridge")


def test_scores_that_are_no_numbers_are_refused(world: World) -> None:
    head, X = head_of(world, "svm", head="svm")
    head.head[-1].intercept_[:] = np.inf
    with pytest.raises(HeadError, match=r"svm\.last\.all\.skops: expected finite scores, got: its scores are n"):
        logits_of(head, X)


# What is refused -----------------------------------------------------------------------------------------------------


def refused(world: World, tmp_path: Path, run: str, error: type[Exception] = TrainingError, **asked: Any) -> str:
    with pytest.raises(error) as told:
        world.taught(run, tmp_path / "refused", **asked)
    return str(told.value)


def test_a_run_that_is_not_there_is_refused(world: World, tmp_path: Path) -> None:
    assert "expected the folder of a run with model.json, got none. Run fit or finetune of lost first." in refused(
        world, tmp_path, "lost"
    )


def test_a_head_must_be_told_from_the_others(world: World, tmp_path: Path) -> None:
    message = refused(world, tmp_path, "heads", HeadError)
    assert "expected one head as a teacher (the only one), got 2. Say which by `input`, `head`, `labels`" in message
    assert message.endswith(": logistic on last; logistic on late+last.")
    message = refused(world, tmp_path, "heads", HeadError, input="late")
    assert "expected one head as a teacher (input: late), got 0." in message
    world.fit("few", labels_per_class=[2, 4])
    message = refused(world, tmp_path, "few", HeadError, head="logistic")
    assert message.endswith(": logistic on last, labels 2, draw 0; logistic on last, labels 4, draw 0.")
    assert world.taught("few", tmp_path / "t", head="logistic", labels=4, draw=0).rows == 36


def test_a_regression_does_not_teach(world: World, tmp_path: Path) -> None:
    world.finetune("measure", kind="regression", targets=[float(row) for row in range(36)])
    assert "expected a network that knows classes as a teacher, got one of a regression." in refused(
        world, tmp_path, "measure"
    )


def test_a_backbone_without_named_classes_is_refused(world: World, tmp_path: Path) -> None:
    own = copied(world, tmp_path / "world")
    edit(own.root / "net" / "backbone.json", lambda found: found.update(classes=[]))
    assert (
        "expected a network with an output for each of its named classes as a teacher, got outputs of the shape (3,)"
        in (refused(own, tmp_path, "backbone"))
    )


def test_the_outputs_of_a_backbone_may_be_named(world: World, tmp_path: Path) -> None:
    found = world.teacher("backbone", tmp_path / "t", classes=["x", "y", "z"])
    assert found.classes == ("x", "y", "z")
    assert "got outputs of the shape (3,) and 2 names. Give the teacher `classes`, the names of the outputs in" in (
        refused(world, tmp_path, "backbone", classes=["x", "y"])
    )
    with pytest.raises(ValueError, match="`classes`: expected them with `run: backbone`, got 'r', which has its own"):
        TeachConfig(run="r", backbone="b", datasets=("d",), classes=("x",))


def test_hints_and_views_must_be_those_of_the_kind_of_teacher(world: World, tmp_path: Path) -> None:
    assert "expected `hints` with a network, which has nodes, got a run of fit." in refused(
        world, tmp_path, "heads", input="last", hints=["block2"]
    )
    assert (
        "expected `views` with `count` and `augment` for a network, which sees them itself, got a number."
        in refused(world, tmp_path, "tuned", views=2)
    )
    with pytest.raises(ValueError, match=r"`hints`: expected different nodes, and not the logits, got a\.b, a-b"):
        TeachConfig(run="r", backbone="b", datasets=("d",), hints=("a.b", "a-b"))


def test_views_that_were_never_extracted_are_refused(world: World, tmp_path: Path) -> None:
    message = refused(world, tmp_path, "heads", input="last", views=4)
    assert (
        "expected the taps last and 4 views of each, got no last.view2, last.view3. Give the entry of `ext" in message
    )


def test_views_of_several_extractions_are_refused_with_the_field(world: World, tmp_path: Path) -> None:
    own = copied(world, tmp_path / "world")
    shutil.copytree(own.root / "features" / "last.view1", tmp_path / "kept")
    own.extract(("photos",), views={**VIEWS, "seed": 7})
    shutil.rmtree(own.root / "features" / "last.view1")
    shutil.copytree(tmp_path / "kept", own.root / "features" / "last.view1")
    message = refused(own, tmp_path, "heads", input="last", views=2)
    assert "expected views that one entry of `extract` made, got others. Extract again" in message
    assert "last.view1: reader.view.seed: expected 7, got 0" in message


def test_features_of_other_weights_are_refused_by_the_head(world: World, tmp_path: Path) -> None:
    from support import small_training

    own = copied(world, tmp_path / "world")
    small_training.backbone(own.root / "net", widths=(4, 6, 8), seed=1)
    own.extract(("photos",))
    message = refused(own, tmp_path, "heads", HeadError, input="last")
    assert "the head was fitted on other features." in message
    assert "weights: expected" in message


def test_samples_that_were_not_extracted_are_counted(world: World, tmp_path: Path) -> None:
    own = copied(world, tmp_path / "world")
    own.add("more", each=2, seed=1)
    new = sorted(key_arrays.to_hex(read_samples(own.root / "manifests", ("more",)).keys))
    message = refused(own, tmp_path, "heads", DataError, input="last", datasets=["photos", "more"])
    assert (
        f"expected features of all 42 samples of the teacher's data sets, got none of 6, the first is {new[0]}"
        in message
    )


def test_samples_without_features_have_no_scores_and_may_not_be_many(world: World, tmp_path: Path) -> None:
    own = copied(world, tmp_path / "world")
    own.add("more", each=2, seed=1)
    spoiled = own.root / "more" / "dark" / "00.png"
    os.truncate(spoiled, 60)
    own.extract(("photos", "more"), max_rejected=0.5)
    message = refused(own, tmp_path, "heads", DataError, input="last", datasets=["photos", "more"])
    assert "1 of 42 samples gave no features, more than the share of 0.01" in message
    for number, (run, asked) in enumerate(
        [("heads", {"input": "last"}), ("tuned", {}), ("tuned", {"top_k": 1}), ("heads", {"input": "last", "top_k": 1})]
    ):
        many = {"datasets": ["photos", "more"], "max_rejected": 0.5}
        done = own.taught(run, tmp_path / str(number), **many, **asked)
        assert (done.rows, done.rejected) == (41, 1)
        (gone,) = Teacher.open(tmp_path / str(number)).scores[0].index.rejected
        assert "changed since its data set was prepared" in gone.reason


# Opening a teacher ---------------------------------------------------------------------------------------------------


def test_samples_without_scores_are_counted(world: World, tmp_path: Path) -> None:
    found = world.teacher("tuned", tmp_path / "t")
    for unknown in (["f" * 32, *world.keys[:2], "e" * 32], key_arrays.from_hex(["f" * 32, *world.keys[:2], "e" * 32])):
        assert found.has(unknown).tolist() == [False, True, True, False]
        with pytest.raises(DataError) as told:
            found.logits(unknown)
        assert (
            f"{tmp_path / 't' / 'logits'}: expected scores of all 4 samples, got none of 2, the first is {'f' * 32}. "
            "Add their data set to the teacher's `datasets`, or run `icecore repro teach@t`."
        ) == str(told.value)


def test_a_view_that_was_not_taught_is_refused(world: World, tmp_path: Path) -> None:
    found = world.teacher("tuned", tmp_path / "t", views=VIEWS)
    with pytest.raises(
        TrainingError, match=r"expected view 2, got a teacher with 2 views\. Give the entry of `teach` 3"
    ):
        found.logits(world.keys, 2)
    with pytest.raises(TrainingError, match="expected view 0, got a teacher with 0 views"):
        world.teacher("tuned", tmp_path / "u").view(0)


def test_a_hint_that_was_not_taught_is_refused(world: World, tmp_path: Path) -> None:
    found = world.teacher("tuned", tmp_path / "t", hints=["block2"])
    with pytest.raises(
        TrainingError, match=r"unknown hint 'block3'\. Did you mean 'block2'\? .*Add it to the teacher's"
    ):
        found.hints("block3", world.keys)


def test_rows_of_another_network_in_its_place_are_refused_with_the_field(world: World, tmp_path: Path) -> None:
    world.taught("tuned", tmp_path / "t")
    world.taught("backbone", tmp_path / "u")
    shutil.rmtree(tmp_path / "t" / "logits")
    shutil.copytree(tmp_path / "u" / "logits", tmp_path / "t" / "logits")
    with pytest.raises(StoreError) as told:
        Teacher.open(tmp_path / "t")
    assert "expected the rows that teacher.json was written for, got others. Run teach again" in str(told.value)
    assert "- weights: expected " in str(told.value)


def test_views_of_other_settings_in_their_place_are_refused_with_the_field(world: World, tmp_path: Path) -> None:
    world.taught("tuned", tmp_path / "t", views=VIEWS)
    other = [{**AUGMENT[0], "p": 0.25}, AUGMENT[1]]
    world.taught("tuned", tmp_path / "u", views={**VIEWS, "seed": 9, "augment": other})
    shutil.rmtree(tmp_path / "t" / "logits.view1")
    shutil.copytree(tmp_path / "u" / "logits.view1", tmp_path / "t" / "logits.view1")
    with pytest.raises(StoreError) as told:
        Teacher.open(tmp_path / "t")
    assert "- reader.view.seed: expected 0, got 9" in str(told.value)
    assert "- reader.view.augment: expected " in str(told.value)


def test_views_that_would_be_made_otherwise_now_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.readers import augment

    found = world.teacher("tuned", tmp_path / "t", views=VIEWS)
    monkeypatch.setattr(augment, "_torchvision_version", lambda: "9.9")
    monkeypatch.setattr(augment.View.model_fields["torchvision"], "default_factory", lambda: "9.9")
    augment.View.model_rebuild(force=True)
    try:
        with pytest.raises(
            StoreError, match=r"expected the view that teacher\.json names, as it is made here, got anoth"
        ):
            found.logits(world.keys, 0)
        assert len(found.logits(world.keys)) == 36
    finally:
        monkeypatch.undo()
        augment.View.model_rebuild(force=True)


def test_a_teacher_of_another_format_is_refused(world: World, tmp_path: Path) -> None:
    world.taught("tuned", tmp_path / "t")
    edit(tmp_path / "t" / "teacher.json", lambda found: found.update(format=9))
    with pytest.raises(
        TrainingError, match=r"expected a teacher of format 1, got 9\. Run `icecore repro -f teach@t`\."
    ):
        Teacher.open(tmp_path / "t")


def test_what_reads_images_otherwise_is_told_by_the_field(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = read_spec(world.root / "net").input
    for teacher in (
        world.teacher("tuned", tmp_path / "t", views=VIEWS),
        world.teacher("heads", tmp_path / "u", input="last"),
    ):
        assert teacher.read_as(inputs) == []
        assert teacher.read_as(inputs.model_copy(update={"mean": (0.1,), "std": (2.0,)})) == []
        image = inputs.image.model_copy(update={"resize": (40, 40), "crop": (32, 32)})
        problems = teacher.read_as(inputs.model_copy(update={"image": image}))
        assert problems == ["crop: expected None, got [32, 32]", "resize: expected [32, 32], got [40, 40]"]
        with monkeypatch.context() as changed:
            changed.setattr("pipeline.readers.image.VERSION", 99)
            (problem,) = teacher.read_as(inputs)
        assert problem.startswith("version: expected ")
        assert problem.endswith("got 99")


# Several teachers ----------------------------------------------------------------------------------------------------


def test_teachers_of_other_views_do_not_go_together(world: World, tmp_path: Path) -> None:
    first = world.teacher("tuned", tmp_path / "t", views=VIEWS)
    check_compatible([first, world.teacher("heads", tmp_path / "u", input="last", views=2)])
    with pytest.raises(TrainingError) as told:
        check_compatible([first, world.teacher("tuned", tmp_path / "v", views={**VIEWS, "seed": 4})])
    assert f"{tmp_path / 'v'}: expected a teacher that goes together with {tmp_path / 't'}, got another." in str(
        told.value
    )
    assert "- views.seed: expected 0, got 4" in str(told.value)


def test_classes_are_matched_by_name() -> None:
    assert match_classes(["b", "c", "a"], ["a", "b", "c"], where="t").tolist() == [2, 0, 1]
    with pytest.raises(TrainingError) as told:
        match_classes(["a", "b", "dog"], ["a", "b", "cat", "cow"], where="teachers/t")
    assert str(told.value) == (
        "teachers/t: expected a teacher of the 4 classes of the task, got one of 3: the teacher alone has dog; the "
        "task alone has cat, cow. Classes are matched by name: rename them, or take another teacher."
    )
    with pytest.raises(TrainingError, match=r"got one of 3: some of them twice\."):
        match_classes(["a", "b", "b"], ["a", "b"], where="t")


SCORES = arrays(np.float32, (2, 3, 4), elements=st.floats(-30, 30, width=32))


@given(SCORES)
@settings(deadline=None, max_examples=30)
def test_an_average_has_the_mean_of_the_probabilities(tables: np.ndarray) -> None:
    wide = torch.from_numpy(tables.astype(np.float64))
    mean = wide.softmax(dim=2).mean(dim=0)
    found = torch.from_numpy(average_logits([*tables], "classification").astype(np.float64))
    torch.testing.assert_close(found.softmax(dim=1), mean, rtol=1e-4, atol=1e-7)
    mean = wide.sigmoid().mean(dim=0)
    found = torch.from_numpy(average_logits([*tables], "multilabel").astype(np.float64))
    torch.testing.assert_close(found.sigmoid(), mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(average_logits([tables[0]], "classification"), tables[0])


# The largest logits --------------------------------------------------------------------------------------------------

ROWS = arrays(np.float32, (5, 12), elements=st.floats(-20, 20, width=32))


def rest_mass(logits: np.ndarray, packed: np.ndarray, temperature: float) -> np.ndarray:
    """The mass of each row's softmax that is not in the kept classes."""
    exponents = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    kept = np.take_along_axis(exponents, top_k.columns(packed), axis=1).sum(axis=1)
    mass: np.ndarray = 1 - kept / exponents.sum(axis=1)
    return mass


@given(ROWS, st.integers(1, 14), st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([1.0, 4.0]))
@settings(deadline=None)
def test_packed_rows_are_off_by_the_mass_of_the_rest_at_most(
    logits: np.ndarray, k: int, temperature: float, exact: float
) -> None:
    packed = TopK(k, exact).pack(logits)
    assert packed.shape == (5, TopK(min(k, 12)).width)
    off = top_k.total_variation(logits, packed, temperature)
    own = rest_mass(logits, packed, temperature)
    filled = rest_mass(top_k.unpack(packed, 12), packed, temperature)
    assert (off <= np.maximum(own, filled) + 1e-6).all()
    if temperature == exact:
        np.testing.assert_allclose(own, filled, atol=1e-5)
        assert (off <= own + 1e-6).all()
    if k >= 12:
        np.testing.assert_array_equal(top_k.unpack(packed, 12), logits)
        assert off.max() == 0


def test_packing_by_hand() -> None:
    logits = np.log([[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]).astype(np.float32)
    packed = TopK(2).pack(logits)
    np.testing.assert_allclose(packed[0], [np.log(0.5), np.log(0.3), 0, 2, np.log(0.1)], rtol=1e-6)
    np.testing.assert_allclose(packed[1, 2:], [0, 1, np.log(0.25)], rtol=1e-6)
    np.testing.assert_allclose(top_k.unpack(packed, 4), logits, rtol=1e-6)  # the rest is uniform in both
    uneven = np.log([[0.5, 0.15, 0.3, 0.05]]).astype(np.float32)
    packed = TopK(2).pack(uneven)
    np.testing.assert_allclose(np.exp(top_k.unpack(packed, 4)), [[0.5, 0.1, 0.3, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(top_k.total_variation(uneven, packed, 1.0), [0.05], rtol=1e-5)
    with pytest.raises(
        DataError, match=r"top_k: expected at most 16,777,216 classes, got 16,777,217\. Leave `top_k` out"
    ):
        TopK(2).pack(np.empty((0, 2**24 + 1), np.float32))


@pytest.mark.parametrize(("run", "asked"), [("tuned", {}), ("heads", {"input": "last"})])
def test_a_teacher_keeps_the_largest_logits_and_says_what_that_costs(
    world: World, tmp_path: Path, run: str, asked: dict[str, Any]
) -> None:
    own = copied(world, tmp_path / "world")
    full = own.teacher(run, tmp_path / "full", **asked).logits(own.keys)
    done = own.taught(run, tmp_path / "t", top_k=1, **asked)
    found = Teacher.open(tmp_path / "t")
    assert found.scores[0].shape == (3,)
    assert found.top_k == TopK(1)
    np.testing.assert_allclose(found.logits(own.keys), top_k.unpack(TopK(1).pack(full), 3), rtol=1e-4, atol=1e-4)
    told = read_json(tmp_path / "t" / "teacher.json")["top_k"]
    assert told == done.deviation
    for one in told["total_variation"]:
        off = top_k.total_variation(full, TopK(1).pack(full), one["temperature"])
        np.testing.assert_allclose([one["mean"], one["max"]], [off.mean(), off.max()], rtol=1e-3, atol=1e-6)
    assert "; total variation to all logits: " in str(done)
    exact = own.teacher(run, tmp_path / "exact", top_k=3, **asked)
    assert exact.top_k is None
    np.testing.assert_array_equal(exact.logits(own.keys), full)


def test_full_logits_that_were_packed_are_not_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.teach import top_k_extract as packed

    own = copied(world, tmp_path / "world")
    shutil.rmtree(own.root / "cache")
    old = own.root / "cache" / "teach" / "old"
    (old / "v2").mkdir(parents=True)
    for path in (old / "v2", old):
        os.utime(path, (0, 0))
    monkeypatch.setattr(packed, "DENSE_BYTES", 4 * 3 * 3 * 10)  # ten samples and their two views at a time
    done = own.taught("tuned", tmp_path / "t", top_k=2, views=VIEWS, hints=["block2"])
    assert done.computed == 36 * 3 * 2
    assert [*(own.root / "cache" / "teach").iterdir()] == []
    identities = [column.identity for column in cache.columns(own.root / "cache")]
    found = sorted((one["node"], str(one.get("top_k"))) for one in identities)
    assert found == [("block2", "None")] * 3 + [("logits", "{'k': 2, 'temperature': 1.0}")] * 3
    assert len(Teacher.open(tmp_path / "t").scores[2].index.shards) == 4
    assert Teacher.open(tmp_path / "t").logits(own.keys, 1).shape == (36, 3)


def test_a_run_that_was_ended_goes_on_and_leaves_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.teach import top_k_extract as packed

    monkeypatch.setattr(packed, "DENSE_BYTES", 4 * 3 * 10)  # ten samples at a time
    settings = config("tuned", top_k=2)
    own = copied(world, tmp_path / "world")
    paths = own.paths("tuned", tmp_path / "t")
    shutil.rmtree(own.root / "cache")
    whole = teach(settings, paths)
    before = files(tmp_path / "t")
    shutil.rmtree(own.root / "cache")
    shutil.rmtree(tmp_path / "t")

    def end(done: int, _: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(settings, paths, reporter=Reporter(progress=end))
    assert not (tmp_path / "t" / "teacher.json").exists()
    rest = teach(settings, paths)
    assert (whole.computed, rest.computed) == (36, 16)
    assert files(tmp_path / "t") == before


# Computed again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "asked", "most"),
    [
        ("tuned", {"views": VIEWS, "hints": ["block2"], "hints_dtype": "float32"}, 1e-5),
        ("tuned", {"hints": ["block2"]}, 1e-3),
        ("tuned", {"top_k": 1, "top_k_temperature": 4.0}, 1e-5),
        ("tuned", {"precision": "bfloat16"}, 0.05),
        ("backbone", {}, 1e-5),
        ("heads", {"input": "late+last", "views": 2}, 1e-3),
        ("heads", {"input": "last", "top_k": 2}, 1e-3),
    ],
)
def test_what_is_stored_is_what_is_computed_now(
    world: World, pixels: Pixels, tmp_path: Path, run: str, asked: dict[str, Any], most: float
) -> None:
    found = recompute(world.teacher(run, tmp_path / "t", **asked), world.sources(run), pixels, count=8, seed=1)
    assert (found.rows, found.views) == (8, 2 if "views" in asked else 0)
    assert found.error < most


def test_no_samples_are_no_problem(world: World, tmp_path: Path, pixels: Pixels) -> None:
    none = Pixels(pixels.keys[:0], pixels.array[:0])
    assert recompute(world.teacher("tuned", tmp_path / "t"), world.sources("tuned"), none).rows == 0


@pytest.mark.parametrize(("run", "asked"), [("tuned", {}), ("tuned", {"top_k": 2}), ("heads", {"input": "last"})])
def test_rows_that_were_written_for_other_samples_are_found(
    world: World, pixels: Pixels, tmp_path: Path, run: str, asked: dict[str, Any]
) -> None:
    found = world.teacher(run, tmp_path / "t", **asked)
    rows = found.scores[0].load()
    first, second = 3, int(np.abs(rows - rows[3]).max(axis=1).argmax())
    rows[[first, second]] = rows[[second, first]]
    column = cache.column(tmp_path / "cache", found.scores[0].identity)
    shards.add(column, found.keys, rows, provenance={})
    shutil.rmtree(tmp_path / "t" / "logits")
    commit(tmp_path / "t" / "logits", column, found.keys, found.scores[0].shape, {})
    again = Teacher.open(tmp_path / "t")  # by address and digest nothing is wrong
    with pytest.raises(TrainingError) as told:
        recompute(again, world.sources(run), pixels, count=36)
    key = world.keys[min(first, second)]
    assert f"{tmp_path / 't' / 'logits'}: expected stored rows to be what is computed now, within" in str(told.value)
    assert f"and 2 of 36 rows off, the first of key {key}. These are the rows of other samples" in str(told.value)


def test_pixels_of_other_samples_are_found(world: World, pixels: Pixels, tmp_path: Path) -> None:
    shifted = Pixels(pixels.keys, np.roll(pixels.array, 1, axis=0))
    for run, asked in (("tuned", {}), ("heads", {"input": "last"})):
        with pytest.raises(TrainingError, match="expected stored rows to be what is computed now"):
            recompute(world.teacher(run, tmp_path / run, **asked), world.sources(run), shifted, count=36)


def made_by(world: World, pixels: Pixels, teacher: Teacher, run: str, **changed: Any) -> str:
    with pytest.raises(TrainingError) as told:
        recompute(teacher, dataclasses.replace(world.sources(run), **changed), pixels)
    assert "expected scores of the teacher as it is now, got those of another. Run `icecore repro teach@t`" in str(
        told.value
    )
    return str(told.value)


def test_a_network_in_the_teachers_place_is_refused_with_the_field(
    world: World, pixels: Pixels, tmp_path: Path
) -> None:
    found = world.teacher("tuned", tmp_path / "t")
    message = made_by(world, pixels, found, "tuned", network=world.root / "net")
    assert [line.split(":")[0] for line in message.split("\n")[1:]] == ["  - weights"]
    shutil.copytree(world.root / "models" / "tuned" / "backbone", tmp_path / "net")

    def other(found: dict[str, Any]) -> None:
        found["input"]["image"]["resize"] = [36, 36]
        found["input"]["mean"] = [0.9]
        found["probe"] = None  # it was taken of an image of the size before

    edit(tmp_path / "net" / "backbone.json", other)
    message = made_by(world, pixels, found, "tuned", network=tmp_path / "net")
    assert "  - resize: expected [32, 32], got [36, 36]" in message
    assert "  - normalise.mean: expected " in message


def test_another_head_in_the_teachers_place_is_refused_with_the_field(
    world: World, pixels: Pixels, tmp_path: Path
) -> None:
    own = copied(world, tmp_path / "world")
    found = own.teacher("heads", tmp_path / "t", input="last")
    own.fit("heads", inputs=["last", ["late", "last"]], params={"C": 0.01})
    message = made_by(own, pixels, found, "heads")
    assert [line.split(":")[0] for line in message.split("\n")[1:]] == ["  - head"]
    own.extract(("photos",), taps={**TAPS, "last": {"node": "penultimate", "dtype": "float16"}})
    assert "  - features.last: expected " in made_by(own, pixels, found, "heads")


# A real network -----------------------------------------------------------------------------------------------------


def test_a_real_network_of_a_thousand_classes_teaches_by_its_largest_logits(assets: Path, tmp_path: Path) -> None:
    with tarfile.open(assets / "images" / "imagenet-sample-100.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    manifests = tmp_path / "manifests"
    prepare(PrepareConfig(root=tmp_path / "imagenet-sample-100"), ManifestPaths(manifests, "photos"))
    file = next((assets / "weights").glob("squeezenet1_1-*.pth"))
    weights = {"source": "torchvision", "model": "squeezenet1_1", "file": file, "sha256": "7cfd977a5ad2c2c1"}
    freeze(Torchvision.model_validate(weights), tmp_path / "net", pretrained=tmp_path)
    asked = {"backbone": "net", "engine": "torch", "top_k": 64, "top_k_temperature": 4.0}
    paths = Paths(None, tmp_path / "net", tmp_path / "features", manifests, tmp_path / "t", tmp_path / "cache")
    done = teach(config("backbone", **asked), paths)
    assert (done.rows, done.classes, done.computed) == (100, 1000, 100)
    samples = read_samples(manifests, ("photos",))
    pixels = load_pixels(read_spec(tmp_path / "net").input, samples, folder=tmp_path)
    full = np.concatenate([live(tmp_path / "net", pixels.array[part]) for part in np.array_split(np.arange(100), 5)])
    numbers = np.array([int(Path(place.path).name[:3]) for place in samples.places()])
    found = Teacher.open(tmp_path / "t").logits(samples.keys)
    for logits in (full, found):
        assert (logits.argmax(axis=1) == numbers).mean() == pytest.approx(0.65)
    assert done.deviation is not None
    off = {one["temperature"]: one for one in done.deviation["total_variation"]}
    assert off[1.0]["mean"] < 0.02  # the 64 kept of 1,000 are nearly all there is
    direct = [top_k.total_variation(full, TopK(64, at).pack(full), 4.0).mean() for at in (1.0, 4.0)]
    assert off[4.0]["mean"] == pytest.approx(direct[1], rel=1e-3)
    assert direct[1] < 0.7 * direct[0]
    assert recompute(Teacher.open(tmp_path / "t"), Sources(tmp_path / "net"), pixels, count=4).error < 1e-4


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"run": "digits_tune"}, "teach.t.run: unknown run 'digits_tune'. Did you mean 'digits_tuned'"),
        ({"datasets": ["digit"]}, "teach.t.datasets: unknown data set 'digit'. Did you mean 'digits'"),
        ({"backbone": "glyph"}, "teach.t.backbone: unknown backbone 'glyph'. Did you mean 'glyphs'"),
        (
            {"run": "student"},
            "teach.t.run: expected a run of fit or finetune, got 'student' of distill, which needs tea",
        ),
        (
            {"input": "block3"},
            "teach.t.input: expected it with a run of fit, whose heads it tells apart, got a network.",
        ),
        ({"views": 3}, "teach.t.views: expected `count` and `augment`, since a network scores them itself, got 3."),
        (
            {"run": "digits_full", "views": 3},
            "teach.t.views: expected at most the 0 of the extraction of glyphs, got 3.",
        ),
        (
            {"run": "digits_full", "views": VIEWS},
            "teach.t.views: expected a number of stored views, got se",
        ),
        (
            {"run": "digits_full", "hints": ["block2"]},
            "teach.t.hints: expected a network, which has nodes, got a run of",
        ),
        ({"run": "digits_full", "input": "block9"}, "teach.t.input: unknown input 'block9'. Did you mean 'block"),
        ({"run": "digits_full", "head": "logstic"}, "teach.t.head: unknown head 'logstic'. Did you mean 'logistic'"),
        ({"run": "digits_full", "datasets": ["glyphs"]}, "teach.t.datasets: glyphs was not extracted for glyphs."),
        ({"backbone": "other"}, "teach.t.backbone: expected 'glyphs', that of digits_tuned, got 'other'."),
        ({"views": {"count": 2}}, "teach.t.views.augment: this key is missing."),
        ({"views": 0}, "teach.t.views: expected greater than or equal to 1, got 0."),
        ({"top_k": 0}, "teach.t.top_k: expected greater than or equal to 1, got 0."),
        ({"top_k_temperature": 4.0}, "teach.t: `top_k_temperature`: expected it with `top_k`, got none."),
        ({"hints": ["logits"]}, "teach.t: `hints`: expected different nodes, and not the logits, got logits."),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    from stages import project

    params = yaml.safe_load(SHIPPED.read_text())
    params["extract"]["other"] = params["extract"]["glyphs"]
    params["freeze"]["other"] = params["freeze"]["glyphs"]
    params["distill"] = {"student": {}}
    params["teach"] = {"t": {"run": "digits_tuned", "backbone": "glyphs", "datasets": ["digits"], **entry}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ConfigError) as told:
        project.settings(tmp_path / "params.yaml")
    assert message in str(told.value)


def test_the_default_teachers_are_right() -> None:
    from stages import project

    assert {"tuned", "head"} <= set(project.settings(SHIPPED)["teach"])
