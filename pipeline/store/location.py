"""Where the feature cache lies, and the error where it cannot be written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from pipeline.errors import ConfigError, StoreError
from pipeline.files import DISK_FULL
from pipeline.settings.params import read_params

CONFIG = Path(".icecore") / "config"


FULL = "Every shard that was finished is kept: make room (`icecore cache prune`) and run it again."


ELSEWHERE = "Set ICECORE_CACHE to a folder that can: what is only in this one is computed there again."


def default_root() -> Path:
    """Return $ICECORE_CACHE, or the `cache` of the nearest `.icecore/config`, or the user's cache directory.

    `.icecore/config` is looked for in the current folder and above; a path in it is relative to the folder that it lies
    in. Raises ConfigError where the file says anything else, and StoreError where there is none of the three.
    """
    if named := os.environ.get("ICECORE_CACHE"):
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        config = folder / CONFIG
        if config.is_file():
            settings = read_params(config)
            if list(settings) != ["cache"] or not isinstance(settings["cache"], str) or not settings["cache"]:
                raise ConfigError(f"{config}: expected one line such as `cache: .cache`, got {settings}.")
            return folder / Path(settings["cache"]).expanduser()
    try:
        return platformdirs.user_cache_path("icecore")
    except RuntimeError:  # as of a user without an entry in /etc/passwd
        raise StoreError(
            "the feature cache: this user has no home folder. Set ICECORE_CACHE to a folder for it."
        ) from None


@contextlib.contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn what the system refuses while a cache is written into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(
            f"{root}: the feature cache cannot be written: {why}. {FULL if error.errno in DISK_FULL else ELSEWHERE}"
        ) from None
