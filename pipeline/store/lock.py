"""One extraction at a time into a features folder: a lock that ends with its process.

`<cache>/locks/<digest of the folder's path>.lock` names the process that has it. Where the cache cannot be written, or
the file system has no locks, there is none: what is stored stays right all the same.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.files import digest


@contextlib.contextmanager
def exclusive_lock(cache_root: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a features folder; raises StoreError, with the process that holds it, if another does."""
    path = path_of(cache_root, out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                raise StoreError(
                    f"{out}: expected no other extraction into this folder, got one: {file.read() or 'just started'}. "
                    "Wait until it has ended, then run again: what it computes is not computed twice."
                ) from None
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def path_of(cache_root: Path, out: Path) -> Path:
    """Return where the lock of a features folder lies. It is never removed: another process may be about to take it."""
    return cache_root / "locks" / f"{digest(str(out.resolve()))[:32]}.lock"
