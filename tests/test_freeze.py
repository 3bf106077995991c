"""Freezing: pretrained networks, torchvision's weights from its own cache or from a file, and all that can be wrong."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from test_taps import Heads
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from pipeline.backbones import glyphs, serialization, torchvision_models
from pipeline.backbones.hooks import collect
from pipeline.backbones.replace_classifier import replace_classifier
from pipeline.backbones.serialization import weights_digest
from pipeline.backbones.spec import BackboneSpec, TapSpec, read_spec, resolve
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError
from pipeline.files import read_json, sha256_file
from pipeline.freeze.config import FreezeConfig, InputConfig
from pipeline.freeze.run import freeze
from pipeline.freeze.state_dict import read_entry
from pipeline.readers.image import ImageReader
from pipeline.runtime import Reporter

SQUEEZENET = "squeezenet1_1"
ENTRY = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
SMALL = {"resize": 64, "crop": 64}
"""Preprocessing to smaller images than those of the weights: to freeze a network is to run it several times."""


def read_state_dict(file: Path, **options: Any) -> Any:
    """Read a state dict, without the name of its entry."""
    return read_entry(file, **options)[0]


@pytest.fixture(scope="module")
def real_weights(assets: Path) -> Path:
    """Real ImageNet weights of SqueezeNet 1.1 in torchvision's layout."""
    return next((assets / "weights").glob("squeezenet1_1-*.pth"))


