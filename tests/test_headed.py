"""New classifiers: put into any network without its name, written, read, and started from a fitted head."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from support.networks import NETWORKS, backbone, glyph_net, images
from test_taps import case_of
from torch import nn
from torchvision import models

from pipeline import engines
from pipeline.backbones import hooks, replace_classifier, serialization, user_module
from pipeline.backbones.replay import replay
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.errors import BackboneError, HeadError
from pipeline.heads import create, linear_layer
from pipeline.partition.split_points import build_tail

pytestmark = pytest.mark.usefixtures("one_thread")

# Whose classifiers have how many different names.
FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "mobilenet": "classifier.1",
    "resnet": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vgg": "classifier.6",
    "vit": "heads.head",
}


def family(name: str) -> Backbone:
    """A small network of a family."""
    if name in NETWORKS:
        return backbone(name)
    return Backbone(case_of(name).backbone().spec, copy.deepcopy(case_of(name).network))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_classifier_of_any_network_is_replaced_without_its_name(name: str) -> None:
    found = family(name)
    inputs = images(found.spec, 3)
    with torch.no_grad():
        before = hooks.collect(found.module, inputs, {"x": TapSpec(node="penultimate")}, found.spec.taps)["x"]
    names = set(found.module.state_dict())
    made, architecture = replace_classifier.replace_classifier(found.spec, found.module, classes=4, dropout=0.5)
    assert made is found.module
    assert (architecture["at"],) == replace_classifier.new_modules(architecture) == (FAMILIES[name],)
    with torch.no_grad():
        assert made(inputs).shape == (3, 4)
        after = hooks.collect(made, inputs, {"x": TapSpec(node="penultimate")}, found.spec.taps)["x"]
    assert torch.equal(before, after)
    old, new = (
        {key for key in keys if not key.startswith(f"{FAMILIES[name]}.")} for keys in (names, made.state_dict())
    )
    assert old == new


HEADS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "dropout": {"dropout": 0.2},
    "two layers": {"dropout": 0.2, "hidden": 6},
    "convolution": {"hidden": 6, "convolution": 3},
}


def written(name: str, network: nn.Module, architecture: dict[str, Any], folder: Path, found: Backbone) -> Backbone:
    """A network written and read again."""
    serialization.write(
        folder / name, network, architecture=architecture, origin={}, inputs=found.spec.input, classes=("a", "b", "c")
    )
    return serialization.read(folder / name)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *(("glyphs", head) for head in HEADS),
        ("resnet18", "two layers"),
        ("squeezenet1_1", "convolution"),
    ],
)
def test_a_network_with_a_new_head_is_written_and_read(name: str, head: str, tmp_path: Path) -> None:
    if name == "glyphs":
        found = glyph_net()
    else:
        side = 64 if name == "squeezenet1_1" else 32
        network = models.get_model(name, weights=None)
        found = backbone(network, side=side, family="torchvision", name=name)
    made, architecture = replace_classifier.replace_classifier(found.spec, found.module, classes=3, **HEADS[head])
    assert not any(part.training for part in made.modules())  # as the network was
    inputs = images(found.spec, 2)
    with torch.no_grad():
        logits = made(inputs)
    again = written("new", made, architecture, tmp_path, found)
    with torch.no_grad():
        assert torch.equal(again.module(inputs), logits)
    assert again.spec.architecture == architecture
    assert set(again.spec.aliases) >= set(found.spec.aliases) - {"fc8"}
    specs = {"last": TapSpec(node="penultimate"), "out": TapSpec(node="logits"), "first": TapSpec(node="input")}
    with torch.no_grad():
        values = hooks.collect(again.module, inputs, specs, again.spec.taps)
    assert torch.equal(values["out"], logits)
    assert values["last"].shape[1:] == again.spec.taps["penultimate"].shape
    assert replace_classifier.classifier_node(again.spec) == replace_classifier.classifier_node(found.spec)


@pytest.mark.parametrize(
    "name",
    ["alexnet", "convnext_tiny", "densenet121", "mobilenet_v2", "resnet18", "swin_t", "vgg11", "vit_b_16"],
)
def test_an_architecture_is_built_as_it_was_made(name: str) -> None:
    small = {"mobilenet_v2": "mobilenet", "resnet18": "resnet", "vgg11": "vgg", "vit_b_16": "vit"}.get(name, name)
    spec = family(small).spec.model_copy(update={"architecture": {"family": "torchvision", "name": name}})
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
        made, architecture = replace_classifier.replace_classifier(spec, network, classes=4, hidden=6, dropout=0.5)
        again = serialization.build(architecture)
    shapes, found = ({key: one.shape for key, one in part.state_dict().items()} for part in (made, again))
    assert shapes == found
    assert shapes[f"{architecture['at']}.4.weight"] == (4, 6)


def test_a_new_head_is_replaced_by_another(tmp_path: Path) -> None:
    found = glyph_net()
    made, architecture = replace_classifier.replace_classifier(
        found.spec, found.module, classes=3, hidden=6, dropout=0.1
    )
    once = written("once", made, architecture, tmp_path, found)
    twice, architecture = replace_classifier.replace_classifier(once.spec, once.module, classes=2, hidden=7)
    assert [tuple(one.shape) for one in twice.classifier.parameters()] == [(7, 8), (7,), (2, 7), (2,)]
    again = written("twice", twice, architecture, tmp_path, found)
    inputs = images(found.spec, 2)
    with torch.no_grad():
        assert torch.equal(again.module(inputs), twice(inputs))


def test_the_new_convolution_comes_after_the_last_maps() -> None:
    places = {}
    for name in ("densenet121", "mobilenet", "resnet", "squeezenet1_1", "vgg"):
        found = family(name)
        network, architecture = replace_classifier.replace_classifier(
            found.spec, found.module, classes=4, convolution=3
        )
        places[name] = architecture["convolution"]["at"]
        with torch.no_grad():
            assert network(images(found.spec, 3)).shape == (3, 4)
    assert places == {
        "densenet121": "features.8",
        "mobilenet": "features.7",
        "resnet": "layer4.1",
        "squeezenet1_1": "features.13",
        "vgg": "features.11",
    }


def test_a_network_without_maps_at_its_end_has_no_place_for_a_convolution() -> None:
    found = backbone("vit")
    message = r"vit: expected a torch.nn.Sequential that returns maps, for a convolution at its end, got none\. Leave"
    with pytest.raises(BackboneError, match=message):
        replace_classifier.replace_classifier(found.spec, found.module, classes=3, convolution=3)


class Several(nn.Module):
    """Returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": self.conv(inputs)}


