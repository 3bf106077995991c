"""Taps over many architectures: every node alone and in pairs, the names of graphs, aliases, poolings, head replay."""

import itertools
import math
import random
import re
import tarfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models
from torchvision.models import efficientnet, maxvit, resnet, swin_transformer, vgg
from torchvision.models.feature_extraction import get_graph_node_names

from pipeline.backbones import glyphs, hooks, projection, serialization
from pipeline.backbones.aliases import aliases
from pipeline.backbones.nodes import survey
from pipeline.backbones.pooling import pool
from pipeline.backbones.replay import check_replay, expected_logits, replay
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec, InputSpec, Tap, TapSpec, pooled_shape, resolve
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError
from pipeline.files import sha256_file
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.readers.image import ImageReader, ImageSpec
from pipeline.store.identity import address, identity

pytestmark = pytest.mark.usefixtures("one_thread")


def small_vgg() -> nn.Module:
    with torch.device("meta"):  # its own layers are large, and are replaced
        network = vgg.VGG(nn.Identity(), num_classes=9, init_weights=False)
    layers = [8, "M", 16, "M", 32, 32, "M", 32, 32, "M", 32, 32, "M"]  # those of 11 layers, narrower
    network.features = vgg.make_layers(layers, batch_norm=True)
    for place, sizes in ((0, (32 * 7 * 7, 24)), (3, (24, 24)), (6, (24, 9))):
        network.classifier[place] = nn.Linear(*sizes)
    return network


def small_mobilenet() -> nn.Module:
    return models.MobileNetV2(9, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])


def small_resnet(**options: int) -> nn.Module:
    return models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=9, **options)


def small_efficientnet(block: Any, **options: Any) -> nn.Module:
    return models.EfficientNet([block(3, 3, 2, 16, 24, 2, **options)], dropout=0.2, last_channel=32, num_classes=9)


def small_swin(version: int) -> nn.Module:
    parts: dict[str, Any] = {}
    if version == 2:
        parts = {
            "block": swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": swin_transformer.PatchMergingV2,
        }
    return models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=9, **parts)


def small_convnext() -> nn.Module:
    setting = [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(setting, layer_scale=0.5, num_classes=9)


def small_vit() -> nn.Module:
    network = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=9)
    nn.init.normal_(network.heads.head.weight)  # torchvision begins with zeros
    nn.init.normal_(network.class_token)
    return network


Build = Callable[[], nn.Module]

# Every family of torchvision's classifiers: small relatives where the class allows it, and the side of its images.
FAMILIES: dict[str, tuple[Build, int]] = {
    "alexnet": (partial(models.alexnet, num_classes=9), 64),
    "convnext_tiny": (small_convnext, 32),
    "densenet121": (partial(models.DenseNet, 4, (2, 3), 8, num_classes=9), 32),
    "efficientnet_b0": (partial(small_efficientnet, efficientnet.MBConvConfig), 32),
    "efficientnet_v2_s": (partial(small_efficientnet, efficientnet.FusedMBConvConfig), 32),
    "googlenet": (partial(models.googlenet, num_classes=9, init_weights=False, transform_input=True), 32),
    "inception_v3": (partial(models.inception_v3, num_classes=9, init_weights=False, transform_input=True), 75),
    "maxvit_t": (partial(maxvit.MaxVit, (32, 32), 8, 4, [8], [2], 4, 0.0, num_classes=9), 32),
    "mnasnet0_5": (partial(models.mnasnet0_5, num_classes=9), 32),
    "mobilenet_v2": (small_mobilenet, 32),
    "mobilenet_v3_small": (partial(models.mobilenet_v3_small, num_classes=9), 32),
    "regnet_y_400mf": (partial(models.regnet_y_400mf, num_classes=9), 32),
    "resnet18": (partial(models.resnet18, num_classes=9), 32),
    "resnext50_32x4d": (partial(small_resnet, groups=32, width_per_group=4), 32),
    "shufflenet_v2_x0_5": (partial(models.ShuffleNetV2, [2, 2, 2], [24, 48, 96, 192, 64], num_classes=9), 32),
    "squeezenet1_1": (partial(models.squeezenet1_1, num_classes=9), 64),
    "swin_t": (partial(small_swin, 1), 32),
    "swin_v2_t": (partial(small_swin, 2), 32),
    "vgg11_bn": (small_vgg, 32),
    "vit_b_16": (small_vit, 32),
    "wide_resnet50_2": (partial(small_resnet, width_per_group=128), 32),
}
DEEP = ("resnet18", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121", "googlenet", "vit_b_16", "swin_t",
        "convnext_tiny", "shufflenet_v2_x0_5")  # fmt: skip
"""Those in which every node is looked at."""


