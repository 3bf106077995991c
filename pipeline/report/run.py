"""Write the report: a single HTML file with everything in it, without scripts and without network access."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import counted, requires
from pipeline.files import read_json, write_text
from pipeline.report import leaderboard
from pipeline.report.config import ReportConfig
from pipeline.report.leaderboard import Run
from pipeline.report.views import view_networks, view_run, view_task
from pipeline.text import digits, readable

MOST_ROWS = 20  # the most rows that are shown of a long table


def report(
    config: ReportConfig,
    runs: list[Run],
    path: Path,
    *,
    comparisons: Path | None = None,
    audits: Path | None = None,
    backbones: Path | None = None,
    footprints: Path | None = None,
    errors: Mapping[str, Any] | None = None,
    unmeasured: Mapping[str, str] | None = None,
) -> None:
    """Write the report of several runs.

    config: the title.
    runs: from `leaderboard.read`.
    path: the HTML file to write.
    comparisons, audits, backbones, footprints: the folders that `compare`, `audit`, `freeze` and `distill` write. Files
        that are missing are left out of the page.
    errors: what `pipeline.explain.errors.errors_of_best` returns.
    unmeasured: from `leaderboard.unmeasured`.
    """
    page = _open_templates().get_template("page.html")
    by_name = {run["run"]: run for run in runs}
    costs = {name: cost for name in by_name if (cost := _read_if_present(footprints, f"{name}.json")) is not None}
    tasks = [
        view_task(
            name, task_runs, _read_if_present(comparisons, f"{name}.json"), _read_if_present(audits, f"{name}.json")
        )
        | view_networks(name, task_runs, by_name, _read_if_present(comparisons, f"{name}.json"), costs)
        for name, task_runs in leaderboard.by_task(runs).items()
    ]
    views = [
        view_run(run, task, by_name, backbones) | {"errors": (errors or {}).get(run["run"])}
        for task in tasks
        for run in task["runs"]
    ]
    write_text(
        path, page.render(title=config.title, tasks=tasks, runs=views, most=MOST_ROWS, unmeasured=unmeasured or {})
    )


def _open_templates() -> Any:
    """Return the environment of the templates in this folder, with the filters that they use."""
    with requires("report", what="the report"):
        import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "counted": counted,
        "number": leaderboard.number,
        "range": leaderboard.interval,
        "training": leaderboard.training,
        "metric": lambda name: leaderboard.NAMES.get(name, name),
        "signed": lambda value: "–" if value is None else f"{value:+.3f}".replace("-", "−"),
        "ms": lambda value: f"{value:.3g}" if value < 100 else f"{value:,.0f}",
        "millions": lambda value: f"{value / 1e6:,.3g} M" if value < 1e9 else f"{value / 1e9:,.3g} G",
        "readable": readable,
        "digits": digits,
        "short": lambda value: "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}",
    }
    return environment


def _read_if_present(folder: Path | None, name: str) -> Any:
    """Return the content of a JSON file in a folder; None where either is missing."""
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else None
