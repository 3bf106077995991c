"""Models of timm: the features are those of timm on timm's own preprocessing, and all that can be wrong is named."""

import io
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import TypeAdapter

from pipeline.backbones import serialization, timm_models
from pipeline.backbones.serialization import Backbone, weights_digest
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.engines.onnx_export import address
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError
from pipeline.files import sha256_file
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.run import freeze
from pipeline.readers.image import ImageReader
from pipeline.training.job import packages

timm = pytest.importorskip("timm", reason="timm is not installed: it is the extra `timm`")
timm_data = pytest.importorskip("timm.data")

SMALL = "mobilenetv3_small_050"


def settings_of(**settings: Any) -> Any:
    """Checked settings."""
    return TypeAdapter(FreezeConfig).validate_python({"source": "timm", **settings})


def random_weights(folder: Path, model: str, **options: Any) -> dict[str, Any]:
    """The settings `file` and `sha256` for random weights of a model, which are written to a file."""
    torch.manual_seed(0)
    file = folder / f"{model}.safetensors"
    safetensors.torch.save_file(timm.create_model(model, **options).state_dict(), file)
    return {"model": model, "file": file, "sha256": sha256_file(file)[:8]}


def photo() -> Image.Image:
    """A picture that is not square, with something in it to interpolate."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((411, 293), Image.Resampling.BICUBIC)


def png() -> bytes:
    """The photo as a file."""
    data = io.BytesIO()
    photo().save(data, "png")
    return data.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings for a small model with weights in a file."""
    return random_weights(tmp_path_factory.mktemp("small"), SMALL)


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tap"), [(SMALL, "conv_head"), ("resnet10t", "layer3.0"), ("vit_tiny_patch16_224", "blocks.5")]
)
def test_features_are_those_of_timm_on_its_own_preprocessing(tmp_path: Path, model: str, tap: str) -> None:
    stated = random_weights(tmp_path, model)
    spec = freeze(settings_of(**stated), tmp_path / "backbone", pretrained=tmp_path)
    backbone = serialization.read(tmp_path / "backbone")
    assert backbone.spec == spec

    pixels = ImageReader(spec.input.image)(png())["pixels"]
    wanted = {"x": TapSpec(node="input", dtype="float32"), "inner": TapSpec(node=tap), "logits": TapSpec(node="logits")}
    ours = TorchEngine(backbone, wanted, batch_size=1).run({"pixels": pixels[None]})

    theirs = timm.create_model(model).eval()
    theirs.load_state_dict(safetensors.torch.load_file(stated["file"]))
    transform = timm_data.create_transform(**timm_data.resolve_model_data_config(theirs), is_training=False)
    images = transform(photo())[None]
    inner: list[torch.Tensor] = []
    theirs.get_submodule(tap).register_forward_hook(lambda _module, _args, output: inner.append(output.clone()))
    with torch.no_grad():
        logits = theirs(images)
    for name, expected in {"x": images, "inner": inner[0], "logits": logits}.items():
        scale = float(expected.abs().max())
        np.testing.assert_allclose(ours[name], expected.numpy(), rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
    "name", ["dm_nfnet_f0.dm_in1k", "volo_d4_448.sail_in1k", "vit_base_patch16_clip_384.openai_ft_in12k_in1k"]
)
def test_squashed_and_padded_pictures_have_the_numbers_of_timm(name: str) -> None:
    model, _, tag = name.partition(".")
    entry = timm_models.weights_entry(model, tag)
    spec = timm_models.preprocessing(model, entry)
    pixels = ImageReader(spec.image)(png())["pixels"]
    ours = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    transform = timm_data.create_transform(
        **timm_data.resolve_data_config(pretrained_cfg=entry.to_dict()), is_training=False
    )
    np.testing.assert_allclose(ours.transpose(2, 0, 1), transform(photo()).numpy(), rtol=1e-5, atol=1e-5)


def test_all_that_timm_states_of_its_weights_is_kept(small: dict[str, Any], tmp_path: Path) -> None:
    spec = freeze(settings_of(**small, weights="lamb_in1k"), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.architecture == {"family": "timm", "name": SMALL, "tag": "lamb_in1k", "num_classes": 1000}
    assert spec.origin == {
        "source": "timm",
        "model": SMALL,
        "weights": "lamb_in1k",
        "file": small["file"].name,
        "sha256": sha256_file(small["file"]),
    }
    assert spec == freeze(settings_of(**small), tmp_path / "by default", pretrained=tmp_path)
    assert timm_models.origin(timm_models.weights_entry(SMALL, None)) == {
        "license": "apache-2.0",
        "hf_hub_id": "timm/mobilenetv3_small_050.lamb_in1k",
        "url": timm_models.weights_entry(SMALL, None).url,
    }


def test_a_transformer_is_built_for_the_image_size_of_its_weights() -> None:
    for tag, size in {"augreg_in21k_ft_in1k": 224, "augreg_in21k": 224}.items():
        entry = timm_models.weights_entry("vit_tiny_patch16_224", tag)
        architecture = timm_models.architecture("vit_tiny_patch16_224", entry, None)
        assert architecture["img_size"] == [size, size]
        assert architecture["num_classes"] == entry.num_classes
    assert entry.num_classes == 21843


def test_a_classifier_of_another_size_is_stated(tmp_path: Path) -> None:
    stated = random_weights(tmp_path, SMALL, num_classes=5)
    spec = freeze(settings_of(**stated, classes=5), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.taps["logits"].shape == (5,)
    without = freeze(settings_of(**stated), tmp_path / "without", pretrained=tmp_path)
    assert (without.architecture["family"], without.classes) == ("headless", ())
    assert without.taps[without.node("penultimate")].shape == spec.taps[spec.node("penultimate")].shape


# Weights that timm fetches --------------------------------------------------------------------------------------------


def test_weights_come_from_the_cache_of_torchs_hub(hub: Path, tmp_path: Path) -> None:
    entry = timm_models.weights_entry("legacy_seresnet18", None)
    state = timm.create_model("legacy_seresnet18").state_dict()
    torch.save(state, hub / entry.url.rsplit("/", 1)[1])
    config = settings_of(model="legacy_seresnet18", input={"resize": 64, "crop": 64})
    spec: BackboneSpec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert spec.weights_digest == weights_digest(state)
    assert spec.origin["url"] == entry.url
    assert spec.origin["license"] == entry.license


def test_weights_that_cannot_be_fetched_say_what_to_do(hub: Path, tmp_path: Path) -> None:
    message = (
        r"legacy_seresnet18.in1k: the weights could not be loaded: .*download https://.*.pth elsewhere and set `file`"
    )
    with pytest.raises(BackboneError, match=message):
        freeze(settings_of(model="legacy_seresnet18"), tmp_path / "backbone", pretrained=tmp_path)
    assert list(hub.iterdir()) == []
    assert not (tmp_path / "backbone").exists()


def test_weights_of_a_hub_that_cannot_be_reached_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        BackboneError, match=r"could not be loaded: .*download timm/mobilenetv3_small_050.lamb_in1k elsewhere"
    ):
        freeze(settings_of(model=SMALL), tmp_path / "backbone", pretrained=tmp_path)


# What is refused ------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_named_with_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"unknown timm model 'mobilenetv3_smal_050'. Did you mean 'mobilenetv3_sma"
    ):
        freeze(settings_of(model="mobilenetv3_smal_050"), tmp_path / "backbone", pretrained=tmp_path)


