"""Backbones: what a tap holds and how it is pooled, the way to the disk and back, and the engine that runs them."""

import itertools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision import models

from pipeline.backbones import glyphs, hooks, serialization, torchvision_models
from pipeline.backbones.nodes import survey
from pipeline.backbones.pooling import pool as pool_of
from pipeline.backbones.serialization import Backbone, weights_digest
from pipeline.backbones.spec import GRID, BackboneSpec, InputSpec, Tap, TapSpec, pooled_shape, read_spec, resolve
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError
from pipeline.readers.image import ImageSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
NETWORKS = ("glyphs", "resnet18")  # test_taps.py has many more
POOLINGS = ("none", "flatten", "mean", "max", "avg1x1", "avg2x2", "avg3x1")
SPEC = InputSpec(image=ImageSpec(resize=(SIDE, SIDE)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def random_network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network of random weights, its BatchNorms with statistics as if it had been trained, and its input's shape."""
    torch.manual_seed(0)
    if name == "glyphs":
        network: nn.Module = glyphs.GlyphNet(classes=5, widths=(4, 8, 12))
        shape = (1, 32, 32)
    else:
        network, shape = models.get_model(name, weights=None), (3, SIDE, SIDE)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    return serialization.freeze(network), shape


class Case:
    """A network with its taps and a batch of three images."""

    def __init__(self, name: str) -> None:
        self.network, shape = random_network(name)
        self.taps = survey(self.network, shape)
        self.images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def values(self, *nodes: str, pool: str = "none") -> dict[str, Tensor]:
        """The values of some nodes, asked for together."""
        return hooks.collect(self.network, self.images, {n: TapSpec(node=n, pool=pool) for n in nodes}, self.taps)

    @torch.inference_mode()
    def plainly(self) -> dict[str, Tensor]:
        """The values of all nodes, by one whole forward pass with a hook that clones in each module."""
        found = {"input": self.images.clone()}

        def keep(node: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                found.setdefault(node, output.clone())

            return hook

        named = dict(self.network.named_modules())
        handles = [named[n].register_forward_hook(keep(n)) for n in self.modules if n in named]
        found["logits"] = self.network(self.images.clone())
        for handle in handles:
            handle.remove()
        return found

    @property
    def modules(self) -> list[str]:
        """The nodes that are modules in their first call, the input and the logits among them."""
        return [n for n, tap in self.taps.items() if tap.kind not in ("function", "penultimate") and not tap.call]

    def before_inplace(self) -> list[str]:
        """Nodes whose output the next module overwrites in place."""
        leaves = [(name, part) for name, part in self.network.named_modules() if not list(part.children())]
        pairs = itertools.pairwise(leaves)
        return [name for (name, _), (_, after) in pairs if getattr(after, "inplace", False) and name in self.modules]

    def sample(self) -> list[str]:
        """A few nodes over the whole depth, among them some before an in-place activation."""
        names = self.modules
        return sorted({*names[:: max(1, len(names) // 5)], "logits", *self.before_inplace()[:2]}, key=names.index)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    """One of the networks."""
    return Case(request.param)


def tiny(seed: int = 0, *, widths: tuple[int, ...] = (4, 8), classes: int = 3) -> nn.Module:
    """A small GlyphNet of random weights."""
    torch.manual_seed(seed)
    return glyphs.GlyphNet(classes=classes, widths=widths)


def write_tiny(folder: Path, network: nn.Module | None = None) -> BackboneSpec:
    """Write a small GlyphNet into a folder."""
    return serialization.write(
        folder,
        network or tiny(),
        architecture={"family": "glyphs", "classes": 3, "widths": [4, 8]},
        origin={"source": "a test"},
        inputs=glyphs.INPUT,
        classes=("a", "b", "c"),
    )


def edit_json(folder: Path, **changes: Any) -> None:
    """Change some keys of backbone.json."""
    path = folder / "backbone.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Taps: values ---------------------------------------------------------------------------------------------------------


def test_a_tap_holds_what_a_plain_forward_pass_gives(case: Case) -> None:
    expected = case.plainly()
    for node in case.sample():
        assert torch.equal(case.values(node)[node], expected[node]), node


def test_a_tap_does_not_depend_on_what_else_is_asked_for(case: Case) -> None:
    nodes = case.sample()
    alone = {node: case.values(node)[node] for node in nodes}
    for pair in itertools.combinations(nodes, 2):
        together = case.values(*pair)
        assert set(together) == set(pair)
        for node in pair:
            assert torch.equal(together[node], alone[node]), (node, pair)


def test_all_taps_at_once_are_what_each_is_alone(case: Case) -> None:
    together = case.values(*case.taps, pool="flatten")
    for node in case.sample():
        assert torch.equal(together[node], case.values(node, pool="flatten")[node]), node


def test_a_tap_before_an_in_place_activation_keeps_its_negative_values(case: Case) -> None:
    nodes = case.before_inplace()[:3]
    assert nodes
    for node, value in case.values(*nodes).items():
        assert (value < 0).any(), node


def test_input_and_logits_are_nodes(case: Case) -> None:
    found = case.values("input", "logits")
    assert torch.equal(found["input"], case.images)
    with torch.inference_mode():
        assert torch.equal(found["logits"], case.network(case.images))
    assert next(iter(case.taps)) == "input"
    assert list(case.taps)[-1] == "logits"
    assert case.taps["input"].layout == "CHW"
    assert case.taps["logits"].layout == "other"


def test_one_node_can_be_pooled_in_two_ways_at_once() -> None:
    case = Case("glyphs")
    specs = {"mean": TapSpec(node="block1", pool="mean"), "whole": TapSpec(node="block1")}
    found = hooks.collect(case.network, case.images, specs, case.taps)
    assert torch.equal(found["mean"], case.values("block1", pool="mean")["block1"])
    assert torch.equal(found["whole"], case.values("block1")["block1"])


def test_the_forward_pass_stops_after_the_last_module_that_is_needed() -> None:
    case = Case("glyphs")
    ran: list[str] = []
    for name, part in case.network.named_children():
        part.register_forward_pre_hook(lambda _module, _args, name=name: ran.append(name))
    case.values("block1", "block2.0")
    assert ran == ["block1", "block2"]
    ran.clear()
    case.values("input")
    assert ran == []
    case.values("logits")
    assert ran == [name for name, _ in case.network.named_children()]


def test_no_hook_is_left_behind_even_if_the_network_fails() -> None:
    case = Case("glyphs")
    case.values("block1", "logits")
    with pytest.raises(RuntimeError):
        hooks.collect(case.network, torch.zeros(1, 5, 32, 32), {"x": TapSpec(node="block2")}, case.taps)
    with pytest.raises(RuntimeError):
        survey(case.network, (5, 32, 32))
    assert not any(part._forward_hooks for part in case.network.modules())


def test_a_module_that_runs_twice_is_two_nodes() -> None:
    case = Case("resnet18")
    assert (case.taps["layer1.0.relu"].call, case.taps["layer1.0.relu_1"].call) == (0, 1)
    assert "layer1.0.relu_2" not in case.taps
    found = case.values("layer1.0.relu", "layer1.0.relu_1", "layer1.0.bn1", "layer1.0.add", "layer1.0")
    assert torch.equal(found["layer1.0.relu"], found["layer1.0.bn1"].relu())
    assert torch.equal(found["layer1.0.relu_1"], found["layer1.0.add"].relu())
    assert torch.equal(found["layer1.0.relu_1"], found["layer1.0"])


def test_modules_that_return_no_single_tensor_are_not_offered() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Flatten(2)
            self.memory = nn.LSTM(16, 5, batch_first=True)
            self.unused = nn.Linear(5, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.memory(self.rows(images))[0][:, -1])

    found = list(survey(Recurrent().eval(), (3, 4, 4)))
    assert found == ["input", "rows", "getitem", "last", "penultimate", "logits"]


def test_an_unknown_node_is_named_with_its_neighbours(tmp_path: Path) -> None:
    spec = write_tiny(tmp_path)
    message = r"(?s)here: taps that do not exist.*- tap 'x': unknown node 'blok1'\. Did you mean 'block1'"
    with pytest.raises(BackboneError, match=message):
        resolve({"x": TapSpec(node="blok1")}, spec, where="here")
    assert resolve({"x": TapSpec(node="block1")}, spec, where="here") == {"x": TapSpec(node="block1")}


# Taps: layout and pooling ---------------------------------------------------------------------------------------------


def numpy_pool(pool: str, maps: np.ndarray) -> np.ndarray:
    """NumPy's own pooling of (n, channels, height, width)."""
    if pool == "mean":
        return maps.mean((2, 3))
    if pool == "max":
        return maps.max((2, 3))
    grid = GRID.fullmatch(pool)
    assert grid
    rows, columns = int(grid[1]), int(grid[2])
    cells = [
        maps[:, :, top[0] : top[1], left[0] : left[1]].mean((2, 3))
        for top in cuts(maps.shape[2], rows)
        for left in cuts(maps.shape[3], columns)
    ]
    return np.stack(cells, axis=2).reshape(len(maps), -1)


def cuts(side: int, parts: int) -> list[tuple[int, int]]:
    """Where a side is cut into parts: they overlap where it cannot be divided."""
    return [(part * side // parts, math.ceil((part + 1) * side / parts)) for part in range(parts)]


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


@given(shape=SHAPES, pool=st.sampled_from(("mean", "max", "avg1x1", "avg2x2", "avg4x3")), last=st.booleans())
def test_pooling_is_that_of_numpy_in_either_layout(shape: tuple[int, ...], pool: str, last: bool) -> None:
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    value = torch.from_numpy(maps.transpose(0, 2, 3, 1).copy() if last else maps)
    found = pool_of(value, pool, Tap(shape=tuple(value.shape[1:]), layout="HWC" if last else "CHW"))
    np.testing.assert_allclose(found.numpy(), numpy_pool(pool, maps), rtol=1e-5, atol=1e-6)


@given(shape=SHAPES)
def test_none_and_flatten_keep_every_value_in_its_order(shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tap = Tap(shape=shape[1:], layout="CHW")
    for value in (torch.from_numpy(maps), torch.from_numpy(maps).to(memory_format=torch.channels_last)):
        assert np.array_equal(pool_of(value, "none", tap).numpy(), maps)
        assert np.array_equal(pool_of(value, "flatten", tap).numpy(), maps.reshape(len(maps), -1))


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 1, 1), (2, 3, 2, 2), (2, 4, 6, 6)])
def test_a_pooled_value_shares_no_memory_with_what_the_network_overwrites(pool: str, shape: tuple[int, ...]) -> None:
    value = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1
    found = pool_of(value, pool, Tap(shape=shape[1:], layout="CHW"))
    before = found.clone()
    value.zero_()
    assert torch.equal(found, before)


def test_the_stated_shape_of_a_row_is_that_of_its_values(case: Case) -> None:
    for tap in case.taps.values():
        for pool in POOLINGS:
            if pool not in ("none", "flatten") and tap.layout == "other":
                with pytest.raises(ValueError, match=r"pooling '[\w+]+' averages over height and width, but a row has"):
                    pooled_shape(tap, pool)
    for pool in POOLINGS:
        fitting = [
            node for node, tap in case.taps.items() if pool in ("none", "flatten") or tap.layout in ("CHW", "HWC")
        ]
        for node, value in case.values(*fitting, pool=pool).items():
            assert value.shape == (3, *pooled_shape(case.taps[node], pool)), (node, pool)


class OneSize(nn.Module):
    """A network that takes one size of images, with maps, windows and tokens inside."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 6, 3, padding=1)
        self.refusal = nn.Identity()
        self.more = nn.Conv2d(6, 6, 3, padding=1)
        self.windows = nn.Identity()
        self.tokens = nn.Flatten(2)
        self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.refusal(self.maps(images))
        assert maps.shape[-1] == 8, "images of 8 pixels only"
        maps = self.more(maps)
        self.windows(maps.reshape(-1, 6, 4, 16))
        return self.head(self.tokens(maps))


def test_a_network_of_one_input_size_is_surveyed_all_the_same() -> None:
    found = survey(OneSize().eval(), (1, 8, 8))
    assert {name: tap.layout for name, tap in found.items() if tap.kind != "function"} == {
        "input": "CHW",
        "maps": "CHW",
        "refusal": "CHW",
        "more": "CHW",
        "windows": "other",
        "tokens": "LC",
        "head": "LC",
        "penultimate": "other",
        "logits": "LC",
    }


def test_tokens_are_no_maps() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.windows(images.unflatten(2, (-1, 4)).flatten(3).movedim(1, 3)).mean((1, 2))

    windows = survey(Tokens().eval(), (3, 8, 8))["windows"]
    assert (windows.shape, windows.layout, windows.kind) == ((2, 32, 3), "HWC", "Identity")
    assert survey(nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(3)), (3, 8, 8))["1"].layout == "other"


@pytest.mark.parametrize("pool", ["average", "avg2", "avg0x2", "avg2x0", "avg-1x2", "avg2x2x2", ""])
def test_an_unknown_pooling_is_refused(pool: str) -> None:
    with pytest.raises(
        ValidationError,
        match=r"unknown pooling\. Expected one of: none, flatten, mean, max, gem, mean\+std, cls, "
        r"mean_tokens, avg<h>x<w>",
    ):
        TapSpec(node="input", pool=pool)


# The artefact ---------------------------------------------------------------------------------------------------------


def test_a_backbone_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    network = Case("glyphs").network
    spec = serialization.write(
        tmp_path / "b",
        network,
        architecture={"family": "glyphs", "classes": 5, "widths": [4, 8, 12]},
        origin={"source": "a test", "steps": 3},
        inputs=glyphs.INPUT,
        classes=("a", "b", "c", "d", "é"),
    )
    again = serialization.read(tmp_path / "b")
    images = torch.randn(4, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again.module(images), network(images))
    assert again.spec == spec == read_spec(tmp_path / "b")
    assert spec.taps == Case("glyphs").taps
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["backbone.json", "weights.safetensors"]


def test_a_backbone_in_channels_last_memory_is_written_as_any_other(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "plain", tiny())
    assert write_tiny(tmp_path / "last", tiny().to(memory_format=torch.channels_last)) == plain
    assert (tmp_path / "last/weights.safetensors").read_bytes() == (tmp_path / "plain/weights.safetensors").read_bytes()


def test_a_backbone_is_frozen_and_running_it_changes_nothing(tmp_path: Path) -> None:
    spec = write_tiny(tmp_path)
    backbone = serialization.read(tmp_path)
    engine = TorchEngine(backbone, {"l": TapSpec(node="logits"), "b": TapSpec(node="block1.1")}, batch_size=4)
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
        engine.run({"pixels": pixels})
    assert not any(part.training for part in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert weights_digest(backbone.module.state_dict()) == spec.weights_digest


def test_the_digest_covers_names_shapes_types_and_buffers_but_not_the_order() -> None:
    state = dict(tiny().state_dict())
    digest = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == digest
    key = "block1.1.running_mean"
    flat = state["classifier.weight"].reshape(-1)
    changed: list[Mapping[str, Tensor]] = [
        state | {key: state[key] + 1e-6},
        state | {"block1.1.num_batches_tracked": torch.tensor(1)},
        state | {"classifier.bias": state["classifier.bias"].neg()},
        state | {"classifier.weight": flat},
        state | {"classifier.bias": state["classifier.bias"].view(torch.int32)},
        {name.replace("classifier", "head"): tensor for name, tensor in state.items()},
    ]
    assert len({digest, *(weights_digest(other) for other in changed)}) == len(changed) + 1


def test_the_digest_does_not_depend_on_the_memory_format() -> None:
    state = tiny().state_dict()
    last = tiny().to(memory_format=torch.channels_last).state_dict()
    assert weights_digest(last) == weights_digest(state)


def test_one_changed_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BackboneError, match=r"weights with the digest \w{16}…, got \w{16}…. The file was changed or"):
        serialization.read(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_weights_file_is_refused(tmp_path: Path, kept: int) -> None:
    write_tiny(tmp_path / "net")
    path = tmp_path / "net/weights.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        BackboneError, match=r"weights.safetensors: expected weights, got .*icecore repro -f freeze@net"
    ):
        serialization.read(tmp_path / "net")


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"weights.safetensors: expected weights, got No such file"):
        serialization.read(tmp_path)


def test_a_folder_without_a_backbone_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"not a backbone \(backbone.json is missing\). Run `icecore repro freeze@n`"
    ):
        serialization.read(tmp_path / "n")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 1}', '{"format": 2}', "\x00"], ids=["cut", "list", "short", "other", "binary"]
)
def test_a_damaged_backbone_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "backbone.json").write_text(text)
    with pytest.raises(BackboneError, match=r"backbone.json: not a backbone of this version of icecore"):
        read_spec(tmp_path)


def test_a_backbone_of_another_format_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit_json(tmp_path, format=1)
    with pytest.raises(
        BackboneError, match=r"(?s)not a backbone of this version of icecore.*format.*Input should be 2"
    ):
        serialization.read(tmp_path)
    write_tiny(tmp_path)
    edit_json(tmp_path, colour="red")
    with pytest.raises(BackboneError, match="colour"):
        serialization.read(tmp_path)


@pytest.mark.parametrize("architecture", [{"family": "glyph"}, {}])
def test_an_unknown_architecture_family_is_refused(tmp_path: Path, architecture: dict[str, Any]) -> None:
    write_tiny(tmp_path)
    edit_json(tmp_path, architecture=architecture)
    with pytest.raises(BackboneError, match=r"unknown architecture family '(glyph'. Did you mean 'glyphs'|'.)"):
        serialization.read(tmp_path)


def test_weights_of_another_shape_are_refused_by_key(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit_json(tmp_path, architecture={"family": "glyphs", "classes": 4, "widths": [4, 8]})
    message = (
        r"weights do not fit .*, 2 keys differ(.|\n)*classifier.weight: the architecture has \(4, 8\), the weights \(3"
    )
    with pytest.raises(BackboneError, match=message):
        serialization.read(tmp_path)


def test_missing_and_surplus_weights_are_named_but_not_all_of_them() -> None:
    network = tiny()
    state = network.state_dict()
    renamed = {name.replace("classifier.bias", "bias"): tensor for name, tensor in state.items()}
    with pytest.raises(BackboneError) as caught:
        serialization.load_state(network, renamed, where="here")
    assert str(caught.value).splitlines() == [
        "here: the weights do not fit the architecture, 2 keys differ. The first of them",
        "  - missing: classifier.bias (3,)",
        "  - not in the architecture: bias (3,)",
    ]
    with pytest.raises(BackboneError, match=r"the weights do not fit the architecture, \d\d keys differ") as caught:
        serialization.load_state(network, {}, where="here")
    assert len(str(caught.value).splitlines()) == 9


def test_weights_that_do_not_fit_leave_the_network_as_it_was() -> None:
    network, other = tiny(0), tiny(1)
    digest = weights_digest(network.state_dict())
    with pytest.raises(BackboneError):
        serialization.load_state(network, {**other.state_dict(), "more": torch.zeros(1)}, where="here")
    assert weights_digest(network.state_dict()) == digest


def test_weights_from_before_batchnorm_counted_its_batches_fit() -> None:
    network, other = tiny(0), tiny(1)
    state = {name: tensor for name, tensor in other.state_dict().items() if "num_batches_tracked" not in name}
    serialization.load_state(network, state, where="here")
    assert weights_digest(network.state_dict()) == weights_digest(other.state_dict())


def test_weights_of_half_precision_are_run_in_single_precision() -> None:
    network = tiny(0)
    serialization.load_state(network, tiny(1).half().state_dict(), where="here")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_backbone_folder_can_be_copied_and_the_safetensors_file_stands_alone(tmp_path: Path) -> None:
    write_tiny(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    state = safetensors.torch.load_file(tmp_path / "two/weights.safetensors")
    assert weights_digest(state) == serialization.read(tmp_path / "two").spec.weights_digest


# The engine -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_backbone(tmp_path: Path) -> Backbone:
    """A small GlyphNet, read from the disk."""
    write_tiny(tmp_path / "engine")
    return serialization.read(tmp_path / "engine")


PIXELS = np.random.default_rng(3).integers(0, 256, (6, 32, 32, 1), dtype=np.uint8)


def test_the_engine_normalises_and_returns_one_row_an_image(tiny_backbone: Backbone) -> None:
    specs = {"raw": TapSpec(node="input"), "block": TapSpec(node="block1", pool="mean"), "out": TapSpec(node="logits")}
    images = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits = tiny_backbone.module(images)
    found = TorchEngine(tiny_backbone, specs, batch_size=6).run({"pixels": PIXELS})
    np.testing.assert_allclose(found["raw"], images, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["out"], logits, rtol=1e-4, atol=1e-5)
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "raw": ((6, 1, 32, 32), np.float32),
        "block": ((6, 4), np.float32),
        "out": ((6, 3), np.float32),
    }


def test_a_short_batch_gives_the_very_rows_of_a_full_one(tiny_backbone: Backbone) -> None:
    engine = TorchEngine(tiny_backbone, {"out": TapSpec(node="logits")}, batch_size=6)
    whole = engine.run({"pixels": PIXELS})["out"]
    seen: set[int] = set()
    tiny_backbone.module.register_forward_pre_hook(lambda _module, images: seen.add(len(images[0])))
    for count in range(1, 6):
        assert np.array_equal(engine.run({"pixels": PIXELS[:count].copy()})["out"], whole[:count])
    assert seen == {6}, "kernels may round by the batch size"


def test_the_engine_leaves_the_pixels_alone(tiny_backbone: Backbone) -> None:
    pixels = PIXELS.copy()
    TorchEngine(tiny_backbone, {"raw": TapSpec(node="input")}, batch_size=8).run({"pixels": pixels})
    assert np.array_equal(pixels, PIXELS)


def test_the_engine_says_what_it_ran_on(tiny_backbone: Backbone) -> None:
    told = TorchEngine(tiny_backbone, {"raw": TapSpec(node="input")}, batch_size=8).provenance
    assert told["engine"] == "torch"
    assert told["batch_size"] == 8
    assert torch.__version__.startswith(told["torch"])
    assert told["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())


# torchvision ----------------------------------------------------------------------------------------------------------


def test_the_auxiliary_classifiers_of_the_files_have_a_place() -> None:
    with torch.device("meta"):
        for name in ("googlenet", "inception_v3"):
            built = serialization.build(
                torchvision_models.architecture(name, torchvision_models.weights_entry(name, "DEFAULT"), None)
            )
            stored = models.get_model(name, weights=None, aux_logits=True, init_weights=False).state_dict()
            assert set(built.state_dict()) == set(stored)
            assert built.transform_input


def test_the_old_names_inside_densenet_are_understood() -> None:
    torch.manual_seed(0)
    network = models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, num_classes=2)
    state = network.state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.")
        if "denselayer" in key
        else key: tensor
        for key, tensor in state.items()
    }
    assert old.keys() != state.keys()
    assert weights_digest(torchvision_models.current_keys(old)) == weights_digest(state)
    mobile = models.mobilenet_v2(weights=None).state_dict()
    assert list(torchvision_models.current_keys(mobile)) == list(mobile)