class Case:
    """A network with its taps, three images, and the values of one plain forward pass."""

    def __init__(self, name: str) -> None:
        build, side = FAMILIES[name]
        torch.manual_seed(0)
        self.name, self.network = name, serialization.freeze(build())
        for part in self.network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)
        self.shape = (3, side, side)
        self.taps = survey(self.network, self.shape)
        self.images = torch.randn(3, *self.shape, generator=torch.Generator().manual_seed(1))
        self._alone: dict[str, Tensor] = {}

    def alone(self, node: str) -> Tensor:
        """The value of a node that nothing else was asked for with, worked out once."""
        if node not in self._alone:
            self._alone[node] = self.values(node)[node]
        return self._alone[node]

    @torch.inference_mode()
    def values(self, *nodes: str, pooling: str = "none") -> dict[str, Tensor]:
        """The values of some nodes, asked for together."""
        specs = {node: TapSpec(node=node, pool=pooling) for node in nodes}
        return hooks.collect(self.network, self.images, specs, self.taps)

    @torch.inference_mode()
    def plainly(self) -> dict[str, Tensor]:
        """Every module's outputs in one whole forward pass, cloned as they come; later calls with _1, _2, …"""
        found = {"input": self.images.clone()}

        def keep(name: str) -> Any:
            calls = itertools.count()

            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                call = next(calls)
                if isinstance(output, Tensor):
                    found[f"{name}_{call}" if call else name] = output.clone()

            return hook

        handles = [part.register_forward_hook(keep(name or "logits")) for name, part in self.network.named_modules()]
        with hooks.without_attention_fastpath():
            self.network(self.images.clone())
        for handle in handles:
            handle.remove()
        return found

    def backbone(self) -> Backbone:
        """The network as it would come from the disk."""
        architecture = {"family": "torchvision", "name": self.name}
        return Backbone(described(architecture, self.shape, self.taps), self.network)


def described(architecture: dict[str, Any], shape: tuple[int, ...], found: dict[str, Tap]) -> BackboneSpec:
    """A backbone.json of some taps."""
    inputs = InputSpec(image=ImageSpec(resize=shape[1:]), mean=(0.5,) * 3, std=(0.5,) * 3)
    return BackboneSpec(
        architecture=architecture,
        origin={},
        weights_digest="0" * 64,
        input=inputs,
        taps=found,
        aliases=aliases(architecture, found),
    )


CASES: dict[str, Case] = {}


def case_of(name: str) -> Case:
    """A case, made once."""
    if name not in CASES:
        CASES[name] = Case(name)
    return CASES[name]


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEEP)
def test_every_module_alone_is_what_a_plain_forward_pass_gives(name: str) -> None:
    case = case_of(name)
    expected = case.plainly()
    modules = [node for node, tap in case.taps.items() if tap.kind not in ("function", "penultimate")]
    assert set(modules) <= set(expected)
    for node in modules:
        assert torch.equal(case.alone(node), expected[node]), node


@pytest.mark.parametrize("name", DEEP)
def test_pairs_of_nodes_drawn_at_random_are_what_each_is_alone(name: str) -> None:
    case = case_of(name)
    draw = random.Random(0)
    for _ in range(30):
        one, other = draw.sample(list(case.taps), 2)
        together = case.values(one, other)
        assert torch.equal(together[one], case.alone(one)), (one, other)
        assert torch.equal(together[other], case.alone(other)), (other, one)


class InPlace(nn.Module):
    """Everything that can go wrong in a few nodes: in-place operations, functions, a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn(self.conv(images)))
        inner = self.inner(maps - 1)
        inner += maps
        self.relu(inner.sub_(0.5))
        nn.functional.relu(inner - 1, inplace=True)
        rows = torch.flatten(inner, 2).mul_(-1).mean(2)
        return self.head(torch.abs_(rows.sub_(1)))


def test_all_pairs_of_all_nodes_in_all_poolings_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    network = serialization.freeze(InPlace())
    found = survey(network, (3, 8, 8))
    assert list(found) == [
        "input", "conv", "bn", "relu", "sub", "inner.0", "inner.1", "inner", "add", "sub_1", "relu_1", "sub_2",
        "relu_2", "flatten", "mul", "mean", "sub_3", "abs", "head", "penultimate", "logits",
    ]  # fmt: skip
    images = torch.randn(2, 3, 8, 8)
    specs = [
        TapSpec(node=node, pool=pooling)
        for node, tap in found.items()
        for pooling in ("none", "flatten", "mean")
        if pooling != "mean" or tap.layout == "CHW"
    ]
    with torch.inference_mode():
        alone = [hooks.collect(network, images.clone(), {"x": spec}, found)["x"] for spec in specs]
        for (one, left), (other, right) in itertools.combinations(zip(specs, alone, strict=True), 2):
            together = hooks.collect(network, images.clone(), {"x": one, "y": other}, found)
            assert torch.equal(together["x"], left), (one, other)
            assert torch.equal(together["y"], right), (one, other)
    values = {spec.node: value for spec, value in zip(specs, alone, strict=True) if spec.pool == "none"}
    assert (values["bn"] < 0).any()
    assert (values["relu"] >= 0).all()
    assert torch.equal(values["add"], values["inner"] + values["relu"])
    assert torch.equal(values["sub_1"], values["add"] - 0.5)
    assert torch.equal(values["relu_1"], values["sub_1"].relu())
    assert torch.equal(values["relu_2"], values["sub_2"].relu())
    assert torch.equal(values["abs"], values["penultimate"])


def test_what_a_pooling_calls_is_no_function_of_the_network() -> None:
    case = case_of("resnet18")
    specs = {"whole": TapSpec(node="layer1", pool="flatten"), "flat": TapSpec(node="flatten")}
    with torch.inference_mode():
        together = hooks.collect(case.network, case.images, specs, case.taps)
    assert torch.equal(together["flat"], case.values("flatten")["flatten"])
    assert together["whole"].shape != together["flat"].shape


def test_attention_runs_one_way_whoever_is_watching() -> None:
    case = case_of("vit_b_16")
    before = torch.backends.mha.get_fastpath_enabled()
    nodes = ("encoder.layers.encoder_layer_2.add", "encoder.layers.encoder_layer_2.ln_2")
    assert torch.equal(case.values(*nodes)[nodes[1]], case.values(nodes[1])[nodes[1]])
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_the_forward_pass_stops_before_the_last_layer_if_its_input_is_all_that_is_wanted() -> None:
    case = case_of("resnet18")
    ran: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, part in case.network.named_modules()
    ]
    case.values("penultimate", "layer4.1.add")
    for handle in handles:
        handle.remove()
    assert "avgpool" in ran
    assert "fc" not in ran
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in case.network.modules())


# The survey -----------------------------------------------------------------------------------------------------------

# What torchvision's graphs have and the survey has not, and why.
NOT_OFFERED = {
    r"x": "the input: it is called `input`",
    r".*_(weight|bias|layer_scale|relative_position_bias_table|embedding)|class_token": "a parameter",
    r"(.*\.)?(chunk|size|dim|getattr|floordiv)(_\d+)?": "no tensor, or several",
    r"getitem(_\d+)?|.*\.getitem(_\d+)?": "a number or a part of several tensors; numbers of names move with it",
    r".*\.(shifted_window_attention|_get_relative_position_bias|_patch_merging_pad)": "wrapped: its parts are offered",
    r".*\.stochastic_depth": "returns what it gets",
    r"(.*\.)?(eq|ne|_assert|mul|add|expand)(_\d+)?": "of numbers",
    r".*\.(ln|ln_1|self_attention)": "torchvision takes ln_1 and ln_2 for repetitions of ln; attention returns a pair",
}


@pytest.mark.parametrize("name", DEEP)
def test_the_nodes_have_the_names_of_torchvisions_graphs(name: str) -> None:
    case = case_of(name)
    _, names = get_graph_node_names(case.network, suppress_diff_warning=True)
    missing = [node for node in names if node not in case.taps]
    unexplained = [node for node in missing if not any(re.fullmatch(reason, node) for reason in NOT_OFFERED)]
    assert unexplained == []
    if name in ("resnet18", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121", "googlenet"):
        assert missing == ["x"]


@pytest.mark.parametrize("name", DEEP)
def test_the_stated_shapes_are_those_of_the_values(name: str) -> None:
    case = case_of(name)
    for node, value in case.values(*case.taps).items():
        assert value.shape == (3, *case.taps[node].shape), node


class Mixing(nn.Module):
    """A BatchNorm that kept no statistics takes those of the batch, even when it is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(images)).mean((2, 3)))


