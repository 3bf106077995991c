"""FrozenFeatures: rows for pipelines of scikit-learn, each image through the network once; scikit-learn's checks."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from support.odd_images import bomb
from torch import nn
from torchvision import transforms

from pipeline.backbones import glyphs, serialization
from pipeline.errors import BackboneError, ConfigError, DataError
from pipeline.inference.backbone import Backbone
from pipeline.inference.frozen_features import FrozenFeatures
from pipeline.inference.row_cache import RowMemory
from pipeline.store import cache
from pipeline.store.location import default_root

Folder = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "net"
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    settings = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    serialization.write(folder, network, architecture=settings, origin={}, inputs=glyphs.INPUT)
    return folder


@pytest.fixture
def files(image_folder: Folder) -> tuple[list[Path], list[str]]:
    paths = sorted(image_folder(each=6).rglob("*.png"))
    return paths, [path.parent.name for path in paths]


class Counting(nn.Module):
    """A network of one layer that counts how often it ran."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        first: torch.Tensor = self.last(self.first(images).mean((2, 3)))
        return first


TAPS = ["first:mean", "first:max", "penultimate"]


def search(features: FrozenFeatures, **settings: Any) -> GridSearchCV:
    grid = {"frozenfeatures__tap": TAPS, "logisticregression__C": [0.1, 1.0]}
    return GridSearchCV(make_pipeline(features, LogisticRegression()), grid, cv=3, **settings)


def test_a_search_over_taps_and_heads_sends_each_image_through_the_network_once(
    files: tuple[list[Path], list[str]],
) -> None:
    paths, labels = files
    images = [Image.open(path) for path in paths]
    torch.manual_seed(0)
    transform = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
    backbone = Backbone(Counting(), transform=transform)
    Counting.calls = 0
    found = search(FrozenFeatures(backbone, candidates=TAPS)).fit(images, labels)
    assert Counting.calls == 2  # the training rows of the first fold, and its held-out rows
    assert found.best_estimator_[0].model is backbone
    plain = backbone.embed(images, "first:max").astype(np.float32)
    assert np.array_equal(clone(found.best_estimator_[0]).set_params(tap="first:max").transform(images), plain)
    assert Counting.calls == 3


def test_files_are_found_again_in_the_feature_cache_by_every_process(
    net: Path, files: tuple[list[Path], list[str]]
) -> None:
    paths, labels = files
    taps = ["block1:mean", "penultimate"]
    features = FrozenFeatures(str(net), candidates=taps)
    pipeline = make_pipeline(features, LogisticRegression())
    grid = GridSearchCV(pipeline, {"frozenfeatures__tap": taps}, cv=3, n_jobs=2).fit(paths, labels)
    columns = list(cache.columns(default_root()))
    assert sorted(column.identity["node"] for column in columns) == ["block1", "penultimate"]
    assert [sum(record.rows for record in column.records()) for column in columns] == [12, 12]
    rows = Backbone(net).embed(paths, "block1:mean").astype(np.float32)
    assert np.array_equal(features.set_params(tap="block1:mean").transform(paths), rows)
    in_memory = FrozenFeatures(net, tap="block1", pool="mean", cache=False)
    assert np.array_equal(in_memory.transform([Image.open(path) for path in paths]), rows)
    column = np.array([[str(path)] for path in paths], dtype=object)
    assert np.array_equal(in_memory.transform(column), rows)
    table = make_column_transformer((in_memory, [0])).fit(column)
    assert np.array_equal(table.transform(column), rows)
    assert in_memory.transform([]).shape == (0, 8)
    assert grid.predict(paths[:2]).shape == (2,)
    assert len(pickle.dumps(grid)) < 20_000
    assert (net / "weights.safetensors").stat().st_size > 4_000


def test_a_changed_file_is_another_image(net: Path, files: tuple[list[Path], list[str]]) -> None:
    (first, second, *_), _ = files
    features = FrozenFeatures(net)
    before = features.transform([first, second, first])
    assert np.array_equal(before[0], before[2])
    first.write_bytes(second.read_bytes())
    assert np.array_equal(features.transform([first]), before[1:2])


