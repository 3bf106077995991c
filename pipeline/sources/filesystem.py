"""Files on local disks and behind URLs: open, read, list.

A URL is anything with `://` that fsspec has a file system for; `file://` is a local file. fsspec is imported with the
first URL. The package that it needs for a protocol (s3fs, gcsfs) is installed by the user.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from pipeline.errors import DataError

AHEAD = 32 * 2**20
"""Bytes that are read ahead of a remote file: a request takes as long as the transfer of some megabytes."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL = "file://"


@dataclass(frozen=True)
class Entry:
    """A file below a folder. names: the folders below the root, then the file. path: its path or URL."""

    names: tuple[str, ...]
    path: str


def is_url(path: str) -> bool:
    """Return whether a path is a URL, such as `s3://bucket/photos`."""
    return _URL.match(path) is not None


def local(path: str) -> Path | None:
    """Return the local file that a path or a `file://` URL names; None for other URLs."""
    if path.startswith(_LOCAL):
        return Path(path.removeprefix(_LOCAL))
    return None if is_url(path) else Path(path)


def join(base: str, path: str) -> str:
    """Return `path` relative to the folder `base`; a URL or an absolute path stays as it is."""
    if is_url(path):
        return path
    if is_url(base) and not path.startswith("/"):
        return f"{base.rstrip('/')}/{PurePosixPath(path)}"
    return (Path(base) / path).as_posix()


def parent(path: str) -> str:
    """Return the folder that contains a file."""
    return path.rpartition("/")[0] if is_url(path) else Path(path).parent.as_posix()


def path_kind(path: str) -> Literal["folder", "file"] | None:
    """Return "folder", "file", or None where nothing exists at `path`.

    Raises OSError where the path cannot be inspected, and DataError as `read` does.
    """
    where = local(path)
    if where is not None:
        return "folder" if where.is_dir() else "file" if where.is_file() else None
    system, key = _system(path)
    try:
        with _as_os_errors(path):
            return "folder" if system.info(key)["type"] == "directory" else "file"
    except FileNotFoundError:
        return None


def read(path: str) -> bytes:
    """Return all bytes of a file; raises OSError, and DataError if the package that reads the URL is missing."""
    where = local(path)
    if where is not None:
        if not stat.S_ISREG(where.stat().st_mode):  # a folder, or a pipe, on which a read would block
            raise OSError(errno.EINVAL, "not a regular file", path)
        return where.read_bytes()
    system, key = _system(path)
    with _as_os_errors(path):
        return bytes(system.cat_file(key))


@contextmanager
def open_file(path: str, *, buffering: int = 2**18) -> Iterator[BinaryIO]:
    """Yield a file open for reading; `buffering` bytes of a local file are read at once, AHEAD of a remote one.

    Raises as `read` does.
    """
    where = local(path)
    if where is not None:
        if not stat.S_ISREG(where.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with where.open("rb", buffering=buffering) as file:
            yield file
        return
    system, key = _system(path)
    with _as_os_errors(path):
        remote = system.open(key, "rb", block_size=AHEAD, cache_type="readahead")
    with _Remote(remote, path) as raw:
        yield cast(BinaryIO, raw)


def size(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return file.seek(0, os.SEEK_END)


def walk(root: str) -> Iterator[Entry]:
    """Yield all files below a folder, each folder sorted by name. Local links are followed, except to a parent.

    Raises as `read` does if a folder cannot be listed.
    """
    where = local(root)
    if where is None:
        system, key = _system(root)
        yield from _walk_remote(system, key.rstrip("/"), root.rstrip("/"), ())
        return
    prefix = _LOCAL if root.startswith(_LOCAL) else ""
    # Strings: a Path of every file would take longer than listing it.
    start = "" if where == Path() else str(where) if str(where).endswith("/") else f"{where}/"
    for names in _walk_local(where, (), ()):
        yield Entry(names, prefix + text(start + "/".join(names)))


def folders(root: str) -> list[str]:
    """Return the names of the folders in a folder; raises as `read` does."""
    where = local(root)
    if where is not None:
        return [entry.name for entry in os.scandir(where) if _is_folder(entry)]
    system, key = _system(root)
    with _as_os_errors(root):
        entries = system.ls(key, detail=True)
    names = [str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory"]
    return [name.rpartition("/")[2] for name in names if name != key.rstrip("/")]


def text(path: str) -> str:
    """Return a path that can be written as UTF-8: bytes of the name that are not UTF-8 become \\udc.. ."""
    return path if path.isascii() else path.encode("utf-8", "backslashreplace").decode()


def _walk_local(folder: Path, names: tuple[str, ...], above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, ...]]:
    """Yield the names of the folders and of the file, for each file below a folder; `above`: its parents."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_folder(entry):
            yield from _walk_local(folder / entry.name, (*names, entry.name), (*above, here))
        else:
            yield (*names, entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it raises the same error, which then becomes the reason
        return False


def _walk_remote(system: Any, key: str, root: str, names: tuple[str, ...]) -> Iterator[Entry]:
    path = "/".join((root, *names))
    with _as_os_errors(path):
        entries = [(str(entry["name"]).rstrip("/"), entry["type"]) for entry in system.ls(key, detail=True)]
    for inner, kind in sorted(entries):
        name = inner.rpartition("/")[2]
        if inner == key or not name:  # object stores mark a folder by an empty object
            continue
        if kind == "directory":
            yield from _walk_remote(system, inner, root, (*names, name))
        else:
            yield Entry((*names, name), f"{path}/{name}")


def _system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path of the URL in it."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        system, key = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        package = known_implementations[protocol]["class"].partition(".")[0]
        needed = f"`pip install {package}`" if package != "fsspec" else f"`pip install 'fsspec[{protocol}]'`"
        raise DataError(f"{url}: {protocol}:// needs a package that is not installed. Run {needed}.") from None
    except ValueError as error:
        raise DataError(
            f"{url}: fsspec cannot open this URL: {error}. Use a protocol that it knows, such as s3:// or gs://."
        ) from None
    return system, str(key)


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Turn errors of a remote file system, each of which has its own error classes, into OSErrors with a reason."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, path) from error


class _Remote(io.RawIOBase):
    """A remote file that raises OSErrors only."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_errors(self._path):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
