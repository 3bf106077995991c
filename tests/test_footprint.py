"""What networks cost: sizes worked out by hand, times of what really ran, and nothing changed by the measuring."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import backbone
from torch import Tensor, nn

from pipeline import engines
from pipeline.backbones.serialization import Backbone, weights_digest
from pipeline.backbones.spec import TapSpec
from pipeline.engines import Engine, profiling
from pipeline.engines.profiling import IMAGES, Footprint, Network, measure_footprints
from pipeline.runtime import cores

pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Times are not looked at here but for their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "SECONDS", 0.02)
        yield


def footprint(backbone: Backbone, *, images: int = 1) -> Footprint:
    """The footprint of one network by itself; for one image no other engine than torch is tried."""
    return measure_footprints({"": Network(backbone)}, images=images)[""]


class Net(nn.Module):
    """A convolution with a BatchNorm, and a linear layer: (3, 8, 8) -> 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.first(images)).mean((2, 3)))


@pytest.fixture(scope="module")
def found(one_core: None) -> Footprint:  # noqa: ARG001 - it is only to be there
    return footprint(backbone(Net(), side=8), images=IMAGES)


def test_sizes_are_those_of_the_layers(found: Footprint) -> None:
    assert found.parameters == 4 * 3 * 9 + 2 * 4 + 4 * 5 + 5
    assert found.bytes == 4 * (found.parameters + 2 * 4), "mean and variance of the BatchNorm are weights too"
    assert found.multiply_adds == 64 * 4 * 3 * 9 + 4 * 5


def test_times_are_of_one_image_and_of_a_batch_with_their_quartiles(found: Footprint) -> None:
    assert list(found.latency_ms) == [1, 32]
    for one in found.latency_ms.values():
        assert 0 < one.low <= one.median <= one.high
        assert one.engine == "torch", "it is too small for another to be worth preparing"
    assert found.threads == cores()


def test_it_is_read_back_as_it_was_written(found: Footprint) -> None:
    assert Footprint.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet", "vit"])
def test_a_network_up_to_its_logits_uses_all_its_parameters(name: str) -> None:
    made = backbone(name)
    whole = footprint(made)
    assert whole.parameters == sum(value.numel() for value in made.module.parameters())
    assert whole.multiply_adds == max(tap.multiply_adds for tap in made.spec.taps.values())


def test_up_to_a_tap_only_what_runs_counts() -> None:
    made = backbone("resnet")
    node = made.spec.node("layer1.0")
    early, late = TapSpec(node=node, pool="mean"), TapSpec(node="penultimate")
    taps = {"part": {"early": early}, "deeper": {"early": early, "late": late}, "whole": None}
    found = measure_footprints({name: Network(made, one) for name, one in taps.items()}, images=1)
    names = ("conv1.", "bn1.", "layer1.0.")
    own = [value.numel() for name, value in made.module.named_parameters() if name.startswith(names)]
    assert found["part"].parameters == sum(own)
    assert found["part"].multiply_adds == made.spec.taps[node].multiply_adds
    assert found["part"].parameters < found["deeper"].parameters < found["whole"].parameters


def test_networks_that_are_compared_are_run_by_the_same_engines(tmp_path: Path) -> None:
    small, large = backbone(Net(), side=8), backbone("mobilenet")
    networks = {"small": Network(small), "large": Network(large)}
    found = measure_footprints(networks, images=10**9, cache=tmp_path)
    expected = {"torch", "onnxruntime", *(["openvino"] if find_spec("openvino") else [])}
    for one in (latency for each in found.values() for latency in each.latency_ms.values()):
        assert {one.engine, *one.others} == expected
        assert one.median <= min(one.others.values())
    assert len(list((tmp_path / "onnx").iterdir())) == 2, "a graph is exported once"


class Odd(Net):
    """Its code asks for the length of a batch, which a graph for any size cannot have."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * len(images) / len(images)


def test_a_network_that_cannot_be_exported_is_left_to_torch_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def create(name: str, *args: Any, batch_size: int, **more: Any) -> Engine:
        tried.append((name, batch_size))
        return engines.create(name, *args, batch_size=batch_size, **more)

    monkeypatch.setattr(profiling, "create", create)
    found = footprint(backbone(Odd(), side=8), images=10**9)
    assert {one.engine for one in found.latency_ms.values()} == {"torch"}
    assert tried == [("onnxruntime", 1), ("openvino", 1)]


def test_measuring_leaves_the_network_and_the_process_as_they_were() -> None:
    network = Net().train()
    made = backbone(network, side=8)
    network.train().requires_grad_(True)
    before = weights_digest(network.state_dict())
    process = os.sched_getaffinity(0), torch.get_num_threads()
    footprint(made)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == process
    assert weights_digest(network.state_dict()) == before
    assert network.training
    assert all(value.requires_grad and value.is_contiguous() for value in network.parameters())