def test_a_node_that_depends_on_the_rest_of_its_batch_is_refused() -> None:
    found = survey(serialization.freeze(Mixing()), (3, 8, 8))
    assert [node for node, tap in found.items() if tap.mixed] == ["bn", "mean", "head", "penultimate", "logits"]
    backbone = described({"family": "x"}, (3, 8, 8), found)
    assert resolve({"a": TapSpec(node="conv")}, backbone, where="net")["a"].node == "conv"
    message = r"net: taps that cannot be stored\n  - tap 'b': expected values that depend on a single sample, but those"
    with pytest.raises(BackboneError, match=message):
        resolve({"a": TapSpec(node="conv"), "b": TapSpec(node="bn")}, backbone, where="net")


def test_what_has_no_row_a_sample_is_not_offered_even_if_it_has_as_many() -> None:
    class Pairs(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pairs = torch.ones(2, 3, device=images.device) * 2
            return images.mean((2, 3)) + pairs.sum()

    assert list(survey(Pairs().eval(), (3, 8, 8))) == ["input", "mean", "add", "penultimate", "logits"]


def test_modules_with_the_names_of_the_networks_ends_do_not_hide_them() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.logits = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.logits(self.input(images).mean((2, 3))) * 3

    network, images = serialization.freeze(Named()), torch.randn(2, 3, 8, 8)
    found = survey(network, (3, 8, 8))
    specs = {node: TapSpec(node=node) for node in found}
    values = hooks.collect(network, images, specs, found)
    assert torch.equal(values["input"], images)
    assert torch.equal(values["logits"], network(images))
    assert torch.equal(values["penultimate"], values["mean"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.branch = nn.Sequential(self.shared, nn.ReLU())
        self.other, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.other.weight = self.shared.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.other(self.branch(self.shared(self.stem(images)))).mean((2, 3)))


def tied(_architecture: object) -> nn.Module:
    return Tied()


def test_a_module_with_two_names_and_tied_weights_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = serialization.freeze(Tied()), torch.randn(2, 3, 8, 8)
    before = network(images)
    found = survey(network, (3, 8, 8))
    assert {"shared", "branch", "other", "penultimate", "logits"} <= set(found)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
    assert torch.equal(network(images), before)
    monkeypatch.setitem(serialization.ARCHITECTURES, "tied", f"{__name__}:tied")
    inputs = InputSpec(image=ImageSpec(resize=(8, 8)), mean=(0.5,) * 3, std=(0.5,) * 3)
    serialization.write(tmp_path, network, architecture={"family": "tied"}, origin={}, inputs=inputs)
    read = serialization.read(tmp_path).module
    assert torch.equal(read(images), before)
    assert read.other.weight is read.shared.weight


def test_a_function_is_numbered_on_from_a_layer_of_its_name() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.relu(self.relu(images) - 1)

    network, images = Same().eval(), torch.randn(2, 3, 8, 8)
    found = survey(network, (3, 8, 8))
    assert list(found) == ["input", "relu", "sub", "relu_1", "penultimate", "logits"]
    values = hooks.collect(network, images, {node: TapSpec(node=node) for node in found}, found)
    assert torch.equal(values["relu"], images.relu())
    assert torch.equal(values["relu_1"], (images.relu() - 1).relu())


def test_keywords_and_tuples_pass_through() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.memory, self.head = nn.Conv2d(3, 4, 1), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, images: Tensor) -> Tensor:
            rows, _ = self.memory(self.conv(input=images).flatten(2).mT)
            return self.head(input=rows[:, -1])

    network, images = serialization.freeze(Odd()), torch.randn(2, 3, 4, 4)
    found = survey(network, (3, 4, 4))
    assert {"conv", "flatten", "getitem", "head", "logits"} <= set(found)
    assert "memory" not in found
    assert (found["penultimate"].input_of, found["penultimate"].shape) == ("head", (5,))
    specs = {node: TapSpec(node=node) for node in ("conv", "getitem", "head", "penultimate")}
    values = hooks.collect(network, images, specs, found)
    assert torch.equal(values["head"], network.head(values["getitem"]))
    assert torch.equal(values["penultimate"], values["getitem"])
    spec = described({"family": "x"}, (3, 4, 4), found)
    np.testing.assert_allclose(
        replay(Backbone(spec, network), values["getitem"].numpy()), network(images).detach().numpy(), atol=1e-6
    )
    assert identity(spec, TapSpec(node="penultimate"))["definition"] == {"revision": 1}  # it was the output before


class Heads(nn.Module):
    """Two heads, of a linear layer or of a norm and a linear layer each, on different vectors or on the same."""

    def __init__(self, *, same: bool, norms: bool) -> None:
        super().__init__()
        self.same, self.conv = same, nn.Conv2d(3, 4, 1)
        self.one, self.other = (
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)) if norms else nn.Linear(4, 2) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        rows = maps.mean((2, 3))
        return (self.one(rows) + self.other(rows if self.same else maps.amax((2, 3)))) / 2


