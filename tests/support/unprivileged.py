"""A file or folder that this process may not read, also where the tests run as root, who may read everything."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a temporary folder that others can reach, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="icecore-test-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def closed(path: Path, *, root: Path) -> Iterator[str]:
    """Take all rights to a path away, and be nobody where this process is root; yield how a refusal names them.

    Anybody may write below `root`, a folder of `open_folder`, or the working directory where paths are relative.
    Modules must be imported before: nobody may not read them.
    """
    before, owner = stat.S_IMODE(path.stat().st_mode), path.stat().st_uid
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        root.chmod(0o777)
        os.seteuid(NOBODY)
    try:
        yield f"belongs to user {owner} with the mode 0000, this process runs as user {os.geteuid()}"
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(before)