@pytest.fixture(scope="module")
def real_backbone(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a backbone frozen from the real weights."""
    folder = tmp_path_factory.mktemp("real") / "squeezenet"
    freeze(from_file(real_weights, input={}), folder, pretrained=Path("unused"))
    return folder


def settings_of(**settings: Any) -> Any:
    """Checked settings of the source that they name."""
    return TypeAdapter(FreezeConfig).validate_python(settings)


def from_file(file: Path, **settings: Any) -> Any:
    """Settings for SqueezeNet on small images, with weights in a file, which is stated by its right digest."""
    stated = {"source": "torchvision", "model": SQUEEZENET, "file": file, "sha256": sha256_file(file)[:12]}
    return settings_of(**stated | {"input": SMALL} | settings)


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
    own = serialization.write(
        tmp_path / "pretrained" / "net",
        glyphs.GlyphNet(classes=2, widths=(4,)),
        architecture={"family": "glyphs", "classes": 2, "widths": [4]},
        origin={"source": "pretrained", "steps": 7},
        inputs=glyphs.INPUT,
        classes=("a", "b"),
    )
    config = settings_of(source="pretrained", network="net")
    frozen = freeze(config, tmp_path / "backbone", pretrained=tmp_path / "pretrained")
    assert frozen == own == serialization.read(tmp_path / "backbone").spec


def test_a_network_that_was_not_pretrained_is_refused(tmp_path: Path) -> None:
    config = settings_of(source="pretrained", network="net")
    with pytest.raises(BackboneError, match=r"net: not a backbone"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path / "pretrained")
    assert not (tmp_path / "backbone").exists()


# Weights in a file ----------------------------------------------------------------------------------------------------


def test_real_weights_in_a_file_become_a_backbone(real_backbone: Path, real_weights: Path, assets: Path) -> None:
    backbone = serialization.read(real_backbone)
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


def test_the_same_weights_as_safetensors_are_the_same_backbone(
    real_backbone: Path, real_weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(torch.load(real_weights, weights_only=True), file)
    spec = freeze(from_file(file, input={}), tmp_path / "backbone", pretrained=tmp_path)
    expected = read_spec(real_backbone)
    assert spec.weights_digest == expected.weights_digest
    assert spec.model_copy(update={"origin": {}}) == expected.model_copy(update={"origin": {}})


@pytest.mark.parametrize(("entry", "suffix"), [("state_dict", "ckpt"), ("model_state_dict", "pt"), ("model", "pth")])
def test_a_checkpoint_may_hold_the_weights_in_an_entry(tmp_path: Path, entry: str, suffix: str) -> None:
    state = random_state()
    file = saved(tmp_path / f"checkpoint.{suffix}", {entry: state, "epoch": 3, "best": 0.9})
    assert weights_digest(read_state_dict(file, sha256="")) == weights_digest(state)
    spec = freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.weights_digest == weights_digest(state)


A, B = {"a.weight": torch.ones(2, 2)}, {"a.weight": torch.zeros(2, 2), "b": torch.ones(1)}
ADAM = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("value", "entry", "chosen", "noted"),
    [
        ({"model": A, "model_ema": B}, None, A, "read `entry: model` of 2 (model: 1 key, model_ema: 2 keys)"),
        ({"model": A, "model_ema": B}, "model_ema", B, "read `entry: model_ema` of 2"),
        ({"teacher": A, "student": B, "optimizer": ADAM}, "student", B, "read `entry: student` of 2"),
        ({"model": {"online": A, "target": B}}, "model.target", B, "read `entry: model.target` of 2"),
        ({"net": A, "optimizer": ADAM, "epoch": 3}, None, A, "read `entry: net`, the only one with weights (1 key)"),
        ({"model": A, "optimizer": ADAM, "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)}}, None, A, ""),
    ],
)
def test_an_entry_chooses_among_several_state_dicts(
    tmp_path: Path, value: Any, entry: str | None, chosen: dict[str, torch.Tensor], noted: str
) -> None:
    said: list[str] = []
    state = read_state_dict(
        saved(tmp_path / "w.pth", value), sha256="", entry=entry, reporter=Reporter(message=said.append)
    )
    assert weights_digest(state) == weights_digest(chosen)
    assert [line.startswith(f"w.pth: {noted}") for line in said] == [True] * bool(noted)


@pytest.mark.parametrize(
    ("value", "entry", "message"),
    [
        (
            {"teacher": A, "student": B},
            None,
            r"got 2. Choose one with `entry`\n  - teacher: 1 key\n  - student: 2 keys",
        ),
        ({"state_dict": A, "model": B}, None, r"got 2. Choose one with `entry`"),
        ({"model": A, "ema": B}, "emma", r"no entry 'emma' .* Expected one of\n  - model: 1 key\n  - ema: 2 keys"),
        ({"model": A, "optimizer": ADAM}, "optimizer", r"no entry 'optimizer' with weights .*\n  - model: 1 key"),
        ({f"teacher.{key}": value for key, value in B.items()}, "teacher", r"no entries.*`strip_prefix: 'teacher.'`"),
        (A, "model", r"no entry 'model' in this file, which has no entries. Leave `entry` out."),
        (ADAM, None, "got the state of an optimizer"),
        ({"optimizer": ADAM, "epoch": 3}, None, r"got dict without weights: 'optimizer' \(dict\), 'epoch' \(int\)"),
        ({"model": {**B, "epoch": 3}}, None, r"in 'model', got keys that are no tensors: epoch \(int\)"),
        ({"model": A, "best": np.float64(0.9)}, None, r"it holds numpy\S+scalar, a value of numpy, such as a score"),
    ],
)
def test_a_checkpoint_that_decides_nothing_is_refused_with_its_entries(
    tmp_path: Path, value: Any, entry: str | None, message: str
) -> None:
    with pytest.raises(BackboneError, match=rf"w.pth: (.|\n)*{message}"):
        read_state_dict(saved(tmp_path / "w.pth", value), sha256="", entry=entry)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.safetensors.index.json",
            b'{"weight_map": {"a": "1.bin", "b": "2.bin"}}',
            r"index of 2 files \(1.bin, 2.bin",
        ),
        ("config.json", b"{}", "got JSON. Merge the parts"),
        ("model-00001-of-00003.safetensors", b"", "got one of 3 parts. Merge the parts: read each"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("w.pth", b"<!DOCTYPE html>", "a web page"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ],
)
def test_a_file_that_is_not_all_weights_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        read_state_dict(tmp_path / name, sha256="")


def test_the_content_decides_between_safetensors_and_torch(tmp_path: Path) -> None:
    safetensors.torch.save_file(B, tmp_path / "w.bin")
    saved(tmp_path / "w.safetensors", B)
    for name in ("w.bin", "w.safetensors"):
        assert weights_digest(read_state_dict(tmp_path / name, sha256="")) == weights_digest(B)


def test_a_classifier_of_another_size_has_no_class_names(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state(num_classes=7))
    spec = freeze(from_file(file, classes=7), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.taps["logits"].shape == (7,)
    assert spec.classes == ()
    assert spec.architecture == {"family": "torchvision", "name": SQUEEZENET, "num_classes": 7}
    assert serialization.read(tmp_path / "backbone").spec == spec


def test_a_classifier_of_another_size_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    state = random_state(num_classes=7)
    file, said = saved(tmp_path / "w.pth", {"model": state, "epoch": 3}), list[str]()
    spec = freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path, reporter=Reporter(message=said.append))
    text = " ".join(said)
    assert "weights of the last layer, 'classifier.1', have 7 outputs, and the model has another number (to" in text
    assert "set `classes: 7`). The backbone ends before it" in text
    # The entry that was read without being named is kept too.
    assert (spec.origin["without"], spec.origin["other_classes"], spec.origin["entry"]) == ("classifier.1", 7, "model")
    assert spec.taps["penultimate"].shape == (512,)
    with pytest.raises(
        BackboneError, match=r"the weights of 'classifier.1' are for 7 classes. Use `penultimate`, or f"
    ):
        resolve({"a": TapSpec(node="logits")}, spec, where="b")
    with pytest.raises(BackboneError, match=r"2 keys differ(.|\n)*\(8, 512, 1, 1\).*\(7, 512, 1"):
        freeze(from_file(file, classes=8), tmp_path / "other", pretrained=tmp_path)
    assert not (tmp_path / "other").exists()


def test_several_layers_of_a_classifier_may_be_missing_and_no_others(tmp_path: Path) -> None:
    model = "mobilenet_v3_small"
    state = random_state(model)
    kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    file, said = saved(tmp_path / "w.pth", kept), list[str]()
    spec = freeze(
        from_file(file, model=model),
        tmp_path / "b",
        pretrained=tmp_path,
        reporter=Reporter(message=said.append),
    )
    assert "no weights of the last layer, 'classifier'. The backbone ends before it" in said[0]
    assert spec.taps["penultimate"].shape == (576,)
    shorter = saved(
        tmp_path / "s.pth", {key: value for key, value in kept.items() if not key.startswith("features.12.")}
    )
    with pytest.raises(BackboneError, match="9 keys differ"):
        freeze(from_file(shorter, model=model), tmp_path / "c", pretrained=tmp_path)


@pytest.mark.parametrize("norms", [False, True])
def test_the_classifiers_of_two_heads_may_be_missing(norms: bool, tmp_path: Path) -> None:
    factory = f"{__name__}:two_heads"
    state = {key: value for key, value in two_heads(norms).state_dict().items() if key.startswith("conv.")}
    file = saved(tmp_path / "w.pth", state)
    inputs = {"resize": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = settings_of(
        source="module",
        factory=factory,
        arguments={"norms": norms},
        file=file,
        sha256=sha256_file(file)[:12],
        input=inputs,
    )
    spec = freeze(config, tmp_path / "b", pretrained=tmp_path)
    assert spec.architecture["at"] == ["one", "other"]
    again = serialization.read(tmp_path / "b")
    images = torch.rand(2, 3, 8, 8)
    maps = again.module.conv(images)
    rows = collect(again.module, images, {"x": TapSpec(node="penultimate")}, spec.taps)["x"]
    assert torch.equal(rows, torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))
    network, architecture = replace_classifier(spec, again.module, classes=3)
    assert torch.allclose(network(images), network.new_classifier(rows))
    assert serialization.build(architecture)(images).shape == (2, 3)


def two_heads(norms: bool) -> torch.nn.Module:
    """A factory of a network of two heads."""
    return Heads(same=False, norms=norms)


def test_weights_in_a_file_that_may_want_one_of_several_preprocessings_ask_for_their_entry(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state("mobilenet_v2"))
    config = {"source": "torchvision", "model": "mobilenet_v2", "file": file, "sha256": sha256_file(file)[:12]}
    with pytest.raises(
        BackboneError, match=r"mobilenet_v2: expected `weights` with `file`(.|\n)*IMAGENET1K_V1: RGB, r"
    ):
        freeze(settings_of(**config), tmp_path / "b", pretrained=tmp_path)
    # What differs is set: nothing is left to ask.
    spec = freeze(settings_of(**config, input=SMALL), tmp_path / "b", pretrained=tmp_path)
    assert spec.input.description == (
        "RGB, resize the shorter side to 64 (bilinear), crop 64×64, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("model", "at", "projection"), [("resnet18", "fc", "fc.0.weight"), ("mobilenet_v3_small", "classifier.3", None)]
)
def test_weights_without_a_classifier_make_a_backbone_that_ends_before_it(
    tmp_path: Path, model: str, at: str, projection: str | None
) -> None:
    state = random_state(model)
    whole = models.get_model(model, weights=None).eval()
    whole.load_state_dict(state)
    kept = {key: value for key, value in state.items() if not key.startswith(f"{at}.")}
    file = saved(tmp_path / "w.pth", kept | ({projection: torch.zeros(2)} if projection else {}))
    said: list[str] = []
    spec = freeze(
        from_file(file, model=model),
        tmp_path / "b",
        pretrained=tmp_path,
        reporter=Reporter(message=said.append),
    )
    assert f"no weights of the last layer, '{at}'" in said[0]
    assert ("Left out: fc.0.weight." in said[0]) == bool(projection)
    assert (spec.classes, spec.origin["without"]) == ((), at)
    assert spec.taps["penultimate"].input_of is None
    images, expected = torch.rand(2, 3, 64, 64), list[torch.Tensor]()
    whole.get_submodule(at).register_forward_pre_hook(lambda _part, args: expected.append(args[0]))
    with torch.no_grad():
        whole(images)
        assert torch.equal(serialization.read(tmp_path / "b").module(images), expected[0])
    with pytest.raises(BackboneError, match=rf"2 keys differ|3 keys differ(.|\n)*missing: {at}.weight"):
        freeze(from_file(file, model=model, classes=7), tmp_path / "c", pretrained=tmp_path)
    with pytest.raises(BackboneError, match=f"tap 'a': no classifier: the weights lack {at!r}. Use `penultimate`"):
        resolve({"a": TapSpec(node="logits")}, spec, where="b")


def test_weights_of_another_model_are_refused_by_key(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    with pytest.raises(BackboneError, match=r"resnet18 from(.|\n)*- missing: conv1.weight \(64, 3, 7, 7\)"):
        freeze(from_file(file, model="resnet18"), tmp_path / "backbone", pretrained=tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "model.backbone.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network_are_refused_with_the_prefix_to_strip(tmp_path: Path, prefix: str) -> None:
    state = random_state()
    wrapped = {f"{prefix}{key}": value for key, value in state.items()} | {"loss.weight": torch.zeros(2)}
    file = saved(tmp_path / "w.ckpt", {"state_dict": wrapped, "epoch": 3})
    with pytest.raises(BackboneError, match=r"105 keys differ(.|\n)*- missing: features.0.weight") as caught:
        freeze(from_file(file), tmp_path / "backbone", pretrained=tmp_path)
    assert str(caught.value).endswith(f"Keys begin with '{prefix}': set `strip_prefix: '{prefix}'`.")
    said: list[str] = []
    spec = freeze(
        from_file(file, strip_prefix=prefix),
        tmp_path / "backbone",
        pretrained=tmp_path,
        reporter=Reporter(message=said.append),
    )
    assert said == [f"w.ckpt: 1 key without '{prefix}' left out: loss.weight"]
    assert spec.weights_digest == weights_digest(state)


def test_a_prefix_that_no_key_has_is_refused_with_the_first_keys(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", {"a.b": torch.zeros(1), "c": torch.zeros(1)})
    with pytest.raises(
        BackboneError, match=r"w.pth: expected keys that begin with 'model.', got a.b, c. Correct `strip_p"
    ):
        read_state_dict(file, sha256="", strip_prefix="model.")


def test_weights_that_fit_nothing_get_no_hint_of_a_prefix(tmp_path: Path) -> None:
    state = {"layer1.0.features.0.weight": random_state()["features.0.weight"]}
    with pytest.raises(BackboneError, match="keys differ") as caught:
        freeze(from_file(saved(tmp_path / "w.pth", state)), tmp_path / "backbone", pretrained=tmp_path)
    assert "strip_prefix" not in str(caught.value)


def test_real_weights_of_a_wrapped_network_are_read_without_their_prefix(assets: Path) -> None:
    state = read_state_dict(assets / "weights" / "resnet20-12fca82f.th", sha256="12fca82f", strip_prefix="module.")
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["linear.bias"].shape == (10,)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = settings_of(source="torchvision", model=SQUEEZENET, file=tmp_path / "no.pth", sha256="12345678")
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
    message = r"w.pth: expected a state dict .*cannot be read without running code from it: .*If you trust .*, convert"
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
    config = settings_of(source="torchvision", model=SQUEEZENET)
    spec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert spec.weights_digest == weights_digest(state)
    assert spec.origin == {
        "source": "torchvision",
        "model": SQUEEZENET,
        "weights": "IMAGENET1K_V1",
        "license": "not stated",
        "url": ENTRY.url,
    }
    assert list(spec.classes) == ENTRY.meta["categories"]
    assert spec.architecture == {"family": "torchvision", "name": SQUEEZENET}


def test_weights_that_cannot_be_fetched_say_what_to_do(hub: Path, tmp_path: Path) -> None:
    config = settings_of(source="torchvision", model=SQUEEZENET, weights="IMAGENET1K_V1")
    with pytest.raises(
        BackboneError, match=r"squeezenet1_1-\w+.pth: the weights could not be loaded: .*set `file` to its path"
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_cache_of_torchs_hub_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / ENTRY.url.rsplit("/", 1)[1]).write_bytes(b"half a file")
    config = settings_of(source="torchvision", model=SQUEEZENET)
    with pytest.raises(BackboneError, match=r"squeezenet1_1-\w+.pth: the weights could not be loaded: "):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_an_unknown_model_is_named_with_its_neighbours(tmp_path: Path) -> None:
    config = settings_of(source="torchvision", model="mobilenetv2")
    with pytest.raises(
        BackboneError, match=r"unknown torchvision classification model 'mobilenetv2'. Did you mean 'mobi"
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_a_model_for_another_task_is_unknown(tmp_path: Path) -> None:
    config = settings_of(source="torchvision", model="fasterrcnn_resnet50_fpn")
    with pytest.raises(BackboneError, match="unknown torchvision classification model"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_an_unknown_weights_entry_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    config = settings_of(source="torchvision", model="mobilenet_v2", weights="IMAGENET1K_V3")
    with pytest.raises(
        BackboneError,
        match=r"mobilenet_v2: unknown weights 'IMAGENET1K_V3'. Did you .*: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2",
    ):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


def test_the_preprocessing_gives_the_numbers_of_torchvision(tmp_path: Path) -> None:
    spec = freeze(
        from_file(saved(tmp_path / "w.pth", random_state()), input={}),
        tmp_path / "backbone",
        pretrained=tmp_path / "unused",
    )
    assert spec.input.shape == (3, 224, 224)
    path = tmp_path / "photo.png"
    photo().save(path)
    pixels = ImageReader(spec.input.image)(path.read_bytes())["pixels"]
    backbone = serialization.read(tmp_path / "backbone")
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
    entry = torchvision_models.weights_entry(model, weights)
    spec = torchvision_models.preprocessing(entry)
    assert spec.size == (size, size)
    data = io.BytesIO()
    photo().save(data, "png")
    pixels = ImageReader(spec.image)(data.getvalue())["pixels"]
    ours = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), entry.transforms()(photo()).numpy(), rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_is_built_for_the_image_size_of_its_weights() -> None:
    entry = torchvision_models.weights_entry("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert torchvision_models.architecture("vit_b_16", entry, None)["image_size"] == 384
    assert (
        torchvision_models.architecture("vit_b_16", torchvision_models.weights_entry("vit_b_16", "DEFAULT"), None)[
            "image_size"
        ]
        == 224
    )


def test_every_model_of_torchvision_is_built_as_every_set_of_its_weights_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = BlockParams.from_init_params

    def computed(*args: Any, **kwargs: Any) -> BlockParams:  # RegNets compute their widths with tensors
        with torch.device("cpu"):
            return original(*args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", computed)
    assert len(torchvision_models.names()) >= 80
    for model in torchvision_models.names():
        entries = list(models.get_model_weights(model))
        assert entries, model
        counts: dict[str, int] = {}  # several entries may be of one network
        for entry in entries:
            architecture = torchvision_models.architecture(model, entry, None)
            if str(architecture) not in counts:
                with torch.device("meta"):  # names and shapes without numbers
                    named = serialization.build(architecture).named_parameters()
                auxiliary = ("aux1.", "aux2.") if model == "googlenet" else ()
                counts[str(architecture)] = sum(p.numel() for key, p in named if not key.startswith(auxiliary or "-"))
            assert counts[str(architecture)] == entry.meta["num_params"], entry
            assert torchvision_models.preprocessing(entry).size == (entry.transforms().crop_size[0],) * 2
            assert entry.url.startswith("https://")


FAMILIES = {
    "alexnet": (4096,),
    "convnext_tiny": (768,),
    "densenet121": (1024,),
    "efficientnet_b0": (1280,),
    "efficientnet_v2_s": (1280,),
    "googlenet": (1024,),
    "inception_v3": (2048,),
    "maxvit_t": (512,),
    "mnasnet0_5": (1280,),
    "mobilenet_v2": (1280,),
    "mobilenet_v3_small": (1024,),
    "resnet18": (512,),
    "resnext50_32x4d": (2048,),
    "shufflenet_v2_x0_5": (1024,),
    "squeezenet1_1": (512, 13, 13),
    "swin_t": (768,),
    "swin_v2_t": (768,),
    "vgg11_bn": (4096,),
    "vit_b_32": (768,),
    "wide_resnet50_2": (2048,),
}


@pytest.mark.parametrize("model", FAMILIES)
def test_a_model_of_every_family_runs_on_the_input_of_its_weights(model: str) -> None:
    entry = torchvision_models.weights_entry(model, "DEFAULT")
    with torch.device("meta"):  # shapes without numbers
        network = serialization.freeze(torchvision_models.build(torchvision_models.architecture(model, entry, None)))
        last = [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
        seen: list[tuple[int, ...]] = []
        last.register_forward_pre_hook(lambda _part, args: seen.append(tuple(args[0].shape[1:])))
        logits = network(torch.zeros(2, *torchvision_models.preprocessing(entry).shape))
    assert logits.shape == (2, 1000)
    assert seen == [FAMILIES[model]]


@pytest.mark.parametrize("model", ["regnet_x_400mf", "mobilenet_v3_small"])
def test_models_of_other_families_are_frozen_and_read_again(tmp_path: Path, model: str) -> None:
    file = saved(tmp_path / "w.pth", random_state(model))
    spec = freeze(from_file(file, model=model, weights="IMAGENET1K_V1"), tmp_path / "b", pretrained=tmp_path)
    assert serialization.read(tmp_path / "b").spec == spec
    assert len(spec.classes) == 1000


def test_weights_without_class_names_make_a_backbone_without_class_names(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = models.VGG16_Weights.IMAGENET1K_FEATURES
    assert torchvision_models.preprocessing(entry).std == pytest.approx((1 / 255,) * 3)
    assert entry.meta["categories"] is None
    monkeypatch.setitem(ENTRY.meta, "categories", None)  # as those have: 0.5 GB is too much for a test
    saved(hub / ENTRY.url.rsplit("/", 1)[1], random_state())
    spec = freeze(settings_of(source="torchvision", model=SQUEEZENET), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.classes == ()


# A backbone from a folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> BackboneSpec:
    """A backbone in the folder `elsewhere`."""
    torch.manual_seed(1)
    return serialization.write(
        tmp_path / "elsewhere",
        glyphs.GlyphNet(classes=2, widths=(4,)),
        architecture={"family": "glyphs", "classes": 2, "widths": [4]},
        origin={"source": "finetune"},
        inputs=glyphs.INPUT,
        classes=("a", "b"),
    )


def test_a_backbone_of_any_folder_is_frozen_as_it_is(elsewhere: BackboneSpec, tmp_path: Path) -> None:
    config = settings_of(source="folder", folder=tmp_path / "elsewhere", digest=elsewhere.weights_digest[:8].upper())
    assert freeze(config, tmp_path / "backbone", pretrained=tmp_path) == elsewhere
    assert serialization.read(tmp_path / "backbone").spec == elsewhere


@pytest.mark.parametrize("given", [None, "", "1234567"])
def test_a_folder_without_its_digest_is_refused_with_the_digest_to_write(
    elsewhere: BackboneSpec, tmp_path: Path, given: str | None
) -> None:
    digest = elsewhere.weights_digest[:16]
    with pytest.raises(
        ValidationError, match=rf"`folder` needs `digest`, at least the first 8 .* \(digest: '{digest}'\)"
    ):
        settings_of(source="folder", folder=tmp_path / "elsewhere", digest=given)


@pytest.mark.parametrize("text", [None, "{}", "[1]", "no JSON", '{"weights_digest": 3}'])
def test_a_folder_that_holds_no_backbone_cannot_suggest_a_digest(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "backbone.json").write_text(text)
    with pytest.raises(ValidationError, match="not a backbone"):
        settings_of(source="folder", folder=tmp_path)


def test_other_weights_in_a_folder_than_the_stated_ones_are_refused(elsewhere: BackboneSpec, tmp_path: Path) -> None:
    config = settings_of(source="folder", folder=tmp_path / "elsewhere", digest="00000000")
    with pytest.raises(BackboneError, match=rf"begins with 00000000, got {elsewhere.weights_digest[:16]}. If the new"):
        freeze(config, tmp_path / "backbone", pretrained=tmp_path)


# Preprocessing of the user's own --------------------------------------------------------------------------------------


def test_input_replaces_single_settings_of_the_preprocessing(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    own = freeze(from_file(file), tmp_path / "own", pretrained=tmp_path)
    config = from_file(file, input={"resize": 150, "crop": 128, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5]})
    spec = freeze(config, tmp_path / "backbone", pretrained=tmp_path)
    assert spec.input.image.model_dump() == {
        "mode": "RGB",
        "resize": 150,
        "crop": (128, 128),
        "interpolation": "bicubic",
    }
    assert (spec.input.mean, spec.input.std) == ((0.5, 0.5, 0.5), own.input.std)
    assert spec.taps["input"].shape == (3, 128, 128)
    assert spec.weights_digest == own.weights_digest


def test_a_draft_is_set_by_input_and_leaves_what_is_written_as_it_was_where_it_is_off(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    own = freeze(from_file(file), tmp_path / "own", pretrained=tmp_path)
    spec = freeze(from_file(file, input={**SMALL, "draft": True}), tmp_path / "backbone", pretrained=tmp_path)
    assert spec.input.image == own.input.image.model_copy(update={"draft": True})
    assert read_json(tmp_path / "backbone" / "backbone.json")["input"]["image"]["draft"] is True
    assert "draft" not in read_json(tmp_path / "own" / "backbone.json")["input"]["image"]
    assert read_spec(tmp_path / "backbone") == spec
    assert InputConfig(draft=False).onto(spec.input) == own.input
    assert InputConfig(draft=False).model_dump() == InputConfig().model_dump()
    assert "draft" not in InputConfig().model_dump()


def test_input_without_a_crop_needs_both_sides(elsewhere: BackboneSpec, tmp_path: Path) -> None:
    changed = InputConfig(resize=(48, 40), std=(0.25,)).onto(elsewhere.input)
    assert (changed.size, changed.mean, changed.std) == ((48, 40), (0.5,), (0.25,))
    stated = {"source": "folder", "folder": tmp_path / "elsewhere", "digest": elsewhere.weights_digest}
    with pytest.raises(BackboneError, match=r"^b: `input` makes no image: expected `crop`, or both sides .*resize: 48"):
        freeze(settings_of(**stated, input={"resize": 48}), tmp_path / "b", pretrained=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mode": "L"},
            "expected 1 numbers in `mean` for mode L, got 3; expected 1 numbers in `std` for mode L, got 3",
        ),
        ({"mean": (0.5,)}, "expected 3 numbers in `mean` for mode RGB, got 1"),
        ({"crop": 448}, r"whose shorter side is 232, got \(448, 448\): its borders would be black. Set `resize` too"),
        (
            {"draft": True, "resize": None},
            "expected `resize` with `draft`, which decodes at a fraction of the size, got",
        ),
        ({"crop": None}, "expected `crop`, or both sides in `resize`, got resize: 232, which leaves a side open"),
    ],
)
def test_input_that_makes_no_image_is_refused(changes: dict[str, Any], message: str) -> None:
    own = torchvision_models.preprocessing(torchvision_models.weights_entry("mobilenet_v2", "IMAGENET1K_V2"))
    with pytest.raises(ValueError, match=message):
        InputConfig(**changes).onto(own)
    assert InputConfig(crop=448, resize=448).onto(own).size == (448, 448)


@pytest.mark.parametrize(
    "changes", [{"resize": 0}, {"crop": 0}, {"std": (0.0, 1.0, 1.0)}, {"mode": "CMYK"}, {"size": 8}]
)
def test_input_of_impossible_values_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        InputConfig(**changes)


def test_an_input_that_the_network_refuses_is_named_with_the_reason(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    message = (
        r"^b: expected an input that SqueezeNet takes, got images of 8×8 with 3 channels: RuntimeError: .*too small.*"
        r"Set `input` to the preprocessing of its training."
    )
    with pytest.raises(BackboneError, match=message):
        freeze(from_file(file, input={"resize": 8, "crop": 8}), tmp_path / "b", pretrained=tmp_path)
    grey = {"mode": "L", "mean": [0.5], "std": [0.5]}
    with pytest.raises(BackboneError, match="got images of 224×224 with 1 channels: RuntimeError: "):
        freeze(from_file(file, input=grey), tmp_path / "b", pretrained=tmp_path)
    assert not (tmp_path / "b").exists()


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "pretrained"}, r"pretrained.network\n  Field required"),
        ({"source": "torchvision"}, r"torchvision.model\n  Field required"),
        ({"source": "torchvision", "model": "x", "file": "gone.pth"}, r"`file` needs `sha256`.*gone.pth: no such file"),
        ({"source": "torchvision", "model": "x", "classes": 0}, "greater than or equal to 1"),
        (
            {"source": "torchvision", "model": "x", "sha256": "12345678"},
            "`sha256` belongs to `file`, and there is none",
        ),
        ({"source": "torchvision", "model": "x", "strip_prefix": "a."}, "`strip_prefix` belongs to `file`"),
        ({"source": "torchvision", "model": "x", "entry": "ema"}, "`entry` belongs to `file`"),
        ({"source": "torchvision", "model": "x", "classes": 3}, "`classes` belongs to `file`"),
        ({"source": "keras", "model": "x"}, "'pretrained', 'torchvision', 'timm', 'folder', 'module'"),
        ({"source": "timm", "model": "resnet50.a1_in1k"}, "Write `model: resnet50` and `weights: a1_in1k`"),
        ({"source": "torchvision", "model": "x", "weigths": "DEFAULT"}, "weigths"),
    ],
)
def test_incomplete_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings_of(**settings)


@pytest.mark.parametrize("given", [None, "", "1234567"])
def test_a_file_without_its_digest_is_refused_with_the_digest_to_write(tmp_path: Path, given: str | None) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    with pytest.raises(ValidationError, match=rf"at least its first 8 digits \(sha256: '{sha256_file(file)[:16]}'\)"):
        settings_of(source="torchvision", model=SQUEEZENET, file=file, sha256=given)
    assert settings_of(source="torchvision", model=SQUEEZENET, file=file, sha256=sha256_file(file)[:8]).file == file


def test_freezing_again_writes_the_same_bytes(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", random_state())
    written: list[dict[str, bytes]] = []
    for name in ("one", "two", "two"):
        spec: BackboneSpec = freeze(from_file(file), tmp_path / name, pretrained=tmp_path)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert spec.origin["file"] == "w.pth"
    assert written[0] == written[1] == written[2]
    assert sorted(written[0]) == ["backbone.json", "weights.safetensors"]
