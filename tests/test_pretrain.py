"""Pretraining: the distortions, a few steps on a small set of glyphs, and the backbone that comes out."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFont
from pydantic import ValidationError

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import TapSpec
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import DataError
from pipeline.manifest import ManifestPaths
from pipeline.pretrain.augment import distort
from pipeline.pretrain.config import PretrainConfig
from pipeline.pretrain.run import pretrain
from pipeline.readers.image import ImageReader
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.sample.run import draw, fonts


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


class Data:
    """A manifest of glyphs."""

    def __init__(self, root: Path, characters: str, *, count: int) -> None:
        self.manifests = root / "manifests"
        rows: list[dict[str, Any]] = []
        for font in fonts()[:count]:
            for character in characters:
                path = root / f"{font.stem}-{character}.png"
                draw(character, ImageFont.truetype(str(font), 24)).save(path)
                rows.append({"path": str(path), "label": character, "shape": "round" if character == "O" else "other"})
        self.paths = [Path(row["path"]) for row in rows]
        for row, path in zip(rows, self.paths, strict=True):
            row |= {"key": content_key(path.read_bytes()), "size": path.stat().st_size}
        table = pa.Table.from_pylist(rows)
        self.manifests.mkdir()
        pq.write_table(table, ManifestPaths(self.manifests, "glyphs").rows)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Three letters in ten fonts."""
    return Data(tmp_path, "OLX", count=10)


def config(**settings: object) -> PretrainConfig:
    """A few steps of a very small network."""
    small = {"dataset": "glyphs", "steps": 3, "batch_size": 8, "widths": (4, 8)}
    return PretrainConfig.model_validate(small | settings)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data: Data, tmp_path: Path) -> None:
    one, two, other = (
        pretrain(config(seed=seed), tmp_path / name, manifests=data.manifests)
        for seed, name in ((0, "one"), (0, "two"), (1, "other"))
    )
    assert one == two
    assert one.weights_digest != other.weights_digest
    for name in ("backbone.json", "weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_network_is_a_backbone_that_says_how_it_was_trained(data: Data, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    spec = pretrain(
        config(), tmp_path / "net", manifests=data.manifests, reporter=Reporter(progress=lambda *now: told.append(now))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert serialization.read(tmp_path / "net").spec == spec
    assert spec.classes == ("L", "O", "X")
    assert spec.architecture == {"family": "glyphs", "classes": 3, "widths": [4, 8]}
    assert spec.input == glyphs.INPUT
    assert spec.taps["penultimate"].shape == (8,)
    assert spec.taps["logits"].shape == (3,)
    assert spec.origin["source"] == "pretrained"
    assert {name: spec.origin[name] for name in ("dataset", "steps", "batch_size", "seed")} == {
        "dataset": "glyphs",
        "steps": 3,
        "batch_size": 8,
        "seed": 0,
    }
    assert 0 <= spec.origin["holdout_accuracy"] <= 1


def test_training_learns_to_tell_letters_apart(data: Data, tmp_path: Path) -> None:
    enough = config(steps=150, batch_size=32, learning_rate=0.01, widths=(8, 16))
    pretrain(enough, tmp_path / "net", manifests=data.manifests)
    backbone = serialization.read(tmp_path / "net")
    reader = ImageReader(backbone.spec.input.image)
    pixels = np.stack([reader(path.read_bytes())["pixels"] for path in data.paths])
    logits = TorchEngine(backbone, {"l": TapSpec(node="logits")}, batch_size=30).run({"pixels": pixels})["l"]
    told = [backbone.spec.classes[number] for number in logits.argmax(1)]
    right = [name == path.stem[-1] for name, path in zip(told, data.paths, strict=True)]
    # By chance it would be a third.
    assert sum(right) >= 25


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_very_few_steps_are_enough_to_write_a_network(data: Data, tmp_path: Path, steps: int) -> None:
    spec = pretrain(config(steps=steps), tmp_path / "net", manifests=data.manifests)
    assert spec.origin["steps"] == steps


def test_a_data_set_of_a_handful_of_pictures_has_one_held_out(tmp_path: Path) -> None:
    few = Data(tmp_path, "OX", count=1)
    spec = pretrain(config(), tmp_path / "net", manifests=few.manifests)
    assert spec.origin["holdout_accuracy"] in (0.0, 1.0)


def test_another_column_can_be_the_target(data: Data, tmp_path: Path) -> None:
    spec = pretrain(config(target="shape"), tmp_path / "net", manifests=data.manifests)
    assert spec.classes == ("other", "round")


def test_rows_without_a_label_are_counted(data: Data, tmp_path: Path) -> None:
    path = ManifestPaths(data.manifests, "glyphs").rows
    table = pq.read_table(path)
    labels = [None, *table["label"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("label"), "label", pa.array(labels)), path)
    with pytest.raises(DataError, match=r"glyphs: 1 row has no value in 'label'\. Give it\."):
        pretrain(config(), tmp_path / "net", manifests=data.manifests)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    one = Data(tmp_path, "O", count=3)
    with pytest.raises(DataError, match=r"glyphs: expected at least two classes in 'label', got \['O'\]\."):
        pretrain(config(), tmp_path / "net", manifests=one.manifests)
    assert not (tmp_path / "net").exists()


def test_an_unknown_target_or_data_set_is_named(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown column 'lable'. Did you mean 'label'"):
        pretrain(config(target="lable"), tmp_path / "net", manifests=data.manifests)
    with pytest.raises(DataError, match=r"letters.parquet: no such manifest. Run `icecore repro prepare@letters`"):
        pretrain(config(dataset="letters"), tmp_path / "net", manifests=data.manifests)


def test_a_picture_that_cannot_be_read_is_named(data: Data, tmp_path: Path) -> None:
    path = data.paths[4]
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match=rf"{path}: damaged image: .*\. Run prepare again, with `check: decode`\."):
        pretrain(config(), tmp_path / "net", manifests=data.manifests)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: No such file or directory\. Run prepare again"):
        pretrain(config(), tmp_path / "net", manifests=data.manifests)


def test_pictures_in_an_archive_train_the_same_network(data: Data, tmp_path: Path) -> None:
    whole = pretrain(config(), tmp_path / "whole", manifests=data.manifests)
    path = ManifestPaths(data.manifests, "glyphs").rows
    rows = {row["path"]: row for row in pq.read_table(path).to_pylist()}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in reversed(rows):
            archive.add(name, Path(name).name)
    with tarfile.open(tmp_path / "a.tar") as archive:
        for name, row in rows.items():
            row |= {"container": str(tmp_path / "a.tar"), "offset": archive.getmember(Path(name).name).offset_data}
    pq.write_table(pa.Table.from_pylist(list(rows.values())), path)
    for name in rows:
        Path(name).unlink()
    packed = pretrain(config(), tmp_path / "packed", manifests=data.manifests)
    assert packed.weights_digest == whole.weights_digest
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"the archive ends inside this member: .* Run prepare again"):
        pretrain(config(), tmp_path / "net", manifests=data.manifests)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"widths": ()}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        config(**settings)


