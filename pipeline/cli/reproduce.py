"""Run `dvc repro` with headings: the number of each stage, the remaining time, and a summary of the time spent.

DVC decides which stages run. This module parses DVC's lines about stages from its standard output, and prints the
output of stages unchanged. Progress bars of stages go to standard error, which is not read. `TIMES` stores the seconds
of each stage, in DVC's folder for files of this machine; the remaining time is the sum over the stages to come.
"""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import counted, requires
from pipeline.files import read_json, write_json
from pipeline.forkserver.start import STAGES, ForkServer, libraries_of_stages
from pipeline.runtime import ERRORS
from pipeline.text import duration

TIMES = Path(".dvc") / "tmp" / "icecore-times.json"
RUNNING = re.compile(r"Running stage '(?:[^']*:)?([^':]+)':$")
UNCHANGED = re.compile(
    r"Stage '(?:[^']*:)?([^':]+)' (?:didn't change, skipping|is cached - skipping run, checking out outputs)"
)
DONE = re.compile(r"(Updating|Generating) lock file ")
OF_DVC = re.compile(
    r"> (python -m stages\.|icecore stage )|"
    r"To (track the changes|enable auto staging)|\tgit add |\tdvc config core\.autostage|"
    r"Use `dvc push` to send"
)
"""Lines of DVC to hide: they repeat the headings, or do not matter here."""

OUTSIDE_OF_STAGES = (
    "DVC ended with the error above, before or after a stage. If another run is at work in this project, wait for it; "
    "otherwise check the permissions of the file that the error names, and the free disk space. Then run the command "
    "again."
)

SLOWEST = 5  # stages named in the summary
ERROR_LINES = 8  # of an error in the summary
SHORT = 120  # characters of an error that the summary repeats even if the error is right above


