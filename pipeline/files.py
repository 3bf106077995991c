"""Files that appear whole or not at all, and the digests that name them.

A file is written under a temporary name in the folder it will live in, flushed to the disk and renamed; whoever looks
sees the old file, no file, or the whole new one.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

KEY_BYTES = 16
FICLONE = 0x40049409  # ioctl_ficlone(2)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says where there is no room left


def content_key(data: bytes) -> str:
    """The key of a sample: BLAKE2b of its bytes, 16 bytes as 32 hex digits (RFC 7693)."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of some bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as hex digits; memory does not grow with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextlib.contextmanager
def scratch(folder: Path, name: str = "file") -> Iterator[Path]:
    """Yield a temporary path in `folder`, which is made if need be; whatever still lies there at the end is removed.

    The name carries host and process, so that `sweep` can tell a killed process's leftovers from a live writer's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(folder)  # write(2) does not say where the disk was full
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, *, older_than: float = 86_400.0) -> int:
    """Remove the temporary files and folders of dead processes of this machine, and anybody's that are a day old.

    Returns how many there were.
    """
    removed = 0
    for path in folder.glob(".*.tmp"):
        host, process = path.name.split(".")[-4:-2]
        try:
            dead = host == _host() and not _alive(int(process))
            if dead or time.time() - path.stat().st_mtime > older_than:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed += 1
        except OSError:  # another process was faster, or the folder cannot be written
            continue
    return removed


def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Wait until the disk has all bytes of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk and give it its name, in one step."""
    flush(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes that name, on an exception it is removed."""
    with scratch(path.parent, path.name) as temporary:
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes that name and replaces what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as temporary:
        filled = Path(temporary) / path.name
        filled.mkdir()
        yield filled
        if path.exists():
            path.rename(Path(temporary) / "replaced")
        filled.rename(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read: keys in the order given, two spaces, no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; an error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        error.add_note(f"while reading {path}")
        raise


def free(folder: Path) -> int:
    """Bytes that this user may still write in a folder, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there: it lies, or will lie, on the same file system."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def link_or_copy(source: Path, target: Path) -> Literal["reflink", "hardlink", "copy"]:
    """Give a file a second name, sharing its bytes where the file system can; say how it was done.

    A reflink shares bytes until one of the two is changed, a hard link for good; a copy is what is left.
    """
    with scratch(target.parent, target.name) as temporary:
        how = _reflink(source, temporary) or _hardlink(source, temporary)
        if how is None:
            shutil.copyfile(source, temporary)
        if how != "hardlink":
            temporary.chmod(0o444)
        temporary.replace(target)
    return how or "copy"


def _reflink(source: Path, target: Path) -> Literal["reflink"] | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with source.open("rb") as original, target.open("wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), FICLONE, original.fileno())
        except OSError:
            target.unlink()
            return None
    return "reflink"


def _hardlink(source: Path, target: Path) -> Literal["hardlink"] | None:
    try:
        os.link(source, target)
    except OSError:
        return None
    return "hardlink"
