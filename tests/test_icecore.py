"""`import icecore`: what is public, what an import does to a process, backbones, stored features, evaluation."""

import inspect
import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.odd_images import bomb
from torch import nn

import icecore
from pipeline.backbones import glyphs, serialization
from pipeline.errors import BackboneError, ConfigError, DataError, MissingExtraError, StoreError
from pipeline.loading.images import pixel_batches
from pipeline.report import leaderboard

Folder = Callable[..., Path]
ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small GlyphNet of random weights, as a run has it."""
    run = tmp_path_factory.mktemp("models") / "run"
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    settings = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    serialization.write(run / "backbone", network, architecture=settings, origin={}, inputs=glyphs.INPUT)
    return run


# The module ----------------------------------------------------------------------------------------------------------


PUBLIC = {
    "Backbone": ["check_unchanged", "classes", "embed", "extractor", "identity", "layers", "spec", "specs"],
    "Evaluation": ["interval", "metric", "table", "value"],
    "Features": [
        *(
            "at",
            "batches",
            "blocks",
            "column",
            "dtype",
            "find",
            "has",
            "identity",
            "key_array",
            "keys",
            "labels",
            "load",
        ),
        *("open", "paths", "shape", "subset", "to_arrow", "to_numpy", "to_pandas", "to_torch"),
    ],
    "FrozenFeatures": [
        *("fit", "fit_transform", "get_feature_names_out", "get_metadata_routing", "get_params", "set_output"),
        *("set_params", "transform"),
    ],
    "PipelineError": [],
    "TrainedModel": ["predict", "predict_proba", "predict_rows", "rows"],  # among others
    "__version__": [],
    "evaluate": [],
    "load": [],
}
"""All that a program may use, with the methods and properties of each class. What is added here is promised."""


def test_the_public_names_are_these_and_each_says_what_it_is() -> None:
    assert sorted(icecore.__all__) == sorted(PUBLIC)
    assert {*PUBLIC} <= {*dir(icecore)}
    for name, members in PUBLIC.items():
        found = getattr(icecore, name)
        if inspect.isclass(found) and not issubclass(found, Exception):
            own = [one for one in dir(found) if not one.startswith("_")]
            assert sorted({*own} & {*members} if name == "TrainedModel" else own) == sorted(members), name
            assert [one for one in members if not inspect.getdoc(getattr(found, one))] == []
        if name != "__version__":
            assert len(inspect.getdoc(found) or "") > 40, name
        if name in ("Backbone", "Features", "FrozenFeatures", "evaluate"):
            assert ">>> " in found.__doc__, name
    with pytest.raises(AttributeError, match=r"module 'icecore' has no attribute 'embed'. It has Backbone, "):
        icecore.embed  # noqa: B018


SCRIPT = """
import json, multiprocessing, os, sys, warnings
import pipeline

def state():
    return [list(map(str, warnings.filters)), dict(os.environ), multiprocessing.get_start_method(allow_none=True)]

before = state()
import icecore
heavy = {"numpy", "torch", "sklearn", "h5py", "PIL", "pyarrow", "pydantic"} & {*sys.modules}
same = [state() == before]
import numpy, torch, sklearn, PIL.Image, torchvision  # whose own imports change filters
before = state()
for name in icecore.__all__:
    getattr(icecore, name)
