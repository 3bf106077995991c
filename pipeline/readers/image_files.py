"""Encoded images: which formats are opened, what the bytes of the others are, and metadata that must not cost pixels.

A format is opened where its decoder runs in this process. Pillow knows others that start programs (EPS starts
Ghostscript, whatever the name of the file) or ask plugins: their files are refused with what to do instead.
"""

import functools
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImagePalette, TiffImagePlugin, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Pixels of an image that is opened where nothing else is set: above these Pillow suspects a decompression bomb."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "MPO", "JPEG2000", "AVIF", "HEIF", "PPM", "PSD", "ICO"),
    *("ICNS", "TGA", "PCX", "DCX", "SGI", "SUN", "QOI", "DDS", "XBM", "XPM", "MSP"),
)
"""Formats that are decoded in the process, the common ones first. HEIF needs the package pillow-heif."""

# What other files begin with: where it stands, its bytes, and what to say.
OTHERS = (
    (0, b"%!PS", "PostScript (EPS), a program that is not run: convert it to PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS), a program that is not run: convert it to PNG"),
    (0, b"%PDF", "a PDF document: convert its pages to PNG"),
    (0, b"\xff\x0a", "JPEG XL: convert it to JPEG or PNG"),
    (4, b"JXL ", "JPEG XL: convert it to JPEG or PNG"),
    (4, b"ftypavif", "AVIF, which this build of Pillow cannot read: convert it to JPEG or PNG"),
    (4, b"ftypavis", "AVIF, which this build of Pillow cannot read: convert it to JPEG or PNG"),
    *(
        (4, b"ftyp" + brand, "HEIC: run `pip install pillow-heif`, or convert it to JPEG")
        for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    ),
    (4, b"ftyp", "a video: take pictures out of it first"),
    (4, b"ftypcrx", "a camera's raw file: develop it to TIFF or JPEG"),
    (8, b"CR\x02", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"IIU\0", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"IIRO", "a camera's raw file: develop it to TIFF or JPEG"),
    (128, b"DICM", "DICOM: convert it to 16-bit PNG or TIFF"),
    (0, b"SIMPLE  =", "FITS: convert it to 16-bit PNG or TIFF"),
    (0, b"\x89HDF\r\n", "HDF5: convert it to PNG or TIFF"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile: convert it to PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS and not the image: run `git lfs pull`"),
    (0, b"<svg", "SVG: convert it to PNG"),
    (0, b"<!DOCTYPE html", "a web page and not the image: download it again"),
    (0, b"<html", "a web page and not the image: download it again"),
)

# Chunks of PNG without which pixels would be others. What is left out holds texts, times, colour profiles.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Segments of JPEG without which pixels would be others or not upright: JFIF, Exif, Adobe's colour transform.
JPEG_SEGMENTS = (0xE0, 0xE1, 0xEE)


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the names of the formats that can be opened here, HEIF among them where pillow-heif is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def extensions() -> frozenset[str]:
    """Return the extensions of the formats that can be opened here, in lower case and with their dot."""
    return frozenset(name for name, format in Image.registered_extensions().items() if format in formats())


def open_image(data: bytes) -> Image.Image:
    """Open an encoded image without decoding it, as `PIL.Image.open` does, but of `formats` only.

    Pillow's limit of pixels, which is one for the whole process, is not asked. Raises UnidentifiedImageError where the
    bytes are of no such format, and whatever a decoder has against the header.
    """
    prefix = data[:16]
    for name in formats():
        factory, accepts = Image.OPEN[name]
        accepted = accepts is None or accepts(prefix)
        if not accepted or isinstance(accepted, str):  # a text says why not
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as Pillow does: several formats begin alike
    raise UnidentifiedImageError


def describe_other(data: bytes) -> str | None:
    """Return what the bytes are, and what to do, where they are of a known kind that is not opened; else None."""
    head = data[:512]
    found = [(len(magic), text) for at, magic, text in OTHERS if head[at : at + len(magic)] == magic]
    if found:
        return max(found)[1]
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF of a kind that Pillow cannot read: convert it to 8 or 16 bits a channel, grey or RGB"
    return "SVG: convert it to PNG" if head.lstrip().startswith(b"<?xml") and b"<svg" in head else None


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without the metadata that pixels do not depend on; None for any other file.

    Pillow refuses an image for what its texts, its colour profile or its checksums of these are.
    """
    if data.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(
            chunk for kind, chunk in _png_chunks(data) if kind in PNG_CHUNKS and (kind != b"eXIf" or _is_sound(chunk))
        )
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd8" + b"".join(_jpeg_parts(data))
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at : at + 12 + size]
        at += 12 + size


def _is_sound(chunk: bytes) -> bool:
    """Return whether the checksum of a PNG chunk is right."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # the scan: everything behind it are pixels
            break
        if marker == 0xFF:  # a byte of padding
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or marker in JPEG_SEGMENTS:
            yield data[at : at + 2 + size]
        at += 2 + size
    yield data[at:]


def tiff_bits(image: Image.Image) -> tuple[int, bool] | None:
    """Return the bits of a grey TIFF's samples, and whether 0 is white; None for any other image.

    Pillow unpacks 12 bits into 16 without scaling them, and leaves 16 bits as they are where 0 is white.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.format != "TIFF":
        return None
    bits = tags.get(258, (1,))
    return int(bits[0]), tags.get(262) == 0


def refuse_tiff(image: Image.Image) -> str | None:
    """Return why a TIFF's pixels are not what it shows: raw files of cameras, signed samples; None where they are."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.format != "TIFF":
        return None
    is_reduced = bool(int(tags.get(254, 0)) & 1)
    if 50706 in tags or (is_reduced and 330 in tags):
        return "a camera's raw file, of which Pillow reads a preview: develop it to TIFF or JPEG"
    if is_reduced and tags.next:
        return "a TIFF whose first page is a reduced copy of another: save the full page as a file of its own"
    if 2 in tags.get(339, ()) and max(tags.get(258, (1,))) <= 16:
        return "signed pixels, of which black and white are not known: convert them to unsigned 8 or 16 bits"
    return None


def correct(image: Image.Image, data: bytes) -> None:
    """Correct in place, before its pixels are decoded, what Pillow takes wrongly from an open image's header.

    PNG: the transparent colour, which Pillow compares with pixels that are scaled to 8 bits, has the bits of the file.
    TIFF: a palette of 8 bits, which libtiff reads by this rule too, and 16-bit samples in planes, uncompressed.
    """
    if image.format == "PNG" and data[12:16] == b"IHDR" and "transparency" in image.info:
        bits, clear = data[24], image.info["transparency"]
        if image.mode == "L" and bits < 8 and isinstance(clear, int):
            image.info["transparency"] = clear * 255 // (2**bits - 1)
        elif image.mode == "RGB" and bits == 16:
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    palette = tags.get(320, ())
    if image.mode == "P" and palette and max(palette) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(palette))
    if image.mode == "RGB" and tags.get(284) == 2 and tags.get(258) == (16, 16, 16):
        order = "B" if tags.prefix == b"MM" else "L"
        image.tile = [
            tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
            if tile.codec_name == "raw" and isinstance(tile.args, tuple)
            else tile
            for tile in image.tile
        ]
