"""Freezing: what is trained, what stays as it is to the last bit, and what an optimiser gets."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from support.networks import backbone, glyph_net, images, labels
from torch import Tensor, nn

from pipeline.backbones import hooks, replace_classifier
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.errors import BackboneError, ConfigError
from pipeline.partition.split_points import build_tail
from pipeline.training.config import FromTap, LastBlocks, Part, Patterns
from pipeline.training.freezing import TrainableParts, prepare

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: tuple[Any, ...] = (
    "head",
    "full",
    LastBlocks(last_k=2),
    FromTap(from_tap="block2"),
    Patterns(patterns=("block3.3", "classifier.bias")),
)


@torch.no_grad()
def features(found: Backbone, node: str, inputs: Tensor) -> Tensor:
    """The values of a node in the modes that the network is in."""
    return hooks.collect(found.module, inputs, {"rows": TapSpec(node=node)}, found.spec.taps)["rows"].clone()


def train(found: Backbone, frozen: TrainableParts, *, epochs: int = 2) -> None:
    """A few steps of SGD, with the modes that the loop sets each epoch."""
    inputs, targets = images(found.spec, 20), labels(20)
    optimiser = torch.optim.SGD(frozen.groups(0.05), momentum=0.9)
    for epoch in range(epochs):
        frozen.start(epoch)
        frozen.train_mode()
        for rows in torch.arange(20).split(10):
            optimiser.zero_grad()
            nn.functional.cross_entropy(found.module(inputs[rows]), targets[rows]).backward()
            optimiser.step()
    found.module.eval()


def trained(found: Backbone) -> set[str]:
    return {name for name, one in found.module.named_parameters() if one.requires_grad}


def in_training(found: Backbone) -> set[str]:
    """The modules in training mode that have no others inside."""
    return {name for name, one in found.module.named_modules() if one.training and not list(one.children())}


# Frozen means frozen -------------------------------------------------------------------------------------------------


def test_the_usual_way_to_freeze_lets_batch_norm_move_and_this_one_does_not() -> None:
    # The usual callback: no gradients and no tracking of statistics for the frozen part, then `train()` each epoch.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/13902
    found = glyph_net()
    inputs = images(found.spec, 20)
    still = features(found, "block2", inputs)
    frozen_part = [part for name, part in found.module.named_modules() if name.startswith(("block1", "block2"))]
    for part in frozen_part:
        part.requires_grad_(False)
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
    found.module.train()
    assert not torch.allclose(features(found, "block2", inputs), still, atol=0.1)  # of the batch, not of the network
    # And where the statistics are tracked, they move.
    found = glyph_net()
    found.module.requires_grad_(False)
    found.module.train()
    with torch.no_grad():
        found.module(inputs)
    found.module.eval()
    assert not torch.allclose(features(found, "block2", inputs), still, atol=0.01)

    found = glyph_net()
    frozen = prepare(found.module, found.spec, FromTap(from_tap="block2"), batch_norm="train")
    before, weights = frozen.digest(), found.module.classifier.weight.clone()
    train(found, frozen)
    assert frozen.digest() == before
    frozen.train_mode()
    assert torch.equal(features(found, "block2", inputs), still)
    assert not torch.equal(found.module.classifier.weight, weights)


@pytest.mark.parametrize("what", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_norm", ["frozen", "train", "recalibrate"])
def test_all_that_is_not_trained_is_the_same_afterwards_to_the_last_bit(what: Any, batch_norm: Any) -> None:
    found = glyph_net()
    state = {name: value.clone() for name, value in found.module.state_dict().items()}
    frozen = prepare(found.module, found.spec, what, batch_norm=batch_norm)
    before, chosen = frozen.digest(), trained(found)
    assert chosen
    train(found, frozen)
    assert frozen.digest() == before
    moved = {name for name, value in found.module.state_dict().items() if not torch.equal(value, state[name])}
    norms = {name for name, part in found.module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    following = {name for name in norms if f"{name}.weight" in chosen}
    statistics = {f"{name}.{one}" for name in following for one in ("running_mean", "running_var")}
    assert {name for name in moved if "num_batches" not in name} == chosen | statistics
    assert bool(following) == (batch_norm != "frozen" and what not in ("head", SETTINGS[-1]))
    assert not any(part.training for part in found.module.modules())


def test_the_digest_sees_frozen_weights_and_statistics_and_nothing_else() -> None:
    found = glyph_net()
    frozen = prepare(found.module, found.spec, FromTap(from_tap="block2"), batch_norm="train")
    before = frozen.digest()
    with torch.no_grad():
        found.module.block3[1].running_mean += 1
        found.module.classifier.weight += 1
    assert frozen.digest() == before
    for change in (found.module.block1[1].running_var, found.module.block2[0].weight):
        with torch.no_grad():
            change += 1
        assert frozen.digest() != before
        with torch.no_grad():
            change -= 1


def test_the_head_alone_is_trained_on_what_the_store_has() -> None:
    found = backbone("vgg")
    frozen = prepare(found.module, found.spec, "head", batch_norm="train")
    assert trained(found) == {"classifier.6.weight", "classifier.6.bias"}
    inputs = images(found.spec, 4)
    frozen.train_mode()
    assert in_training(found) == {"classifier.6"}  # and no dropout before it
    noise = found.module(inputs)
    assert torch.equal(found.module(inputs), noise)
    assert frozen.cut(0) == "penultimate"
    assert frozen.norms() == []


def test_dropout_after_the_cut_drops_and_before_it_does_not() -> None:
    found = backbone("vgg")
    frozen = prepare(found.module, found.spec, FromTap(from_tap="classifier.3"), batch_norm="train")
    frozen.train_mode(build_tail(found.module, "classifier.3", spec=found.spec))
    assert in_training(found) == {"classifier.4", "classifier.5", "classifier.6"}
    assert trained(found) == {"classifier.6.weight", "classifier.6.bias"}


def test_the_last_blocks_are_what_comes_after_the_cut_before_them() -> None:
    found = backbone("resnet")
    frozen = prepare(found.module, found.spec, LastBlocks(last_k=2), batch_norm="train")
    assert frozen.cut(0) == "layer3"
    assert {name.partition(".")[0] for name in trained(found)} == {"layer4", "fc"}
    assert prepare(found.module, found.spec, LastBlocks(last_k=7), batch_norm="train").cut(0) == "input"
    assert trained(found) == {name for name, _ in found.module.named_parameters()}
    message = (
        "last_k: expected at most 7, the number of blocks, got 8. The blocks begin after\n"
        "  - input: 3 parameters from conv1.weight"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        prepare(found.module, found.spec, LastBlocks(last_k=8), batch_norm="train")


def test_patterns_train_here_and_there_and_nothing_before_is_in_training_mode() -> None:
    found = backbone("vit")
    layer = "encoder.layers.encoder_layer_1"
    frozen = prepare(found.module, found.spec, Patterns(patterns=(f"{layer}.ln_?", "heads")), batch_norm="train")
    assert trained(found) == {
        *(f"{layer}.{name}.{one}" for name in ("ln_1", "ln_2") for one in ("weight", "bias")),
        "heads.head.weight",
        "heads.head.bias",
    }
    frozen.train_mode()
    assert frozen.cut(0) is None
    live = in_training(found)
    assert not any("encoder_layer_0" in name for name in live)
    assert "encoder.dropout" not in live
    assert {f"{layer}.ln_1", f"{layer}.dropout", "encoder.layers.encoder_layer_2.mlp.2"} <= live
    assert not any(name.endswith(("mlp.0", "mlp.3")) for name in live)  # frozen layers, wherever they are


def test_settings_are_read_as_a_yaml_file_has_them() -> None:
    read = TypeAdapter(Part).validate_python
    assert read("head") == "head"
    assert read({"last_k": 3}) == LastBlocks(last_k=3)
    assert read({"from_tap": "layer3"}) == FromTap(from_tap="layer3")
    assert read({"patterns": ["*.bias"]}) == Patterns(patterns=("*.bias",))
    for wrong in ({"last_k": 0}, {"patterns": []}, "tail", {"from_tap": "a", "last_k": 1}):
        with pytest.raises(ValidationError):
            read(wrong)


# Gradual unfreezing --------------------------------------------------------------------------------------------------


def test_more_and_more_is_trained_by_a_schedule() -> None:
    found = glyph_net()
    frozen = prepare(found.module, found.spec, "head", batch_norm="train", unfreeze={2: "block2", 1: "block2"})
    frozen = prepare(found.module, found.spec, "head", batch_norm="train", unfreeze={3: "block1", 1: "block2"})
    assert [frozen.cut(epoch) for epoch in range(5)] == ["penultimate", "block2", "block2", "block1", "block1"]
    first = found.module.block1[0].weight.clone()
    before = frozen.digest()
    changes, tops = [], []
    for epoch in range(5):
        changes.append(frozen.start(epoch))
        tops.append(sorted({name.partition(".")[0] for name in trained(found)}))
    assert changes == [False, True, False, True, False]
    assert tops[0] == ["classifier"]
    assert tops[1] == tops[2] == ["block3", "classifier"]
    assert tops[3] == tops[4] == ["block2", "block3", "classifier"]
    assert sum(len(group["params"]) for group in frozen.groups(0.1)) == len(trained(found))  # for one optimiser
    train(found, frozen, epochs=4)
    assert torch.equal(found.module.block1[0].weight, first)
    assert frozen.digest() == before


def test_a_schedule_that_freezes_again_is_refused() -> None:
    found = glyph_net()
    message = (
        r"unfreeze: expected a larger trained part from epoch 4 on, got 'block2', which freezes 6 parameters trained"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(found.module, found.spec, "head", batch_norm="train", unfreeze={2: "block1", 4: "block2"})


# The optimiser -------------------------------------------------------------------------------------------------------


def test_norms_and_biases_have_no_weight_decay() -> None:
    found = backbone("vit")
    frozen = prepare(found.module, found.spec, "full", batch_norm="train")
    names = {id(one): name for name, one in found.module.named_parameters()}
    with_decay, without = (
        {names[id(one)] for group in frozen.groups(0.1, weight_decay=0.5) for one in group["params"]
         if group["weight_decay"] == decay}
        for decay in (0.5, 0.0)
    )  # fmt: skip
    assert with_decay | without == set(names.values())
    assert all(name.endswith(("weight", "in_proj_weight")) and ".ln" not in name for name in with_decay)
    assert {"class_token", "encoder.pos_embedding", "encoder.ln.weight", "conv_proj.bias"} <= without


def test_layers_of_classes_made_from_torchs_own_have_weight_decay() -> None:
    class Same(nn.Conv2d):
        """A convolution of somebody's own."""

    found = glyph_net()
    found.module.block1[0] = Same(1, 4, 3, padding=1, bias=False)
    groups = prepare(found.module, found.spec, "full", batch_norm="train").groups(0.1, weight_decay=0.5)
    assert any(one is found.module.block1[0].weight for one in groups[1]["params"])
    assert groups[1]["weight_decay"] == 0.5


