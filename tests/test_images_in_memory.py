"""Images in memory: the same pixels and rows as an extraction of their files, in the order in which they are given."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.odd_images import bomb

from pipeline import embed
from pipeline.backbones import glyphs, serialization
from pipeline.backbones.feature_extractor import normalised
from pipeline.backbones.spec import TapSpec
from pipeline.errors import BackboneError, DataError
from pipeline.inference.rows import InMemoryExtractor
from pipeline.loading.images import pixel_batches
from pipeline.readers.image import ImageReader, ImageSpec
from pipeline.readers.sample_key import content_key
from pipeline.store.features import Features

READER = ImageReader(ImageSpec(resize=20, crop=(16, 16)))


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of several formats, modes and sizes, one of them turned by EXIF."""
    folder = tmp_path_factory.mktemp("files")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(folder / "e.jpg", exif=exif)
    picture(1, "L").save(folder / "b.png")
    picture(2, "RGBA").save(folder / "d.png")
    picture(3, "P").save(folder / "a.gif")
    picture(4, size=(17, 61)).save(folder / "c.webp", lossless=True)
    return [folder / name for name in ("e.jpg", "b.png", "d.png", "a.gif", "c.webp")]


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def pixels(images: object, size: int = 2) -> np.ndarray:
    return np.concatenate(list(pixel_batches(images, READER, batch_size=size)))


def test_every_kind_of_image_gives_the_pixels_of_its_file(files: list[Path]) -> None:
    expected = np.stack([READER(path.read_bytes())["pixels"] for path in files])
    upright = [np.array(READER.from_image(opened(path))["pixels"]) for path in files]
    assert np.array_equal(np.stack(upright), expected)
    for images in (files, [str(path) for path in files], [path.read_bytes() for path in files], map(opened, files)):
        assert np.array_equal(pixels(images), expected)
    arrays = [np.asarray(picture(number)) for number in range(3)]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    expected = np.stack([READER.from_image(picture(number))["pixels"] for number in range(3)])
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.stack(tensors), torch.arange(3)), batch_size=2
    )
    for images in (arrays, np.stack(arrays), tensors, torch.stack(tensors), loader):
        assert np.array_equal(pixels(images), expected)
    assert np.array_equal(
        pixels([arrays[0][:, :, 0], arrays[0][:, :, :1]]),
        np.stack([READER.from_image(Image.fromarray(arrays[0][:, :, 0]))["pixels"]] * 2),
    )
    normalised = torch.randn(3, 3, 16, 16)
    assert np.array_equal(pixels(normalised), normalised.numpy())
    assert list(pixel_batches([], READER, batch_size=2)) == []


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        ("photo.jpg", TypeError, "expected a list of images, got a single str: put it into a list"),
        (3, TypeError, "expected images, got int"),
        (np.zeros((4, 4, 3), np.uint8), TypeError, "got an array with three axes: put it into a list"),
        ([None], TypeError, "image 0: expected a path, a PIL image, a uint8 array or a tensor, got NoneType"),
        (["missing.jpg"], DataError, "missing.jpg: cannot be read: No such file or directory"),
        ([b"text"], DataError, "image 0: not an image that Pillow can read"),
        ([bomb()], DataError, "image 0: 60000 × 60000, more than 89,478,485 pixels: refused as a decompression bomb"),
        ([np.zeros((4, 4, 3))], DataError, "image 0: expected uint8 pixels .* got float64"),
        ([np.zeros((4, 4, 2), np.uint8)], DataError, r"image 0: expected pixels .* got the shape \(4, 4, 2\)"),
        ([np.zeros((0, 4, 3), np.uint8)], DataError, r"image 0: expected an image with pixels, got the shape"),
        ([torch.zeros(4, 4)], DataError, r"image 0: expected a tensor \(channels, height, width\)"),
        ([Image.new("F", (4, 4))], DataError, "image 0: 32-bit pixels"),
        (
            [torch.zeros(3, 16, 16), Image.new("RGB", (4, 4))],
            DataError,
            "expected images of equal shape after preprocessing, got",
        ),
    ],
)
def test_what_is_no_image_is_refused(images: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pixels(images)


def test_truncated_pil_images_are_refused(files: list[Path]) -> None:
    with pytest.raises(DataError, match="image 0: damaged image"):
        pixels([Image.open(io.BytesIO(files[0].read_bytes()[:-400]))])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "net"
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    serialization.write(
        folder,
        network,
        architecture={"family": "glyphs", "classes": 3, "widths": [8, 4]},
        origin={},
        inputs=glyphs.INPUT,
    )
    return folder


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_equal_those_of_an_extraction(backbone: Path, files: list[Path], tmp_path: Path, dtype: str) -> None:
    taps = {"penultimate": {"node": "penultimate", "dtype": dtype}, "block1-mean": {"node": "block1", "pool": "mean"}}
    job = embed.job(backbone, ["penultimate"], files[0].parent, dtype=dtype, engine="torch", batch_size=4)
    embed.embed(job, tmp_path / "out", cache_root=tmp_path / "cache")
    stored = Features.open(tmp_path / "out" / "penultimate")
    specs = {tap: TapSpec.model_validate(spec) for tap, spec in taps.items()}
    rows = InMemoryExtractor(serialization.read(backbone), specs, batch_size=4)(files)
    keys = [content_key(path.read_bytes()) for path in files]
    assert np.array_equal(rows["penultimate"], stored.load(keys))
    assert rows["penultimate"].dtype == stored.dtype
    assert (rows["block1-mean"].shape, rows["block1-mean"].dtype) == ((5, 8), np.float16)


def test_normalised_images_are_taken_as_they_are(backbone: Path, files: list[Path]) -> None:
    read = serialization.read(backbone)
    extractor = InMemoryExtractor(read, {"tap": TapSpec(node="penultimate", dtype="float32")}, batch_size=4)
    pixels = torch.from_numpy(np.concatenate(list(pixel_batches(files, extractor.reader, batch_size=8))))
    images = normalised(
        pixels, *(torch.tensor(v).view(1, -1, 1, 1) for v in (read.spec.input.mean, read.spec.input.std))
    )
    assert np.array_equal(extractor(images)["tap"], extractor(files)["tap"])
    assert extractor([])["tap"].shape == (0, 4)
    with pytest.raises(DataError, match=r"expected normalised images of the shape \(1, 32, 32\), .* got \(3, 5, 5\)"):
        extractor(torch.zeros(1, 3, 5, 5))


def test_taps_and_values_that_cannot_be_are_refused(backbone: Path, files: list[Path]) -> None:
    read = serialization.read(backbone)
    with pytest.raises(BackboneError, match="taps that do not exist"):
        InMemoryExtractor(read, {"tap": TapSpec(node="blok1")})
    with pytest.raises(BackboneError, match="taps: pooling 'cls' needs tokens"):
        InMemoryExtractor(read, {"tap": TapSpec(node="block1", pool="cls")})
    large = serialization.Backbone(
        read.spec.model_copy(update={"input": read.spec.input.model_copy(update={"std": (1e-6,)})}), read.module
    )
    with pytest.raises(DataError, match=r"tap 'tap': image 0 of a batch has values that float16 cannot hold. Take"):
        InMemoryExtractor(large, {"tap": TapSpec(node="block1")})(files[:1])