@pytest.mark.parametrize(
    ("same", "norms", "parts"),
    [
        (False, False, {"one": (0, 4), "other": (4, 8)}),
        (True, False, {"one": (0, 4), "other": (0, 4)}),
        (True, True, {"one": (0, 4), "other": (0, 4)}),
        (False, True, {"one.1": (0, 4), "other.1": (4, 8)}),
    ],
)
def test_the_penultimate_rows_of_a_network_of_two_heads_are_what_the_heads_get(
    same: bool, norms: bool, parts: dict[str, tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    network, images = serialization.freeze(Heads(same=same, norms=norms)), torch.randn(3, 3, 8, 8)
    found = survey(network, (3, 8, 8))
    last = found["penultimate"]
    assert {name: (part.start, part.stop) for name, part in last.parts.items()} == parts
    assert last.shape == (max(stop for _, stop in parts.values()),)
    maps = network.conv(images)
    rows = [maps.mean((2, 3)), maps.mean((2, 3)) if same else maps.amax((2, 3))]
    if norms and not same:
        rows = [network.one[0](rows[0]), network.other[0](rows[1])]
    expected = rows[0] if same else torch.cat(rows, 1)
    value = hooks.collect(network, images, {"x": TapSpec(node="penultimate")}, found)["x"]
    assert torch.equal(value, expected)
    backbone = Backbone(described({"family": "x"}, (3, 8, 8), found), network)
    np.testing.assert_allclose(replay(backbone, value.numpy()), network(images).numpy(), atol=1e-6)


def last_of(*layers: nn.Module, classes: int | None = None) -> Tap:
    """`penultimate` of layers one after the other, in a network that may say how many classes it has."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *layers)
    if classes is not None:
        network.num_classes = classes  # type: ignore[assignment]
    return survey(serialization.freeze(network), (3, 8, 8))["penultimate"]


def test_what_a_classifier_is_follows_from_the_layers_and_from_what_the_network_says() -> None:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    relu, norm = nn.ReLU(), nn.BatchNorm1d(5)
    # A 1x1 convolution, and one that sees its whole input, classify; any other makes features.
    assert last_of(nn.Conv2d(4, 5, 1), relu, pool).model_dump(include={"shape", "input_of", "averaged"}) == {
        "shape": (4,), "input_of": "2", "averaged": (2, 3),
    }  # fmt: skip
    assert (last_of(nn.Conv2d(4, 5, 6), nn.Flatten()).shape, last_of(nn.Conv2d(4, 5, 6)).averaged) == ((4, 6, 6), ())
    features = last_of(nn.Conv2d(4, 5, 3), relu, pool)
    assert (features.shape, features.input_of, features.revision) == ((5,), None, 1)
    assert last_of(nn.Conv2d(4, 5, 3), relu).averaged == (2, 3)  # maps are averaged
    # timm says `num_classes = 0`; others leave an identity under the classifier's name.
    assert last_of(nn.Conv2d(4, 5, 1), relu, pool, classes=0).shape == (5,)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), pool)
    network.add_module("embed", nn.Linear(4, 5))
    network.add_module("fc", nn.Identity())
    assert survey(serialization.freeze(network), (3, 8, 8))["penultimate"].shape == (5,)
    # A norm behind a layer as wide as the classes belongs to the classifier; behind another it makes features.
    assert last_of(pool, nn.Linear(4, 5), norm, classes=5).input_of == "3"
    assert last_of(pool, nn.Linear(4, 5), norm).input_of is None


def test_an_average_is_the_pooling_of_before_and_any_other_row_has_a_new_address() -> None:
    case = case_of("squeezenet1_1")
    spec = case.backbone().spec
    old = spec.model_copy(
        update={"taps": {**spec.taps, "penultimate": spec.taps["classifier.0"].model_copy(update={"kind": "x"})}}
    )
    none, mean = TapSpec(node="penultimate"), TapSpec(node="penultimate", pool="mean")
    assert address(identity(spec, mean)) == address(identity(old, mean))
    assert address(identity(spec, none)) != address(identity(old, none))
    assert "definition" not in identity(case_of("resnet18").backbone().spec, none)
    values = case.values("penultimate", "classifier.0")
    assert spec.taps["penultimate"].shape == (512,)
    assert torch.equal(values["penultimate"], values["classifier.0"].mean((2, 3)))
    assert torch.equal(case.values("penultimate", pooling="mean")["penultimate"], values["penultimate"])
    with pytest.raises(ValueError, match=r"pooling 'max' needs all positions, but a row is their mean, of the shape"):
        pooled_shape(spec.taps["penultimate"], "max")


def test_costs_and_activations_are_stated() -> None:
    found = case_of("vgg11_bn").taps
    assert found["features.0"].multiply_adds == 8 * 27 * 32 * 32
    assert [found[f"features.{n}"].operation for n in range(4)] == [
        "convolution", "native_batch_norm", "relu", "max_pool2d_with_indices",
    ]  # fmt: skip
    assert [found[f"features.{n}"].activation for n in range(4)] == ["pre", "pre", "post", None]
    assert found["penultimate"].activation == "post"
    costs = [tap.multiply_adds for node, tap in found.items() if node != "penultimate"]
    assert costs == sorted(costs)
    assert case_of("mobilenet_v2").taps["features.0.2"].operation == "hardtanh"


# Poolings -------------------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_gem_and_mean_std_are_their_formulas_in_either_layout(shape: tuple[int, ...], last: bool, seed: int) -> None:
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 5
    value = maps.permute(0, 2, 3, 1).contiguous() if last else maps
    tap = Tap(shape=tuple(value.shape[1:]), layout="HWC" if last else "CHW")
    flat = maps.flatten(2).double()
    gem = (flat.clamp(min=1e-6) ** 3).sum(2).div(flat.shape[2]) ** (1 / 3)
    torch.testing.assert_close(pool(value, "gem", tap).double(), gem, rtol=1e-4, atol=1e-5)
    both = torch.cat([flat.mean(2), ((flat - flat.mean(2, keepdim=True)) ** 2).mean(2).sqrt()], 1)
    torch.testing.assert_close(pool(value, "mean+std", tap).double(), both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("swin_t", "features.0.0", ("features.0", "features.1", "features.3.1.mlp.3", "norm")),
        ("convnext_tiny", "features.1.0.block.0", ("features.1.0.block.2", "features.1.0.block.4")),
    ],
)
def test_maps_with_their_channels_last_are_pooled_over_height_and_width(
    name: str, first: str, last: tuple[str, ...]
) -> None:
    case = case_of(name)
    expected = case.plainly()
    means = case.values(first, *last, pooling="mean")
    assert case.taps[first].layout == "CHW"
    torch.testing.assert_close(means[first], expected[first].mean((2, 3)))
    for node in last:
        assert case.taps[node].layout == "HWC"
        torch.testing.assert_close(means[node], expected[node].mean((1, 2)))
        assert pooled_shape(case.taps[node], "avg2x2") == (4 * expected[node].shape[-1],)


def test_tokens_are_pooled_without_the_class_token() -> None:
    case = case_of("vit_b_16")
    node = "encoder.layers.encoder_layer_1"
    whole = case.values(node)[node]
    assert case.taps[node].model_dump(include={"layout", "prefix", "class_token"}) == {
        "layout": "LC",
        "prefix": 1,
        "class_token": True,
    }
    assert torch.equal(case.values(node, pooling="cls")[node], whole[:, 0])
    torch.testing.assert_close(case.values(node, pooling="mean_tokens")[node], whole[:, 1:].mean(1))
    hidden = "encoder.layers.encoder_layer_1.mlp.0"
    assert (case.taps[hidden].layout, case.taps[hidden].prefix) == ("LC", 1)


def test_patches_that_have_no_class_token_yet_are_all_averaged() -> None:
    case = case_of("vit_b_16")
    assert (case.taps["permute"].layout, case.taps["permute"].prefix) == ("LC", 0)
    patches = case.values("permute")["permute"]
    torch.testing.assert_close(case.values("permute", pooling="mean_tokens")["permute"], patches.mean(1))
    with pytest.raises(ValueError, match="pooling 'cls' takes the class token, and this node has none"):
        pooled_shape(case.taps["permute"], "cls")


def test_registers_without_a_class_token_are_left_out_of_the_mean_and_are_no_class_token() -> None:
    class Registers(nn.Module):
        num_prefix_tokens = 2

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.more = nn.Conv2d(3, 5, 4, 4), nn.Parameter(torch.randn(1, 2, 5))
            self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 2)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).mT
            return self.head(self.norm(torch.cat([self.more.expand(len(images), -1, -1), tokens], 1))[:, 2:].mean(1))

    found = survey(serialization.freeze(Registers()), (3, 8, 8))
    assert (found["norm"].layout, found["norm"].prefix, found["norm"].class_token) == ("LC", 2, False)
    assert (found["flatten"].layout, found["getitem"].prefix) == ("other", 0)


@pytest.mark.parametrize("pooling", ["cls", "mean_tokens"])
def test_token_poolings_need_tokens(pooling: str) -> None:
    with pytest.raises(ValueError, match=rf"pooling '{pooling}' needs tokens, but a row has the shape \(3, 4, 4\)"):
        pooled_shape(Tap(shape=(3, 4, 4), layout="CHW"), pooling)


@pytest.mark.parametrize("pooling", ["mean", "max", "gem", "mean+std", "avg2x2"])
def test_map_poolings_need_maps(pooling: str) -> None:
    message = r"averages over height and width, but a row has the shape \(5, 16\)"
    with pytest.raises(ValueError, match=message):
        pooled_shape(Tap(shape=(5, 16), layout="LC"), pooling)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_every_pooling_that_fits_gives_rows_of_the_stated_shape(name: str) -> None:
    case = case_of(name)
    for pooling in ("gem", "mean+std", "avg3x2", "cls", "mean_tokens", "flatten"):
        shapes = {}
        for node, tap in case.taps.items():
            try:
                shapes[node] = pooled_shape(tap, pooling)
            except ValueError:
                continue
        for node, value in case.values(*shapes, pooling=pooling).items():
            assert value.shape == (3, *shapes[node]), (node, pooling)


# Projections ----------------------------------------------------------------------------------------------------------


def test_a_projection_is_deterministic_and_keeps_distances_roughly() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3, 20, 20)).astype(np.float32)
    projected = projection.project(rows, 300)
    assert projected.shape == (20, 300)
    assert projected.dtype == np.float32
    projection.matrix.cache_clear()
    assert np.array_equal(projection.project(rows, 300), projected)
    flat = rows.reshape(20, -1)
    ratios = [
        np.linalg.norm(projected[one] - projected[other]) / np.linalg.norm(flat[one] - flat[other])
        for one, other in itertools.combinations(range(20), 2)
    ]
    assert 0.8 < min(ratios) < max(ratios) < 1.2
    np.testing.assert_allclose(np.mean(ratios), 1, atol=0.03)


def test_the_identity_holds_the_projection_and_not_the_alias() -> None:
    spec = case_of("resnet18").backbone().spec
    plain = identity(spec, TapSpec(node="layer3", pool="mean"))
    assert identity(spec, TapSpec(node="res4", pool="mean")) == plain
    projected = [TapSpec(node="layer3", pool="mean", project=d) for d in (8, 9)]
    kept = [repr(identity(spec, tap)) for tap in projected]
    assert len({repr(plain), *kept}) == 3
    assert projection.digest(256, 8) in kept[0]
    assert projection.digest(256, 9) in kept[1]


# Aliases --------------------------------------------------------------------------------------------------------------


@cache
def meta_taps(name: str, side: int = 64) -> dict[str, Tap]:
    """The nodes that aliases look at: modules with their kinds, in their order, and the ends."""
    with torch.device("meta"):
        network = models.get_model(name, **({"init_weights": False} if name.startswith("inception") else {}))
    found = {node: Tap(shape=(1,), kind=type(part).__name__) for node, part in network.named_modules() if node}
    return {"input": Tap(shape=(3, side, side)), **found, "logits": Tap(shape=(1000,))}


def aliases_of(name: str) -> dict[str, str]:
    """The aliases of one of torchvision's networks."""
    return aliases({"family": "torchvision", "name": name}, meta_taps(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16", {"conv1_1": "features.0", "relu1_1": "features.1", "conv4_3": "features.21", "relu4_3": "features.22",
                   "pool4": "features.23", "conv5_3": "features.28", "pool5": "features.30", "fc6": "classifier.0",
                   "relu6": "classifier.1", "fc7": "classifier.3", "relu7": "classifier.4", "fc8": "classifier.6"}),
        ("vgg16_bn", {"conv4_3": "features.30", "bn4_3": "features.31", "relu4_3": "features.32",
                      "pool4": "features.33"}),
        ("vgg19", {"conv4_3": "features.23", "conv4_4": "features.25", "relu4_4": "features.26",
                   "pool4": "features.27"}),
        ("alexnet", {"conv1": "features.0", "pool1": "features.2", "conv2": "features.3", "pool2": "features.5",
                     "conv5": "features.10", "relu5": "features.11", "pool5": "features.12", "fc6": "classifier.1",
                     "relu6": "classifier.2", "fc7": "classifier.4", "relu7": "classifier.5", "fc8": "classifier.6"}),
        ("resnet50", {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}),
        ("resnext50_32x4d", {"res5": "layer4"}),
        ("wide_resnet50_2", {"res5": "layer4"}),
        ("inception_v3", {"mixed_5b": "Mixed_5b", "mixed_0": "Mixed_5b", "mixed_7c": "Mixed_7c",
                          "mixed_10": "Mixed_7c", "mixed_8": "Mixed_7a"}),
        ("densenet121", {"denseblock1": "features.denseblock1", "denseblock4": "features.denseblock4",
                         "transition3": "features.transition3"}),
        ("squeezenet1_1", {"fire2": "features.3", "fire9": "features.12"}),
        ("vit_b_16", {"block.0": "encoder.layers.encoder_layer_0", "block.11": "encoder.layers.encoder_layer_11"}),
        ("swin_t", {"block.0": "features.1.0", "block.2": "features.3.0", "block.11": "features.7.1"}),
        ("swin_v2_t", {"block.11": "features.7.1"}),
        ("maxvit_t", {"block.0": "blocks.0.layers.0", "block.10": "blocks.3.layers.1"}),
        ("convnext_tiny", {"block.0": "features.1.0", "block.17": "features.7.2"}),
        ("mobilenet_v2", {"block.0": "features.1", "block.12": "features.13", "block.16": "features.17"}),
        ("efficientnet_b0", {"block.0": "features.1.0", "block.15": "features.7.0"}),
        ("mnasnet0_5", {}),
    ],
)  # fmt: skip
def test_the_names_of_papers_stand_for_their_nodes(name: str, expected: dict[str, str]) -> None:
    found = aliases_of(name)
    assert {alias: found.get(alias) for alias in expected} == expected
    assert bool(found) == bool(expected)
    assert set(found.values()) <= set(meta_taps(name))
    assert not set(found) & set(meta_taps(name))


