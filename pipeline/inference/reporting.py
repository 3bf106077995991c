"""Progress and messages of the Python API: bars in terminals and notebooks, messages to the logger `icecore`."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from pipeline.runtime import SILENT, Progress, Reporter

LOGGER = logging.getLogger("icecore")


def is_watched() -> bool:
    """Return whether bars are visible: standard error is a terminal, or the process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return notebook or (sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Show a progress bar over images, and remove it at the end; show nothing if bars are not visible."""
    if not is_watched():
        yield SILENT.progress
        return
    from tqdm.auto import tqdm

    with tqdm(desc=title, unit=" images", leave=False) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress


def _message(line: object) -> None:
    LOGGER.info("%s", line)


REPORTER = Reporter(message=_message, log=LOGGER.debug, bar=bar)
"""Reports to bars and to the logger `icecore`: messages at level INFO, lines about single steps at DEBUG."""
