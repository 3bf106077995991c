"""Curves of the report: the metric of a run's methods against labels a class, inputs, and what inputs cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.chosen import searches
from pipeline.report.costs import Cost
from pipeline.report.figures import COLOURS, MARKERS, axes_of, panels
from pipeline.report.leaderboard import NAMES, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 7
WIDE = 30  # times the smallest value, from which on an axis is logarithmic


def by_labels(run: Run) -> str | None:
    """The metric against labels a class, a line a method, with intervals; None where the run has no few-shot draws.

    Of many methods, those that are best on validation rows at the most labels.
    """
    return _against_labels(_lines(run), run, name=f"{run['run']} by_labels")


def by_training(runs: Sequence[Run], networks: Sequence[Mapping[str, Any]], *, name: str) -> str | None:
    """The metric against labels a class, a line a run, frozen or trained; None where no run has several numbers.

    `networks`: the lines of `trained.table_of_networks`.
    """
    lines = {one["run"]: [row for count, row in one["cells"].items() if count is not None] for one in networks}
    ordered = {run: sorted(rows, key=lambda row: row["labels"]) for run, rows in lines.items() if rows}
    return _against_labels(_best(ordered, runs[0]), runs[0], name=f"{name} by_training")


def _against_labels(lines: Mapping[str, list[dict[str, Any]]], run: Run, *, name: str) -> str | None:
    counts = sorted({row["labels"] for rows in lines.values() for row in rows})
    if len(counts) < 2:
        return None
    found: list[str] = []
    with axes_of(4.6, 3.4, found, name=name) as axes:
        for place, (called, rows) in enumerate(lines.items()):
            shift = 1.03 ** (place - (len(lines) - 1) / 2)  # apart, so that intervals can be networks apart
            axes.errorbar(
                [row["labels"] * shift for row in rows],
                [row[run["metric"]] for row in rows],
                yerr=_errors(rows, run["metric"]),
                label=called,
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                capsize=2,
            )
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("labels a class")
        axes.set_ylabel(f"test {NAMES[run['metric']]}")
        axes.legend(frameon=False, loc="lower right")
    return found[0]


def _lines(run: Run) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of each method by labels a class: all methods, or those that are best on validation rows."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in _measured(run):
        if row["labels"] is not None:
            lines.setdefault(method(row, run), []).append(row)
    return _best({name: sorted(rows, key=lambda row: row["labels"]) for name, rows in lines.items()}, run)


def _best(lines: Mapping[str, list[dict[str, Any]]], run: Run) -> Mapping[str, list[dict[str, Any]]]:
    """All lines, or those that are best on validation rows at their most labels."""
    if len(lines) <= MOST_LINES:
        return lines

    def worth(name: str) -> float:
        value = lines[name][-1][f"validation_{run['metric']}"]
        return float("inf") if value is None else -value if run["higher_is_better"] else value

    kept = sorted(lines, key=worth)[:MOST_LINES]
    return {name: lines[name] for name in lines if name in kept}


def by_input(run: Run) -> str | None:
    """The metric of each method at the most labels, with intervals; None where there is one alone."""
    metric, rows = run["metric"], _at_most_labels(run)
    if len(rows) < 2:
        return None
    found: list[str] = []
    with axes_of(4.6, 0.8 + 0.3 * len(rows), found, name=f"{run['run']} by_input") as axes:
        places = np.arange(len(rows))
        values = [row[metric] for row in rows]
        axes.errorbar(values, places, xerr=_errors(rows, metric), fmt="o", color=COLOURS[0], capsize=3)
        axes.set_yticks(places, [method(row, run) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"test {NAMES[metric]}")
    return found[0]


def by_search(run: Run) -> str | None:
    """The score on held-out rows against the values of the search, a line a draw; None where no number was searched."""
    found_searches = [one for one in searches(run) if all(_is_number(value) for value in one["values"])]
    if not found_searches:
        return None
    found: list[str] = []
    with axes_of(4.6, 3.4, found, name=f"{run['run']} by_search") as axes:
        for one in found_searches:
            pairs = [pair for pair in zip(one["values"], one["validation"], strict=True) if pair[1] is not None]
            axes.plot(*zip(*sorted(pairs), strict=True), color=COLOURS[0], linewidth=1.2, marker=".", markersize=4)
            at = dict(pairs)[one["chosen"]]
            axes.plot([one["chosen"]], [at], color=COLOURS[1], marker="o", markersize=6, linestyle="none")
        values = [value for one in found_searches for value in one["values"]]
        if min(values) > 0 and max(values) / min(values) > WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(found_searches[0]["parameter"])
        axes.set_ylabel(f"held-out {NAMES.get(found_searches[0]['metric'], found_searches[0]['metric'])}")
    return found[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def by_cost(run: Run, found_costs: Mapping[str, Cost]) -> str | None:
    """The metric of each input against its depth, its bytes a row and its multiply-adds, a line a head.

    At the most labels, with intervals. Single taps are joined by a line, taps that were concatenated stand alone. None
    where fewer than two inputs have known costs.
    """
    metric = run["metric"]
    rows = [row for row in _at_most_labels(run) if row["input"] in found_costs]
    if len({row["input"] for row in rows}) < 2:
        return None
    heads = list(dict.fromkeys(row["head"] for row in rows))[:MOST_LINES]
    quantities: list[tuple[str, Callable[[Cost], float]]] = [
        ("depth, % of the nodes", lambda cost: 100 * cost.depth),
        ("kB a row", lambda cost: cost.bytes / 1e3),
        ("million multiply-adds", lambda cost: cost.multiply_adds / 1e6),
    ]
    found: list[str] = []
    with panels(9.4, 3.2, len(quantities), found, name=f"{run['run']} by_cost") as every:
        for axes, (title, value) in zip(every, quantities, strict=True):
            for place, head in enumerate(heads):
                own = [row for row in rows if row["head"] == head]
                own.sort(key=lambda row: (value(found_costs[row["input"]]), row["input"]))
                colour, marker = COLOURS[place], MARKERS[place]
                for joined in (False, True):
                    part = [row for row in own if ("+" in row["input"]) == joined]
                    axes.errorbar(
                        [value(found_costs[row["input"]]) for row in part],
                        [row[metric] for row in part],
                        yerr=_errors(part, metric) if part else None,
                        label=None if joined else head,
                        color=colour,
                        marker=marker,
                        markersize=4,
                        markerfacecolor="white" if joined else colour,
                        linestyle="none" if joined else "-",
                        linewidth=1.2,
                        capsize=2,
                    )
            axes.set_xlabel(title)
            axes.margins(x=0.12, y=0.1)
        sizes = [one.bytes / 1e3 for one in found_costs.values()]
        every[1].set_xscale("log")
        every[1].set_xticks(_ticks(sizes), [f"{tick:g}" for tick in _ticks(sizes)])
        every[1].minorticks_off()
        for axes, (_, value) in list(zip(every, quantities, strict=True))[:2]:
            _name_inputs(axes, {row["input"]: value(found_costs[row["input"]]) for row in rows})
        every[0].set_ylabel(f"test {NAMES[metric]}")
        if len(heads) > 1:
            every[-1].legend(frameon=False, loc="lower right")
    return found[0]


def _ticks(sizes: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten from the smallest size to the largest; powers alone where they lie far apart."""
    low, high = int(np.floor(np.log10(min(sizes)))), int(np.ceil(np.log10(max(sizes))))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return [tick for tick in every if min(sizes) / 2 <= tick <= max(sizes) * 2]