def test_the_learning_rate_falls_from_block_to_block() -> None:
    found = backbone("resnet")
    frozen = prepare(found.module, found.spec, FromTap(from_tap="maxpool"), batch_norm="train")
    names = {id(one): name for name, one in found.module.named_parameters()}
    groups = frozen.groups(1.0, layer_decay=0.5, weight_decay=0.1)
    rates = {names[id(one)]: group["lr"] for group in groups for one in group["params"]}
    assert rates["fc.weight"] == rates["fc.bias"] == 1
    assert rates["layer4.0.conv1.weight"] == rates["layer4.0.downsample.1.bias"] == 0.5
    assert rates["layer1.0.bn2.weight"] == 0.5**5
    assert set(rates) == trained(found)
    torch.optim.AdamW(groups)


def test_the_learning_rate_falls_over_all_parameters_of_a_transformer() -> None:
    found = backbone("vit")
    frozen = prepare(found.module, found.spec, "full", batch_norm="train")
    rates = sorted({group["lr"] for group in frozen.groups(1.0, layer_decay=0.5)})
    assert rates == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]


# BatchNorm -----------------------------------------------------------------------------------------------------------


def batches(inputs: Tensor, size: int) -> Iterator[Tensor]:
    yield from inputs.split(size)


def test_recalibration_gives_the_statistics_of_the_training_samples() -> None:
    found = glyph_net()
    frozen = prepare(found.module, found.spec, FromTap(from_tap="block2"), batch_norm="recalibrate")
    before = frozen.digest()
    inputs = images(found.spec, 24) * 3
    rows = features(found, "block2", inputs)
    assert frozen.recalibrate(build_tail(found.module, "block2", spec=found.spec), batches(rows, 8)) == 2
    with torch.no_grad():
        maps = found.module.block3[0](rows)
    norm = found.module.block3[1]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
    parts = torch.stack([part.var((0, 2, 3)) for part in maps.split(8)])
    torch.testing.assert_close(norm.running_var, parts.mean(0))
    assert norm.momentum == 0.1
    assert not any(part.training for part in found.module.modules())
    assert frozen.digest() == before
    assert frozen.recalibrate(found.module, batches(inputs, 23)) == 2  # the last, of one sample, is left out
    with pytest.raises(ConfigError, match="recalibrate: expected batches of at least two training samples, got none"):
        frozen.recalibrate(found.module, batches(inputs[:1], 8))


