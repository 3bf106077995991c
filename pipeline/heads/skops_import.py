"""Import skops.io, which reads and writes heads, without torch and Dask.

skops lists all estimators of scikit-learn, for which scikit-learn imports all its modules, including wrappers of torch
and Dask that contain no estimators. These take most of the time: `python -X importtime -c "import skops.io"`.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pipeline.errors import requires

WRAPPERS = tuple(f"sklearn.externals.array_api_compat.{name}" for name in ("torch", "dask"))


def skops_io() -> ModuleType:
    """Return the module `skops.io`."""
    with requires("pipeline", what="saved heads"), _block_imports(*WRAPPERS):
        return importlib.import_module("skops.io")


@contextmanager
def _block_imports(*names: str) -> Iterator[None]:
    """Make imports of modules fail in this block, unless they were imported before: skops ignores failures."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # of None, the import fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