def test_the_class_token_is_what_the_last_layer_gets() -> None:
    case = case_of("vit_b_16")
    spec = case.backbone().spec
    assert spec.node("cls") == "penultimate"
    values = case.values("encoder", "penultimate")
    assert torch.equal(values["penultimate"], values["encoder"][:, 0])
    assert "cls" not in case_of("swin_t").backbone().spec.aliases


def test_a_mean_over_the_patches_is_not_called_the_class_token() -> None:
    tokens = Tap(shape=(5, 8), layout="LC", prefix=1, class_token=True, kind="Block")
    last = Tap(shape=(8,), kind="penultimate", operation="native_layer_norm", input_of="head")
    norm = {"fc_norm": Tap(shape=(8,), kind="LayerNorm")}
    assert aliases({"name": "beit"}, {"blocks.0": tokens, "penultimate": last}) == {
        "block.0": "blocks.0",
        "cls": "penultimate",
    }
    assert "cls" not in aliases({"name": "beit"}, {"blocks.0": tokens, **norm, "penultimate": last})
    mean = last.model_copy(update={"operation": "mean"})
    assert "cls" not in aliases({"name": "vit"}, {"blocks.0": tokens, "penultimate": mean})


def test_an_alias_never_hides_a_node() -> None:
    found = {"layer1": Tap(shape=(1,)), "layer2": Tap(shape=(1,)), "res2": Tap(shape=(1,))}
    assert aliases({"name": "resnet18"}, found) == {"res3": "layer2"}
    assert aliases({"family": "glyphs"}, found) == {}


