"""Heads in files: skops, without the libraries that its import would load for nothing."""

import sys
from pathlib import Path
from typing import Any

from pipeline.files import atomic

UNUSED = ("torch", "dask")


def skops_io() -> Any:
    """The module `skops.io`.

    Its import walks through all of scikit-learn, and there through wrappers that import torch and Dask, where these are
    installed: 3.4 of 5.9 seconds of processor time (`python -X importtime -c "import skops.io"`). While it walks, they
    are not found: None in `sys.modules` says so (the Python language reference, 5.3.1), and scikit-learn's wrappers
    are imported by whoever uses them later. Libraries that are loaded already stay.
    """
    hidden = [name for name in UNUSED if name not in sys.modules and "skops.io" not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import skops.io
    finally:
        for name in hidden:
            del sys.modules[name]
    return skops.io


def write(head: Any, path: Path) -> None:
    """Save a fitted head; the file appears when it is whole."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        skops_io().dump(head, file)
