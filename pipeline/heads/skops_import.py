"""skops.io, which reads and writes heads, imported without torch and Dask.

skops asks scikit-learn for all of its estimators, and for that everything below `sklearn` is imported: also wrappers
that bring in torch and Dask, in which no estimator is looked for. They would be most of its time: `python -X importtime
-c "import skops.io"`.
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
    with requires("pipeline", what="saved heads"), _missing(*WRAPPERS):
        return importlib.import_module("skops.io")


@contextmanager
def _missing(*names: str) -> Iterator[None]:
    """Make imports of these modules fail within, unless they were imported before: skops passes over what fails."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # of None, the import fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
