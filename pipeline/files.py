"""Atomic writes of files and folders, and digests.

A file is written under a temporary name in the folder it will live in, flushed to the disk and renamed; whoever looks
sees the old file, no file, or the whole new one. A folder that replaces another changes places with it in one step.
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import reprlib
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

TEMPORARY = re.compile(r"\..+\.(?P<host>\w{8})\.(?P<process>\d+)\.[0-9a-f]{8}\.tmp")
"""Pattern of the names of temporary files."""

RENAME_EXCHANGE = 2  # renameat2(2)
AT_FDCWD = -100
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a full disk


def sha256_bytes(data: bytes) -> str:
    """Return SHA-256 of bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return SHA-256 of a file, as hex digits; memory does not grow with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return SHA-256 of the canonical JSON of a value, as hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


AnyPath = str | os.PathLike[str]
"""Type of path arguments of public functions."""


def as_path(value: AnyPath, what: str) -> Path:
    """Return a path that was given as str or Path; raises TypeError for another type.

    what: the function and its argument, such as `Features.open: folder`; the message begins with it.
    """
    text: Any = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{what}: expected a path as str or Path, got {type(value).__name__} {reprlib.repr(value)}.")
    return value if isinstance(value, Path) else Path(text)


class Paths:
    """Base of frozen dataclasses of paths: a field of type `Path` may be given as str, and is converted."""

    def __post_init__(self) -> None:
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            if field.type in (Path, "Path") or (field.type in (Path | None, "Path | None") and value is not None):
                object.__setattr__(self, field.name, as_path(value, f"{type(self).__name__}: {field.name}"))


@contextlib.contextmanager
def scratch(folder: Path, name: str = "file") -> Iterator[Path]:
    """Yield a temporary path in `folder`, which is created if missing; a file left there at the end is removed.

    The name carries host and process, so that `remove_stale` can tell a killed process's leftovers from a live writer's
    file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(folder, name)
    try:
        yield temporary
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(folder)  # write(2) does not name the full disk
        raise
    finally:
        _remove(temporary)


def temporary_path(folder: Path, name: str) -> Path:
    """Return an unused path in a folder, which `remove_stale` removes after this process has ended."""
    return folder / f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _remove(path: Path) -> None:
    """Remove a file or a folder; parts of a folder that cannot be removed are left to `remove_stale`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_stale(folder: Path, *, older_than: float = 86_400.0) -> int:
    """Remove temporary files and folders of dead processes of this machine, and all that are older than a day.

    Only names that `scratch` gives are touched. Returns how many there were.
    """
    removed = 0
    for path in folder.glob(".*.tmp"):
        name = TEMPORARY.fullmatch(path.name)
        if name is None:
            continue
        try:
            dead = name["host"] == _host() and not _alive(int(name["process"]))
            if dead or time.time() - path.stat().st_mtime > older_than:
                _remove(path)
                removed += 1
        except OSError:  # another process was faster, or the folder cannot be written
            continue
    return removed


def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    import psutil

    try:
        os.kill(process, 0)
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    except (PermissionError, OverflowError, psutil.AccessDenied):  # another user's process, or not a process number
        return True


def flush(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk and rename it atomically, with the mode of the umask."""
    open_to_others(temporary)
    flush(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def open_to_others(path: Path) -> None:
    """Set the mode of a file that only its owner may read to that of a new file in its folder.

    Some libraries make files with mode 0600 whatever the umask. A file that is read-only stays so.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return
    with scratch(path.parent, "mode") as plain:  # the umask cannot be read without changing it for other threads
        plain.touch()
        usual = stat.S_IMODE(plain.stat().st_mode)
    path.chmod(usual if mode & stat.S_IWUSR else usual & ~0o222)


def denied(path: Path) -> PermissionError:
    """Return the error for an unreadable file, with its owner and mode and the user of this process."""
    there = path
    while True:
        try:
            status = there.stat()
            break
        except OSError:
            if there == there.parent:
                return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            there = there.parent
    which = "it" if there == path else str(there)
    user = f", this process runs as user {os.geteuid()}" if hasattr(os, "geteuid") else ""
    text = (
        f"{os.strerror(errno.EACCES)}: {which} belongs to user {status.st_uid} with the mode "
        f"{stat.S_IMODE(status.st_mode):04o}{user}"
    )
    return PermissionError(errno.EACCES, text, str(path))


def check_readable(path: Path) -> None:
    """Raise the PermissionError of `denied` for an unreadable file, which libraries would report as damaged."""
    try:
        with path.open("rb"):
            return
    except PermissionError:
        raise denied(path) from None
    except OSError:  # missing, or a folder: reported by the reader
        return


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is renamed to `path`, on an exception it is removed."""
    with scratch(path.parent, path.name) as temporary:
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on success it replaces `path`.

    At every moment `path` is the whole old folder or the whole new one. Where the system cannot exchange two folders,
    the old one is first renamed to `.<name>.replaced`, and the next call puts it back if a kill came in between.
    """
    aside = path.with_name(f".{path.name}.replaced")
    if aside.is_dir():
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)
    if path.parent.is_dir():
        remove_stale(path.parent)
        _sweep_unmarked(path)
    with scratch(path.parent, path.name) as temporary:
        temporary.mkdir()
        yield temporary
        if not path.is_dir():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            path.rename(aside)
            temporary.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep_unmarked(path: Path) -> None:
    """Remove what version 0.1.0 left of `path` after a kill, `.<name>.<8 characters>/`, once it is a day old."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        if not left.is_dir() or {entry.name for entry in left.iterdir()} - {path.name, "replaced"}:
            continue  # another user's
        if not path.exists() and (left / "replaced").is_dir():
            (left / "replaced").rename(path)
        if time.time() - left.stat().st_mtime > 86_400.0:
            shutil.rmtree(left, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; return False if the system does not support it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return False
    done: int = renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically: keys in the given order, two spaces, no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; an error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        error.add_note(f"while reading {path}")
        raise