same.append(state() == before)
same.append(not torch.are_deterministic_algorithms_enabled() and PIL.Image.MAX_IMAGE_PIXELS == 89478485)
rows = icecore.Backbone(sys.argv[1]).embed(sys.argv[2], "block1", "mean")
labels = rows.labels.tolist()
found = icecore.evaluate(rows, head="centroid", test_size=0.5)
print(json.dumps([sorted(heavy), same, labels, len(found.test)]))
"""


def test_a_script_without_a_guard_works_and_an_import_changes_nothing(
    net: Path, image_folder: Folder, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), str(net), str(image_folder())]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment(tmp_path))
    heavy, same, labels, tested = json.loads(done.stdout)
    assert (heavy, same) == ([], [True, True, True])
    assert sorted(labels) == ["cat"] * 6 + ["dog"] * 6
    assert tested == 6
    assert done.stderr == ""


def environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "ICECORE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


# Backbones -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_folder_equal_those_of_its_images_in_memory(
    net: Path, image_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    photos = image_folder()
    (photos / "cat" / "copy.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    backbone = icecore.Backbone(net)
    with caplog.at_level(logging.WARNING, "icecore"):
        stored = backbone.embed(photos, engine="torch")
    assert [record.message.partition(": see")[0] for record in caplog.records] == [f"{photos}: 1 duplicate"]
    assert (len(stored), stored.shape) == (12, (4,))
    assert [Path(path).parent.name for path in stored.paths] == stored.labels.tolist()
    rows = backbone.embed(stored.paths.tolist())
    assert np.array_equal(rows, stored.to_numpy())
    taps = backbone.embed(stored.paths.tolist(), tap=["penultimate:none", "block1:max", "block1"], pool="avg2x2")
    assert {tap: found.shape for tap, found in taps.items()} == {
        **{"penultimate:none": (12, 4), "block1:max": (12, 8), "block1": (12, 32)}
    }
    every = sorted(photos.rglob("*.png"))
    assert np.array_equal(backbone.embed(photos, cache=False), backbone.embed(every))  # copies are rows there
    assert len(every) == 13
    again = backbone.embed(photos, tap=["penultimate", "block1:max"], engine="torch")
    assert np.array_equal(again["penultimate"], stored)
    assert np.array_equal(again["block1:max"].to_numpy(), taps["block1:max"])
    out = backbone.embed(photos, out=photos.parent / "features", engine="torch")
    assert out.folder == photos.parent / "features" / "penultimate"
    copy = pickled(backbone)
    assert copy._network is None
    assert np.array_equal(copy.embed(every[:2]), backbone.embed(every[:2]))


def test_layers_print_as_the_table_of_the_command(net: Path) -> None:
    nodes = icecore.Backbone(net / "backbone").layers()
    assert [node["node"] for node in nodes] == [
        "input", "block1", "block2", "penultimate", "logits"
    ] or {"block1", "penultimate", "logits"} <= {node["node"] for node in nodes}  # fmt: skip
    assert str(nodes).splitlines()[0].split()[:3] == ["node", "alias", "kind"]
    assert {node["kind"] for node in icecore.Backbone(net).layers("conv2d")} == {"Conv2d"}


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - what this test made


def photo(size: tuple[int, int] = (50, 37)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def transforms() -> dict[str, tuple[Any, bool]]:
    """Transforms, and whether settings of the reader say the same."""
    from timm.data import create_transform
    from torchvision.models import MobileNet_V2_Weights
    from torchvision.transforms import InterpolationMode as Mode
    from torchvision.transforms import transforms as v1
    from torchvision.transforms import v2

    norm = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    to_image = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return {
        "preset": (MobileNet_V2_Weights.IMAGENET1K_V2.transforms(), True),
        "timm": (create_transform((3, 32, 32), interpolation="bicubic", crop_pct=0.9), True),
        "timm squash": (create_transform((3, 32, 32), crop_mode="squash"), True),
        "v1": (v1.Compose([v1.Resize(20), v1.CenterCrop(16), v1.ToTensor(), v1.Normalize(*norm)]), True),
        "nested": (v1.Compose([v1.Compose([v1.Resize((20, 24))]), v1.ToTensor()]), True),
        "pil to tensor": (v1.Compose([v1.CenterCrop(60), v1.PILToTensor(), v1.ConvertImageDtype(torch.float32)]), True),
        "v2": (
            v2.Compose([v2.Resize(20, Mode.LANCZOS), v2.CenterCrop((16, 12)), *to_image, v2.Normalize(*norm)]),
            True,
        ),
        "one number": (v1.Compose([v1.Resize((16, 16)), v1.ToTensor(), v1.Normalize((0.5,), (0.5,))]), True),
        "tensors": (v2.Compose([v2.ToImage(), v2.Resize((16, 16)), v2.ToDtype(torch.float32, scale=True)]), False),
        "unscaled": (v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32)]), False),
        "other steps": (v1.Compose([v1.Resize((16, 16)), v1.Grayscale(3), v1.ToTensor()]), False),
        "a function": (lambda image: v1.ToTensor()(image.resize((16, 16))), False),
    }


class Mean(nn.Module):
    """The means of three channels, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.means, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.last(self.means(images).flatten(1))
        return first