def test_names_and_widths_follow_from_the_settings(net: Path) -> None:
    features = FrozenFeatures(net, tap="block1", pool="avg2x2").fit()
    assert features.n_features_out_ == 32
    assert features.get_feature_names_out()[[0, 31]].tolist() == ["block1-avg2x2_0", "block1-avg2x2_31"]
    assert FrozenFeatures(net, tap="block1:max").get_feature_names_out()[0] == "block1-max_0"
    try:
        import pandas as pd
    except ImportError:
        return
    image = Image.new("RGB", (9, 9))
    frame = features.set_output(transform="pandas").transform(pd.Series([image, image], index=["a", "b"]))
    assert frame.columns.tolist() == features.get_feature_names_out().tolist()
    assert frame.index.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "images", "kind", "message"),
    [
        ({"model": 3}, [], TypeError, "model: expected a name, a folder or a Backbone, got int"),
        ({"model": Counting()}, [], TypeError, "got Counting. Of a torch.nn.Module make a Backbone with its transform"),
        ({"tap": "blok1"}, [], BackboneError, "unknown node 'blok1'. Did you mean 'block1'"),
        ({"tap": ["block1"]}, [], TypeError, "taps: expected a node, or a list of nodes, as text, got list"),
        ({"candidates": "block1"}, [], TypeError, "candidates: expected a list of taps, got the text 'block1'"),
        ({"candidates": ["blok1"]}, [], BackboneError, "unknown node 'blok1'"),
        ({"pool": "cls"}, [], BackboneError, "poolings that do not fit"),
        ({}, ["no.png"], DataError, "no.png: cannot be read: No such file"),
        ({}, ["TEXT"], DataError, r"^/.*text.png: not an image that Pillow can read$"),
        (
            {},
            ["other.png", "TEXT"],
            DataError,
            r"^2 of 2 files cannot be used. The first of them\n  - /.*/other.png: not .*\n  - /.*/text.png: not an",
        ),
        ({"cache": False}, ["TEXT"], DataError, "not an image that Pillow can read"),
        (
            {},
            ["bomb.png", "TEXT"],
            DataError,
            r"^2 of 2 files .*\n  - /.*/bomb.png: more than 89,478,485 pixels",
        ),
        ({}, np.array([["a", "b"]], dtype=object), DataError, r"one column of paths or images, got the shape \(1, 2\)"),
        ({}, "photo.png", TypeError, "expected a list of images, got a single str"),
        ({}, [[1.5]], TypeError, "image 0: expected a path, a PIL image, a uint8 array or a tensor, got list"),
    ],
)
def test_what_is_no_setting_or_no_image_is_refused(
    settings: dict[str, Any], images: Any, kind: type[Exception], message: str, net: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    (tmp_path / "other.png").write_text("neither")
    (tmp_path / "bomb.png").write_bytes(bomb())
    if isinstance(images, list) and images[-1:] == ["TEXT"]:
        images = [*(str(tmp_path / name) for name in images[:-1]), str(text)]
    with pytest.raises(kind, match=message):
        FrozenFeatures(**{"model": net, **settings}).transform(images)


def test_a_backbone_has_its_weights(net: Path) -> None:
    with pytest.raises(ConfigError, match="a Backbone has its weights"):
        FrozenFeatures(Backbone(net), weights="V1").fit()


def test_a_process_keeps_no_more_rows_than_it_may() -> None:
    memory = RowMemory(max_bytes=3 * 40)
    for key in "abc":
        memory.put("tap", key, np.full(10, ord(key), np.float32))
    assert memory.get("tap", "a") is not None  # used last
    memory.put("tap", "d", np.zeros(10, np.float32))
    assert [key for key in "abcd" if memory.get("tap", key) is not None] == ["a", "c", "d"]
    memory.put("tap", "large", np.zeros(100, np.float32))
    assert memory.get("tap", "large") is None


class OnNumbers(FrozenFeatures):
    """The same on rows of numbers, each as a grey image: scikit-learn's checks give no images."""

    def transform(self, X: Any) -> np.ndarray:
        numbers = np.asarray(X, dtype=np.float64)
        if numbers.ndim != 2:
            raise ValueError("Reshape your data: expected 2D array")
        return super().transform([np.frombuffer(row.tobytes(), np.uint8).reshape(-1, 1) for row in numbers])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


UNFIT = {
    "check_estimator_sparse_tag": "fit looks at no data, so it cannot refuse sparse ones",
}
"""Checks of scikit-learn that do not apply, with the reason."""


def test_the_checks_of_scikit_learn_that_apply(net: Path) -> None:
    results = check_estimator(OnNumbers(str(net)), on_fail=None, on_skip=None, expected_failed_checks=UNFIT)
    failed = {one["check_name"]: str(one["exception"]) for one in results if one["status"] == "failed"}
    assert failed == {}
    assert {one["check_name"] for one in results if one["status"] == "xfail"} == {*UNFIT}
    assert sum(one["status"] == "passed" for one in results) > 30