def test_an_alias_is_resolved_and_an_unknown_one_is_named_with_its_neighbours() -> None:
    spec = case_of("vgg11_bn").backbone().spec
    assert resolve({"x": TapSpec(node="conv4_2")}, spec, where="net")["x"].node == "features.18"
    with pytest.raises(BackboneError, match=r"(?s)net: taps that do not exist.*tap 'x': unknown node 'conv4_3'\. Did"):
        resolve({"x": TapSpec(node="conv4_3")}, spec, where="net")
    with pytest.raises(BackboneError, match=r"Did you mean .*'relu5_1'"):
        resolve({"x": TapSpec(node="relu51")}, spec, where="net")


# Head replay ----------------------------------------------------------------------------------------------------------


def test_the_families_are_all_of_torchvisions() -> None:
    def family(name: str) -> str:
        return next(part for part in STEMS if name.startswith(part))

    assert {family(name) for name in models.list_models(module=models)} == {family(name) for name in FAMILIES}


STEMS = (
    "alexnet", "convnext", "densenet", "efficientnet_v2", "efficientnet_b", "googlenet", "inception", "maxvit",
    "mnasnet", "mobilenet_v2", "mobilenet_v3", "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "swin_v2",
    "swin", "vgg", "vit", "wide_resnet",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_penultimate_features_through_the_networks_own_end_give_its_logits(name: str) -> None:
    case = case_of(name)
    found = case.values("penultimate", "logits")
    with torch.inference_mode(), hooks.without_attention_fastpath():
        assert torch.equal(found["logits"], case.network(case.images))
    rows = found["penultimate"].numpy()
    backbone = case.backbone()
    logits = expected_logits(backbone, rows, found["logits"].numpy())
    assert bool(backbone.spec.taps["penultimate"].averaged) == (name == "squeezenet1_1")
    replayed = replay(backbone, rows)
    assert np.ptp(logits, axis=0).max() > 0
    np.testing.assert_allclose(replayed, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())
    for row in range(len(rows)):
        np.testing.assert_allclose(replay(backbone, rows[row : row + 1].reshape(1, -1)), logits[row : row + 1],
                                   rtol=1e-4, atol=1e-5 * np.abs(logits).max())  # fmt: skip


def stored(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Rows as they come back from a store of a dtype."""
    if dtype == "bfloat16":
        return torch.from_numpy(rows).bfloat16().float().numpy()
    if dtype == "int8":
        scale = np.abs(rows).max(axis=0) / 127
        return np.round(rows / np.where(scale == 0, 1, scale)).clip(-127, 127) * scale
    return rows.astype(np.float16).astype(np.float32) if dtype == "float16" else rows


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_stored_rows_are_checked_against_live_logits(dtype: str) -> None:
    case = case_of("squeezenet1_1")
    found = case.values("penultimate", "logits")
    rows = stored(found["penultimate"].numpy(), dtype)
    logits = expected_logits(case.backbone(), found["penultimate"].numpy(), found["logits"].numpy())
    said = check_replay(case.backbone(), rows, logits, dtype=dtype, where="data/features/x")
    assert said["rows"] == 3
    assert said["error"] < {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}[dtype]
    assert said["agreement"] == 1
    message = (
        r"data/features/x: expected cached `penultimate` features to give the network's logits within .* of the "
        r"largest .*, got .* in row 0, and 3 of 3 rows off\. The features are of other samples"
    )
    with pytest.raises(BackboneError, match=message):
        check_replay(case.backbone(), rows * 1.5, logits, dtype=dtype, where="data/features/x")


def test_one_row_of_another_sample_is_found() -> None:
    case = case_of("resnet18")
    found = case.values("penultimate", "logits")
    rows, logits = found["penultimate"].numpy().copy(), found["logits"].numpy()
    rows[1] = rows[2]
    with pytest.raises(BackboneError, match=r"in row 1, and 1 of 3 rows off"):
        check_replay(case.backbone(), rows, logits, dtype="float16", where="x")
    rows[1] = math.inf
    with pytest.raises(BackboneError, match=r"got an error of nan in row 1, and 1 of 3 rows off"):
        check_replay(case.backbone(), rows, logits, dtype="float16", where="x")


def test_rows_in_more_than_one_batch_are_replayed_and_none_at_all_too() -> None:
    case = case_of("resnet18")
    found = case.values("penultimate", "logits")
    rows = np.tile(found["penultimate"].numpy(), (12, 1))
    np.testing.assert_allclose(replay(case.backbone(), rows), np.tile(found["logits"].numpy(), (12, 1)), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    assert replay(case.backbone(), rows[:0]).shape == (0, 9)
    said = check_replay(case.backbone(), rows[:0], rows[:0, :9], dtype="float16", where="x")
    assert said == {"rows": 0, "error": 0.0, "agreement": 1.0}


def test_replay_refuses_rows_and_logits_of_other_shapes() -> None:
    backbone = case_of("resnet18").backbone()
    message = (
        r"resnet18: expected rows of `penultimate` with the size of \(512,\), got \(511,\)\. Store the tap with `pool"
    )
    with pytest.raises(BackboneError, match=message):
        replay(backbone, np.zeros((2, 511), np.float32))
    with pytest.raises(BackboneError, match=r"x: expected logits of the shape \(2, 9\), got \(3, 9\)\."):
        check_replay(backbone, np.zeros((2, 512)), np.zeros((3, 9)), dtype="float32", where="x")


def test_rows_of_a_network_without_a_last_layer_are_its_output() -> None:
    network = serialization.freeze(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten()))
    spec = described({"family": "x"}, (3, 8, 8), survey(network, (3, 8, 8)))
    rows = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    assert np.array_equal(replay(Backbone(spec, network), rows), rows)
    with pytest.raises(BackboneError, match=r"with the size of \(256,\), got \(4,\)"):
        replay(Backbone(spec, network), np.zeros((2, 4), np.float32))


def test_a_network_that_gives_no_tensor_has_nothing_to_replay() -> None:
    network = serialization.freeze(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LSTM(8, 4)))
    spec = described({"family": "x"}, (3, 8, 8), {})
    with pytest.raises(BackboneError, match=r"x: unknown node 'penultimate'.* Only a network that returns a tensor"):
        replay(Backbone(spec, network), np.zeros((2, 4), np.float32))


def test_a_glyph_network_is_replayed(tmp_path: Path) -> None:
    serialization.write(
        tmp_path,
        glyphs.GlyphNet(classes=3, widths=(4, 8)),
        architecture={"family": "glyphs", "classes": 3, "widths": [4, 8]},
        origin={},
        inputs=glyphs.INPUT,
    )
    backbone = serialization.read(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    specs = {"p": TapSpec(node="penultimate"), "l": TapSpec(node="logits")}
    found = TorchEngine(backbone, specs, batch_size=4).run({"pixels": pixels})
    assert check_replay(backbone, found["p"], found["l"], dtype="float32", where="x")["error"] < 1e-5


# Real weights ---------------------------------------------------------------------------------------------------------


def test_real_weights_name_as_many_of_a_hundred_photos_as_was_measured(assets: Path, tmp_path: Path) -> None:
    model, top1, top5 = "mobilenet_v2", 80, 96
    file = next((assets / "weights").glob(f"{model}-*.pth"))
    config = Torchvision(source="torchvision", model=model, weights="IMAGENET1K_V1", file=file,
                          sha256=sha256_file(file)[:12])  # fmt: skip
    freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    backbone = serialization.read(tmp_path / "backbone")
    with tarfile.open(assets / "images" / "imagenet-sample-100.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    photos = sorted(tmp_path.rglob("*.JPEG"))
    reader = ImageReader(backbone.spec.input.image)
    specs = {"p": TapSpec(node="penultimate"), "l": TapSpec(node="logits")}
    engine = TorchEngine(backbone, specs, batch_size=25)
    parts = [
        engine.run({"pixels": np.stack([reader(path.read_bytes())["pixels"] for path in photos[start : start + 25]])})
        for start in range(0, 100, 25)
    ]
    rows, logits = (np.concatenate([part[name] for part in parts]) for name in ("p", "l"))
    labels = np.array([int(path.name.split("_")[0]) for path in photos])
    best = np.argsort(-logits, axis=1)[:, :5]
    assert ((best[:, 0] == labels).sum(), (best == labels[:, None]).any(1).sum()) == (top1, top5)
    expected = expected_logits(backbone, rows[:16], logits[:16])
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        said = check_replay(backbone, stored(rows[:16], dtype), expected, dtype=dtype, where=model)
        assert said["rows"] == 16
