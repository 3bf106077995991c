"""Tar archives: which members there are and where, and their bytes, read in place. Nothing is ever unpacked.

Headers are parsed one by one (POSIX.1-2001 ustar and pax, GNU long names), because `tarfile` ends without a word at a
damaged header, takes sizes for granted, and keeps every member in memory.
"""

import errno
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pipeline.sources import LIMIT, SampleLocation, filesystem

BLOCK = 512
NAME_LIMIT = 2**20
"""Bytes of the records that hold long names; more is no name."""

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
    """An entry of an archive: the byte at which its data begin, and their size. `refused`: why it cannot be read."""

    name: str
    kind: Literal["file", "folder", "link", "special"]
    offset: int
    size: int
    refused: str | None = None


@dataclass(frozen=True)
class Damage:
    """Where an archive cannot be read on, and why; it is the last that comes of it."""

    offset: int
    reason: str


def compression(start: bytes) -> str | None:
    """Return the name of the compression that a file with these first bytes has."""
    return next((name for magic, name in MAGICS.items() if start.startswith(magic)), None)


def members(file: BinaryIO) -> Iterator[Member | Damage]:
    """Yield every member of an open archive in its order; the file may be read elsewhere in between.

    No size that a header claims is believed beyond what the file has. Archives that were joined are one.
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
            yield Damage(at, "damaged header: what follows is not read")
            return
        ended = False
        if size < 0:
            yield Damage(at, f"damaged header: it claims {size} bytes; what follows is not read")
            return
        if header.type in (*_PAX, tarfile.XGLTYPE, _LONG_NAME, _LONG_LINK):
            if size > min(NAME_LIMIT, total - data):
                yield Damage(at, f"damaged header: a name of {size:,} bytes; what follows is not read")
                return
            record = read_at(file, data, size)
            if header.type == _LONG_NAME:
                name = record.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in _PAX:
                try:
                    extra = _pax(record)
                except ValueError:
                    yield Damage(at, "damaged header: its pax records; what follows is not read")
                    return
            at = data + _padded(size)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            data = _behind_sparse_map(file, block, data)
        size = 0 if header.type in _WITHOUT_DATA else size
        yield _member(header, extra.get("path", name or header.name), extra, data, size, total)
        if data + size > total:
            return
        at, name, extra = data + _padded(size), None, {}
    if not ended:
        yield Damage(total, "the archive ends without its end mark: it may be cut off")


def _member(header: tarfile.TarInfo, name: str, extra: dict[str, str], data: int, size: int, total: int) -> Member:
    kind: Literal["file", "folder", "link", "special"] = "file"
    refused = None
    if header.isdir():
        kind = "folder"
    elif header.issym() or header.islnk():
        kind, refused = "link", "a link: pack the file that it leads to"
    elif header.type in _WITHOUT_DATA:
        kind, refused = "special", "not a regular file"
    elif header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extra):
        refused = "a sparse file: pack it without --sparse"
    elif data + size > total:
        refused = f"the archive ends inside it: expected {size:,} bytes, got {max(0, total - data):,}"
    elif size > LIMIT:
        refused = f"expected at most {LIMIT:,} bytes, got {size:,}"
    return Member(name, kind, data, size, refused)


def _pax(record: bytes) -> dict[str, str]:
    """Return the `length key=value` records of a pax header; raises ValueError where they are no such records."""
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


def _behind_sparse_map(file: BinaryIO, block: bytes, data: int) -> int:
    """Return where the data of a GNU sparse member begin: its map may go on in blocks of its own."""
    more = block[482]
    while more:
        block = read_at(file, data, BLOCK)
        data += BLOCK
        more = block[504] if len(block) == BLOCK else 0
    return data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset` on, or fewer where the file ends."""
    file.seek(offset)
    return file.read(size)


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Yield the data of some members, by ascending offsets; see `pipeline.sources.read_many`."""
    done = 0
    try:
        with filesystem.open_file(container) as file:
            total = filesystem.size(file)
            for place in places:
                yield _data(file, place, total)
                done += 1
    except OSError as error:
        for _ in places[done:]:
            yield OSError(error.errno or errno.EIO, error.strerror or str(error), container)


def _data(file: BinaryIO, place: SampleLocation, total: int) -> bytes | OSError:
    offset = place.offset or 0
    there = max(0, min(place.size, total - offset))
    if place.size > LIMIT:
        return OSError(errno.EFBIG, f"expected at most {LIMIT:,} bytes, got {place.size:,}", place.path)
    data = read_at(file, offset, there) if there == place.size else b""
    if len(data) == place.size:
        return data
    reason = f"the archive ends inside it: expected {place.size:,} bytes, got {max(there, len(data)):,}"
    return OSError(errno.EIO, reason, place.path)
