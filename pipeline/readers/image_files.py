"""Encoded images: the formats that are opened, names for files of other formats, and removal of metadata.

A format is opened if its decoder runs in this process. Pillow has other formats that start programs (EPS starts
Ghostscript, whatever the name of the file) or call plugins: their files are refused with advice.
"""

import functools
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImagePalette, TiffImagePlugin, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Default limit on the pixels of an image: Pillow takes more than this for a decompression bomb."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "MPO", "JPEG2000", "AVIF", "HEIF", "PPM", "PSD", "ICO"),
    *("ICNS", "TGA", "PCX", "DCX", "SGI", "SUN", "QOI", "DDS", "XBM", "XPM", "MSP"),
)
"""Formats that are decoded in this process, the common ones first. HEIF needs the package pillow-heif."""

UNREADABLE = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jxl",
        ".dcm",
        ".dicom",
        ".svg",
        ".eps",
        ".ps",
        ".ai",
        ".psb",
        ".wmf",
        ".emf",
    ),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".raw", ".rwl", ".3fr", ".fff", ".iiq", ".mrw", ".x3f", ".kdc", ".dcr", ".erf", ".mef", ".mos", ".exr", ".hdr"),
    *(
        ".czi",
        ".lif",
        ".nd2",
        ".oib",
        ".oif",
        ".lsm",
        ".vsi",
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".fits",
        ".fit",
        ".xcf",
    ),
)
"""Extensions of image formats that icecore cannot read."""

# How other files begin: offset, bytes, and the reason with advice.
OTHERS = (
    (0, b"%!PS", "PostScript (EPS), which is a program and is not run: convert it to PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS), which is a program and is not run: convert it to PNG"),
    (0, b"%PDF", "a PDF document: convert its pages to PNG"),
    (0, b"\xff\x0a", "JPEG XL: convert it to JPEG or PNG"),
    (4, b"JXL ", "JPEG XL: convert it to JPEG or PNG"),
    (4, b"ftypavif", "AVIF, which this build of Pillow cannot read: convert it to JPEG or PNG"),
    (4, b"ftypavis", "AVIF, which this build of Pillow cannot read: convert it to JPEG or PNG"),
    *(
        (4, b"ftyp" + brand, "HEIC: run `pip install pillow-heif`, or convert it to JPEG")
        for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    ),
    (4, b"ftyp", "a video: extract its frames first"),
    (4, b"ftypcrx", "a camera's raw file: develop it to TIFF or JPEG"),
    (8, b"CR\x02", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"IIU\0", "a camera's raw file: develop it to TIFF or JPEG"),
    (0, b"IIRO", "a camera's raw file: develop it to TIFF or JPEG"),
    (128, b"DICM", "DICOM: convert it to 16-bit PNG or TIFF"),
    (0, b"SIMPLE  =", "FITS: convert it to 16-bit PNG or TIFF"),
    (0, b"\x89HDF\r\n", "HDF5: convert it to PNG or TIFF"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile: convert it to PNG"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image: run `git lfs pull`"),
    (0, b"<svg", "SVG: convert it to PNG"),
    (0, b"<!DOCTYPE html", "a web page, not an image: download it again"),
    (0, b"<html", "a web page, not an image: download it again"),
)

# PNG chunks that pixels depend on. The others hold texts, times and colour profiles.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# JPEG segments that pixels or their rotation depend on: JFIF, Exif, Adobe's colour transform.
JPEG_SEGMENTS = (0xE0, 0xE1, 0xEE)


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that this installation can open, with HEIF if pillow-heif is installed."""
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
    """Return the file extensions of the formats that this installation can open, in lower case, with the dot."""
    return frozenset(name for name, format in Image.registered_extensions().items() if format in formats())


def open_image(data: bytes) -> Image.Image:
    """Open an encoded image of one of `formats` without decoding its pixels, as `PIL.Image.open` does.

    Pillow's own limit on pixels, which is global to the process, is not applied. Raises UnidentifiedImageError if the
    bytes are of no such format, and the decoder's error for a damaged header.
    """
    prefix = data[:16]
    for name in formats():
        factory, accepts = Image.OPEN[name]
        accepted = accepts is None or accepts(prefix)
        if not accepted or isinstance(accepted, str):  # a string is the reason why not
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as Pillow does: some formats share their first bytes
    raise UnidentifiedImageError


def describe_other(data: bytes) -> str | None:
    """Return the format of a file that is not opened, with advice; None for an unknown format."""
    head = data[:512]
    matches = [(len(magic), text) for at, magic, text in OTHERS if head[at : at + len(magic)] == magic]
    if matches:
        return max(matches)[1]
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF of a kind that Pillow cannot read: convert it to 8 or 16 bits per channel, grey or RGB"
    return "SVG: convert it to PNG" if head.lstrip().startswith(b"<?xml") and b"<svg" in head else None


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without the metadata that pixels do not depend on; None for any other file.

    Pillow refuses an image with damaged texts, colour profile or checksums of these, although its pixels are intact.
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
    """Return whether the checksum of a PNG chunk is valid."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # the scan: all data after it are pixels
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
    """Return the bits per sample of a grey TIFF, and whether 0 is white; None for any other image.

    Pillow unpacks 12 bits into 16 without scaling them, and does not invert 16-bit samples in which 0 is white.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.format != "TIFF":
        return None
    bits = tags.get(258, (1,))
    return int(bits[0]), tags.get(262) == 0


def refuse_tiff(image: Image.Image) -> str | None:
    """Return why a TIFF cannot be used: a camera's raw file, a reduced copy, signed samples. None for a usable TIFF."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.format != "TIFF":
        return None
    is_reduced = bool(int(tags.get(254, 0)) & 1)
    if 50706 in tags or (is_reduced and 330 in tags):
        return "a camera's raw file, of which Pillow reads only the preview: develop it to TIFF or JPEG"
    if is_reduced and tags.next:
        return "a TIFF whose first page is a reduced copy of another page: save the full page as a file of its own"
    if 2 in tags.get(339, ()) and max(tags.get(258, (1,))) <= 16:
        return "signed pixels whose black and white are not known: convert them to unsigned 8 or 16 bits"
    return None


def correct(image: Image.Image, data: bytes) -> None:
    """Correct, in place and before decoding, header values of an open image that Pillow misreads.

    PNG: the transparent colour has the bits of the file, but Pillow compares it with pixels scaled to 8 bits. TIFF: a
    palette of 8-bit values (libtiff uses the same rule), and uncompressed 16-bit samples in separate planes.
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
