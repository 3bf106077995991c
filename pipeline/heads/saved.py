"""Heads in files, by skops, whose import is kept from loading torch and Dask."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.files import atomic

WRAPPERS = tuple(f"sklearn.externals.array_api_compat.{name}" for name in ("torch", "dask"))


def skops_io() -> ModuleType:
    """The module `skops.io`.

    Its import asks scikit-learn for all estimators, and for that everything below `sklearn` is imported: also wrappers
    that bring in torch and Dask, where no estimator is looked for. That is most of its time (`python -X importtime -c
    "import skops.io"`). The wrappers fail to import meanwhile, which that walk passes over.
    """
    with _missing(*WRAPPERS):
        return importlib.import_module("skops.io")


def write(head: Any, path: Path) -> None:
    """Save a fitted head; the file appears when it is whole."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        skops_io().dump(head, file)


@contextmanager
def _missing(*names: str) -> Iterator[None]:
    """Within, imports of these fail, unless they were imported before."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # of None, the import fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