@pytest.mark.parametrize("name", transforms())
def test_a_module_gets_the_pixels_that_its_transform_gives(name: str) -> None:
    transform, known = transforms()[name]
    network = Mean().train()
    backbone = icecore.Backbone(network, transform=transform)
    assert (backbone._reader is None) == known
    assert network.training  # a copy is frozen
    assert network.last.weight.requires_grad
    images = [photo(), photo((37, 50))]
    extractor = backbone.extractor(backbone.specs("means", None, "float32"))
    pixels = np.concatenate(list(pixel_batches(images, extractor.reader, batch_size=1)))
    expected = np.stack([transform(image).numpy() for image in images])
    if known:
        mean, std = (
            np.float32(values).reshape(-1, 1, 1) for values in (backbone.spec.input.mean, backbone.spec.input.std)
        )
        pixels = (pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    rows = backbone.embed(images, "means", dtype="float32")
    np.testing.assert_allclose(rows[:, :, 0, 0], expected.mean(axis=(2, 3)), atol=1e-5)


def test_a_module_in_memory_says_what_it_cannot_do(image_folder: Folder) -> None:
    transform = transforms()["v1"][0]
    backbone = icecore.Backbone(Mean(), transform=transform)
    with pytest.raises(ConfigError, match=r"a Mean in memory has no name .* Set `cache=False` for an array, or freeze"):
        backbone.embed(image_folder())
    assert backbone.embed(image_folder(), cache=False).shape == (12, 3)
    assert np.array_equal(pickled(backbone).embed([photo()]), backbone.embed([photo()]))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": 3}, TypeError, "model: expected a name, the folder of a backbone or a torch.nn.Module, got int"),
        ({"model": "resnet5"}, BackboneError, "unknown backbone 'resnet5'. Did you mean 'resnet50'"),
        ({"model": "data/nothing"}, BackboneError, "data/nothing: expected the folder of a backbone or of a run"),
        (
            {"model": "NET", "weights": "V1"},
            ConfigError,
            "a folder has its weights. Leave out weights, file and source",
        ),
        ({"model": "NET", "transform": len}, ConfigError, "has its own preprocessing. Leave `transform` out"),
        ({"model": Mean()}, ConfigError, "a Mean needs `transform`, the preprocessing that it was trained with"),
        ({"model": Mean(), "weights": "V1"}, ConfigError, "a Mean has its weights. Leave out weights, file and source"),
        (
            {"model": Mean(), "transform": lambda _: 3},
            BackboneError,
            "transform: expected a transform that returns fin",
        ),
        ({"model": Mean(), "transform": lambda _: [][0]}, BackboneError, "transform: the transform fails: IndexError"),
        (
            {"model": Mean(), "transform": lambda _: torch.rand(3, 8, 8)},
            BackboneError,
            "expected the same values for the same image, got others at the second call",
        ),
        (
            {"model": Mean(), "transform": lambda _: torch.zeros(2, 8, 8)},
            BackboneError,
            "expected 1 or 3 channels, got",
        ),
        (
            {"model": nn.Linear(7, 2), "transform": lambda _: torch.zeros(3, 8, 8)},
            BackboneError,
            "expected an input that Linear takes, .* Give the `transform` that the network was trained with",
        ),
    ],
)
def test_what_is_no_backbone_is_refused(
    arguments: dict[str, Any], kind: type[Exception], message: str, net: Path
) -> None:
    model = str(net) if arguments["model"] == "NET" else arguments["model"]
    with pytest.raises(kind, match=message):
        icecore.Backbone(**{**arguments, "model": model})


