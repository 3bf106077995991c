"""Images: the pixels are torchvision's, every colour mode has one meaning, and damaged files have a reason."""

import io
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms._presets import ImageClassification

from pipeline.errors import DataError
from pipeline.files import digest
from pipeline.readers import image
from pipeline.readers.image import ImageReader, ImageSpec

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def picture(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """An image of noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), noise.tobytes())


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, **spec: Any) -> np.ndarray:
    """What the reader makes of the bytes."""
    return ImageReader(ImageSpec(**spec))(data)["pixels"]


# Size ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(["RGB", "L"]),
)
def test_pixels_are_those_of_torchvisions_own_preset(
    width: int, height: int, resize: int, crop: int, interpolation: str, mode: str
) -> None:
    source = picture(width, height, mode)
    channels = len(mode)
    preset = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        interpolation=MODES[interpolation],
    )
    expected = (preset(source) * 255).round().byte().permute(1, 2, 0).numpy()
    found = pixels(encoded(source), mode=mode, resize=resize, crop=(crop, crop), interpolation=interpolation)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (257, 256), (256, 257), (641, 480), (31, 225), (224, 224)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_of_usual_sizes_have_torchvisions_pixels(size: tuple[int, int], interpolation: str) -> None:
    source = picture(*size)
    expected = functional.center_crop(functional.resize(source, [256], interpolation=MODES[interpolation]), [224])
    found = pixels(encoded(source), resize=256, crop=(224, 224), interpolation=interpolation)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_two_numbers_are_an_exact_height_and_width() -> None:
    source = picture(31, 17)
    found = pixels(encoded(source), resize=(9, 20))
    assert found.shape == (9, 20, 3)
    np.testing.assert_array_equal(found, np.asarray(functional.resize(source, [9, 20])))


@pytest.mark.parametrize("crop", [(20, 20), (21, 8), (8, 21), (15, 14), (3, 40)])
def test_a_crop_that_is_larger_than_the_image_is_padded_as_torchvision_does(crop: tuple[int, int]) -> None:
    source = picture(10, 13)
    found = pixels(encoded(source), crop=crop)
    assert found.shape == (*crop, 3)
    np.testing.assert_array_equal(found, np.asarray(functional.center_crop(source, list(crop))))


def test_without_resize_and_crop_the_pixels_are_those_of_the_file() -> None:
    source = picture(7, 5)
    found = pixels(encoded(source))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.asarray(source))


# Colour --------------------------------------------------------------------------------------------------------------


def test_grey_images_have_one_channel_or_three_equal_ones() -> None:
    source = picture(6, 4, "L")
    np.testing.assert_array_equal(pixels(encoded(source), mode="L"), np.asarray(source)[:, :, None])
    np.testing.assert_array_equal(pixels(encoded(source)), np.repeat(np.asarray(source)[:, :, None], 3, axis=2))


def test_colour_becomes_grey_as_pillow_weighs_it() -> None:
    source = picture(6, 4)
    np.testing.assert_array_equal(pixels(encoded(source), mode="L")[:, :, 0], np.asarray(source.convert("L")))


def test_black_and_white_images_become_0_and_255() -> None:
    source = Image.new("1", (2, 1))
    source.putpixel((1, 0), 1)
    assert pixels(encoded(source), mode="L").ravel().tolist() == [0, 255]


def test_transparent_pixels_lie_over_white() -> None:
    source = Image.new("RGBA", (3, 1))
    source.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)])
    assert pixels(encoded(source)).tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_transparent_grey_pixels_lie_over_white() -> None:
    source = Image.new("LA", (3, 1))
    source.putdata([(10, 255), (10, 0), (0, 51)])
    assert pixels(encoded(source), mode="L").ravel().tolist() == [10, 255, 204]


@pytest.mark.parametrize(("kind", "transparency"), [("PNG", 1), ("PNG", bytes([255, 0, 255])), ("GIF", 1)])
def test_transparent_entries_of_a_palette_lie_over_white(kind: str, transparency: int | bytes) -> None:
    source = Image.new("P", (3, 1))
    source.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    source.putdata([0, 1, 2])
    found = pixels(encoded(source, kind, transparency=transparency))
    assert found.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize(
    ("source", "transparency", "expected"),
    [
        (Image.frombytes("L", (2, 1), bytes([7, 8])), 8, [[7, 7, 7], [255, 255, 255]]),
        (Image.frombytes("RGB", (2, 1), bytes([1, 2, 3, 4, 5, 6])), (4, 5, 6), [[1, 2, 3], [255, 255, 255]]),
    ],
)
def test_a_colour_that_stands_for_transparent_becomes_white(
    source: Image.Image, transparency: Any, expected: list[list[int]]
) -> None:
    assert pixels(encoded(source, transparency=transparency)).tolist() == [expected]


def test_a_palette_without_transparency_is_its_colours() -> None:
    source = Image.new("P", (2, 1))
    source.putpalette([1, 2, 3, 4, 5, 6])
    source.putdata([0, 1])
    assert pixels(encoded(source)).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_cmyk_images_become_rgb() -> None:
    source = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = pixels(encoded(source, "TIFF"))
    assert found.shape == (8, 8, 3)
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]
    assert pixels(encoded(source, "JPEG", quality=95)).astype(int)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)


GREY16 = np.array([[0, 256, 257, 32768, 65278, 65535]], dtype=np.uint16)
GREY8 = [0, 0, 1, 127, 254, 255]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY16)),
        encoded(Image.fromarray(GREY16), "TIFF"),
        b"P5\n6 1\n65535\n" + GREY16.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "pgm"],
)
def test_16_bit_grey_is_scaled_to_8_bits(data: bytes) -> None:
    assert pixels(data, mode="L").ravel().tolist() == GREY8
    assert pixels(data)[0, :, 1].tolist() == GREY8


def png16(samples: list[int], *, colour: int) -> bytes:
    """One pixel of 16 bits a channel, of a kind that Pillow reads but does not write (PNG specification, 11.2.1)."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("colour", "samples", "expected"),
    [
        (2, [0, 257, 65535], [0, 1, 255]),
        (6, [0, 257, 65535, 65535], [0, 1, 255]),
        (6, [0, 257, 65535, 0], [255, 255, 255]),
        (4, [32896, 65535], [128, 128, 128]),
    ],
    ids=["RGB", "RGBA", "transparent", "grey and alpha"],
)
def test_16_bit_colour_and_transparency_are_scaled_to_8_bits(
    colour: int, samples: list[int], expected: list[int]
) -> None:
    assert pixels(png16(samples, colour=colour)).tolist() == [[expected]]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bit_pixels_are_refused_instead_of_being_clipped(kind: type) -> None:
    data = encoded(Image.fromarray(np.array([[0, 1, 70_000]], dtype=kind)), "TIFF")
    for whole in (True, False):
        with pytest.raises(DataError, match="32-bit pixels whose black and white are not known: convert them to 8"):
            image.check(data, decode_pixels=whole)


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_a_photo_that_was_taken_with_the_camera_turned_is_upright(orientation: int, turn: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # white at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, -turn)))
    found = pixels(encoded(stored, "JPEG", exif=exif, quality=95))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 8


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(5, 3), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        np.testing.assert_array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(stored)))