# Distortions ----------------------------------------------------------------------------------------------------------


def letters(count: int) -> torch.Tensor:
    """The same letter, a number of times, (n, 1, 32, 32) in [0, 1]."""
    picture = np.asarray(draw("R", ImageFont.truetype(str(fonts()[0]), 24)), dtype=np.float32) / 255
    return torch.from_numpy(picture).expand(count, 1, 32, 32).contiguous()


def test_distortions_stay_in_range_and_leave_the_originals_alone() -> None:
    images = letters(64)
    before = images.clone()
    found = distort(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(images, before)


def test_each_image_is_distorted_in_its_own_way_and_repeatably() -> None:
    images = letters(16)
    found = distort(images, torch.Generator().manual_seed(0))
    assert len({picture.numpy().tobytes() for picture in found}) == 16
    assert torch.equal(found, distort(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, distort(images, torch.Generator().manual_seed(1)))


def test_distorted_letters_keep_their_ink_in_the_frame_and_some_likeness() -> None:
    images = letters(256)
    generator = torch.Generator().manual_seed(0)
    found = torch.cat([distort(images[:8], generator) for _ in range(32)])
    share = found.mean() / images.mean()
    assert 0.6 < share < 1.6
    centred = [values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (found, images)]
    likeness = torch.nn.functional.cosine_similarity(*centred)
    assert likeness.mean() > 0.3
    assert likeness.max() < 0.999


def test_an_image_saved_and_read_again_is_what_was_drawn(tmp_path: Path) -> None:
    picture = draw("R", ImageFont.truetype(str(fonts()[0]), 24))
    picture.save(tmp_path / "r.png")
    pixels = ImageReader(glyphs.INPUT.image)((tmp_path / "r.png").read_bytes())["pixels"]
    with Image.open(tmp_path / "r.png") as image:
        np.testing.assert_array_equal(pixels[:, :, 0], np.asarray(image))
    assert np.array_equal(pixels[:, :, 0], np.asarray(picture))