def stages_of(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the names of the stages of dvc.yaml, in order; a `foreach` stage counts once per entry of its section."""
    names = []
    for name, stage in pipeline["stages"].items():
        if "foreach" not in stage:
            names.append(name)
            continue
        section = str(stage["foreach"]).removeprefix("${").removesuffix("}")
        names += [f"{name}@{entry}" for entry in params.get(section) or {}]
    return names


@dataclass
class Run:
    """The state of a run of DVC, parsed from its output."""

    stages: Sequence[str]
    """The stages that may run; empty if unknown."""

    known: Mapping[str, float]
    """The seconds of stages in earlier runs."""

    say: Callable[[str], None]
    errors: Callable[[], Mapping[str, str]] = dict
    """Returns the errors of stages so far."""

    starting: Callable[[], None] = lambda: None
    """Called when a stage starts."""

    clock: Callable[[], float] = time.monotonic
    spent: dict[str, float] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    current: str | None = None
    last: str | None = None
    """The stage that started last."""

    failed: int = 0
    """The number of stages that ended with an error."""

    def __post_init__(self) -> None:
        self._start = self._since = self.clock()
        self._skipped = 0  # since the last line about them

    def read(self, lines: Iterable[str]) -> None:
        """Show lines of DVC as they arrive."""
        for line in lines:
            self.take(line.rstrip("\n"))

    def end(self, status: int) -> None:
        """Finish the last stage, according to the exit status of DVC."""
        if status and self.current is not None:
            self.say(f"{self.current}: not done, after {duration(self.clock() - self._since)}\n")
            self.failed, self.current = self.failed + 1, None
        self._close()
        self._say_skipped()

    def take(self, line: str) -> None:
        """Show a line of DVC, or a heading instead of it."""
        if match := RUNNING.match(line):
            self._close()
            self._say_skipped()
            self.current = self.last = match[1]
            self._since = self.clock()
            self.say(f"Running stage {self._stage_number()}, {self.current}{self._remaining_time()}")
            self.starting()
        elif match := UNCHANGED.match(line):
            self._close()
            self.unchanged.append(match[1])
            self._skipped += 1
        elif DONE.match(line):
            self._close()
        elif line and not OF_DVC.match(line):
            self.say(line)

    def _stage_number(self) -> str:
        number = len(self.spent) + len(self.unchanged) + self.failed + 1
        return f"{number} of {len(self.stages)}" if self.stages else str(number)

    def _remaining_time(self) -> str:
        """Return how long the remaining stages took in earlier runs, in words; empty if unknown."""
        rest = [name for name in self.stages if name not in self.spent and name not in self.unchanged]
        times = [self.known[name] for name in rest if name in self.known]
        if not times:
            return ""
        new = len(rest) - len(times)
        more = f" and {counted(new, 'new stage')}" if new else ""
        return f" (left: at most {duration(sum(times))} by earlier runs{more})"

    def _close(self) -> None:
        """Print how long the current stage took, or that it failed; with `--keep-going` DVC goes on after a failure."""
        if self.current is None:
            return
        seconds = self.clock() - self._since
        if self.current in self.errors():
            self.failed += 1
            self.say(f"{self.current}: failed, after {duration(seconds)}\n")
        else:
            self.spent[self.current] = seconds
            self.say(f"{self.current}: took {duration(seconds)}\n")
        self.current = None

    def _say_skipped(self) -> None:
        if self._skipped:
            self.say(f"{counted(self._skipped, 'stage is', 'stages are')} as before\n")
            self._skipped = 0

    def summary(self) -> str:
        """Return the number of stages that ran, and the seconds of the slowest."""
        total = self.clock() - self._start
        stages = len(self.spent) + len(self.unchanged) + self.failed
        counts = f"{len(self.spent)} of {stages} stages ran, in {duration(total)}"
        if not self.spent:
            return counts
        slowest = sorted(self.spent, key=lambda name: -self.spent[name])
        parts = [f"{name} {duration(self.spent[name])}" for name in slowest[:SLOWEST]]
        if others := slowest[SLOWEST:]:
            parts.append(f"{len(others)} others {duration(sum(self.spent[name] for name in others))}")
        parts.append(f"DVC itself {duration(total - sum(self.spent.values()))}")
        return f"{counts}: {', '.join(parts)}"


def reproduce(
    arguments: Sequence[str],
    *,
    stages: Sequence[str],
    say: Callable[[str], None],
    explain: Callable[[str], Iterable[str]] | None = None,
) -> tuple[int, Collection[str]]:
    """Run `dvc repro` with some arguments and show its stages; return the exit status and the stages that ran.

    If stages failed, the last lines name each with its error and the lines that `explain` returns for it, and the
    status is 1. If the user interrupts the run, DVC waits for its stage, which keeps its finished work, and exits; this
    function waits for DVC.
    """
    with requires("pipeline", what="`icecore repro`"):
        importlib.import_module("dvc")
    known = _times()
    notes = tempfile.TemporaryDirectory(prefix="icecore-repro-")
    errors = Path(notes.name) / "errors.jsonl"
    # Unbuffered, so that the output of a stage is shown while the stage runs.
    environment = {**os.environ, "PATH": _search_path(), ERRORS: str(errors), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    with ForkServer(environment, STAGES, libraries_of_stages()) as server, _ignoring_interrupts():
        run = Run([] if arguments else stages, known, say, errors=lambda: _read_errors(errors), starting=server.start)
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
        with subprocess.Popen(command, env=server.environment, **options) as process:
            run.read(process.stdout or ())
            run.end(status := process.wait())
    if TIMES.parent.is_dir():
        write_json(TIMES, {**known, **{name: round(seconds, 2) for name, seconds in run.spent.items()}})
    say(run.summary())
    failed = run.errors()
    for name, error in failed.items():
        say(f"failed: {name}: {_shorten(error, is_above=name == run.last)}")
        for line in explain(error) if explain else ():
            say(f"  {line}")
    if status and not failed and not run.failed:
        say(OUTSIDE_OF_STAGES)
    notes.cleanup()
    return (1 if failed else status), run.spent.keys()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, which the terminal also sends to DVC and its stage; these do not ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def commit() -> None:
    """Commit the files below data/ to DVC as the outputs of the stages, without running stages."""
    with requires("pipeline", what="`dvc commit`"):
        importlib.import_module("dvc")
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], check=True)


def _search_path() -> str:
    """Return PATH with the folders of this command and of its Python first, so that stages use these."""
    command = Path(sys.argv[0]).absolute()
    folders = [command.parent] if command.name == "icecore" and command.is_file() else []
    return os.pathsep.join([*map(str, folders), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _read_errors(path: Path) -> dict[str, str]:
    """Return the error of each stage whose last note has an error."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = {note["stage"]: note["error"] for note in map(json.loads, lines)}
    return {stage: str(error) for stage, error in last.items() if error is not None}


def _shorten(error: str, *, is_above: bool) -> str:
    """Return an error for the summary; a long error that was printed right above is only referred to."""
    lines = error.splitlines() or [""]
    if is_above and (len(lines) > 1 or len(error) > SHORT):
        return "see its error above"
    if len(lines) > ERROR_LINES:
        left = len(lines) - ERROR_LINES + 1
        lines = [*lines[: ERROR_LINES - 1], f"… and {counted(left, 'more line')}, above"]
    return "\n  ".join(lines)


def _times() -> dict[str, float]:
    """Return the seconds of earlier runs; empty if the file is damaged, since only the forecast needs them."""
    try:
        return {str(name): float(seconds) for name, seconds in read_json(TIMES).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
