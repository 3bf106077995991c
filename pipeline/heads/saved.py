"""Heads in files: skops, without the libraries that its import would load for nothing."""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from pipeline.files import atomic

UNUSED = ("torch", "dask")


class _Hidden(MetaPathFinder):
    """Some packages are not found, as if they were not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:  # noqa: ARG002 - Python's signature
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{fullname}: skops needs none of it.", name=fullname)


def skops_io() -> Any:
    """The module `skops.io`.

    Its import walks through all of scikit-learn, and there through wrappers that import torch and Dask, where these are
    installed: more than half of its time (`python -X importtime -c "import skops.io"`). While it walks they are not
    found, unless they are loaded already. The wrappers are imported again by whoever uses them later.
    """
    if "skops.io" not in sys.modules:
        hidden = _Hidden(tuple(name for name in UNUSED if name not in sys.modules))
        sys.meta_path.insert(0, hidden)
        try:
            import skops.io
        finally:
            sys.meta_path.remove(hidden)
    import skops.io

    return skops.io


def write(head: Any, path: Path) -> None:
    """Save a fitted head; the file appears when it is whole."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        skops_io().dump(head, file)