def test_a_network_that_gives_no_tensor_gets_no_classifier() -> None:
    found = backbone(Several(), family="module")
    message = r"module: expected a network that returns a tensor with a row per image, for a new classifier, but"
    with pytest.raises(BackboneError, match=message):
        replace_classifier.replace_classifier(found.spec, found.module, classes=3)


# From a fitted head --------------------------------------------------------------------------------------------------


def problem(classes: int, *, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows far from zero, of widths that differ, and texts as classes."""
    X, y = make_classification(120, width, n_informative=6, n_classes=classes, class_sep=0.5, random_state=seed)
    random = np.random.default_rng(seed)
    return (X * random.uniform(0.1, 50, width) + random.normal(0, 20, width)).astype(np.float32), y.astype(str)


@pytest.mark.parametrize("scale", ["standard", "none"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_fitted_logistic_regression_is_a_linear_layer(classes: int, scale: Any) -> None:
    if classes == 12:  # as texts they have another order than as numbers
        random = np.random.default_rng(0)
        y = (np.arange(240) % 12).astype(str)
        X = (random.normal(size=(12, 8))[np.arange(240) % 12] + random.normal(size=(240, 8))).astype(np.float32)
    else:
        X, y = problem(classes)
    head = create("logistic", {"C": 0.1, "max_iter": 5000}, scale=scale).fit(X, y)
    names = [str(number) for number in range(classes)]
    layer = linear_layer.linear_of(head, classes=names)
    with torch.no_grad():
        given = layer(torch.from_numpy(X)).softmax(1).numpy()
    expected = head.predict_proba(X)[:, [list(head.classes_).index(name) for name in names]]
    assert layer.weight.dtype == torch.float32
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_scalers_one_after_the_other_and_those_that_do_half_are_folded_too() -> None:
    X, y = problem(3)
    for scalers in (
        [StandardScaler(with_mean=False)],
        [StandardScaler(with_std=False)],
        [StandardScaler(with_std=False), StandardScaler()],
        [StandardScaler(), StandardScaler(with_mean=False)],
    ):
        head = make_pipeline(*scalers, LogisticRegression(max_iter=5000)).fit(X, y)
        with torch.no_grad():
            given = linear_layer.linear_of(head, classes=["0", "1", "2"])(torch.from_numpy(X)).softmax(1).numpy()
        np.testing.assert_allclose(given, head.predict_proba(X), atol=1e-5)


def test_a_network_starts_from_a_fitted_head() -> None:
    found = glyph_net()
    inputs = images(found.spec, 60)
    with torch.no_grad():
        rows = hooks.collect(found.module, inputs, {"x": TapSpec(node="penultimate")}, found.spec.taps)["x"].numpy()
    y = np.array(["dog", "cat", "cow"])[np.arange(60) % 3]
    head = create("logistic", {}, scale="standard").fit(rows, y)
    for dropout in (0.0, 0.5):
        made, architecture = replace_classifier.replace_classifier(
            found.spec, copy.deepcopy(found.module), classes=3, dropout=dropout
        )
        replace_classifier.init_from_linear(
            made, architecture, linear_layer.linear_of(head, classes=["cat", "cow", "dog"])
        )
        with torch.no_grad():
            np.testing.assert_allclose(made(inputs).softmax(1).numpy(), head.predict_proba(rows), atol=1e-5)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    X, y = problem(3)
    names = ["0", "1", "2"]
    refused: list[tuple[Pipeline, list[str], str]] = [
        (
            make_pipeline(Normalizer(), LogisticRegression()),
            names,
            "a linear layer can represent, got Normalizer. Fit the head with",
        ),
        (
            make_pipeline(PCA(2), LogisticRegression()),
            names,
            "a linear layer can represent, got PCA. Fit the head with `scale: sta",
        ),
        (make_pipeline(RandomForestClassifier(3)), names, "with `coef_` and `classes_`, got RandomForestClassifier. "),
        (
            make_pipeline(LogisticRegression(max_iter=5000)),
            ["0", "1", "3"],
            "of the task, got 3. They differ in: 2, 3.",
        ),
    ]
    for head, classes, message in refused:
        with pytest.raises(HeadError, match=message):
            linear_layer.linear_of(head.fit(X, y), classes=classes)


def test_a_classifier_that_is_not_that_layer_is_not_started_from_it() -> None:
    for options, message in (
        ({"hidden": 4}, r"linear layer of the shape \(3, 8\), to start from a fitted head, got `hidden` or `convol"),
        ({"convolution": 3}, "got `hidden` or `convolution`. Fit the head on `penultimate`"),
        ({"classes": 4}, r"got a layer of the shape \(4, 8\)"),
    ):
        found = glyph_net()
        made, architecture = replace_classifier.replace_classifier(
            found.spec, found.module, **{"classes": 3, **options}
        )
        with pytest.raises(BackboneError, match=message):
            replace_classifier.init_from_linear(made, architecture, nn.Linear(8, 3))


# Ends of more than one layer ------------------------------------------------------------------------------------------


class End(nn.Module):
    """Ends in a linear layer or in two, and in what `kind` does with their outputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6, momentum=0, affine=True))
        self.head: nn.Module = nn.Conv2d(6, 5, 1) if kind == "convolution" else nn.Linear(6, 5)
        self.second = nn.Linear(6, 5) if kind in ("heads", "same heads", "auxiliary") else None
        self.relu, self.scale = nn.ReLU(inplace=True), nn.Parameter(torch.tensor(3.0))
        self.by_class = nn.Parameter(torch.ones(5))
        if kind == "scale module":
            self.after: Any = Scale()
        if kind in ("norm", "norm of classes"):
            self.after = nn.BatchNorm1d(5)
        if kind == "norm of classes":
            self.num_classes = 5

    def forward(self, inputs: torch.Tensor) -> Any:
        rows = self.body(inputs).mean((2, 3))
        if self.kind == "none":
            return rows
        if self.kind == "maps":
            return self.body(inputs)
        if self.kind == "keyword":
            return self.head(input=rows)
        if self.kind == "convolution":
            return self.head(self.body(inputs)).relu().mean((2, 3))
        value = self.head(rows)
        if self.kind == "heads":
            return (value + self.second(rows.flip(1))) / 2  # type: ignore[misc]
        if self.kind == "same heads":
            return (value + self.second(rows)) / 2  # type: ignore[misc]
        if self.kind == "auxiliary":
            return (value, self.second(rows)) if self.training else value  # type: ignore[misc]
        after = {
            "linear": lambda: value,
            "relu": lambda: self.relu(value),
            "sigmoid": lambda: value.sigmoid(),
            "log_softmax": lambda: value.log_softmax(1),
            "temperature": lambda: value * self.scale,
            "normalised": lambda: nn.functional.normalize(value),
            "scale module": lambda: self.after(value),
            "softmax": lambda: value.softmax(1),
            "scale per class": lambda: value * self.by_class,
            "norm": lambda: self.after(value),
            "norm of classes": lambda: self.after(value),
        }
        return after[self.kind]()


