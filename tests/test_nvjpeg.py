"""Decoding on a GPU: what is refused without one, which decoder an image gets, and the steps after it, on the CPU."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import DataError, EngineError
from pipeline.extract.decoders import decoders
from pipeline.extract.samples import Item, Reject
from pipeline.files import content_key, digest
from pipeline.readers import image_reader
from pipeline.readers.image import TURNS, ImageReader, ImageSpec
from pipeline.readers.nvjpeg import NvjpegReader, _fits, _turned
from pipeline.sources import Place

SPEC = ImageSpec(resize=32, crop=(24, 24), decoder="nvjpeg")
HOST = ImageReader(ImageSpec(resize=32, crop=(24, 24)))


def picture(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """A smooth random image."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, bands), dtype=np.uint8)
    return Image.frombytes(mode, (8, 6), noise.tobytes()).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def cpu(spec: ImageSpec = SPEC) -> NvjpegReader:
    """The reader with torchvision's CPU decoder in the place of nvjpeg."""
    return NvjpegReader(spec, device="cpu")


GREY16 = encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG")
TO_PILLOW = {
    "png": encoded(picture(50, 40), "PNG"),
    "cmyk": encoded(picture(50, 40, "CMYK")),
    "16 bits": GREY16,
    "gif": encoded(picture(50, 40, "L"), "GIF"),
}
DAMAGED = {
    "text": b"no picture",
    "empty": b"",
    "truncated": encoded(picture(90, 80))[:900],
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_refused_and_the_message_says_what_to_do() -> None:
    with pytest.raises(
        EngineError, match=r"reader 'nvjpeg': expected a CUDA device, got none. Freeze the backbone wit"
    ):
        NvjpegReader(SPEC)


def test_the_reader_of_the_host_does_not_pass_its_pixels_off_as_those_of_nvjpeg() -> None:
    with pytest.raises(EngineError, match="reader: expected `decoder: pillow`, got nvjpeg, whose pixels differ"):
        ImageReader(SPEC)(encoded(picture(50, 40)))


def test_the_decoder_is_in_the_identity_and_pillow_leaves_it_as_it_was() -> None:
    assert cpu().identity == ImageReader(SPEC).identity == {**HOST.identity, "decoder": "nvjpeg"}
    assert "decoder" not in HOST.identity
    assert digest(ImageReader(SPEC).identity) != digest(HOST.identity)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 8, "draft": True}, "expected `decoder: pillow` with `draft`, got nvjpeg, which decodes at full"),
        ({"interpolation": "lanczos"}, "expected bilinear or bicubic with `decoder: nvjpeg`, got lanczos"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageSpec(decoder="nvjpeg", **settings)


def test_images_go_to_their_decoder_by_their_bytes_alone() -> None:
    for mode in ("RGB", "L"):
        assert _fits(encoded(picture(50, 40, mode))) == (True, None)
    assert _fits(encoded(picture(50, 40)) + b"\0\0") == (True, None)
    assert _fits(encoded(picture(50, 40), progressive=True)) == (True, None)
    assert not any(_fits(data)[0] for data in TO_PILLOW.values())
    assert not _fits(DAMAGED["truncated"])[0]


@pytest.mark.parametrize("name", TO_PILLOW)
def test_what_it_is_not_given_has_pillows_pixels(name: str) -> None:
    np.testing.assert_array_equal(cpu()(TO_PILLOW[name])["pixels"], HOST(TO_PILLOW[name])["pixels"])


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_has_pillows_reason(name: str) -> None:
    with pytest.raises(DataError) as expected:
        HOST(DAMAGED[name])
    with pytest.raises(DataError) as got:
        cpu()(DAMAGED[name])
    assert str(got.value) == str(expected.value)


def test_a_batch_keeps_its_order_and_one_bad_image_costs_no_other() -> None:
    good = {f"jpeg {seed}": encoded(picture(60 + seed, 50, seed=seed)) for seed in range(3)}
    strip = {"strip": encoded(Image.new("RGB", (1, 60_000)))}
    wide = cpu(ImageSpec(resize=256, crop=(24, 24), decoder="nvjpeg"))
    every = {**DAMAGED, **good, **TO_PILLOW, **strip}
    names = sorted(every, key=lambda name: digest(name))
    found = dict(zip(names, wide.batch([every[name] for name in names]), strict=True))
    for name, data in every.items():
        if name in DAMAGED or name in strip:
            assert isinstance(found[name], DataError)
        else:
            np.testing.assert_array_equal(found[name]["pixels"], wide(data)["pixels"])
    assert cpu().batch([]) == []


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([None, 20, (17, 30)]), st.sampled_from([None, (16, 24)]),
    st.sampled_from(["RGB", "L"]), st.sampled_from(["bilinear", "bicubic"]), st.integers(1, 8),
)  # fmt: skip
def test_after_the_decoder_the_steps_are_those_of_the_host(
    width: int, height: int, resize: Any, crop: Any, mode: str, interpolation: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(width, height, mode), exif=exif)
    spec = ImageSpec(mode=mode, resize=resize, crop=crop, interpolation=interpolation, decoder="nvjpeg")
    found, expected = (
        cpu(spec)(data)["pixels"],
        ImageReader(spec.model_copy(update={"decoder": "pillow"}))(data)["pixels"],
    )
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    # torch and Pillow round a resize in their own ways; Pillow cuts what bicubic overshoots after each direction.
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= (2 if interpolation == "bilinear" else 16)
    assert difference.mean() < 1


