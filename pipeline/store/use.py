"""Which parts of the cache a running job uses: a shared lock on the folder or file itself, which ends with its process.

Where the file system has no locks, nothing is held, and `prune` goes by the time of the last use.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep `prune` off a folder of the cache, which is made if need be, while a job reads or writes there."""
    with contextlib.suppress(OSError):  # the cache may be read-only: the job says so if it must write
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder, shared=True)
    try:
        touch(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yield whether no job uses a folder or file of the cache; none can begin to until the end."""
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
    """Give a part of the cache the present time, from which its age counts; one of another user keeps its own."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _lock(path: Path, *, shared: bool) -> int | None:
    """Return a descriptor that holds the lock; None where there are no locks. Raises BlockingIOError where another has
    it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # `unused` holds its lock no longer than a rename takes: a job waits for it.
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise BlockingIOError(error.errno, error.strerror, str(path)) from None
    return descriptor
