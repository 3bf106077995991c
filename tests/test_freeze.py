"""Freezing: pretrained networks, torchvision's weights from its own cache or from a file, and all that can be wrong."""

import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import models

from pipeline.backbones import artefact, glyphs, vision
from pipeline.backbones.artefact import weights_digest
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.engines.torch import TorchEngine
from pipeline.errors import BackboneError
from pipeline.files import sha256_file
from pipeline.freeze import FreezeConfig, freeze, read_state_dict
from pipeline.readers.image import ImageReader

SQUEEZENET = "squeezenet1_1"
ENTRY = models.SqueezeNet1_1_Weights.IMAGENET1K_V1


@pytest.fixture(scope="module")
def real_weights(assets: Path) -> Path:
    """Real ImageNet weights of SqueezeNet 1.1 in torchvision's layout."""
    return next((assets / "weights").glob("squeezenet1_1-*.pth"))


@pytest.fixture(scope="module")
def real_backbone(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a backbone frozen from the real weights."""
    folder = tmp_path_factory.mktemp("real") / "squeezenet"
    freeze(from_file(real_weights), folder, pretrained=Path("unused"))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's hub, and no network: what is not in the cache cannot be had."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def from_file(file: Path, **settings: Any) -> FreezeConfig:
    """Settings for SqueezeNet with weights in a file, which is stated by its right digest."""
    digest = sha256_file(file)[:12]
    return FreezeConfig(**{"source": "torchvision", "model": SQUEEZENET, "file": file, "sha256": digest} | settings)


def random_state(model: str = SQUEEZENET, *, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    """The state dict of a model with random weights."""
    torch.manual_seed(seed)
    return dict(models.get_model(model, weights=None, **options).state_dict())


def saved(path: Path, value: Any) -> Path:
    """Save anything with torch.save."""
    torch.save(value, path)
    return path


def photo(seed: int = 0) -> Image.Image:
    """A picture that is not square, with something in it to interpolate."""
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((411, 293), Image.Resampling.BICUBIC)


# Pretrained -----------------------------------------------------------------------------------------------------------


def test_a_pretrained_network_is_frozen_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = artefact.write(
        tmp_path / "pretrained" / "net",
        glyphs.GlyphNet(classes=2, widths=(4,)),
        architecture={"family": "glyphs", "classes": 2, "widths": [4]},
        origin={"source": "pretrained", "steps": 7},
        inputs=glyphs.INPUT,
        classes=("a", "b"),
    )
    config = FreezeConfig(source="pretrained", network="net")
    frozen = freeze(config, tmp_path / "backbone", pretrained=tmp_path / "pretrained")
    assert frozen == own == artefact.read(tmp_path / "backbone").spec


def test_a_network_that_was_not_pretrained_is_refused(tmp_path: Path) -> None:
    config = FreezeConfig(source="pretrained", network="net")
    with pytest.raises(BackboneError, match=r"net: no backbone there"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path / "pretrained")
    assert not (tmp_path / "backbone").exists()


# Weights in a file ----------------------------------------------------------------------------------------------------


def test_real_weights_in_a_file_become_a_backbone(real_backbone: Path, real_weights: Path, assets: Path) -> None:
    backbone = artefact.read(real_backbone)
    state = torch.load(real_weights, weights_only=True)
    assert weights_digest(backbone.module.state_dict()) == weights_digest(state) == backbone.spec.weights_digest
    assert backbone.spec.origin == {
        "source": "torchvision",
        "model": SQUEEZENET,
        "weights": "IMAGENET1K_V1",
        "file": real_weights.name,
        "sha256": sha256_file(real_weights),
    }
    assert list(backbone.spec.classes) == json.loads((assets / "weights" / "imagenet_classes.json").read_text())
    assert backbone.spec.taps["features"].shape == (512, 13, 13)


def test_real_weights_recognise_real_photos(real_backbone: Path, assets: Path, tmp_path: Path) -> None:
    with tarfile.open(assets / "images" / "imagenet-sample-100.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    photos = sorted(tmp_path.rglob("*.JPEG"))[::4]
    backbone = artefact.read(real_backbone)
    reader = ImageReader(backbone.spec.input.image)
    pixels = np.stack([reader(path.read_bytes())["pixels"] for path in photos])
    logits = TorchEngine(backbone, {"l": TapSpec(node="logits")}, batch_size=25).run({"pixels": pixels})["l"]
    right = logits.argmax(1) == [int(path.name.split("_")[0]) for path in photos]
    # Of all hundred photos these weights name 65; the wrong channel order or no normalisation halves that.
    assert right.mean() >= 0.5


def test_the_same_weights_as_safetensors_are_the_same_backbone(
    real_backbone: Path, real_weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(torch.load(real_weights, weights_only=True), file)
    spec = freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)
    expected = artefact.read_spec(real_backbone)
    assert spec.weights_digest == expected.weights_digest
    assert spec.model_copy(update={"origin": {}}) == expected.model_copy(update={"origin": {}})


def test_a_checkpoint_may_hold_the_weights_under_state_dict(tmp_path: Path) -> None:
    state = random_state()
    file = saved(tmp_path / "checkpoint.pth", {"state_dict": state, "epoch": 3, "best": 0.9})
    assert weights_digest(read_state_dict(file, sha256="")) == weights_digest(state)
    spec = freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.weights_digest == weights_digest(state)


def test_a_classifier_of_another_size_has_no_class_names(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state(num_classes=7))
    spec = freeze(from_file(file, classes=7), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.taps["logits"].shape == (7,)
    assert spec.classes == ()
    assert spec.architecture == {"family": "torchvision", "name": SQUEEZENET, "num_classes": 7}
    assert artefact.read(tmp_path / "backbone").spec == spec


def test_a_classifier_of_another_size_must_be_stated(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state(num_classes=7))
    message = (
        r"squeezenet1_1 from .*w.pth: the weights do not fit .*, 2 keys differ(.|\n)*\(1000, 512, 1, 1\).*\(7, 512, 1"
    )
    with pytest.raises(BackboneError, match=message):
        freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)
    assert not (tmp_path / "backbone").exists()


def test_weights_of_another_model_are_refused_by_key(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    with pytest.raises(BackboneError, match=r"resnet18 from(.|\n)*- missing: conv1.weight \(64, 3, 7, 7\)"):
        freeze(from_file(file, model="resnet18"), tmp_path / "backbone", pretrained=tmp_path)


def test_weights_of_a_wrapped_network_are_refused_by_key(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", {f"module.{key}": value for key, value in random_state().items()})
    with pytest.raises(BackboneError, match=r"104 keys differ(.|\n)*- missing: features.0.weight"):
        freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = FreezeConfig(source="torchvision", model=SQUEEZENET, file=tmp_path / "no.pth", sha256="12345678")
    with pytest.raises(BackboneError, match=r"no.pth: no such weights file. Set `file` to a .safetensors or .pth"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_another_file_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    with pytest.raises(BackboneError, match=rf"whose SHA-256 begins with 00000000, got {sha256_file(file)}"):
        freeze(from_file(file, sha256="00000000"), tmp_path / "backbone", pretrained=tmp_path)


def test_the_digest_may_be_in_capitals_and_whole(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    assert read_state_dict(file, sha256=sha256_file(file).upper()).keys() == random_state().keys()
    with pytest.raises(BackboneError, match="expected a file whose SHA-256 begins with"):
        read_state_dict(file, sha256=sha256_file(file) + "0")


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "the code ran"
    torch.save({"a": torch.zeros(1), "b": Bomb(mark)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = r"w.pth: expected a state dict .*cannot be read without running code from it: .*Where you trust the file"
    with pytest.raises(BackboneError, match=message):
        read_state_dict(tmp_path / "w.pth", sha256="")
    assert not mark.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", glyphs.GlyphNet(classes=2, widths=(4,)))
    with pytest.raises(BackboneError, match="cannot be read without running code from it"):
        freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({"a": 1}, "dict"),
        ({"state_dict": {"a": 1}}, "dict"),
        (None, "None"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: Any, kind: str) -> None:
    file = saved(tmp_path / "w.pth", value)
    with pytest.raises(BackboneError, match=rf"expected a state dict \(names to tensors\), got {kind}"):
        read_state_dict(file, sha256="")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_damaged_weights_file_is_refused_whatever_the_damage(tmp_path: Path, suffix: str) -> None:
    tensors = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.arange(3)}
    whole, file = tmp_path / f"whole.{suffix}", tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(tensors, whole, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(tensors, whole)
    data = whole.read_bytes()
    for kept in {0, 1, len(data) - 1, *range(0, len(data), 7)}:
        file.write_bytes(data[:kept])
        with pytest.raises(BackboneError, match="got a file that is damaged, or that cannot be read"):
            read_state_dict(file, sha256="")


# torchvision's own entries --------------------------------------------------------------------------------------------


def test_weights_come_from_the_cache_of_torchs_hub(hub: Path, tmp_path: Path) -> None:
    state = random_state()
    saved(hub / ENTRY.url.rsplit("/", 1)[1], state)
    config = FreezeConfig(source="torchvision", model=SQUEEZENET)
    spec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert spec.weights_digest == weights_digest(state)
    assert spec.origin == {
        "source": "torchvision",
        "model": SQUEEZENET,
        "weights": "IMAGENET1K_V1",
        "license": "not stated",
    }
    assert list(spec.classes) == ENTRY.meta["categories"]
    assert spec.architecture == {"family": "torchvision", "name": SQUEEZENET}


def test_weights_that_cannot_be_fetched_say_what_to_do(hub: Path, tmp_path: Path) -> None:
    config = FreezeConfig(source="torchvision", model=SQUEEZENET, weights="IMAGENET1K_V1")
    with pytest.raises(
        BackboneError, match=r"squeezenet1_1-\w+.pth: the weights could not be loaded: .*name it in `file`"
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_cache_of_torchs_hub_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / ENTRY.url.rsplit("/", 1)[1]).write_bytes(b"half a file")
    config = FreezeConfig(source="torchvision", model=SQUEEZENET)
    with pytest.raises(BackboneError, match=r"squeezenet1_1-\w+.pth: the weights could not be loaded: "):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_an_unknown_model_is_named_with_its_neighbours(tmp_path: Path) -> None:
    config = FreezeConfig(source="torchvision", model="mobilenetv2")
    with pytest.raises(
        BackboneError, match=r"unknown torchvision classification model 'mobilenetv2'. Did you mean 'mobi"
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_a_model_for_another_task_is_unknown(tmp_path: Path) -> None:
    config = FreezeConfig(source="torchvision", model="fasterrcnn_resnet50_fpn")
    with pytest.raises(BackboneError, match="unknown torchvision classification model"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_an_unknown_weights_entry_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    config = FreezeConfig(source="torchvision", model="mobilenet_v2", weights="IMAGENET1K_V3")
    with pytest.raises(
        BackboneError,
        match=r"mobilenet_v2: unknown weights 'IMAGENET1K_V3'. Did you .*: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2",
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_the_preprocessing_gives_the_numbers_of_torchvision(tmp_path: Path) -> None:
    spec = freeze(
        from_file(saved(tmp_path / "w.pth", random_state())), tmp_path / "backbone", pretrained=tmp_path / "unused"
    )
    assert spec.input.shape == (3, 224, 224)
    path = tmp_path / "photo.png"
    photo().save(path)
    pixels = ImageReader(spec.input.image)(path.read_bytes())["pixels"]
    backbone = artefact.read(tmp_path / "backbone")
    ours = TorchEngine(backbone, {"x": TapSpec(node="input")}, batch_size=1).run({"pixels": pixels[None]})["x"]
    theirs = ENTRY.transforms()(photo())
    np.testing.assert_allclose(ours[0], theirs.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "weights", "size"),
    [
        ("mobilenet_v2", "IMAGENET1K_V2", 224),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384),
        ("inception_v3", "DEFAULT", 299),
    ],
)
def test_the_size_and_the_interpolation_come_from_the_entry(model: str, weights: str, size: int) -> None:
    entry = vision.weights_entry(model, weights)
    spec = vision.preprocessing(entry)
    assert spec.size == (size, size)
    data = io.BytesIO()
    photo().save(data, "png")
    pixels = ImageReader(spec.image)(data.getvalue())["pixels"]
    ours = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), entry.transforms()(photo()).numpy(), rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_is_built_for_the_image_size_of_its_weights() -> None:
    entry = vision.weights_entry("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert vision.architecture("vit_b_16", entry, None)["image_size"] == 384
    assert vision.architecture("vit_b_16", vision.weights_entry("vit_b_16", "DEFAULT"), None)["image_size"] == 224


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "pretrained"}, "source: pretrained needs `network`, the name of a network below `pretrain`"),
        ({"source": "torchvision"}, "source: torchvision needs `model`, such as mobilenet_v2"),
        ({"source": "torchvision", "model": "x", "file": "gone.pth"}, r"`file` needs `sha256`.*gone.pth: no such file"),
        ({"source": "torchvision", "model": "x", "classes": 0}, "greater than or equal to 1"),
        ({"source": "timm", "model": "x"}, "'pretrained' or 'torchvision'"),
        ({"source": "torchvision", "model": "x", "weigths": "DEFAULT"}, "weigths"),
    ],
)
def test_incomplete_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FreezeConfig(**settings)


@pytest.mark.parametrize("given", [None, "", "1234567"])
def test_a_file_without_its_digest_is_refused_with_the_digest_to_write(tmp_path: Path, given: str | None) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    with pytest.raises(ValidationError, match=rf"first 8 digits or more \(sha256: '{sha256_file(file)[:16]}'\)"):
        FreezeConfig(source="torchvision", model=SQUEEZENET, file=file, sha256=given)
    assert FreezeConfig(source="torchvision", model=SQUEEZENET, file=file, sha256=sha256_file(file)[:8]).file == file


def test_freezing_again_writes_the_same_bytes(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    written: list[dict[str, bytes]] = []
    for name in ("one", "two", "two"):
        spec: BackboneSpec = freeze(from_file(file), tmp_path / name, pretrained=tmp_path)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert spec.origin["file"] == "w.pth"
    assert written[0] == written[1] == written[2]
    assert sorted(written[0]) == ["backbone.json", "weights.safetensors"]