def test_an_unknown_tag_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"resnet18: unknown weights 'a9_in1k'. Did you mean .*: a1_in1k, a2_in1k"):
        freeze(settings_of(model="resnet18", weights="a9_in1k"), tmp_path / "backbone", pretrained=tmp_path)


@pytest.mark.parametrize("name", ["hf-hub:somebody/net", "local-dir:net", "../net"])
def test_a_backbone_names_a_model_of_timm_and_no_place_to_load_one_from(name: str) -> None:
    with pytest.raises(BackboneError, match=f"unknown timm model '{name}'"):
        serialization.build({"family": "timm", "name": name, "tag": "x", "num_classes": 2})


def test_settings_of_a_backbone_that_would_load_files_are_not_passed_on(tmp_path: Path) -> None:
    hostile = {"checkpoint_path": str(tmp_path / "gone.pth"), "pretrained": True}
    network = serialization.build({"family": "timm", "name": SMALL, "tag": "lamb_in1k", "num_classes": 2, **hostile})
    assert network.get_submodule("classifier").out_features == 2


def test_a_crop_that_cannot_be_reproduced_is_refused_unless_the_user_states_one() -> None:
    entry = timm_models.weights_entry("resnet10t", None)
    entry.crop_mode = "border"
    with pytest.raises(
        BackboneError, match=r"resnet10t: expected a crop .*, got border to 176×176. Set `resize` and `crop`"
    ):
        timm_models.preprocessing("resnet10t", entry)
    assert timm_models.preprocessing("resnet10t", entry, own_size=True).mean == entry.mean
    entry.crop_mode, entry.input_size = "center", (3, 64, 48)
    with pytest.raises(BackboneError, match="got center to 64×48"):
        timm_models.preprocessing("resnet10t", entry)


def test_a_model_without_preprocessing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _name: None)
    with pytest.raises(BackboneError, match="resnet10t: expected a model with preprocessing settings, but timm has"):
        timm_models.weights_entry("resnet10t", None)


def test_an_image_size_that_the_model_refuses_is_named(tmp_path: Path) -> None:
    stated = random_weights(tmp_path, "vit_tiny_patch16_224")
    config = settings_of(**stated, input={"resize": 96, "crop": 96})
    message = (
        r"b: expected an input that VisionTransformer takes, got images of 96×96 .*Input height \(96\) doesn't match"
    )
    with pytest.raises(BackboneError, match=message):
        freeze(config, tmp_path / "b", pretrained=tmp_path)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"models of timm: .*Run `pip install 'icecore-features\[timm\]'`."):
        timm_models.weights_entry(SMALL, None)


def test_another_version_of_timm_is_another_training_and_another_graph(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = freeze(settings_of(**small), tmp_path / "timm", pretrained=tmp_path)
    assert spec.probe is not None
    assert set(spec.probe.versions) == {"timm", "torch", "torchvision"}
    headed = {"family": "headed", "base": {"family": "headless", "base": spec.architecture}}
    other = {"family": "headed", "base": {"family": "torchvision", "name": "alexnet"}}
    assert set(packages(headed, from_pixels=True, probe=False)) == {
        *("lightning-fabric", "numpy", "pillow", "timm", "torch", "torchvision"),
    }
    assert set(packages(other, from_pixels=False, probe=False)) == {"lightning-fabric", "numpy", "torch", "torchvision"}
    assert "timm" in packages(other, headed, from_pixels=True, probe=False), "a teacher that runs in every step"
    backbone = serialization.read(tmp_path / "timm")
    foreign = Backbone(spec=spec.model_copy(update={"architecture": other}), module=backbone.module)
    specs = {"logits": TapSpec(node="logits")}

    def keys() -> tuple[str, str, dict[str, str]]:
        return address(backbone, specs), address(foreign, specs), packages(headed, from_pixels=True, probe=False)

    before = keys()
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "timm" else installed(name))
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert after[2] == {**before[2], "timm": "0.0.1"}
