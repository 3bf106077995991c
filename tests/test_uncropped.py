"""Augmentation that crops or warps gets the image before the centre crop; evaluation gets the pixels of extraction."""

import contextlib
import io
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pydantic import TypeAdapter
from torchvision.transforms import v2

from pipeline.backbones.spec import InputSpec
from pipeline.errors import StoreError
from pipeline.loading import image_cache as module
from pipeline.loading.image_cache import Uncropped, load_pixels
from pipeline.loading.samples import Samples as Stored
from pipeline.loading.samples import read_samples
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.augment import View, augment
from pipeline.readers.image import ImageReader, ImageSpec
from pipeline.readers.transforms import AugmentConfig
from pipeline.training.data import PixelSamples

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (24, 24)


def transforms(*names: str | dict[str, Any]) -> AugmentConfig:
    found: AugmentConfig = TypeAdapter(AugmentConfig).validate_python(
        [{"name": one} if isinstance(one, str) else one for one in names]
    )
    return found


def inputs(**image: Any) -> InputSpec:
    spec = ImageSpec(**{"resize": 32, "crop": SIZE} | image)
    channels = 1 if spec.mode == "L" else 3
    return InputSpec(image=spec, mean=(0.5,) * channels, std=(0.5,) * channels)


def encoded(width: int, height: int, kind: str = "png", **more: Any) -> bytes:
    noise = np.random.default_rng(width).integers(0, 256, (max(1, height // 5), max(1, width // 5), 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, kind, **more)
    return file.getvalue()


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Images that are wide, high, smaller than the crop, turned, and a large JPEG that `draft` decodes at a part."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    images = {
        "wide.png": encoded(90, 40),
        "high.png": encoded(33, 70),
        "small.png": encoded(9, 14),
        "strip.png": encoded(64, 3),
        "turned.jpeg": encoded(80, 50, "jpeg", exif=exif),
        "large.jpeg": encoded(700, 400, "jpeg"),
        "even.png": encoded(32, 32),
    }
    (tmp_path / "photos").mkdir()
    for name, data in images.items():
        (tmp_path / "photos" / name).write_bytes(data)
    prepare(PrepareConfig(root=tmp_path / "photos"), ManifestPaths(tmp_path / "manifests", "photos"))
    return read_samples(tmp_path / "manifests", ("photos",))


def files(samples: Stored) -> list[bytes]:
    return [Path(place.path).read_bytes() for place in samples.places()]


CROPS = transforms({"name": "random_resized_crop", "scale": [0.3, 1]}, "horizontal_flip", "color_jitter")
SPECS = {
    "photo": {},
    "grey": {"mode": "L"},
    "draft": {"draft": True},
    "bicubic": {"interpolation": "bicubic"},
    "never resized": {"resize": None},
    "smaller than the crop": {"resize": 20},
    "both sides": {"resize": (40, 30)},
    "no crop": {"resize": (20, 20), "crop": None},
}


@pytest.mark.parametrize("settings", SPECS.values(), ids=SPECS)
def test_training_without_an_epoch_is_on_the_pixels_of_extraction_and_an_epoch_on_those_of_its_view(
    stored: Stored, tmp_path: Path, settings: dict[str, Any]
) -> None:
    spec = inputs(**settings)
    for chosen in (
        CROPS,
        transforms("random_crop"),
        transforms("rotation", "random_erasing"),
        transforms("color_jitter"),
    ):
        pixels = load_pixels(spec, stored, folder=tmp_path / "cache", transforms=chosen)
        assert isinstance(pixels, Uncropped) == (spec.image.crop is not None and chosen[0].name != "color_jitter")
        samples = PixelSamples(pixels, torch.arange(len(stored)), stored.keys, seed=5, transforms=chosen)
        assert samples.shape == (*spec.size, spec.shape[0])
        for epoch in (None, 2):
            view = None if epoch is None else View(augment=chosen, seed=5, number=epoch)
            reader = ImageReader(spec.image.model_copy(update={"view": view}))
            extracted = dict(zip(stored.keys.tolist(), [reader(data)["pixels"] for data in files(stored)], strict=True))
            for batch in samples.batches(3, epoch=epoch):
                for key, image in zip(batch.keys.tolist(), batch.inputs.numpy(), strict=True):
                    np.testing.assert_array_equal(image, extracted[key], strict=True)
        assert load_pixels(spec, stored, folder=tmp_path / "cache").array.shape == (len(stored), *samples.shape)


def edges() -> np.ndarray:
    """A wide image whose left and right thirds, which the centre crop cuts off, are white; the centre is grey."""
    image = np.full((24, 72, 3), 255, np.uint8)
    image[:, 24:48] = 90
    return image


@pytest.mark.parametrize(
    ("names", "beyond"),
    [
        (("random_resized_crop",), True),
        (("random_crop",), True),
        ((({"name": "rotation", "degrees": 45}),), True),
        ((({"name": "affine", "translate": [0.2, 0.0]}),), True),
        (("horizontal_flip", "random_crop"), True),
        (("random_resized_crop", "rotation"), True),
        (("horizontal_flip", "vertical_flip"), False),
        (("color_jitter", "grayscale", "gaussian_blur"), False),
        (("random_erasing",), False),
    ],
)
def test_crops_and_warps_see_what_the_centre_crop_cuts_off_and_others_do_not(
    names: tuple[str | dict[str, Any], ...], beyond: bool
) -> None:
    chosen = transforms(*names)
    found = augment([edges()] * 20, chosen, seeds=range(20), size=SIZE)
    assert found.shape == (20, 24, 24, 3)
    assert (found == 255).any() == beyond
    if not beyond:
        centre = np.stack([edges()[:, 24:48]] * 20)
        np.testing.assert_array_equal(found, augment(centre, chosen, seeds=range(20)))


def test_a_random_resized_crop_is_that_of_torchvisions_recipe_on_the_resized_image() -> None:
    data, spec = encoded(120, 70, "jpeg"), inputs(resize=40)
    (found,) = augment(
        [ImageReader(spec.image.model_copy(update={"crop": None}))(data)["pixels"]],
        transforms("random_resized_crop", {"name": "horizontal_flip", "p": 1}),
        seeds=[11],
        size=SIZE,
    )
    recipe = v2.Compose([v2.Resize(40), v2.PILToTensor(), v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = recipe(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(found, expected.permute(1, 2, 0).numpy())


# Room ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file may have more bytes than these, as on a disk that fills up: there is room, and then writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("chosen", [(), CROPS])
def test_a_disk_that_fills_up_ends_in_an_error_and_leaves_no_file(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: AugmentConfig
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    message = (
        r"cache: expected at least 12,096 bytes of free space for decoded images, got an error while writing "
        r"them: File too large\. "
        r"Free some space \(`icecore cache prune`\), or set ICECORE_CACHE to a folder on a larger disk"
    )
    with small_files(9_000), pytest.raises(StoreError, match=message):
        load_pixels(inputs(), stored, folder=tmp_path / "cache", transforms=chosen)
    assert not list((tmp_path / "cache").iterdir())


def test_too_little_room_is_known_before_anything_is_decoded(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_disk", lambda _: 12_095)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    with pytest.raises(
        StoreError, match=r"expected at least 12,096 bytes of free space for decoded images, got 12,095 bytes\."
    ):
        load_pixels(inputs(), stored, folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
