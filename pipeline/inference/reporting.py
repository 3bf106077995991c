"""Where calls of the Python API report: a bar in terminals and notebooks, and sentences to the logger `icecore`."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from pipeline.runtime import SILENT, Progress, Reporter

LOGGER = logging.getLogger("icecore")


def is_watched() -> bool:
    """Return whether a person sees bars: standard error is a terminal, or the process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return notebook or (sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Draw the progress of one stage over images, and take it away at the end; nothing where nobody would see it."""
    if not is_watched():
        yield SILENT.progress
        return
    from tqdm.auto import tqdm

    with tqdm(desc=title, unit=" images", leave=False) as drawn:

        def progress(done: int, total: int) -> None:
            drawn.total = total
            drawn.update(done - drawn.n)

        yield progress


def _message(line: object) -> None:
    LOGGER.info("%s", line)


REPORTER = Reporter(message=_message, log=LOGGER.debug, bar=bar)
"""Bars, and the logger `icecore`: messages with the level INFO, lines about single steps with DEBUG."""
