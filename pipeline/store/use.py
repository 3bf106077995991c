"""Locks on parts of the cache that a running job uses: shared locks on the file or folder, which end with the process.

On a file system without locks, nothing is locked, and `prune` relies on the time of the last use.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Protect a folder of the cache from `prune` during the block; the folder is created if it is missing."""
    with contextlib.suppress(OSError):  # the cache may be read-only; a job that must write reports it
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder, shared=True)
    try:
        touch(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def lock_unused(path: Path) -> Iterator[bool]:
    """Yield whether no job uses a file or folder of the cache; during the block, no job can start to use it."""
    descriptor = None
    try:
        descriptor = _lock(path, shared=False)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def touch(path: Path) -> None:
    """Mark a file or folder of the cache as used now; does nothing for a file of another user."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _lock(path: Path, *, shared: bool) -> int | None:
    """Return a descriptor that holds the lock, or None without lock support; raises BlockingIOError if it is taken."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # `lock_unused` holds its lock only during a rename, so a job waits for it.
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise BlockingIOError(error.errno, error.strerror, str(path)) from None
    return descriptor
