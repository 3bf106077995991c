"""What stages print: messages, log lines, and a progress bar in terminals."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.runtime import Reporter

QUIET = "--quiet"
VERBOSE = "--verbose"
ESTIMATE_AFTER = 3.0  # seconds of work before a bar estimates the remaining time


class Bar:
    """A progress bar that is a `pipeline.runtime.Progress`, and can show a note."""

    def __init__(self, tqdm_bar: Any) -> None:
        self._tqdm = tqdm_bar

    def __call__(self, done: int, total: int) -> None:
        """Move to `done` of `total`."""
        self._tqdm.total = total
        self._tqdm.update(done - self._tqdm.n)

    def note(self, text: str) -> None:
        """Show a text after the rate, from the next update on."""
        self._tqdm.set_postfix_str(text, refresh=False)

    def log(self, line: str) -> None:
        """Print a line above the bar; without a bar, print it too, but not with `--quiet`."""
        if _has_bar():
            self._tqdm.write(line, file=sys.stderr)  # on the stream of the bar, or the two would mix
        else:
            log(line)


def say(line: str) -> None:
    """Print a line; with `--verbose`, also its details."""
    more = getattr(line, "more", "")
    print(f"{line}\n{more}" if more and VERBOSE in sys.argv else line, flush=True)


def log(line: str) -> None:
    """Print a line for a log file; on a terminal, the bar is enough."""
    if not _has_bar() and QUIET not in sys.argv:
        print(line, flush=True)


def _has_bar() -> bool:
    return QUIET not in sys.argv and sys.stderr.isatty()


def _has_size() -> bool:
    """Return whether the terminal reports its size; some report 0 by 0, and a bar of that size would be invisible."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        return False


@contextmanager
def bar(title: str, unit: str) -> Iterator[Bar]:
    """Yield a progress bar with rate and remaining time; hidden with `--quiet`, and if the output is no terminal.

    The remaining time is shown after `ESTIMATE_AFTER` seconds: earlier rates are unreliable.
    """
    from tqdm import tqdm

    class DelayedEstimate(tqdm):  # type: ignore[type-arg]
        @property
        def format_dict(self) -> dict[str, Any]:
            values = dict(super().format_dict)
            remaining = "<{remaining}" if values["elapsed"] >= ESTIMATE_AFTER else ""
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}" + remaining + ", {rate_fmt}{postfix}]"
            return {**values, "bar_format": form}

    hidden = not _has_bar()
    size: dict[str, Any] = {"dynamic_ncols": True} if hidden or _has_size() else {"ncols": 80, "nrows": 24}
    with DelayedEstimate(desc=title, unit=f" {unit}", mininterval=0.1, miniters=1, disable=hidden, **size) as shown:
        yield Bar(shown)


@contextmanager
def reporter(title: str, unit: str, *, log_above_bar: bool = False) -> Iterator[Reporter]:
    """Open a progress bar, and yield a reporter that updates it and prints messages.

    `log_above_bar`: print log lines above the bar too.
    """
    with bar(title, unit) as shown:
        yield Reporter(shown, say, shown.log if log_above_bar else log, shown.note)
