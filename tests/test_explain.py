"""`icecore explain`: where the evidence for a prediction lies, and the page that shows it."""

import base64
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from support.model_records import head_fit
from support.networks import backbone as small_backbone
from support.teachers import CLASSES, write_photos
from support.trained_models import Models
from test_report import Page

from pipeline.backbones import serialization
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import InputSpec, TapSpec
from pipeline.cli import main
from pipeline.errors import ConfigError, DataError, MissingExtraError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.explain import errors
from pipeline.explain.activation_map import activation_map
from pipeline.explain.evidence import find_evidence
from pipeline.explain.gradients import gradient_maps
from pipeline.explain.linear_head import fold_linear_head
from pipeline.explain.near_samples import thumbnails
from pipeline.explain.occlusion import occlusion_maps
from pipeline.explain.run import explain
from pipeline.explain.tap_maps import patch_grid, read_tap_maps
from pipeline.heads import create
from pipeline.heads.preprocessing import Pca
from pipeline.inference.answers import TaskOutput
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel, load
from pipeline.manifest import ManifestPaths
from pipeline.manifest import read as read_manifest
from pipeline.model_record import HeadFit
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.image import ImageSpec
from pipeline.readers.sample_key import content_key
from pipeline.report import leaderboard
from pipeline.report.config import ReportConfig
from pipeline.report.leaderboard import Run
from pipeline.report.run import report

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("project") / "data")


def photos(models: Models, count: int = 2) -> list[str]:
    return [str(models.files[key]) for key in models.keys[:count]]


def model_of(network: Backbone, taps: dict[str, TapSpec], head: Any, classes: tuple[str, ...]) -> TrainedModel:
    """A head on a backbone, without a run's folder."""
    task = TaskOutput("photos", "classification", classes, slice(0, len(classes)))
    record = HeadFit.model_validate(head_fit("logistic", "+".join(taps)))
    return TrainedModel(
        folder=Path("models/photos"),
        kind="classification",
        classes=classes,
        backbone=network,
        taps=taps,
        head=head,
        scores="probability",
        record=record,
        tasks=(task,),
        **({"backbone_folder": Path("net")} if "backbone_folder" in TrainedModel.__dataclass_fields__ else {}),
    )


