"""The report's page: one HTML file with everything inside, no script and nothing from the network."""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.files import write_text
from pipeline.report import ReportConfig, figures, leaderboard
from pipeline.report.leaderboard import Run


def write(config: ReportConfig, runs: list[Run], path: Path) -> None:
    """Write the page of some runs, as `leaderboard.read` gives them."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = leaderboard.number
    environment.filters["training"] = leaderboard.training
    page = environment.get_template("page.html")
    write_text(path, page.render(title=config.title, runs=[_view(run) for run in runs]))


def _view(run: Run) -> dict[str, Any]:
    """A run as the template wants it."""
    drawn = {
        "Accuracy against labels": figures.by_labels(run),
        "Inputs at the most labels": figures.by_input(run) if len(run["table"]) > 1 else None,
        "Confusion, percent of each target": figures.confusion(run),
        "Calibration": figures.reliability(run),
    }
    return {
        **run,
        "settings": leaderboard.settings_of(run),
        "figures": {title: Markup(svg) for title, svg in drawn.items() if svg is not None},
        "confused": _most_confused(run),
    }


def _most_confused(run: Run, *, most: int = 10) -> list[dict[str, Any]]:
    """The pairs of classes that are mistaken most often, as counts over all draws."""
    counts = np.array(run["confusion"])
    np.fill_diagonal(counts, 0)
    order = np.argsort(counts, axis=None, kind="stable")[::-1][:most]
    pairs = [np.unravel_index(place, counts.shape) for place in order]
    return [
        {"target": run["classes"][t], "predicted": run["classes"][p], "count": int(counts[t, p])}
        for t, p in pairs
        if counts[t, p]
    ]
