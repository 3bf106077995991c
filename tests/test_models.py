"""Models of torchvision and timm with ends of every kind, by `benchmarks/models.py`: frozen, extracted, trained."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.networks import backbone
from support.projects import ROOT
from torch import nn
from torchvision import models as torchvision

from pipeline.backbones import replace_classifier as headed
from pipeline.backbones.spec import InputSpec
from pipeline.readers.image import ImageSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models() -> Iterator[ModuleType]:
    """The benchmark, imported as it is when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import models

        yield models


def inputs(side: int) -> InputSpec:
    """A square input of a side."""
    return InputSpec(image=ImageSpec(resize=(side, side)), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


VIT = {"num_classes": 0, "img_size": [32, 32]}
TORCHVISION: dict[str, tuple[dict[str, Any], int, tuple[int, ...], str]] = {
    "squeezenet1_1": ({}, 32, (512,), "classifier.1"),
    "mobilenet_v3_small": ({}, 32, (1024,), "classifier.3"),
    "mnasnet0_5": ({}, 32, (1280,), "classifier.1"),
    "googlenet": ({"transform_input": True, "init_weights": False}, 64, (1024,), "fc"),
}
TIMM: dict[str, tuple[dict[str, Any], int, tuple[int, ...], str]] = {
    "vit_tiny_patch16_224": (VIT, 32, (192,), "new_classifier"),
    "deit_tiny_distilled_patch16_224": ({"num_classes": 5, "img_size": [32, 32]}, 32, (384,), "new_classifier"),
    "convnext_atto": ({"num_classes": 5}, 32, (320,), "head.fc"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_model_of_torchvision_is_extracted_and_trained(name: str, models: ModuleType, tmp_path: Path) -> None:
    options, side, shape, classifier = TORCHVISION[name]
    architecture = {"family": "torchvision", "name": name, **options}
    assert models.check_model(architecture, inputs(side), tmp_path) == models.Result(shape, classifier)


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_is_extracted_and_trained(name: str, models: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: it is the extra `timm`")
    options, side, shape, classifier = TIMM[name]
    architecture = {"family": "timm", "name": name, "tag": "", **options}
    assert models.check_model(architecture, inputs(side), tmp_path) == models.Result(shape, classifier)


def test_inception_ends_at_its_new_classifier_in_training_too() -> None:
    found = backbone(torchvision.get_model("inception_v3", weights=None, init_weights=False, num_classes=5), side=80)
    assert (found.spec.taps["penultimate"].shape, found.spec.taps["penultimate"].input_of) == ((2048,), "fc")
    network, architecture = headed.replace_classifier(found.spec, found.module, classes=3)
    assert (architecture["at"], architecture["ends"]) == ("fc", True)
    rows = []
    network.fc.register_forward_pre_hook(lambda _part, args: rows.append(args[0]))
    with torch.no_grad():
        logits = network.train()(torch.randn(2, 3, 299, 299))  # the auxiliary classifier takes no smaller images
        assert torch.equal(logits, nn.Sequential(*network.fc)(rows[0]))


class Two(nn.Linear):
    """Gives two tensors in training."""

    def forward(self, images: torch.Tensor) -> Any:
        return images, images


def test_a_model_that_does_not_train_is_named(models: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected logits as one tensor in training, got tuple"):
        models.train_step(Two(2, 3), torch.zeros(2, 2), classifier="weight")
    network = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="expected weights before the classifier that are trained"):
        models.train_step(network, torch.ones(2, 2), classifier="0")
