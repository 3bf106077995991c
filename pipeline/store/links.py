"""Link a file to a second path, sharing its bytes if the file system can."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Literal

from pipeline.files import scratch

FICLONE = 0x40049409  # ioctl_ficlone(2)


def link_or_copy(source: Path, target: Path) -> Literal["reflink", "hardlink", "copy"]:
    """Link a file to a second path by a reflink, a hard link or a copy; return which was used.

    A reflink shares bytes until one of the files changes, a hard link always; a copy is the last resort.
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
