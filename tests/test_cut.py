"""Cuts: which nodes cut a network, and that training from stored activations is training of the whole network."""

import copy
import re
from typing import Any

import pytest
import torch
from support.networks import backbone, glyph_net, images, labels
from test_taps import case_of
from torch import Tensor, nn

from pipeline.backbones import hooks
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.errors import BackboneError
from pipeline.partition.graph import trace
from pipeline.partition.split_points import blocks, build_tail, find_split_points, tail_parameters, trace_for_split
from pipeline.training.config import FromTap
from pipeline.training.freezing import TrainableParts, prepare

pytestmark = pytest.mark.usefixtures("one_thread")

# A few cuts of each: early, in the middle, late, and after a layer with dropout behind it.
CUTS = {
    "vgg": ("input", "features.0", "features.5", "avgpool", "classifier.1", "penultimate"),
    "resnet": ("maxpool", "layer1.0", "layer2", "layer3", "penultimate"),
    "mobilenet": ("features.0", "features.1", "features.2", "features.3", "flatten"),
    "vit": ("conv_proj", "encoder.dropout", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.add",
            "encoder.layers", "penultimate"),
}  # fmt: skip


# Networks with other ways of being put together.
SOME = ("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5",
        "squeezenet1_1", "swin_t", "swin_v2_t", "vit_b_16")  # fmt: skip


@torch.no_grad()
def rows_of(found: Backbone, node: str, inputs: Tensor) -> Tensor:
    """The values of a node, float32, as the store would give them."""
    found.module.eval()
    spec = {"rows": TapSpec(node=found.spec.node(node), dtype="float32")}
    return hooks.collect(found.module, inputs, spec, found.spec.taps)["rows"].clone()


