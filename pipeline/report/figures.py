"""Draw the report's figures as SVG text, small enough for a phone. Equal input gives equal text."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import requires
from pipeline.report.leaderboard import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.parse_math": False,  # a dollar sign in the name of a class is a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
}
MOST_CLASSES = 30


@contextmanager
def panels(width: float, height: float, columns: int, svgs: list[str], *, name: str) -> Iterator[list["Axes"]]:
    """Yield axes in a row to draw on; afterwards, append their SVG to `svgs`.

    width, height: size of the figure in inches.
    columns: the number of axes.
    name: a name that is unique on the page, since the ids of the SVG derive from it.
    """
    with requires("report", what="figures of the report"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, and has fonts for scripts that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    # matplotlib numbers the groups of each figure from 1: several figures on a page would have equal ids.
    svgs.append(re.sub(r'<g id="[\w.]+_\d+"', "<g", svg[svg.index("<svg") :]))


@contextmanager
def axes_of(width: float, height: float, svgs: list[str], *, name: str) -> Iterator["Axes"]:
    """Yield a single pair of axes to draw on; parameters as in `panels`."""
    with panels(width, height, 1, svgs, name=name) as all_axes:
        yield all_axes[0]


def confusion(run: Run) -> str | None:
    """Draw the confusion matrix of the selected method, each row as shares; None if there are too many classes."""
    classes = run["classes"]
    if run["confusion"] is None or len(classes) > MOST_CLASSES:
        return None
    counts = np.array(run["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    svgs: list[str] = []
    side = 3.4 + 0.05 * len(classes)
    with axes_of(side + 0.6, side, svgs, name=f"{run['run']} confusion") as axes:
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        upright = max(map(len, classes)) > 2
        axes.set_xticks(range(len(classes)), classes, rotation=90 if upright else 0, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("target")
        if len(classes) <= 12:
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.005:
                    colour = "white" if share > 0.5 else "#333"
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return svgs[0]


def reliability(run: Run) -> str | None:
    """Draw accuracy against confidence; None where the head gives no probabilities."""
    rows: Sequence[dict[str, Any]] | None = run["reliability"]
    if rows is None:
        return None
    svgs: list[str] = []
    with axes_of(3.6, 3.4, svgs, name=f"{run['run']} reliability") as axes:
        axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
        total = sum(row["count"] for row in rows)
        axes.scatter(
            [row["confidence"] for row in rows],
            [row["accuracy"] for row in rows],
            s=[12 + 180 * row["count"] / total for row in rows],
            color=COLOURS[0],
            alpha=0.8,
        )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence (area: share of rows)")
        axes.set_ylabel("accuracy")
    return svgs[0]


def scatter(run: Run) -> str | None:
    """Draw predictions against targets of a regression for some hundred rows; None for other tasks."""
    if run["scatter"] is None:
        return None
    targets, predicted = np.array(run["scatter"]).T
    ends = [min(targets.min(), predicted.min()), max(targets.max(), predicted.max())]
    svgs: list[str] = []
    with axes_of(3.6, 3.4, svgs, name=f"{run['run']} scatter") as axes:
        axes.plot(ends, ends, color="#999", linewidth=1, linestyle="--")
        axes.scatter(targets, predicted, s=10, color=COLOURS[0], alpha=0.5, linewidths=0)
        axes.set_xlabel("target")
        axes.set_ylabel("predicted")
    return svgs[0]