def _name_inputs(axes: "Axes", x: Mapping[str, float]) -> None:
    """The name of each input upright above its place on the axis; those of one place on both sides of it."""
    before = None
    for name, place in sorted(x.items(), key=lambda item: (item[1], item[0])):
        axes.text(
            place,
            0.02,
            name,
            transform=axes.get_xaxis_transform(),
            rotation=90,
            ha="left" if place == before else "right",
            va="bottom",
            fontsize=7,
            color="#5b6775",
            zorder=1,
        )
        before = place


def method(row: Mapping[str, Any], run: Run) -> str:
    """How a row of a run's table is called: its input, and its head where the run has several."""
    several = len({other["head"] for other in run["table"]}) > 1
    return f"{row['head']} on {row['input']}" if several else str(row["input"])


def _measured(run: Run) -> list[dict[str, Any]]:
    return [row for row in run["table"] if row[run["metric"]] is not None]


def _at_most_labels(run: Run) -> list[dict[str, Any]]:
    return [row for row in _measured(run) if row["labels"] == run["selected"]["labels"]]


def _errors(rows: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    """Distances down to and up to the ends of the intervals, (2, rows); none where there is no interval."""
    values = [(row[metric], row[f"{metric}_low"], row[f"{metric}_high"]) for row in rows]
    ends = [(0.0, 0.0) if low is None or high is None else (value - low, high - value) for value, low, high in values]
    return np.asarray(np.maximum(np.array(ends).T, 0))
