"""The folder of the feature cache, and the error if it cannot be written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from pipeline.errors import ConfigError, StoreError
from pipeline.files import DISK_FULL
from pipeline.settings.params import read_params

CONFIG = Path(".icecore") / "config"


MAKE_ROOM = "All finished shards are kept: free some space (`icecore cache prune`) and run again."


SET_CACHE = "Set ICECORE_CACHE to a writable folder; features that are only in the present cache are computed again."


def default_root() -> Path:
    """Return $ICECORE_CACHE, or the `cache` of the nearest `.icecore/config`, or the user's cache directory.

    `.icecore/config` is searched in the current folder and its parents; its path is relative to the folder of
    `.icecore`. Raises ConfigError if the file has other content, and StoreError if none of the three exists.
    """
    if path := os.environ.get("ICECORE_CACHE"):
        return Path(path)
    here = Path.cwd()
    for folder in (here, *here.parents):
        config = folder / CONFIG
        if config.is_file():
            settings = read_params(config)
            if list(settings) != ["cache"] or not isinstance(settings["cache"], str) or not settings["cache"]:
                raise ConfigError(f"{config}: expected a line such as `cache: .cache`, got {settings}.")
            return folder / Path(settings["cache"]).expanduser()
    try:
        return platformdirs.user_cache_path("icecore")
    except RuntimeError:  # such as for a user without an entry in /etc/passwd
        raise StoreError(
            "the feature cache: this user has no home folder. Set ICECORE_CACHE to a folder for it."
        ) from None


@contextlib.contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn an OSError in this block, which writes to the cache, into a StoreError with advice."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(
            f"{root}: the feature cache cannot be written: {why}. "
            f"{MAKE_ROOM if error.errno in DISK_FULL else SET_CACHE}"
        ) from None