def steps(
    run: nn.Module, frozen: TrainableParts, inputs: Tensor, targets: Tensor, *, size: int = 6
) -> list[dict[str, Tensor]]:
    """Two epochs of SGD: of each step the loss, and the gradients by the names of the whole network."""
    optimiser = torch.optim.SGD(frozen.groups(0.01), momentum=0.9)
    found = []
    for step in range(2 * len(inputs) // size):
        chosen = slice(step * size % len(inputs), step * size % len(inputs) + size)
        frozen.train_mode(run)
        torch.manual_seed(step)  # dropout
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(run(inputs[chosen]), targets[chosen])
        loss.backward()
        gradients = {name: one.grad.clone() for name, one in frozen.network.named_parameters() if one.grad is not None}
        found.append({"loss": loss.detach(), **gradients})
        optimiser.step()
    return found


@pytest.mark.parametrize(("name", "node"), [(name, node) for name, nodes in CUTS.items() for node in nodes])
def test_training_from_stored_activations_is_training_of_the_whole_network(name: str, node: str) -> None:
    whole = backbone(name)
    part = Backbone(whole.spec, copy.deepcopy(whole.module))
    inputs, targets = images(whole.spec, 12), labels(12)
    what, tail = FromTap(from_tap=node), build_tail(part.module, node, spec=part.spec)
    rows = rows_of(part, node, inputs)
    one, other = (prepare(found.module, found.spec, what, batch_norm="train") for found in (whole, part))
    before = one.digest()
    live, cached = steps(whole.module, one, inputs, targets), steps(tail, other, rows, targets)
    assert len(live) == 4
    assert live[-1]["loss"] != live[0]["loss"]
    for left, right in zip(live, cached, strict=True):
        assert set(left) == set(right)
        assert set(left) - {"loss"} == tail_parameters(whole.module, node, spec=whole.spec)
        for key, value in left.items():
            # A gradient that is zero but for rounding, such as that of a bias before a norm, has no relative error.
            scale = max(float(value.norm()), 1e-3 * max(float(one.norm()) for one in left.values()))
            assert float((value - right[key]).norm()) <= 1e-5 * scale, key
    assert one.digest() == other.digest() == before
    for key, value in whole.module.state_dict().items():
        torch.testing.assert_close(value, part.module.state_dict()[key], rtol=1e-4, atol=1e-6, msg=key)
    assert torch.equal(rows, rows_of(part, node, inputs))  # the stored rows would be the same after training


# Which nodes ---------------------------------------------------------------------------------------------------------


def split_points(found: Backbone) -> list[str]:
    return find_split_points(trace_for_split(found.module, found.spec), found.spec)


@pytest.mark.parametrize("name", SOME)
def test_what_comes_after_each_legal_cut_gives_the_logits(name: str) -> None:
    case = case_of(name)
    found = case.backbone()
    nodes = split_points(found)
    assert nodes[0] == "input"
    assert "penultimate" in nodes
    with torch.no_grad(), hooks.without_attention_fastpath():
        logits = case.network(case.images)
    values = case.values(*nodes)
    for node in nodes[:: max(1, len(nodes) // 4)]:
        kept = values[node].clone()
        with torch.no_grad():
            torch.testing.assert_close(build_tail(case.network, node, spec=found.spec)(values[node]), logits)
        assert torch.equal(values[node], kept), node  # nothing works on the rows in place
    assert not any(part.training for part in case.network.modules())


def test_a_residual_network_is_cut_between_its_blocks_alone() -> None:
    found = case_of("resnet18").backbone()
    assert split_points(found) == [
        "input", "conv1", "bn1", "relu", "maxpool",
        *(node for layer in range(1, 5) for node in (
            f"layer{layer}.0.add", f"layer{layer}.0.relu_1", f"layer{layer}.0",
            f"layer{layer}.1.add", f"layer{layer}.1.relu_1", f"layer{layer}.1", f"layer{layer}")),
        "avgpool", "flatten", "penultimate",
    ]  # fmt: skip


def test_the_later_the_cut_the_fewer_parameters_are_behind_it() -> None:
    for name, nodes in CUTS.items():
        found = backbone(name)
        left = {key for key, _ in found.module.named_parameters()}
        for node in nodes:
            after = tail_parameters(found.module, node, spec=found.spec)
            assert after <= left, (name, node)
            left = after
    found = backbone("resnet")
    every = {key for key, _ in found.module.named_parameters()}
    before = every - tail_parameters(found.module, "maxpool", spec=found.spec)
    assert before == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert tail_parameters(found.module, "penultimate", spec=found.spec) == {"fc.weight", "fc.bias"}


def test_blocks_are_residual_blocks_blocks_of_transformers_and_layers() -> None:
    starts = {name: [start for start, _ in blocks(found.module, spec=found.spec)]
              for name in CUTS for found in [backbone(name)]}  # fmt: skip
    assert starts == {
        "vgg": ["input", "features.2", "features.5", "features.7", "avgpool", "classifier.2", "penultimate"],
        "resnet": ["input", "maxpool", "layer1.0", "layer1", "layer2", "layer3", "penultimate"],
        "mobilenet": ["input", *(f"features.{number}" for number in range(6)), "penultimate"],
        "vit": ["input", "encoder.dropout", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1",
                "penultimate"],
    }  # fmt: skip
    found = backbone("vit")
    names = [names for _, names in blocks(found.module, spec=found.spec)]
    assert set(names[0]) == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert "encoder.ln.weight" in names[3]
    assert names[4] == ["heads.head.weight", "heads.head.bias"]


@pytest.mark.parametrize(
    ("name", "options"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2})]
)
def test_networks_of_timm_are_cut_too(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: it is the extra `timm`")
    found = backbone(timm.create_model(name, num_classes=5, **options), family="timm", name=name)
    nodes = split_points(found)
    ends = {"layer1", "layer4.0", "penultimate"} if name == "resnet10t" else {"blocks.0", "blocks.1", "penultimate"}
    assert ends <= set(nodes)
    for node in sorted(ends):
        build_tail(found.module, node, spec=found.spec)  # which compares the logits
    assert [start for start, _ in blocks(found.module, spec=found.spec)][-1] == "penultimate"


# Errors --------------------------------------------------------------------------------------------------------------


def test_a_cut_inside_of_a_residual_block_names_the_nearest_that_are_legal() -> None:
    found = backbone("resnet")
    message = (
        "resnet: expected a node that splits the network in two, got 'layer1.1.conv2': the output depends on values "
        "that bypass it, such as a skip connection. The nearest that do\n"
        "  - before it: layer1.0.add, layer1.0.relu_1, layer1.0\n"
        "  - after it: layer1.1.add, layer1.1.relu_1, layer1.1"
    )
    for call in (build_tail, tail_parameters):
        with pytest.raises(BackboneError, match=re.escape(message)):
            call(found.module, "layer1.1.conv2", spec=found.spec)


def test_other_nodes_that_are_no_cuts_are_refused_with_the_reason() -> None:
    found = backbone("resnet")
    with pytest.raises(BackboneError, match=r"got 'fc': it is the network's output, and nothing comes after it"):
        build_tail(found.module, "fc", spec=found.spec)
    with pytest.raises(BackboneError, match=r"resnet: unknown node 'layer7'\. Did you mean 'layer"):
        build_tail(found.module, "layer7", spec=found.spec)
    swin = case_of("swin_t").backbone()
    inside = next(node for node in swin.spec.taps if node.endswith("attn.softmax"))
    with pytest.raises(BackboneError, match=r"it is inside a module that torch\.fx does not trace"):
        build_tail(swin.module, inside, spec=swin.spec)
    mixed = Backbone(found.spec.model_copy(update={"taps": {
        node: tap.model_copy(update={"mixed": node == "layer1"}) for node, tap in found.spec.taps.items()
    }}), found.module)  # fmt: skip
    with pytest.raises(BackboneError, match="got 'layer1': its rows depend on the other samples of their batch"):
        build_tail(mixed.module, "layer1", spec=mixed.spec)


class Branching(nn.Module):
    """Looks at its values: no graph holds for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.conv(inputs)
        if maps.sum() > 1e9:
            maps = maps + 1
        return self.head(maps.mean((2, 3)))


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    found = backbone(Branching(), family="module")
    message = r"module: expected a network whose graph torch.fx can trace, got TraceError: .* train it on pixels, with"
    for call in (lambda: split_points(found), lambda: build_tail(found.module, "conv", spec=found.spec)):
        with pytest.raises(BackboneError, match=message):
            call()


class Named(nn.Module):
    """Returns its logits under a name."""

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": inputs.mean((2, 3))}


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(BackboneError, match="named: expected a network that returns a tensor, or several of which the"):
        trace(Named(), name="named")


class Tied(nn.Module):
    """One convolution, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(inputs).relu()).mean((2, 3)))