@pytest.mark.parametrize("turn", [None, *TURNS.values()])
def test_turns_are_pillows(turn: Image.Transpose | None) -> None:
    source = picture(5, 3)
    expected = np.asarray(source if turn is None else source.transpose(turn))
    found = _turned(torch.from_numpy(np.array(source)).permute(2, 0, 1), turn)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_real_photo_is_near_pillows_and_the_same_alone_and_in_a_batch(assets: Path) -> None:
    import tarfile

    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        members = [member for member in archive if "/caltech/" in member.name and member.isfile()][:32]
        data = [archive.extractfile(member).read() for member in members]
    reader = NvjpegReader(ImageSpec(resize=256, crop=(224, 224), decoder="nvjpeg"))
    host = ImageReader(ImageSpec(resize=256, crop=(224, 224)))
    for one, found in zip(data, reader.batch(data), strict=True):
        np.testing.assert_array_equal(reader(one)["pixels"], found["pixels"])
        assert np.abs(found["pixels"].astype(int) - host(one)["pixels"]).mean() < 2


def test_batches_of_an_extraction_go_to_a_reader_of_batches_whole(tmp_path: Path) -> None:
    taken: list[int] = []

    class Counting(NvjpegReader):
        """Notes how many images each batch has."""

        def batch(self, data: Sequence[bytes]) -> list[Any]:
            taken.append(len(data))
            return super().batch(data)

    items = []
    for number in range(7):
        path = tmp_path / f"{number}.jpg"
        picture(9 + number, 8).save(path, quality=90)
        data = path.read_bytes()
        items.append(Item(content_key(data), Place(str(path), None, None, len(data))))
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "4.jpg").write_bytes(b"changed")
    damaged = b"no image"
    items.append(Item(content_key(damaged), Place("x.jpg", None, None, 8), damaged))
    reader = Counting(ImageSpec(resize=6, crop=(5, 5), decoder="nvjpeg"), device="cpu")
    with contextlib.closing(decoders(reader, "auto", sample_bytes=75)) as pool:
        found = pool.submit(items)()
    assert taken == [6]
    reasons = {row: one.reason for row, one in enumerate(found) if isinstance(one, Reject)}
    assert reasons == {
        2: "No such file or directory",
        4: "changed since its data set was prepared; run prepare again",
        7: "not an image that Pillow can read",
    }
    for row in (0, 1, 3, 5, 6):
        data = Path(items[row].place.path).read_bytes()
        np.testing.assert_array_equal(found[row]["pixels"], reader(data)["pixels"])


def test_a_spec_names_its_reader_and_a_device_that_is_not_there_is_said() -> None:
    assert isinstance(image_reader(ImageSpec()), ImageReader)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match=r"reader 'nvjpeg': expected a CUDA device, got none. Freeze the"):
            image_reader(ImageSpec(decoder="nvjpeg"))