def test_a_batch_of_one_is_refused_where_batch_norm_would_learn_from_it() -> None:
    found = glyph_net()
    frozen = prepare(found.module, found.spec, FromTap(from_tap="block2"), batch_norm="train")
    frozen.check_batch(2)
    with pytest.raises(
        ConfigError, match="batch: expected at least two samples, since 2 BatchNorm layers compute the stat"
    ):
        frozen.check_batch(1)
    prepare(found.module, found.spec, FromTap(from_tap="block2"), batch_norm="frozen").check_batch(1)
    prepare(found.module, found.spec, "head", batch_norm="train").check_batch(1)


# New heads -----------------------------------------------------------------------------------------------------------


def test_all_that_is_new_is_trained_with_the_head_and_never_frozen() -> None:
    found = glyph_net()
    network, architecture = replace_classifier.replace_classifier(
        found.spec, found.module, classes=3, hidden=4, convolution=3
    )
    new = replace_classifier.new_modules(architecture)
    assert new == ("block3.7", "classifier")
    frozen = prepare(network, found.spec, "head", batch_norm="frozen", new=new)
    found = Backbone(found.spec, network)
    assert {name.rpartition(".")[0] for name in trained(found)} == {
        "block3.7.0", "block3.7.1", "classifier.0", "classifier.2",
    }  # fmt: skip
    assert len(frozen.norms()) == 1  # that of the new convolution
    assert frozen.cut(0) is None
    spec = found.spec.model_copy(update={"architecture": architecture})
    prepare(network, spec, "head", batch_norm="train")
    assert len(trained(found)) == 7
    message = r"train: expected a part that contains all new modules, got a part without block3.7.0.weight, block3"
    for what in (LastBlocks(last_k=1), FromTap(from_tap="block3")):
        with pytest.raises(ConfigError, match=message):
            prepare(network, found.spec, what, batch_norm="train", new=new)
    prepare(network, found.spec, Patterns(patterns=("block3.*",)), batch_norm="train", new=new)
    assert {name.rpartition(".")[0] for name in trained(found)} == {
        *("block3.0", "block3.1", "block3.3", "block3.4", "block3.7.0", "block3.7.1", "classifier.0", "classifier.2"),
    }


# Errors --------------------------------------------------------------------------------------------------------------


def test_patterns_that_match_nothing_are_listed_with_near_names() -> None:
    found = glyph_net()
    message = (
        r"train: patterns that match nothing\n"
        r"  - unknown parameter or module 'clasifier'\. Did you mean 'classifier' .*\n"
        r"  - unknown parameter or module 'blok3\.\*'\. Did you mean 'block3"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(found.module, found.spec, Patterns(patterns=("clasifier", "block1", "blok3.*")), batch_norm="train")


def test_a_cut_that_the_graph_does_not_allow_is_refused() -> None:
    found = backbone("resnet")
    with pytest.raises(BackboneError, match=r"got 'layer2\.0\.conv1': the output depends on values that bypass it"):
        prepare(found.module, found.spec, FromTap(from_tap="layer2.0.conv1"), batch_norm="train")