class Scale(nn.Module):
    """A temperature in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor([7.0]))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.by


def make_end(kind: str) -> nn.Module:
    """A factory of networks, for `source: module`."""
    return End(kind)


ENDS = {
    "linear": (6, "head", False),
    "relu": (6, "head", True),
    "sigmoid": (6, "head", True),
    "log_softmax": (6, "head", True),
    "temperature": (6, "head", True),
    "normalised": (6, "head", True),
    "scale module": (6, "head", True),
    "auxiliary": (6, "head", True),
    "softmax": (6, "head", True),
    "scale per class": (6, "head", True),
    "norm of classes": (6, "head", True),
    "norm": (5, replace_classifier.APPENDED, False),
    "keyword": (6, "head", False),
    "convolution": (6, "head", True),
    "heads": (12, replace_classifier.APPENDED, False),
    "same heads": (6, replace_classifier.APPENDED, False),
    "none": (6, replace_classifier.APPENDED, False),
    "maps": (6, replace_classifier.APPENDED, False),
}


@pytest.mark.parametrize("kind", ENDS)
def test_the_logits_of_a_new_classifier_are_the_output_whatever_followed_the_old_one(kind: str, tmp_path: Path) -> None:
    width, at, ends = ENDS[kind]
    torch.manual_seed(0)
    base = user_module.architecture(f"{__name__}:make_end", {"kind": kind})
    found = backbone(make_end(kind), **base)
    assert found.spec.taps["penultimate"].shape == (width,)
    inputs = images(found.spec, 4)
    with torch.no_grad():
        rows = hooks.collect(found.module, inputs, {"x": TapSpec(node="penultimate")}, found.spec.taps)["x"]
    if kind not in ("maps", "convolution"):  # whose rows are means
        np.testing.assert_allclose(replay(found, rows.numpy()), found.module(inputs).detach().numpy(), atol=1e-6)
    made, architecture = replace_classifier.replace_classifier(found.spec, copy.deepcopy(found.module), classes=3)
    assert (architecture["at"], bool(architecture.get("ends"))) == (at, ends)
    last = replace_classifier.last_layer(made, architecture)
    expected = nn.functional.linear(rows, last.get_parameter("weight").flatten(1), last.get_parameter("bias"))
    assert torch.allclose(made(inputs), expected, atol=1e-6)
    made.train()
    made.get_submodule("body").eval()
    if kind == "norm":
        made.get_submodule("after").eval()
    assert torch.allclose(copy.deepcopy(made)(inputs), expected, atol=1e-6)
    made(inputs).square().mean().backward()
    assert all(float(one.grad.abs().sum()) > 0 for one in last.parameters() if one.grad is not None)
    again = written("new", made.eval(), architecture, tmp_path, found)
    with torch.no_grad():
        assert torch.equal(again.module(inputs), made(inputs))
        new = hooks.collect(again.module, inputs, {"x": TapSpec(node="penultimate")}, again.spec.taps)["x"]
        np.testing.assert_allclose(replay(again, new.numpy()), made(inputs).numpy(), atol=1e-6)
    part = build_tail(made, "penultimate", spec=found.spec)
    assert torch.allclose(part(rows), expected, atol=1e-6)
    start = nn.Linear(width, 3)
    replace_classifier.init_from_linear(made, architecture, start)
    with torch.no_grad():
        assert torch.allclose(made(inputs), start(rows), atol=1e-6)
    # a classifier that was put in before is replaced at the same place
    twice, second = replace_classifier.replace_classifier(again.spec, again.module, classes=2, hidden=4)
    assert second["at"] == at
    assert twice(inputs).shape == (4, 2)
    assert serialization.build(second)(inputs).shape == (4, 2)


@pytest.mark.parametrize(
    ("kind", "engine"), [("convolution", "onnxruntime"), ("scale per class", "openvino"), ("heads", "openvino")]
)
def test_a_network_that_ends_at_its_new_classifier_is_exported_with_its_values(kind: str, engine: str) -> None:
    pytest.importorskip(engine)
    torch.manual_seed(0)
    found = backbone(make_end(kind), **user_module.architecture(f"{__name__}:make_end", {"kind": kind}))
    made, architecture = replace_classifier.replace_classifier(found.spec, found.module, classes=3)
    ended = backbone(serialization.freeze(made), **architecture)
    specs = {node: TapSpec(node=node, dtype="float32") for node in ("penultimate", "logits")}
    pixels = {"pixels": np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)}
    expected, got = (engines.create(name, ended, specs, batch_size=5).run(pixels) for name in ("torch", engine))
    for node in specs:
        np.testing.assert_allclose(got[node], expected[node], rtol=1e-4, atol=1e-5, err_msg=node)
