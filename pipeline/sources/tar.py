"""Tar archives: list the members with their offsets, and read their bytes in place. Nothing is ever unpacked.

Headers are parsed here (POSIX.1-2001 ustar and pax, GNU long names), because `tarfile` ends silently at a damaged
header, trusts the sizes in headers, and keeps every member in memory.
"""

import errno
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pipeline.sources import LIMIT, SampleLocation, filesystem

BLOCK = 512
NAME_LIMIT = 2**20
"""Largest record of a long name, in bytes; a larger size means a damaged header."""

MAGICS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}

_END = bytes(BLOCK)
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True)
class Member:
    """An entry of an archive. offset, size: where its data are, in bytes. refused: why they cannot be read."""

    name: str
    kind: Literal["file", "folder", "link", "special"]
    offset: int
    size: int
    refused: str | None = None


@dataclass(frozen=True)
class Damage:
    """The byte from which an archive cannot be read, and the reason. Nothing of the archive is read after it."""

    offset: int
    reason: str


def compression(start: bytes) -> str | None:
    """Return the compression of a file with these first bytes; None for an uncompressed file."""
    return next((name for magic, name in MAGICS.items() if start.startswith(magic)), None)


def members(file: BinaryIO) -> Iterator[Member | Damage]:
    """Yield the members of an open archive in its order; the caller may read from the file between two of them.

    Sizes in headers are checked against the size of the file. Concatenated archives are read as one archive.
    """
    total = filesystem.size(file)
    at, ended = 0, False
    name: str | None = None
    extra: dict[str, str] = {}
    while at < total:
        block = read_at(file, at, BLOCK)
        data = at + BLOCK
        if block == _END:
            at, ended = data, True
            continue
        if len(block) < BLOCK:
            yield Damage(at, "the archive ends inside a header")
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = int(extra.get("size", header.size)) if header.type not in (*_PAX, _LONG_NAME) else header.size
        except (tarfile.HeaderError, ValueError):
            yield Damage(at, "damaged header: the rest of the archive is not read")
            return
        ended = False
        if size < 0:
            yield Damage(at, f"damaged header: a size of {size} bytes; the rest of the archive is not read")
            return
        if header.type in (*_PAX, tarfile.XGLTYPE, _LONG_NAME, _LONG_LINK):
            if size > min(NAME_LIMIT, total - data):
                yield Damage(at, f"damaged header: a name of {size:,} bytes; the rest of the archive is not read")
                return
            record = read_at(file, data, size)
            if header.type == _LONG_NAME:
                name = record.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in _PAX:
                try:
                    extra = _parse_pax(record)
                except ValueError:
                    yield Damage(at, "damaged header: invalid pax records; the rest of the archive is not read")
                    return
            at = data + _round_to_block(size)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            data = _skip_sparse_map(file, block, data)
        size = 0 if header.type in _WITHOUT_DATA else size
        yield _member(header, extra.get("path", name or header.name), extra, data, size, total)
        if data + size > total:
            return
        at, name, extra = data + _round_to_block(size), None, {}
    if not ended:
        yield Damage(total, "the archive has no end mark: it may be truncated")


def _member(header: tarfile.TarInfo, name: str, extra: dict[str, str], data: int, size: int, total: int) -> Member:
    kind: Literal["file", "folder", "link", "special"] = "file"
    refused = None
    if header.isdir():
        kind = "folder"
    elif header.issym() or header.islnk():
        kind, refused = "link", "a link: pack the file that it points to"
    elif header.type in _WITHOUT_DATA:
        kind, refused = "special", "not a regular file"
    elif header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extra):
        refused = "a sparse file: pack it without --sparse"
    elif data + size > total:
        refused = f"the archive ends inside this member: expected {size:,} bytes, got {max(0, total - data):,}"
    elif size > LIMIT:
        refused = f"expected at most {LIMIT:,} bytes, got {size:,}"
    return Member(name, kind, data, size, refused)


def _parse_pax(record: bytes) -> dict[str, str]:
    """Parse the `length key=value` records of a pax header; raises ValueError where they are malformed."""
    result = {}
    while record:
        digits, _, _ = record.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line, record = record[:length], record[length:]
        key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
        if length < len(digits) + 3 or not line.endswith(b"\n") or not equals:
            raise ValueError("not a pax record")
        result[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return result


def _skip_sparse_map(file: BinaryIO, block: bytes, data: int) -> int:
    """Return where the data of a GNU sparse member begin: its map may continue in extra blocks."""
    more = block[482]
    while more:
        block = read_at(file, data, BLOCK)
        data += BLOCK
        more = block[504] if len(block) == BLOCK else 0
    return data


def _round_to_block(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset` on, fewer at the end of the file."""
    file.seek(offset)
    return file.read(size)


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Yield the data of members, by ascending offset; see `pipeline.sources.read_many`."""
    done = 0
    try:
        with filesystem.open_file(container) as file:
            total = filesystem.size(file)
            for place in places:
                yield _read_data(file, place, total)
                done += 1
    except OSError as error:
        for _ in places[done:]:
            yield OSError(error.errno or errno.EIO, error.strerror or str(error), container)


def _read_data(file: BinaryIO, place: SampleLocation, total: int) -> bytes | OSError:
    offset = place.offset or 0
    available = max(0, min(place.size, total - offset))
    if place.size > LIMIT:
        return OSError(errno.EFBIG, f"expected at most {LIMIT:,} bytes, got {place.size:,}", place.path)
    data = read_at(file, offset, available) if available == place.size else b""
    if len(data) == place.size:
        return data
    reason = f"the archive ends inside this member: expected {place.size:,} bytes, got {max(available, len(data)):,}"
    return OSError(errno.EIO, reason, place.path)
