"""`icecore repro`: what it shows of a run of DVC, and that it ends as DVC does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import reproduce as reproducing
from pipeline.cli.reproduce import TIMES, Run, reproduce, stages_of
from stages import project

LINES = """\
Stage 'sample@digits' didn't change, skipping
Stage 'prepare@digits' is cached - skipping run, checking out outputs

Running stage 'freeze@net':
> python -m stages.freeze net
net: weights 8899534011cf0f01
Updating lock file 'dvc.lock'

Running stage 'fit@photos':
> python -m stages.fit photos
photos: 8 heads
Updating lock file 'dvc.lock'
Stage 'report' didn't change, skipping

To track the changes with git, run:

\tgit add dvc.lock

To enable auto staging, run:

\tdvc config core.autostage true
Use `dvc push` to send your updates to remote storage.
"""
STAGES = ["sample@digits", "prepare@digits", "freeze@net", "fit@photos", "report"]


def run(known: dict[str, float], *, status: int = 0, lines: str = LINES, stages: list[str] = STAGES) -> tuple[str, Run]:
    """What a run shows, at a clock that goes on by two seconds whenever it is read."""
    shown: list[str] = []
    times = iter(range(0, 1000, 2))
    one = Run(stages, known, shown.append, clock=lambda: float(next(times)))
    one.read(lines.splitlines(keepends=True))
    one.end(status)
    return "\n".join(shown), one


def test_each_stage_has_its_number_its_time_and_what_is_left() -> None:
    shown, one = run({"freeze@net": 60.0, "fit@photos": 120.0, "sample@digits": 500.0})
    assert shown.split("\n") == [
        "2 stages are as before",
        "",
        "Running stage 3 of 5, freeze@net (left: at most 3 min by earlier runs and 1 new stage)",
        "net: weights 8899534011cf0f01",
        "freeze@net: took 2.0 s",
        "",
        "Running stage 4 of 5, fit@photos (left: at most 2 min by earlier runs and 1 new stage)",
        "photos: 8 heads",
        "fit@photos: took 2.0 s",
        "",
        "1 stage is as before",
        "",
    ]
    assert one.summary() == "2 of 5 stages ran, in 10.0 s: freeze@net 2.0 s, fit@photos 2.0 s, DVC itself 6.0 s"


def test_no_time_is_foreseen_before_there_is_one_to_go_by() -> None:
    shown, _ = run({})
    assert "Running stage 3 of 5, freeze@net\n" in shown


def test_a_stage_that_fails_is_not_called_done_nor_counted() -> None:
    shown, one = run({}, status=255, lines="Running stage 'fit@photos':\n> python -m stages.fit photos\n")
    assert shown.endswith("fit@photos: not done, after 2.0 s\n")
    assert one.summary() == "0 of 1 stages ran, in 6.0 s"


def test_many_stages_are_summed_up() -> None:
    stages = [f"fit@run{number}" for number in range(7)]
    _, one = run({}, lines="".join(f"Running stage '{name}':\n" for name in stages), stages=stages)
    assert one.summary().split(": ", 1)[1].endswith("fit@run4 2.0 s, 2 others 4.0 s, DVC itself 16.0 s")


def test_the_stages_of_a_section_are_its_entries() -> None:
    pipeline = {"stages": {"fit": {"foreach": "${fit}"}, "tune": {"foreach": "${tune}"}, "report": {"cmd": "true"}}}
    assert stages_of(pipeline, {"fit": {"a": {}, "b": {}}, "tune": {}}) == ["fit@a", "fit@b", "report"]


def test_dvc_is_run_and_its_status_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("dvc.yaml").write_text(
        "stages:\n  first: {cmd: echo one | tee one, outs: [one]}\n  second: {cmd: test -e here, deps: [one]}\n"
    )
    shown: list[str] = []
    assert reproduce([], stages=["first", "second"], say=shown.append)[0] != 0
    assert [line.partition(" ")[0] for line in shown if line] == [
        "Running",
        ">",
        "one",
        "first:",
        "Running",
        ">",
        "second:",
        "1",
    ]
    assert "Running stage 1 of 2, first" in shown
    assert [*json.loads(TIMES.read_text())] == ["first"]

    Path("here").touch()
    shown.clear()
    assert reproduce(["second"], stages=["first", "second"], say=shown.append) == (0, {"second"})
    assert shown[:2] == ["1 stage is as before\n", "Running stage 2, second"]
    assert shown[-1].startswith("1 of 2 stages ran, in ")

    Path("dvc.yaml").write_text("stages:\n  second: {cmd: 'true', deps: [lost]}\n")
    assert reproduce([], stages=["second"], say=shown.append)[0] != 0
    assert shown[-2].startswith("0 of 0 stages ran, in ")
    assert shown[-1] == reproducing.OUTSIDE_OF_STAGES


FAILING = """
from pipeline.errors import DataError
from stages import project