def test_weights_that_are_used_on_both_sides_are_refused() -> None:
    found = backbone(Tied(), family="module")
    message = r"module: expected different weights before and after 'relu', got 2 that both use: conv.bias, conv.weight"
    with pytest.raises(BackboneError, match=message):
        build_tail(found.module, "relu", spec=found.spec)
    assert tail_parameters(found.module, "conv_1", spec=found.spec) == {"head.weight", "head.bias"}


class Flagged(nn.Module):
    """Skips from its input to its end, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.conv(inputs).relu()
        maps = maps + inputs if self.training else maps
        return self.head(maps.mean((2, 3)))


def test_a_cut_that_is_none_in_training_is_refused_there() -> None:
    found = backbone(Flagged(), family="module")
    tail = build_tail(found.module, "relu", spec=found.spec)
    tail.train()
    with pytest.raises(BackboneError, match="expected 'relu' to split the network in training as in evaluation"):
        tail(torch.zeros(2, 3, 32, 32))


class Counting(nn.Module):
    """Asks the input for something that no tap tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.conv(inputs).relu().sum((2, 3)) / inputs.numel())


def test_what_is_asked_of_the_other_side_is_told_or_refused() -> None:
    found = backbone(Counting(), family="module")
    with pytest.raises(
        BackboneError, match="expected the tail not to depend on earlier values, got a call of 'numel' on inputs"
    ):
        build_tail(found.module, "relu", spec=found.spec)


class Changing(nn.Module):
    """Multiplies by another number each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.conv(inputs).relu().mean((2, 3)) * torch.rand(3))


def test_a_graph_that_is_not_what_the_network_computes_is_refused() -> None:
    network = Changing()
    network.head.weight.data.fill_(1)
    found = backbone(network, family="module")
    with pytest.raises(BackboneError, match=r"expected rows of 'relu' to give the network's logits within 0\.0001 of"):
        build_tail(found.module, "relu", spec=found.spec)


# Modes ---------------------------------------------------------------------------------------------------------------


def test_auxiliary_classifiers_are_left_out_in_training_too() -> None:
    case = case_of("googlenet")
    tail = build_tail(copy.deepcopy(case.network), "inception4d", spec=case.backbone().spec)
    tail.train().requires_grad_(True)
    logits = tail(case.values("inception4d")["inception4d"])
    assert logits.shape == (3, 9)
    logits.sum().backward()
    assert all(one.grad is None for name, one in tail.network.named_parameters() if name.startswith("aux"))


def test_a_suffix_follows_the_modes_of_the_modules_and_can_be_copied() -> None:
    found = backbone("vgg")
    tail = build_tail(found.module, "avgpool", spec=found.spec)
    rows = rows_of(found, "avgpool", images(found.spec, 4))
    with torch.no_grad():
        still = tail(rows)
        tail.train()
        torch.manual_seed(0)
        noisy = tail(rows)
        copied = copy.deepcopy(tail)
        torch.manual_seed(0)
        assert torch.equal(copied(rows), noisy)
        assert not torch.equal(noisy, still)
        tail.eval()
        assert torch.equal(tail(rows), still)
    assert copied.network is not tail.network


def test_the_default_network_is_cut_between_its_layers() -> None:
    found = glyph_net()
    nodes = split_points(found)
    assert {"block1", "block2", "block3", "penultimate"} <= set(nodes)
    assert not {"classifier", "logits"} & set(nodes)