def test_a_folder_that_gets_another_network_is_opened_again(net: Path, image_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(net / "backbone", folder)
    backbone, features = icecore.Backbone(folder), icecore.FrozenFeatures(folder)
    paths = sorted(image_folder().rglob("*.png"))
    before = features.transform(paths)
    settings = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    serialization.write(folder, network, architecture=settings, origin={}, inputs=glyphs.INPUT)
    with pytest.raises(BackboneError, match=r"another network was written there since. Open the Backbone again"):
        backbone.embed(paths)
    assert np.array_equal(features.transform(paths), icecore.Backbone(folder).embed(paths).astype(np.float32))
    assert not np.array_equal(features.transform(paths), before)


def test_a_run_of_heads_is_no_backbone(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"expected a run that trained a network .*, got one of heads"):
        icecore.Backbone(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"what": "no/photos"}, DataError, "no/photos: no such folder or list"),
        ({"what": "FOLDER/cat/000.png"}, DataError, "expected a folder, a list or an archive, got one file"),
        (
            {"what": "FOLDER/empty"},
            DataError,
            "there are no files in it. Give a folder, a list or an archive with files",
        ),
        ({"what": "FOLDER/empty", "cache": False}, DataError, "expected images, got none"),
        (
            {"what": "FOLDER/odd", "cache": False},
            DataError,
            r"odd: 2 images cannot be used\n  - /.*/odd/bomb.png: more than 89,478,485 .*\n  - /.*/odd/text.png: ",
        ),
        ({"what": "FOLDER/odd", "max_pixels": 10}, DataError, "odd/0.png: more than 10 pixels"),
        ({"what": "FOLDER/cut", "cache": False}, DataError, r"^/.*/cut/0.png: damaged image: "),
        ({"what": "FOLDER", "tap": "blok1"}, BackboneError, "unknown node 'blok1'. Did you mean 'block1'"),
        ({"what": "FOLDER", "tap": "block1", "pool": "cls"}, BackboneError, "poolings that do not fit"),
        (
            {"what": [], "tap": "block1:mid"},
            ConfigError,
            "tap 'block1:mid': unknown pooling. Expected one of: none, fl",
        ),
        ({"what": [], "tap": None}, TypeError, "taps: expected a node, or a list of nodes, as text, got NoneType"),
        ({"what": "FOLDER.tgz"}, DataError, "photos.tgz: no such folder or list"),
        ({"what": 42}, TypeError, "expected images, got int"),
        ({"what": [], "tap": []}, ConfigError, "expected one tap or more, each once"),
        ({"what": "FOLDER", "dtype": "float8"}, ConfigError, "tap 'penultimate': .*float16"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    arguments: dict[str, Any], kind: type[Exception], message: str, net: Path, image_folder: Folder
) -> None:
    photos = image_folder(each=1)
    (photos / "empty").mkdir()
    good = (photos / "cat" / "000.png").read_bytes()
    files = {"odd/0.png": good, "odd/bomb.png": bomb(), "odd/text.png": b"no image", "odd/README": b"text"}
    for name, data in {**files, "cut/0.png": good[:-200], "cut/notes": b"text"}.items():
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(data)
    what = arguments["what"].replace("FOLDER", str(photos)) if isinstance(arguments["what"], str) else arguments["what"]
    with pytest.raises(kind, match=message):
        icecore.Backbone(net).embed(**{**arguments, "what": what})


