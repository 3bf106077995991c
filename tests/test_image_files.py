"""What the bytes of an image file may do and say: programs, metadata, pixels of scanners, cameras and microscopes."""

import contextlib
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.errors import DataError
from pipeline.readers import image, image_files
from pipeline.readers.image import ImageReader, ImageSpec

NOISE = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, mode: str = "RGB") -> np.ndarray:
    """The pixels that the reader gives, at the size that they have; the check has nothing against the bytes."""
    image.check(data, decode_pixels=True)
    found: np.ndarray = ImageReader(ImageSpec(mode=mode))(data)["pixels"]  # type: ignore[arg-type]
    return found


# Programs -------------------------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill showpage\n%%EOF\n"
BINARY_EPS = b"\xc5\xd0\xd3\xc6" + struct.pack("<7L", 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS
OTHERS = {
    "eps": (EPS, "PostScript (EPS), which is a program and is not run: convert it to PNG"),
    "eps with a preview": (BINARY_EPS, "PostScript (EPS), which is a program and is not run: convert it to PNG"),
    "pdf": (b"%PDF-1.7\n%", "a PDF document: convert its pages to PNG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: run `pip install pillow-heif`, or convert it to JPEG"),
    "jxl": (b"\xff\x0a" + bytes(20), "JPEG XL: convert it to JPEG or PNG"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isom", "a video: extract its frames first"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\0crx ", "a camera's raw file: develop it to TIFF or JPEG"),
    "dicom": (bytes(128) + b"DICM" + bytes(50), "DICOM: convert it to 16-bit PNG or TIFF"),
    "svg": (b'<?xml version="1.0"?>\n<svg width="4"/>', "SVG: convert it to PNG"),
    "html": (b"<!DOCTYPE html><p>404", "a web page, not an image: download it again"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "a Git LFS pointer, not the image: run `git lfs pull`",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_files_say_what_they_are_and_no_program_is_started(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    data, reason = OTHERS[name]
    for refuse in (
        lambda: image.check(data, decode_pixels=True),
        lambda: image.check(data, decode_pixels=False),
        lambda: read(data),
    ):
        with pytest.raises(DataError) as caught:
            refuse()
        assert str(caught.value).startswith(reason)
    assert not mark.exists()


def test_no_format_is_opened_that_needs_a_program_or_a_plugin() -> None:
    Image.init()
    assert set(image_files.formats()) <= set(image_files.FORMATS)
    assert not {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FPX", "MIC", "IPTC"} & set(image_files.formats())
    assert {".jpg", ".png", ".tif", ".webp"} <= image_files.extensions()
    assert not {".eps", ".ps", ".wmf", ".pdf"} & image_files.extensions()


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they find
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF", "TGA", "PCX", "SGI", "ICO"]
)
def test_damage_ends_in_a_reason_whatever_the_decoder_raises(kind: str) -> None:
    seed, chance = encoded(NOISE, kind), random.Random(kind)
    for _ in range(40):
        data = bytearray(seed[: chance.choice([len(seed), chance.randrange(len(seed))])])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256) if data else 0
        with contextlib.suppress(DataError):  # any other error would end all of prepare
            image.check(bytes(data), decode_pixels=True, max_pixels=10**6)


# Metadata -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (not sound))


def with_chunk(data: bytes, extra: bytes, *, at_end: bool = False) -> bytes:
    """A PNG with one chunk more, before its pixels or behind them."""
    at = data.index(b"IEND") - 4 if at_end else data.index(b"IDAT") - 4
    return data[:at] + extra + data[at:]


LARGE = bytes(3 * 2**20)
CHUNKS = {
    "profile above 1 MB": chunk(b"iCCP", b"name\0\0" + zlib.compress(LARGE)),
    "text above 1 MB": chunk(b"zTXt", b"name\0\0" + zlib.compress(LARGE)),
    "international text": chunk(b"iTXt", b"name\0\1\0\0\0" + zlib.compress(LARGE)),
    "many texts": chunk(b"tEXt", b"name\0" + b"x" * 2**20) * 80,
    "damaged Exif": chunk(b"eXIf", b"MM\0*\0\0\0\xff junk"),
    "Exif with another checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", sound=False),
    "Exif that is none": chunk(b"eXIf", b"\xff" * 9),
    "a checksum": chunk(b"tEXt", b"name\0text", sound=False),
    "a damaged profile": chunk(b"iCCP", b"name\0\0junk"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_metadata_of_a_png_never_costs_the_pixels(name: str, at_end: bool) -> None:
    data = with_chunk(encoded(NOISE, "PNG"), CHUNKS[name], at_end=at_end)
    np.testing.assert_array_equal(read(data), NOISE)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


SEGMENTS = {
    "damaged Exif": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\xffjunk"),
    "half a profile": segment(0xE2, b"ICC_PROFILE\0\2\5junk"),
    "an empty profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a damaged index of pictures": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEGMENTS)
def test_metadata_of_a_jpeg_never_costs_the_pixels(name: str) -> None:
    data = encoded(NOISE, "JPEG")
    found = read(data[:2] + SEGMENTS[name] + data[2:])
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_an_orientation_counts_where_other_metadata_are_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = with_chunk(encoded(NOISE, "PNG", exif=exif), CHUNKS["profile above 1 MB"])
    np.testing.assert_array_equal(read(data), NOISE[::-1, ::-1])


def test_reading_leaves_pillows_limits_and_warnings_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    before = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    large = encoded(Image.new("1", (10_000, 10_000)), "PNG")  # 100 megapixels, above Pillow's limit
    with pytest.raises(DataError, match="allow its 10000 × 10000 pixels with `max_pixels`"):
        image.check(large, decode_pixels=False)
    image.check(large, decode_pixels=False, max_pixels=100_000_000)
    pixels = ImageReader(ImageSpec(mode="L", resize=8))(large)["pixels"]
    assert pixels.shape == (8, 8, 1)
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    assert not recwarn.list


# Pixels of TIFF -------------------------------------------------------------------------------------------------------


def tiff(
    data: bytes, *, size: tuple[int, int], bits: tuple[int, ...], order: str = "<", **tags: tuple[int, ...]
) -> bytes:
    """A TIFF of one strip, uncompressed (TIFF 6.0); `tags` by their numbers, such as t262=(0,)."""
    width, height = size
    planes = 1 if tags.get("t284") != (2,) else len(bits)
    entries = {256: (width,), 257: (height,), 258: bits, 259: (1,), 262: (1,), 277: (len(bits),), 278: (height,)}
    entries |= {int(name[1:]): values for name, values in tags.items()}
    entries[279] = (len(data) // planes,) * planes
    count = len(entries) + 1
    at = 8 + 2 + 12 * count + 4
    extra = b""
    fields = []
    start = 8 + 2 + 12 * count + 4 + sum(4 * len(v) for v in entries.values() if len(v) > 1) + 4 * planes * (planes > 1)
    entries[273] = tuple(start + plane * (len(data) // planes) for plane in range(planes))
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) == 1:
            fields.append(struct.pack(f"{order}HHLL", tag, 4, 1, values[0]))
        else:
            fields.append(struct.pack(f"{order}HHLL", tag, 4, len(values), at + len(extra)))
            extra += packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, count)
    return head + b"".join(fields) + struct.pack(f"{order}L", 0) + extra + data


GREY16 = np.array([[0, 257, 32768, 65535]], np.uint16)
GREY8 = GREY16 // 257
TWELVE = bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF])  # 0, 2048, 4095, 4095
RGB16 = np.array([[[0, 32896, 65535], [257, 514, 771]]], np.uint16)

KINDS = {
    "16 bits": (tiff(GREY16.tobytes(), size=(4, 1), bits=(16,)), GREY8),
    "16 bits, big-endian": (tiff(GREY16.astype(">u2").tobytes(), size=(4, 1), bits=(16,), order=">"), GREY8),
    "16 bits, 0 is white": (tiff(GREY16.tobytes(), size=(4, 1), bits=(16,), t262=(0,)), 255 - GREY8),
    "12 bits": (tiff(TWELVE, size=(4, 1), bits=(12,)), np.array([[0, 127, 255, 255]])),
    "8 bits, 0 is white": (tiff(bytes([0, 1, 255]), size=(3, 1), bits=(8,), t262=(0,)), np.array([[255, 254, 0]])),
    "4 bits": (tiff(bytes([0x0F, 0x70]), size=(3, 1), bits=(4,)), np.array([[0, 255, 119]])),
    "1 bit, 0 is white": (tiff(bytes([0b01000000]), size=(2, 1), bits=(1,), t262=(0,)), np.array([[255, 0]])),
    "RGB of 16 bits": (tiff(RGB16.tobytes(), size=(2, 1), bits=(16,) * 3, t262=(2,)), RGB16 // 257),
    "RGB in planes": (
        tiff(
            np.ascontiguousarray(NOISE.transpose(2, 0, 1)).tobytes(), size=(12, 9), bits=(8,) * 3, t262=(2,), t284=(2,)
        ),
        NOISE,
    ),
    **{
        f"RGB of 16 bits in planes, {order}": (
            tiff(
                np.ascontiguousarray(RGB16.transpose(2, 0, 1)).astype(f"{order}u2").tobytes(),
                size=(2, 1),
                bits=(16,) * 3,
                order=order,
                t262=(2,),
                t284=(2,),
            ),
            RGB16 // 257,
        )
        for order in "<>"
    },
    "a palette of 16 bits": (
        tiff(bytes([0, 1]), size=(2, 1), bits=(8,), t262=(3,), t320=(257, 2570, *[0] * 254, 514, *[0] * 511)),
        np.array([[[1, 2, 0], [10, 0, 0]]]),
    ),
    "a palette of 8 bits": (
        tiff(bytes([0, 1]), size=(2, 1), bits=(8,), t262=(3,), t320=(1, 10, *[0] * 254, 2, *[0] * 511)),
        np.array([[[1, 2, 0], [10, 0, 0]]]),
    ),
    "grey and alpha that was multiplied": (
        tiff(bytes([100, 255, 0, 0, 50, 128]), size=(3, 1), bits=(8, 8), t338=(1,)),
        np.array([[100, 255, 177]]),
    ),
    "grey and alpha": (
        tiff(bytes([100, 255, 7, 0]), size=(2, 1), bits=(8, 8), t338=(2,)),
        np.array([[100, 255]]),
    ),
    "grey and a channel that says nothing": (
        tiff(bytes([100, 255, 7, 0]), size=(2, 1), bits=(8, 8), t338=(0,)),
        np.array([[100, 7]]),
    ),
    "turned": (tiff(bytes([1, 2, 3]), size=(3, 1), bits=(8,), t274=(3,)), np.array([[3, 2, 1]])),
    "deflate with a predictor": (encoded(NOISE, "TIFF", compression="tiff_adobe_deflate"), NOISE),
    "LZW": (encoded(NOISE, "TIFF", compression="tiff_lzw"), NOISE),
    "PackBits": (encoded(NOISE, "TIFF", compression="packbits"), NOISE),
    "several pages": (encoded(NOISE, "TIFF", save_all=True, append_images=[Image.new("RGB", (3, 3))]), NOISE),
    "CMYK": (tiff(bytes([0, 255, 255, 0]), size=(1, 1), bits=(8,) * 4, t262=(5,)), np.array([[[255, 0, 0]]])),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", KINDS)
def test_a_tiff_has_the_pixels_that_it_says_it_has(name: str) -> None:
    data, expected = KINDS[name]
    rgb = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
    assert np.abs(read(data).astype(int) - rgb.astype(int)).max() <= ("multiplied" in name)


def test_lab_becomes_the_colour_that_it_names() -> None:
    # CIE: L* 53.24, a* 80.09, b* 67.20 is sRGB's red under D65; under D50, which TIFF names, it is near that.
    data = tiff(bytes([136, 80, 67]), size=(1, 1), bits=(8,) * 3, t262=(8,))
    red, green, blue = read(data)[0, 0].tolist()
    assert red > 240
    assert max(green, blue) < 40


REFUSED = {
    "signed 8 bits": (tiff(bytes([0, 200]), size=(2, 1), bits=(8,), t339=(2,)), "signed pixels whose black and wh"),
    "signed 16 bits": (tiff(GREY16.tobytes(), size=(4, 1), bits=(16,), t339=(2,)), "signed pixels whose black and"),
    "32 bits": (tiff(bytes(16), size=(4, 1), bits=(32,)), "32-bit pixels whose black and white are not known"),
    "floats": (tiff(bytes(16), size=(4, 1), bits=(32,), t339=(3,)), "32-bit pixels whose black and white are not"),
    "64 bits": (tiff(bytes(16), size=(2, 1), bits=(64,), t339=(3,)), "TIFF of a kind that Pillow cannot read: convert"),
    "DNG": (tiff(bytes(4), size=(4, 1), bits=(8,), t50706=(1,)), "a camera's raw file, of which Pillow reads only"),
    "NEF": (tiff(bytes(4), size=(4, 1), bits=(8,), t254=(1,), t330=(8,)), "a camera's raw file, of which Pillow reads"),
}


def test_a_reduced_copy_in_front_of_the_page_is_not_taken_for_the_image() -> None:
    page, other = tiff(bytes(4), size=(4, 1), bits=(8,), t254=(1,)), tiff(bytes(4), size=(4, 1), bits=(8,))
    at = page.rindex(bytes(8))  # the offset of the next directory, in front of the pixels
    data = page[:at] + struct.pack("<L", 8) + page[at + 4 :]
    assert read(page).shape == read(other).shape == (1, 4, 3)
    with pytest.raises(
        DataError, match="a TIFF whose first page is a reduced copy of another page: save the full page as"
    ):
        image.check(data, decode_pixels=False)


@pytest.mark.parametrize("name", REFUSED)
def test_a_tiff_that_would_be_read_wrongly_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    for whole in (True, False):
        with pytest.raises(DataError, match=reason):
            image.check(data, decode_pixels=whole)


def test_a_grey_that_stands_for_transparent_is_white_in_16_bits_too() -> None:
    header = struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">3H", 0, 32896, 65535))
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", 0)) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert read(b"\x89PNG\r\n\x1a\n" + parts, "L").ravel().tolist() == [255, 128, 255]


def png(raw: bytes, *, size: tuple[int, int], bits: int, colour: int, clear: tuple[int, ...]) -> bytes:
    """A PNG with a transparent colour (PNG specification, 11.3.2.1)."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(f">{len(clear)}H", *clear)), (b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


@pytest.mark.parametrize(("bits", "raw"), [(1, b"\0\x40"), (2, b"\0\x1b"), (4, b"\0\x01\x23"), (8, b"\0\0\1\2\3")])
def test_the_transparent_grey_of_a_png_has_the_bits_of_the_file(bits: int, raw: bytes) -> None:
    step = 255 // (2**bits - 1)
    count = min(4, 2**bits)
    for clear in range(count):
        expected = [255 if value == clear else value * step for value in range(count)]
        data = png(raw, size=(count, 1), bits=bits, colour=0, clear=(clear,))
        assert read(data, "L").ravel().tolist() == expected


def test_the_transparent_colour_of_a_png_has_16_bits() -> None:
    raw = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x3400, 0x7800, 0xBC00)
    data = png(raw, size=(2, 1), bits=16, colour=2, clear=(0x1234, 0x5678, 0x9ABC))
    assert read(data).tolist() == [[[255, 255, 255], [0x34, 0x78, 0xBC]]]