def test_a_photo_is_turned_although_another_of_its_tags_is_odd() -> None:
    exif = Image.Exif()
    exif[0x010E] = "holiday"
    exif[0x0112] = 6
    data = encoded(picture(5, 3), "JPEG", exif=exif)
    # The description becomes the width: a text where a number belongs. Pillow's exif_transpose fails on this one.
    odd = data.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")
    assert odd != data
    assert pixels(odd).shape == (5, 3, 3)
    np.testing.assert_array_equal(pixels(odd), pixels(data))


def test_of_an_animation_the_first_picture_is_read() -> None:
    first, second = picture(6, 6, "L", seed=1), picture(6, 6, "L", seed=2)
    found = pixels(encoded(first, "GIF", save_all=True, append_images=[second]), mode="L")
    np.testing.assert_array_equal(found[:, :, 0], np.asarray(first))


# Drafts --------------------------------------------------------------------------------------------------------------


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture without fine detail, so that leaving detail out changes little."""
    return picture(9, 7, mode).resize((width, height), Image.Resampling.BICUBIC)


def apart(one: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """The mean and the largest absolute difference of pixels."""
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other)
    return float(difference.mean()), int(difference.max())


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_a_draft_is_of_jpegs_only(kind: str, mode: str) -> None:
    data = encoded(smooth(640, 480), kind)
    settings = {"mode": mode, "resize": 32, "crop": (32, 32)}
    np.testing.assert_array_equal(pixels(data, **settings, draft=True), pixels(data, **settings))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 127), st.integers(1, 200), st.sampled_from(["RGB", "L", "CMYK"]), st.sampled_from(["RGB", "L"]),
    st.integers(1, 8), st.booleans(),
)  # fmt: skip
def test_a_small_jpeg_has_the_same_pixels_with_a_draft(
    short: int, more: int, stored: str, mode: str, orientation: int, tall: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (short, short + more) if tall else (short + more, short)
    data = encoded(picture(*size, stored), "JPEG", exif=exif)
    spec = {"mode": mode, "resize": 32, "crop": (32, 32)}
    np.testing.assert_array_equal(pixels(data, **spec, draft=True), pixels(data, **spec))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", [32, (24, 40), (40, 24)])
@pytest.mark.parametrize("size", [(513, 385), (389, 519), (640, 480)])
def test_a_large_jpeg_is_decoded_small_and_nearly_the_same_however_it_is_turned(
    size: tuple[int, int], resize: int | tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(*size), "JPEG", exif=exif, quality=95)
    found, whole = pixels(data, resize=resize, draft=True), pixels(data, resize=resize)
    mean, most = apart(found, whole)
    assert 0 < mean < 1
    assert most < 12


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("stored", ["RGB", "L", "CMYK"])
def test_a_draft_keeps_the_colours(stored: str, mode: str) -> None:
    data = encoded(smooth(640, 480, stored), "JPEG", quality=95)
    found, whole = (pixels(data, mode=mode, resize=32, crop=(32, 32), draft=draft) for draft in (True, False))
    assert found.shape == (32, 32, len(mode))
    assert apart(found, whole)[0] < 1


def test_real_photos_stray_little(assets: Path) -> None:
    strayed = []
    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        for member in archive:
            if "/caltech/" not in member.name or member.size < 100_000:
                continue
            data = archive.extractfile(member).read()
            with Image.open(io.BytesIO(data)) as photo:
                large = min(photo.size) >= 4 * 112
            found, whole = (pixels(data, resize=112, crop=(112, 112), draft=draft) for draft in (True, False))
            mean, most = apart(found, whole)
            assert (mean > 0) == large
            if large:
                strayed.append(mean)
                assert most < 40
    assert len(strayed) > 10
    assert np.mean(strayed) < 1
    assert max(strayed) < 2


def test_a_truncated_jpeg_is_refused_with_a_draft_too() -> None:
    data = encoded(smooth(640, 480), "JPEG")
    with pytest.raises(DataError, match="damaged image: image file is truncated"):
        pixels(data[: len(data) // 2], resize=32, draft=True)


def test_a_draft_without_a_resize_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected `resize` with `draft`, which decodes at a fraction of the"):
        ImageSpec(crop=(8, 8), draft=True)


# Files that cannot be used -------------------------------------------------------------------------------------------


def refusal(data: bytes, *, whole: bool = True) -> str:
    """The reason why the reader, and the check, refuse the bytes."""
    with pytest.raises(DataError) as by_check:
        image.check(data, decode_pixels=whole)
    with pytest.raises(DataError) as by_reader:
        ImageReader(ImageSpec(resize=8, crop=(8, 8)))(data)
    assert str(by_check.value) == str(by_reader.value)
    return str(by_check.value)


def test_an_empty_file_is_refused() -> None:
    assert refusal(b"") == refusal(b"", whole=False) == "empty file"


@pytest.mark.parametrize("data", [b"some text\n", bytes(1000), b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    assert refusal(data) == refusal(data, whole=False) == "not an image that Pillow can read"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_image_is_refused_with_the_reason(kind: str) -> None:
    data = encoded(picture(64, 64), kind)
    reason = refusal(data[: len(data) // 2])
    assert reason.startswith("damaged image: ") or (kind == "WEBP" and reason == "not an image that Pillow can read")


def test_a_look_at_the_header_does_not_find_what_is_damaged_further_on() -> None:
    data = encoded(picture(64, 64), "JPEG")[:3000]
    image.check(data, decode_pixels=False)
    assert refusal(data).startswith("damaged image: image file is truncated")


def test_an_image_that_can_be_used_passes_both_checks() -> None:
    for whole in (True, False):
        assert image.check(encoded(picture(4, 4)), decode_pixels=whole) is None


@pytest.mark.parametrize("side", [11, 14, 15, 100], ids=["warn", "warn, at its end", "error", "far into error"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_image_bomb_is_refused_where_pillow_only_warns_and_where_it_raises(
    monkeypatch: pytest.MonkeyPatch, side: int, whole: bool
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, one for the process, is not asked
    image.check(encoded(picture(10, 10)), decode_pixels=whole, max_pixels=100)
    expected = (
        rf"more than 100 pixels: refused as a decompression bomb. If the image is genuine, allow its {side} × {side}"
    )
    with pytest.raises(DataError, match=expected):
        image.check(encoded(picture(side, side)), decode_pixels=whole, max_pixels=100)
    image.check(encoded(picture(side, side)), decode_pixels=whole, max_pixels=side**2)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_pillows_own_limit_holds(side: int) -> None:
    with pytest.raises(DataError, match=r"more than 89,478,485 pixels: refused as a decompression bomb. If the image"):
        image.check(b"P6\n%d %d\n255\n" % (side, side), decode_pixels=True)


@pytest.mark.parametrize(("kind", "draft"), [("PNG", False), ("JPEG", False), ("JPEG", True)])
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1)])
def test_a_strip_that_a_resize_would_make_a_bomb_of_is_refused(size: tuple[int, int], kind: str, draft: bool) -> None:
    data = encoded(picture(*size), kind)
    with pytest.raises(
        DataError, match=f"a strip of {size[0]}×{size[1]}: after resizing, it would have more than 89,478,485"
    ):
        pixels(data, resize=256, crop=(224, 224), draft=draft)
    assert pixels(data, resize=(8, 8)).shape == (8, 8, 3)


WITH_EXIF = ("PNG", "JPEG", "WEBP", "AVIF")
FORMATS = (*WITH_EXIF, "GIF", "TIFF", "BMP", "DDS", "PPM")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_damage_of_any_kind_is_a_reason_and_the_check_finds_it_before_the_reader_does(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seed = encoded(picture(9, 11), kind, **({"exif": exif} if kind in WITH_EXIF else {}))
    chance = random.Random(kind)
    refused = 0
    for _ in range(150):
        data = bytearray(seed)
        if chance.random() < 0.3:
            del data[chance.randrange(1, len(data)) :]
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 255, chance.randrange(256)])
        try:
            image.check(bytes(data), decode_pixels=True)
        except DataError:
            refused += 1
        else:
            assert pixels(bytes(data), resize=4, crop=(4, 4)).shape == (4, 4, 3)
    assert refused > 10


# Identity ------------------------------------------------------------------------------------------------------------

OTHER = {
    "mode": ["L"],
    "resize": [8, (8, 8), (8, 9)],
    "crop": [(8, 8), (8, 9)],
    "interpolation": ["nearest", "bicubic", "lanczos"],
    "draft": [True],
    "view": [{"augment": [{"name": "horizontal_flip"}], "number": number} for number in (0, 1)],
}


def test_each_setting_changes_the_identity() -> None:
    assert set(OTHER) == set(ImageSpec.model_fields)
    resized = {"resize": 9}
    specs = [{}, resized, *({name: value} for name, values in OTHER.items() for value in values if name != "draft")]
    specs += [resized | {name: value} for name, values in OTHER.items() for value in values if name != "resize"]
    found = {digest(ImageReader(ImageSpec(**spec)).identity) for spec in specs}
    assert len(found) == len(specs)


def test_the_identity_names_the_reader_and_its_version() -> None:
    assert ImageReader(ImageSpec(resize=8)).identity == {
        "reader": "image",
        "version": image.VERSION,
        "mode": "RGB",
        "resize": 8,
        "crop": None,
        "interpolation": "bilinear",
    }


def test_settings_that_came_later_leave_addresses_as_they_were_where_they_are_off() -> None:
    spec = ImageSpec(resize=256, crop=(224, 224), draft=False)
    # Of the first version, before the first of them.
    first = {**ImageReader(spec).identity, "version": 1}
    assert digest(first) == "b08fd9fb38d69d3d778b8c35d7b8b3b5002f8eae1c4f1271e926d74e97e87cd1"
    assert (
        set(spec.model_dump())
        == set(spec.model_dump(mode="json"))
        == set(ImageSpec.model_fields) - {*image.ADDED_LATER}
    )
    assert ImageSpec.model_validate(spec.model_dump()) == spec
    on = ImageSpec(resize=256, draft=True)
    assert ImageReader(on).identity["draft"] is True
    assert ImageSpec.model_validate_json(on.model_dump_json()) == on


def test_equal_settings_have_equal_identities_and_pixels() -> None:
    data = encoded(picture(30, 20), "JPEG")
    one, other = (ImageReader(ImageSpec(resize=16, crop=(12, 12))) for _ in range(2))
    assert one.identity == other.identity
    np.testing.assert_array_equal(one(data)["pixels"], other(data)["pixels"])


@pytest.mark.parametrize("name", get_args(ImageSpec.model_fields["interpolation"].annotation))
def test_every_interpolation_that_can_be_chosen_works_and_they_differ(name: str) -> None:
    data = encoded(picture(30, 20))
    found = pixels(data, resize=8, interpolation=name)
    assert found.shape == (8, 12, 3)
    others = [other for other in image.INTERPOLATIONS if other != name]
    assert all((pixels(data, resize=8, interpolation=other) != found).any() for other in others)


def test_settings_that_make_no_image_are_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be 'RGB' or 'L'"):
        ImageSpec(mode="CMYK")