# Features ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Features of a list with a column of numbers, one of splits, and a label that a file lacks."""
    folder = tmp_path_factory.mktemp("listed")
    for number in range(6):
        photo((20 + number, 20)).save(folder / f"{number}.png")
    rows = [f"{n}.png,{'' if n == 5 else 'ab'[n % 2]},{'train' if n < 4 else 'test'},{n / 2}" for n in range(6)]
    (folder / "list.csv").write_text("\n".join(["path,label,split,age", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICECORE_CACHE", str(folder / "cache"))
        return icecore.Backbone(net).embed(folder / "list.csv", "block1", "mean", engine="torch")


def test_features_know_the_files_of_their_rows_in_one_order(features: Any) -> None:
    numbers = [int(Path(path).stem) for path in features.paths]
    assert sorted(numbers) == list(range(6))
    assert features.labels.tolist() == [None if n == 5 else "ab"[n % 2] for n in numbers]
    assert features.column("age").tolist() == [str(n / 2) for n in numbers]
    assert features.column("split").tolist() == ["train" if n < 4 else "test" for n in numbers]
    assert repr(features) == f"Features({str(features.folder)!r}: 6 rows of (8,), float16)"
    some = features.subset(features.keys[1:4])
    assert some.paths.tolist() == features.paths[1:4].tolist()
    with pytest.raises(DataError, match=r"unknown column 'lable'. Did you mean 'label'"):
        features.column("lable")


def test_features_are_indexed_as_an_array_and_by_keys(features: Any) -> None:
    rows, keys = features.to_numpy(), features.keys
    assert np.array_equal(rows, features.load())
    mask = np.array(features.column("split") == "train")
    for index in (
        0,
        -1,
        np.int64(2),
        slice(None),
        slice(4, 1, -2),
        [0, 3],
        [],
        mask,
        mask.tolist(),
        torch.tensor([1, 2]),
    ):
        wanted = rows[np.asarray(index, dtype=int)] if isinstance(index, list) and not index else rows[index]
        assert np.array_equal(features[index], wanted), index
    assert np.array_equal(features[keys[2]], rows[2])
    assert np.array_equal(features[keys[3:1:-1]], rows[3:1:-1])
    assert np.array_equal(features[features.key_array[1:]], rows[1:])
    assert np.array_equal(np.asarray(features, dtype=np.float32), rows.astype(np.float32))
    assert np.array_equal(list(features), rows)
    assert np.array_equal(features.to_torch().numpy(), rows)
    with pytest.raises(ValueError, match="converting them to an array always copies"):
        np.array(features, copy=False)
    for wrong in (6, mask[:3]):
        with pytest.raises(IndexError):
            features[wrong]
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        features["0" * 32]


def test_features_without_a_table_of_files_say_so(features: Any, tmp_path: Path) -> None:
    alone = tmp_path / "project" / "block1"
    alone.mkdir(parents=True)
    for path in features.folder.iterdir():
        (alone / path.name).symlink_to(path)
    with pytest.raises(
        StoreError, match=r"expected the table of files `files.parquet` in .*, got none. For features of a p"
    ):
        icecore.Features.open(alone).labels  # noqa: B018
    table = pq.read_table(features.folder.parent / "files.parquet")
    pq.write_table(table.slice(1), tmp_path / "project" / "files.parquet")
    with pytest.raises(StoreError, match="expected a file for each of the 6 rows, got none for 1; the first is "):
        icecore.Features.open(alone).paths  # noqa: B018


def test_features_as_a_data_frame(features: Any) -> None:
    try:
        import pandas as pd
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"Features.to_pandas: .* extra `pandas`, .*features\[pandas\]"):
            features.to_pandas()
        return
    frame = features.to_pandas()
    assert frame.columns.tolist() == ["path", "label", "split", "age", "features"] or set(frame.columns) == {
        "path", "label", "split", "age", "features",
    }  # fmt: skip
    assert frame.index.tolist() == features.keys
    assert frame["path"].tolist() == features.paths.tolist()
    assert np.array_equal(np.stack(frame["features"]), features.to_numpy())
    assert pd.isna(frame["label"]).sum() == 1


# Evaluation ----------------------------------------------------------------------------------------------------------


def rows_and_classes(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, count)
    return (random.normal(size=(count, 5)) + 2 * np.eye(3, 5)[y]).astype(np.float32), y


def test_evaluation_chooses_on_held_out_rows_and_reports_on_test_rows() -> None:
    X, y = rows_and_classes()
    noise = np.random.default_rng(1).normal(size=X.shape)
    found = icecore.evaluate({"good": X, "a:noise": noise}, y, head=["knn", "logistic"], seed=1)
    selected = found.run["selected"]
    assert (selected["head"], selected["input"], len(found.table)) == ("logistic", "good", 4)
    learned = np.setdiff1d(np.arange(len(X)), found.test)
    assert (len(found.test), len(learned)) == (18, 72)
    assert np.bincount(y[found.test]).tolist() == [round(0.2 * count) for count in np.bincount(y)]
    C = found.head[-1].C
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(
        X[learned], y[learned].astype(str)
    )
    assert found.predicted.tolist() == plain.predict(X[found.test]).tolist()
    assert found.value == pytest.approx(plain.score(X[found.test], y[found.test].astype(str)))
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    lines = str(found).splitlines()
    assert lines[0].split("  ")[0] == "head"
    assert lines[2].split()[:3] == ["logistic", "good", f"{found.value:.3f}"]
    assert "All numbers are of 18 test rows, which chose nothing." in lines
    assert f"C {C:.4g} by log loss" in str(found)


def test_the_star_of_an_exact_interval_is_explained() -> None:
    X, y = rows_and_classes()
    lines = str(icecore.evaluate({"right": X + 20 * np.eye(3, 5)[y], "X": X}, y, head="centroid")).splitlines()
    assert "–1.000*" in lines[2]
    assert f"* {leaderboard.EXACT}." in lines
    assert "*" not in str(icecore.evaluate(X[:, 3:], y, head="centroid"))


def test_labels_are_classes_numbers_or_several_labels(features: Any) -> None:
    X, y = rows_and_classes()
    assert icecore.evaluate(X, X @ np.arange(1.0, 6.0)).metric == "r2"
    flags = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1)
    several = icecore.evaluate(torch.from_numpy(X), flags, head="centroid")
    assert (several.metric, several.predicted.shape[1]) == ("map", 2)
    names = [[name for name, one in zip("pq", row, strict=True) if one] for row in flags]
    assert icecore.evaluate(X, names, head="centroid").value == pytest.approx(several.value)
    split = np.where(np.arange(90) < 60, "train", "test")
    groups = np.arange(90) // 3
    assert icecore.evaluate(X, y, head="centroid", split=split).test.tolist() == list(range(60, 90))
    cut = icecore.evaluate(X, y, head="centroid", groups=groups)
    assert not {*groups[cut.test]} & {*np.delete(groups, cut.test)}
    labelled = features.subset([key for key, label in zip(features.keys, features.labels, strict=True) if label])
    found = icecore.evaluate(labelled, head="centroid", split="split")
    assert labelled.column("split")[found.test].tolist() == ["test"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"labels": None}, DataError, "labels: expected a value per row, got none, and arrays have no table of files"),
        ({"features": np.eye(12)[:0]}, DataError, r"features: expected rows with values, got the shape \(0, 12\)"),
        ({"labels": "age"}, DataError, "labels: expected a value per row, got the name 'age' and no Features"),
        ({"labels": [1, 2]}, DataError, "labels: expected a value for each of 12 rows, got 2"),
        ({"labels": [1] * 12}, DataError, r"expected at least two classes, got \['1'\]"),
        ({"labels": [None, *"ab" * 5, "a"]}, DataError, "1 row has no value"),
        ({"labels": [[0, 1]] * 12}, DataError, "got lists of 0 and 1 only. Give a matrix as an array"),
        ({"labels": np.full((12, 2), 3)}, DataError, r"or a matrix of 0 and 1 \(rows, labels\), got one with 3"),
        ({"kind": "clas"}, ConfigError, "kind: unknown value 'clas'|expected"),
        ({"groups": [1]}, DataError, "groups: expected a value for each of 12 rows, got 1"),
        ({"split": ["train"] * 12}, DataError, "expected at least 1 row in test, got 0"),
        (
            {"features": np.zeros(12)},
            DataError,
            r"features: expected an array of numbers \(rows, values\), got float64",
        ),
        ({"features": np.full((12, 2), 1e39)}, DataError, "finite numbers that float32 holds, got others in 12 of 12"),
        ({"features": {"a": np.zeros((12, 2)), "b": np.zeros((3, 2))}}, DataError, "equally many rows, got a 12, b 3"),
        ({"features": {"a/b": np.zeros((12, 2))}}, ConfigError, "expected names without / and \\+, .* got 'a/b'"),
        ({"features": {}}, ConfigError, "expected at least one input, got none"),
        ({"test_size": 2}, ConfigError, "test_size: expected a share between 0 and 1, got 2"),
        (
            {"features": np.eye(4), "labels": list("abab")},
            DataError,
            "add rows, or change `test_size`\n  - expected at least 1 row in test, got 0",
        ),
        ({"test_size": 0.99}, DataError, "none of the classes to learn; add rows, or change `test_size`"),
        ({"hed": "ridge"}, ConfigError, "unknown key 'hed'. Did you mean 'head'"),
        ({"head": "rigde"}, ConfigError, "unknown head 'rigde'. Did you mean 'ridge'"),
        ({"metric": "r2"}, ConfigError, "evaluate.metric.classification: unknown value 'r2'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"features": np.eye(12), "labels": list("ab" * 6), "head": "centroid", **arguments}
    with pytest.raises(kind, match=message):
        icecore.evaluate(**given)


def test_images_without_class_folders_need_labels(net: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        photo((20 + number, 20)).save(photos / f"{number}.png")
    flat = icecore.Backbone(net).embed(photos)
    message = f"{photos}: expected images in class folders, .* Pass `labels` to `evaluate`, a value per row"
    with pytest.raises(DataError, match=message):
        icecore.evaluate(flat)
    with pytest.raises(DataError, match=message):
        flat.labels  # noqa: B018


def test_inputs_of_other_images_are_refused(features: Any) -> None:
    some = features.subset(features.keys[:5])
    other = features.subset(features.keys[1:])
    with pytest.raises(DataError, match="expected inputs of the same images, got others in 'b'"):
        icecore.evaluate({"a": some, "b": other}, "ababa")