# Linear heads --------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(3, 2, (60, 8)), np.array(["ant", "bee", "cat"])[np.arange(60) % 3]
HEADS: dict[str, Callable[[], Any]] = {
    "scaled": lambda: create("logistic", {}, scale="standard", widths=(8,)).fit(X, Y),
    "whitened": lambda: create("ridge", {}, scale="standard", widths=(8,), pca=Pca(components=3, whiten=True)).fit(
        X, Y
    ),
    "lengths": lambda: create("svm", {}, scale="l2", widths=(8,)).fit(X, Y),
    "lengths of taps": lambda: create("logistic", {}, scale="l2", widths=(3, 5)).fit(X, Y),
    "streaming": lambda: create("streaming_logistic", {}, scale="l2", widths=(8,)).fit(X, Y),
    "standardised": lambda: create("streaming_lda", {}, scale="standard", widths=(8,)).fit(X, Y),
    "two": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(X[Y != "cat"], Y[Y != "cat"]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_linear_head_is_one_matrix(name: str) -> None:
    head = HEADS[name]()
    classes = [str(one) for one in head.classes_][::-1]
    found = fold_linear_head(head, X[0], kind="classification", classes=classes)
    assert found is not None
    expected = head.decision_function(X[:1])[0]
    expected = [-expected, expected] if np.ndim(expected) == 0 else expected
    assert found.weights @ X[0] + found.intercept == pytest.approx(np.array(expected)[::-1], abs=1e-5)


def test_heads_of_labels_and_numbers_are_one_matrix_and_others_are_none() -> None:
    marks = np.stack([Y == "ant", X[:, 0] > 3, np.ones(60, bool)], axis=1)
    with pytest.warns(UserWarning, match="Label 2 is present in all training examples"):
        several = create("logistic", {}, scale="standard", kind="multilabel", widths=(8,)).fit(X, marks)
    found = fold_linear_head(several, X[1], kind="multilabel", classes=["a", "b", "c"])
    assert found is not None
    assert found.weights @ X[1] + found.intercept == pytest.approx(several.decision_function(X[1:2])[0], abs=1e-6)
    number = create("ridge", {}, scale="standard", kind="regression", widths=(8,)).fit(X, X[:, 0] * 2)
    found = fold_linear_head(number, X[1], kind="regression", classes=[])
    assert found is not None
    assert found.weights @ X[1] + found.intercept == pytest.approx(number.predict(X[1:2]), abs=1e-6)
    calibrated = CalibratedClassifierCV(FrozenEstimator(HEADS["scaled"]()), method="temperature").fit(X, Y)
    assert fold_linear_head(calibrated, X[0], kind="classification", classes=["ant", "bee", "cat"]) is not None
    mlp = MLPClassifier(4, max_iter=2000, random_state=0, tol=1e-2).fit(X, Y)
    # Its weights are of pairs of classes, as many as there are classes.
    pairs = SVC(kernel="linear").fit(X, Y)
    for other in (mlp, pairs):
        assert fold_linear_head(other, X[0], kind="classification", classes=["ant", "bee", "cat"]) is None


# Maps ----------------------------------------------------------------------------------------------------------------

TAPS = [
    ("mobilenet", "features.3", "mean", None),
    ("mobilenet", "features.3", "max", None),
    ("mobilenet", "features.2", "mean+std", None),
    ("mobilenet", "features.2", "avg2x2", 6),
    ("mobilenet", "features.3", "flatten", None),
    ("mobilenet", "penultimate", "none", None),
    ("resnet", "penultimate", "none", None),
    ("resnet", "layer4", "gem", None),
    ("vit", "encoder.layers.encoder_layer_1", "mean_tokens", None),
    ("vit", "encoder.layers.encoder_layer_1", "none", None),
]


@pytest.mark.parametrize(("name", "node", "pooling", "project"), TAPS)
def test_the_mean_over_positions_and_the_rest_are_the_score(
    name: str, node: str, pooling: str, project: int | None
) -> None:
    network = small_backbone(name, side=64 if name != "vit" else 32)
    spec = TapSpec(node=network.spec.node(node), pool=pooling, dtype="float32", project=project)
    side = network.spec.input.size[0]
    pixels = RANDOM.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    row = InMemoryExtractor(network, {"tap": spec}, batch_size=1).run(pixels)["tap"].ravel()
    mean, std = (
        np.array(one, np.float32).reshape(1, -1, 1, 1) for one in (network.spec.input.mean, network.spec.input.std)
    )
    images = torch.from_numpy((pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std)
    found = read_tap_maps(network, {"tap": spec}, images)["tap"]
    assert found is not None
    weights = np.random.default_rng(1).normal(size=len(row))
    evidence = activation_map(found, spec, weights, network.spec.input.size)
    assert evidence.map is not None
    assert evidence.map.size > 1
    assert evidence.map.mean() + evidence.rest == pytest.approx(weights @ row, abs=1e-4)
    if pooling in ("mean", "max", "avg2x2") or node == "penultimate":
        assert evidence.rest == pytest.approx(0, abs=1e-4)


def test_a_class_token_has_evidence_by_the_gradient_of_patches() -> None:
    network = small_backbone("vit")
    taps = {"logits": TapSpec(node="logits", dtype="float32")}
    found = gradient_maps(network, taps, torch.randn(1, 3, 32, 32), np.eye(5)[:2])
    assert found is not None
    assert found.tokens
    assert [one.shape for one in found.maps] == [(4, 4)] * 2
    assert not np.allclose(found.maps[0], found.maps[1])
    assert read_tap_maps(network, {"cls": TapSpec(node="encoder", pool="cls")}, torch.randn(1, 3, 32, 32)) == {
        "cls": None
    }


def test_patches_have_the_shape_of_the_image() -> None:
    assert patch_grid(196, (224, 224)) == (14, 14)
    assert patch_grid(8, (32, 64)) == (2, 4)
    assert patch_grid(7, (32, 32)) is None


def test_covered_parts_show_where_a_score_comes_from() -> None:
    pixels = np.zeros((21, 14, 1), np.uint8)
    pixels[0:3, 12:14] = 90
    [found] = occlusion_maps(pixels, lambda batch: batch.sum((1, 2, 3))[:, None], outputs=[0], fill=[0.0])
    expected = np.zeros((7, 7))
    expected[0, 6] = 540
    assert np.array_equal(found, expected)
    tiny = occlusion_maps(pixels[:2, :3], lambda batch: batch.sum((1, 2, 3))[:, None], outputs=[0], fill=[0.0])
    assert tiny[0].shape == (2, 3)


# Real photos ---------------------------------------------------------------------------------------------------------

ASSETS = Path(os.environ.get("ICECORE_ASSETS", "/nonexistent"))
REAL = ("bike", "keyboard", "mug", "headphones")


def photos_of(classes: tuple[str, ...], count: int) -> dict[str, list[np.ndarray]]:
    """Photos of some classes, 224×224."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    with tarfile.open(ASSETS / "images" / "office_caltech10.tar") as archive:
        for member in archive:
            domain, name = [*member.name.split("/"), "", ""][1:3]
            if domain == "caltech" and name in found and len(found[name]) < count and member.isfile():
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]
                found[name].append(np.array(image.resize((224, 224), Image.Resampling.BILINEAR)))
            if all(len(one) == count for one in found.values()):
                break
    return found


def squeezenet(folder: Path, *, weights: bool) -> Backbone:
    from torchvision import models as library

    torch.manual_seed(0)
    module = library.squeezenet1_1()
    if weights:
        state = torch.load(ASSETS / "weights" / "squeezenet1_1-deepscale_v1.1_fp16.pth", weights_only=True)
        module.load_state_dict({name: value.float() for name, value in state.items()})
    image = ImageSpec(resize=(224, 224))
    inputs = InputSpec(image=image, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    architecture = {"family": "torchvision", "name": "squeezenet1_1", "num_classes": 1000}
    serialization.write(folder, module, architecture=architecture, origin={}, inputs=inputs)
    return serialization.read(folder)


def fit_on(network: Backbone, images: dict[str, list[np.ndarray]]) -> TrainedModel:
    taps = {"maps": TapSpec(node=network.spec.node("features"), pool="mean", dtype="float32")}
    extractor = InMemoryExtractor(network, taps, batch_size=8)
    rows = extractor([one for each in images.values() for one in each])["maps"]
    labels = [name for name, each in images.items() for _ in each]
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows, labels)
    return model_of(network, taps, head, tuple(str(one) for one in head.classes_))


def maps_of(model: TrainedModel, pixels: np.ndarray, classes: list[str]) -> list[np.ndarray]:
    rows = InMemoryExtractor(model.backbone, model.taps, batch_size=1).run(pixels[None])
    found = find_evidence(model, pixels, rows, [model.classes.index(one) for one in classes])
    assert found.method.startswith("Exact")
    expected = model.head.decision_function(rows["maps"])[0]  # type: ignore[union-attr]
    for one in found.evidence:
        assert one.map is not None
        assert one.map.mean() == pytest.approx(expected[model.classes.index(one.name)], abs=1e-4)
    return [one.map for one in found.evidence if one.map is not None]


@pytest.mark.skipif(not ASSETS.is_dir(), reason="set ICECORE_ASSETS to a folder with photos and weights")
def test_maps_of_real_photos_show_the_half_of_each_class_and_need_real_weights(tmp_path: Path) -> None:
    """Adebayo et al. 2018, Sanity Checks for Saliency Maps: maps follow the weights, not the edges of the image."""
    images = photos_of(REAL, 18)
    training = {name: each[:14] for name, each in images.items()}
    model = fit_on(squeezenet(tmp_path / "real", weights=True), training)
    held = {name: each[14:] for name, each in images.items()}
    right, pairs = 0, 0
    for number, left in enumerate(REAL):
        for other in REAL[number + 1 :]:
            # Of 24 such pictures all 24 were right, with SqueezeNet and with MobileNetV2.
            for one, two in zip(held[left][:2], held[other][:2], strict=True):
                halves = [np.asarray(Image.fromarray(each).resize((112, 224))) for each in (one, two)]
                first, second = maps_of(model, np.concatenate(halves, axis=1), [left, other])
                middle = first.shape[1] // 2
                difference = first - second  # of a softmax only differences between classes count
                right += int(difference[:, :middle].mean() > difference[:, -middle:].mean())
                pairs += 1
    assert pairs == 12
    assert right >= 11

    # Over 16 photos the rank correlation was 0.06 in the mean, at most 0.37 with random weights. With the same weights
    # and a head on half of the photos it was 0.92, and at least 0.76.
    fewer = {name: each[:7] for name, each in training.items()}
    chance, again = fit_on(squeezenet(tmp_path / "random", weights=False), fewer), fit_on(model.backbone, fewer)
    alike = {
        weights: [_rank_correlation(model, other, held[name][2], name) for name in REAL]
        for weights, other in (("random", chance), ("same", again))
    }
    assert abs(np.mean(alike["random"])) < 0.4
    assert np.mean(alike["same"]) > 0.7


def _rank_correlation(one: TrainedModel, other: TrainedModel, pixels: np.ndarray, name: str) -> float:
    first, second = (maps_of(model, pixels, [name])[0].ravel() for model in (one, other))
    return float(spearmanr(first, second).statistic)


# The command ---------------------------------------------------------------------------------------------------------

Command = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def command(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    (tmp_path / "data").symlink_to(models.root)
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["icecore", "explain", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_page_has_all_pictures_inside_and_every_text_escaped(
    models: Models, command: Command, tmp_path: Path
) -> None:
    models.run("heads")
    models.task()
    odd = tmp_path / os.fsdecode(b"a<b>&\xff.png")
    odd.write_bytes(Path(photos(models)[0]).read_bytes())
    code, out, err = command(
        "heads", odd, photos(models)[1], "--head", "logistic.late+last.all.skops", "--near", 3, "--out", "page.html"
    )
    assert (code, err) == (0, "")
    assert out.endswith("page: page.html\n")
    page = Path("page.html").read_text()
    assert "a&lt;b&gt;&amp;?.png" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall(r"base64,([^\"]+)", page)]
    assert [min(one.size) for one in pictures] == [224] * 3 + [32] * 3 + [224] * 3 + [32] * 3
    assert page.count("Exact: the head is linear") == 2
    assert page.count("<h3>Parts of the taps") == 2
    assert page.count("Nearest training samples, by") == 2


@pytest.mark.parametrize(
    ("run", "method", "overlays"),
    [
        ("marks", "Exact", 2),
        ("numbers", "Exact", 1),
        ("wide", "Exact", 2),
        ("tuned", "Grad-CAM at the node block3", 2),
        ("tuned_numbers", "Grad-CAM at the node block3", 1),
    ],
)
def test_every_kind_of_model_is_explained(models: Models, tmp_path: Path, run: str, method: str, overlays: int) -> None:
    [found] = explain(load(models.run(run)), photos(models, 1), tmp_path / "page.html", near=0)
    assert found.explained.method.startswith(method)
    maps = [one.map for one in found.explained.evidence if one.map is not None]
    assert len(maps) == overlays
    assert all(np.isfinite(one).all() and one.size > 1 for one in maps)
    assert (tmp_path / "page.html").read_text().count('alt="evidence for') == overlays


def test_neighbours_are_explained_by_covering_and_the_nearest_of_a_training_photo_is_itself(
    models: Models, tmp_path: Path
) -> None:
    models.run("heads")
    models.task()
    model = load(models.run("heads"), file="streaming_knn.last.all.skops")
    [found] = explain(model, photos(models, 1), tmp_path / "page.html", near=2, classes=["white"])
    assert found.explained.method.startswith("Occlusion")
    [evidence] = found.explained.evidence
    assert evidence.name == "white"
    assert evidence.map is not None
    assert evidence.map.shape == (7, 7)
    assert found.near[0].path == photos(models, 1)[0]
    assert found.near[0].cosine == pytest.approx(1, abs=1e-5)
    assert all(one.picture for one in found.near)


def test_a_head_without_scores_has_the_evidence_of_its_prediction(models: Models, tmp_path: Path) -> None:
    folder = models.fit("means", head="centroid", search="none")
    [found] = explain(load(folder), photos(models, 1), tmp_path / "new" / "page.html", near=0)
    assert found.top == []
    [evidence] = found.explained.evidence
    assert evidence.name == found.prediction
    assert evidence.map is not None
    assert found.explained.method.endswith("No covered cell changed the score.") == (not evidence.map.any())
    assert set(np.unique(evidence.map)) <= {0.0, 1.0}


def test_what_is_missing_is_named(models: Models, command: Command, tmp_path: Path) -> None:
    models.run("heads")
    models.run("numbers")
    photo, notes = photos(models, 1)[0], tmp_path / "notes.jpg"
    notes.write_text("no image")
    for words, message in [
        (("nowhere", photo, "--out", "p.html"), "unknown run 'nowhere'"),
        (("heads", notes, "--out", "p.html"), "notes.jpg: not an image that Pillow can read"),
        (("heads", tmp_path, "--out", "p.html"), f"{tmp_path}: cannot be read: not a regular file. Expected an image"),
        (("heads", "gone.png", "--out", "p.html"), "gone.png: cannot be read: No such file or directory"),
        (("heads", photo, "--out", tmp_path), "expected a file such as"),
        (("heads", photo, "--out", photo), "expected a file that ends in .html, got '.png'"),
        (("heads", photo, "--class", "drak", "--out", "p.html"), "unknown class 'drak'. Did you mean 'dark'?"),
        (("heads", photo, "--task", "other", "--out", "p.html"), "unknown task 'other'"),
        (("numbers", photo, "--class", "dark", "--out", "p.html"), "a regression has no classes, got --class dark"),
    ]:
        head = ("--head", "logistic.last.all.skops") if words[0] == "heads" else ()
        code, _, _ = command(*words, *head, "--near", 0)
        assert message in str(code), words
    assert not Path("p.html").exists()


def test_a_page_without_stored_features_says_so_and_shows_the_rest(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(models.run("heads"), file="logistic.last.all.skops")
    monkeypatch.setattr("pipeline.explain.near_samples.open_training_rows", _no_features)
    lines: list[str] = []
    explain(model, photos(models, 1), tmp_path / "page.html", log=lines.append)
    assert lines == ["no nearest training samples: expected features, got none."]
    page = (tmp_path / "page.html").read_text()
    assert "No nearest training samples: expected features, got none." in page
    assert 'alt="evidence for' in page


def _no_features(_model: TrainedModel) -> Any:
    raise DataError("expected features, got none.")


def test_vectors_without_a_map_say_so_and_show_the_scores(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    inputs = InputSpec(image=ImageSpec(resize=(8, 8)), mean=(0.5,) * 3, std=(0.5,) * 3)
    taps = serialization.survey_network(module, inputs, where="mlp")
    spec = small_backbone("mobilenet").spec.model_copy(update={"taps": taps, "input": inputs, "aliases": {}})
    network = Backbone(spec=spec, module=serialization.freeze(module))
    head = LogisticRegression().fit(X[:, :6], Y)
    model = model_of(
        network, {"penultimate": TapSpec(node="penultimate", dtype="float32")}, head, ("ant", "bee", "cat")
    )
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    [found] = explain(model, [str(tmp_path / "a.png")], tmp_path / "page.html", near=0)
    page = (tmp_path / "page.html").read_text()
    assert "there is no picture of the evidence" in page
    assert 'alt="evidence for' not in page
    assert len(found.top) == 3


def test_a_page_without_jinja2_names_the_extra(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'icecore-features\[report\]'"):
        explain(load(models.run("numbers")), photos(models, 1), tmp_path / "page.html")
    with pytest.raises(ConfigError, match="got a folder"):
        explain(load(models.run("numbers")), photos(models, 1), tmp_path)


# The errors of a run, in the report --------------------------------------------------------------------------------


def wrong(models: Models, run: str, **asked: Any) -> Run:
    """A run whose test samples have other targets than pictures like them, and which is evaluated."""
    targets = list(models.labels)
    for row, label in enumerate(models.labels):
        if models.labels[:row].count(label) >= 10:
            targets[row] = CLASSES[CLASSES.index(label) - 1]
    if asked.get("kind") == "regression":
        targets = [5.0 * CLASSES.index(label) for label in targets]
    if run.startswith("net"):
        models.finetune(run, targets=targets, epochs=2, learning_rate=0.01, **asked)
    else:
        models.fit(run, targets=targets, search="none", **asked)
    files = {name: models.root / "evaluated" / f"{run}-{name}" for name in ("numbers", "confusion", "curve")}
    evaluate(
        EvaluateConfig(resamples=100),
        predictions=models.root / f"{run}.parquet",
        task=models.root / "task.parquet",
        model=models.root / "models" / run,
        tables=models.root / "plots" / f"{run}.json",
        **files,
    )
    return leaderboard.read(models.root / "plots", [run])[0]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A project whose photos lie in an archive, under names that are markup."""

    class Packed(Models):
        def add(self, name: str, **more: Any) -> None:
            write_photos(self.root / "photos", **more)
            with tarfile.open(self.root / "photos.tar", "w") as archive:
                for path in sorted((self.root / "photos").rglob("*.png")):
                    archive.add(path, f"{path.parent.name}/<b>{path.name}")
            shutil.rmtree(self.root / "photos")
            prepare(PrepareConfig(root=self.root / "photos.tar"), ManifestPaths(self.root / "manifests", name))

    return Packed(tmp_path_factory.mktemp("packed") / "data")


def test_the_report_shows_the_evidence_for_its_errors(packed: Models, tmp_path: Path) -> None:
    runs = [wrong(packed, "linear", inputs=[["late", "last"]])]
    report(
        ReportConfig(),
        runs,
        tmp_path / "index.html",
        errors=errors.errors_of_best(runs, packed.root / "models"),
    )
    text, read = (tmp_path / "index.html").read_text(), Page(tmp_path / "index.html")
    assert "6 of 6 test samples are wrong." in " ".join("".join(read.text).split())
    sources = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert {source.partition(",")[0] for source in sources} == {"data:image/webp;base64"}
    sides = [min(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size) for one in sources]
    # Of each error the image and the evidence for two classes, and three training samples out of the archive.
    assert sides == ([224] * 3 + [32] * 3) * errors.MOST
    assert not {"script", "link", "b"} & {tag for tag, attributes in read.tags if not attributes}
    assert text.count("photos.tar/dark/&lt;b&gt;") >= 2
    titles = [title for title in read.texts_in("h4") if " in the place of " in title]
    assert {tuple(title.partition(",")[0].split(" in the place of ")) for title in titles} == {
        (name, CLASSES[number - 1]) for number, name in enumerate(CLASSES)
    }
    again = errors.errors_of(runs[0], packed.root / "models")
    assert again is not None
    assert all(one["picture"] in text for view in again["views"].values() for one in [view, *view["overlays"]])


@pytest.mark.parametrize(
    ("run", "asked", "method", "evidence"),
    [
        ("net", {}, "Grad-CAM", 2),
        ("numbers_wrong", {"kind": "regression", "head": "ridge"}, "Exact", 1),
        ("near_wrong", {"head": "streaming_knn"}, "The head is not linear", 0),
    ],
)
def test_every_kind_of_model_has_its_errors_explained(
    packed: Models, run: str, asked: dict[str, Any], method: str, evidence: int
) -> None:
    found = errors.errors_of(wrong(packed, run, **asked), packed.root / "models")
    assert found is not None
    assert (found["why_not"], found["no_near"], found["reasons"]) == ("", "", {})
    for mistake in found["mistakes"].listed:
        view = found["views"][mistake.key]
        assert view["method"].startswith(method)
        assert [one["name"] for one in view["overlays"]] == [*mistake.differs, "number"][:evidence]
        assert [bool(one.picture) for one in view["near"]] == [True] * errors.NEAR


def test_what_keeps_errors_from_being_explained_stands_in_the_report(packed: Models, tmp_path: Path) -> None:
    run = wrong(packed, "linear", inputs=["last"])
    (tmp_path / "data").mkdir()
    for path in packed.root.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    found = errors.errors_of(run, tmp_path / "data" / "models")
    assert found is not None
    listed = found["mistakes"].listed
    archive = (packed.root / "photos.tar").read_bytes()
    try:
        (packed.root / "photos.tar").write_bytes(archive.replace(b"IDAT", b"IDAX"))
        found = errors.errors_of(run, tmp_path / "data" / "models")
        assert found is not None
        changed = "changed since its data set was prepared; run prepare again"
        assert found["reasons"] == {mistake.key: changed for mistake in listed}
    finally:
        (packed.root / "photos.tar").write_bytes(archive)
    reasons = {
        "features": "no_near data/features/net: expected features of the training rows of",
        "backbones": "why_not data/backbones/net: expected the backbone 'net', whose features",
        "predictions": "why_not data/predictions/linear.parquet: no such predictions.",
    }
    for name, reason in reasons.items():
        (tmp_path / "data" / name).unlink()
        found = errors.errors_of(run, tmp_path / "data" / "models")
        assert found is not None
        where, _, text = reason.partition(" ")
        assert found[where].startswith(text)
    explained = errors.errors_of_best([run], tmp_path / "data" / "models")
    report(ReportConfig(), [run], tmp_path / "index.html", errors=explained)
    page = Page(tmp_path / "index.html")
    assert "The errors are not explained here: data/predictions/linear.parquet: no such" in "".join(page.text)
    assert "img" not in {tag for tag, _ in page.tags}


def test_training_samples_have_pictures_wherever_they_lie(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_photos(data / "raw", each=2)
    photos = sorted((data / "raw").rglob("*.png"))
    with tarfile.open(data / "a.tar", "w") as archive:
        archive.add(photos[0], "x.png")
        archive.add(photos[1], "y.png")
    pq.write_table(pa.table({"image": [photos[2].read_bytes()]}), data / "b.parquet")
    (data / "photos").mkdir()
    for photo in photos[3:5]:
        photo.rename(data / "photos" / photo.name)
    sets = {"archive": {"root": data / "a.tar"}, "rows": {"root": data / "b.parquet", "image": "image"}}
    for name, settings in {**sets, "photos": {"root": data / "photos"}}.items():
        prepare(PrepareConfig.model_validate(settings), ManifestPaths(data / "manifests", name))
    rows = [row for name in (*sets, "photos") for row in read_manifest(data / "manifests", name).to_pylist()]
    paths = {row["key"]: row["path"] for row in rows}
    last, gone = content_key(photos[5].read_bytes()), "ab" * 16
    paths |= {last: "data/raw/white/01.png", gone: "data/gone.png"}
    changed = next(key for key, path in paths.items() if path.endswith(f"photos/{photos[4].name}"))
    (data / "photos" / photos[4].name).write_bytes(photos[5].read_bytes())
    pictures = thumbnails(paths, data=data)
    assert pictures.keys() == paths.keys() - {gone, changed}
    assert all(one.startswith("data:image/webp;base64,") for one in pictures.values())
    assert len({*pictures.values()}) == 5