def main():
    {}

if __name__ == "__main__":
    project.run(main)
"""


def test_stages_that_fail_are_named_at_the_end_with_their_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("fit.py").write_text(FAILING.format("raise DataError('photos: no rows.\\n  - train')"))
    Path("split.py").write_text(FAILING.format("raise ValueError('a bug')"))
    Path("audit.py").write_text(FAILING.format("print('fine')"))
    shutil.copytree(Path(project.__file__).parent, "stages")
    Path("stages/report.py").write_text("import no_such_library")
    forking = sys.platform == "linux"
    forked = "print('forked:', 'forkserver' in open(f'/proc/{os.getppid()}/cmdline').read())" if forking else ""
    Path("stages/teach.py").write_text(f"import os, signal, stages\n{forked}\nos.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(reproducing, "libraries_of_stages", list)  # the fork server is there at once
    waiting = 'while ! test -e "$(dirname "$(command -v python)")/socket"; do sleep 0.02; done'
    files = {"fit": "fit.py", "split": "split.py", "report": "-m stages.report", "teach": "-m stages.teach"}
    commands = {name: f"python {file} ${{key}}" for name, file in (files | {"audit": "audit.py"}).items()}
    commands["fit"] = f"{waiting if forking else 'true'}; {commands['fit']}"
    entries = [f"  {name}: {{foreach: {{one: 1}}, do: {{cmd: '{command}'}}}}\n" for name, command in commands.items()]
    Path("dvc.yaml").write_text("stages:\n" + "".join(entries))
    shown: list[str] = []
    stages = [f"{name}@one" for name in commands]
    status, ran = reproduce(["--keep-going"], stages=stages, say=shown.append)
    assert (status, [*ran]) == (1, ["audit@one"])
    assert ("forked: True" in shown) == forking
    assert [line.partition(",")[0] for line in shown if "failed" in line] == [
        "fit@one: failed",
        "split@one: failed",
        "report@one: failed",
        "teach@one: failed",
        "failed: fit@one: photos: no rows.\n    - train",
        "failed: split@one: ValueError: a bug",
        "failed: report@one: ModuleNotFoundError: No module named 'no_such_library'",
        "failed: teach@one: the process ended without an error message",
    ]
    assert shown[-5].startswith("1 of 5 stages ran, in ")


@pytest.mark.parametrize(
    ("error", "is_above", "shown"),
    [
        ("no rows: photos", True, "no rows: photos"),
        ("w" * 121, True, "see its error above"),
        ("rejected. The first of them:\n  - a", True, "see its error above"),
        ("w" * 121, False, "w" * 121),
        ("rejected. The first of them:\n  - a", False, "rejected. The first of them:\n    - a"),
        ("\n".join("12345678"), False, "\n  ".join("12345678")),
        ("\n".join("123456789"), False, "\n  ".join([*"1234567", "… and 2 more lines, above"])),
        ("", False, ""),
    ],
)
def test_an_error_is_whole_at_the_end_unless_it_stands_right_above(error: str, is_above: bool, shown: str) -> None:
    from pipeline.cli import reproduce as module

    assert module._shorten(error, is_above=is_above) == shown


@pytest.mark.parametrize("text", ["", "[1]", '{"first": null}', "{"])
def test_damaged_times_of_earlier_runs_cost_only_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from pipeline.cli import reproduce as module

    monkeypatch.chdir(tmp_path)
    TIMES.parent.mkdir(parents=True)
    TIMES.write_text(text)
    assert module._times() == {}
