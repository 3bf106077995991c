"""Curves of the report: the metric of a run's methods against labels per class, inputs, and costs of inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.costs import Cost
from pipeline.report.figures import COLOURS, MARKERS, axes_of, panels
from pipeline.report.leaderboard import NAMES, Run
from pipeline.report.selection import searches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 7
WIDE = 30  # largest value over smallest, above which an axis is logarithmic


def by_labels(run: Run) -> str | None:
    """Draw the metric against labels per class, one line per method, with intervals; None without few-shot draws.

    If there are many methods, only the best on validation rows at the most labels are drawn.
    """
    return _against_labels(_lines(run), run, name=f"{run['run']} by_labels")


def by_training(runs: Sequence[Run], networks: Sequence[Mapping[str, Any]], *, name: str) -> str | None:
    """Draw the metric against labels per class, one line per run; None for a single number of labels.

    networks: the lines of `trained.table_of_networks`.
    """
    lines = {
        network["run"]: [row for count, row in network["cells"].items() if count is not None] for network in networks
    }
    ordered = {run: sorted(rows, key=lambda row: row["labels"]) for run, rows in lines.items() if rows}
    return _against_labels(_best(ordered, runs[0]), runs[0], name=f"{name} by_training")


def _against_labels(lines: Mapping[str, list[dict[str, Any]]], run: Run, *, name: str) -> str | None:
    counts = sorted({row["labels"] for rows in lines.values() for row in rows})
    if len(counts) < 2:
        return None
    svgs: list[str] = []
    with axes_of(4.6, 3.4, svgs, name=name) as axes:
        for index, (label, rows) in enumerate(lines.items()):
            shift = 1.03 ** (index - (len(lines) - 1) / 2)  # so that intervals do not overlap
            axes.errorbar(
                [row["labels"] * shift for row in rows],
                [row[run["metric"]] for row in rows],
                yerr=_errors(rows, run["metric"]),
                label=label,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                capsize=2,
            )
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("labels per class")
        axes.set_ylabel(f"test {NAMES[run['metric']]}")
        axes.legend(frameon=False, loc="lower right")
    return svgs[0]


def _lines(run: Run) -> Mapping[str, list[dict[str, Any]]]:
    """Return the rows of each method, sorted by labels per class; if there are many, only of the best methods."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in _measured(run):
        if row["labels"] is not None:
            lines.setdefault(method(row, run), []).append(row)
    return _best({name: sorted(rows, key=lambda row: row["labels"]) for name, rows in lines.items()}, run)


def _best(lines: Mapping[str, list[dict[str, Any]]], run: Run) -> Mapping[str, list[dict[str, Any]]]:
    """Return all lines, or, if there are many, the best on validation rows at their most labels."""
    if len(lines) <= MOST_LINES:
        return lines

    def cost_of(name: str) -> float:
        value = lines[name][-1][f"validation_{run['metric']}"]
        return float("inf") if value is None else -value if run["higher_is_better"] else value

    best = sorted(lines, key=cost_of)[:MOST_LINES]
    return {name: lines[name] for name in lines if name in best}


def by_input(run: Run) -> str | None:
    """Draw the metric of each method at the most labels, with intervals; None for a single method."""
    metric, rows = run["metric"], _at_most_labels(run)
    if len(rows) < 2:
        return None
    svgs: list[str] = []
    with axes_of(4.6, 0.8 + 0.3 * len(rows), svgs, name=f"{run['run']} by_input") as axes:
        positions = np.arange(len(rows))
        values = [row[metric] for row in rows]
        axes.errorbar(values, positions, xerr=_errors(rows, metric), fmt="o", color=COLOURS[0], capsize=3)
        axes.set_yticks(positions, [method(row, run) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"test {NAMES[metric]}")
    return svgs[0]


def by_search(run: Run) -> str | None:
    """Draw the held-out score against the searched values, one line per draw; None where no number was searched."""
    numeric = [search for search in searches(run) if all(_is_number(value) for value in search["values"])]
    if not numeric:
        return None
    svgs: list[str] = []
    with axes_of(4.6, 3.4, svgs, name=f"{run['run']} by_search") as axes:
        for search in numeric:
            pairs = [pair for pair in zip(search["values"], search["validation"], strict=True) if pair[1] is not None]
            axes.plot(*zip(*sorted(pairs), strict=True), color=COLOURS[0], linewidth=1.2, marker=".", markersize=4)
            best = dict(pairs)[search["chosen"]]
            axes.plot([search["chosen"]], [best], color=COLOURS[1], marker="o", markersize=6, linestyle="none")
        values = [value for search in numeric for value in search["values"]]
        if min(values) > 0 and max(values) / min(values) > WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(numeric[0]["parameter"])
        axes.set_ylabel(f"held-out {NAMES.get(numeric[0]['metric'], numeric[0]['metric'])}")
    return svgs[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def by_cost(run: Run, costs: Mapping[str, Cost]) -> str | None:
    """Draw the metric of each input against its depth, bytes per row and multiply-adds, one line per head.

    Shows the methods at the most labels, with intervals. A line joins the single taps; an input of several taps is a
    separate mark. None if fewer than two inputs have known costs.
    """
    metric = run["metric"]
    rows = [row for row in _at_most_labels(run) if row["input"] in costs]
    if len({row["input"] for row in rows}) < 2:
        return None
    heads = list(dict.fromkeys(row["head"] for row in rows))[:MOST_LINES]
    quantities: list[tuple[str, Callable[[Cost], float]]] = [
        ("depth, % of the nodes", lambda cost: 100 * cost.depth),
        ("kB per row", lambda cost: cost.bytes / 1e3),
        ("million multiply-adds", lambda cost: cost.multiply_adds / 1e6),
    ]
    svgs: list[str] = []
    with panels(9.4, 3.2, len(quantities), svgs, name=f"{run['run']} by_cost") as all_axes:
        for axes, (title, value) in zip(all_axes, quantities, strict=True):
            for index, head in enumerate(heads):
                own = [row for row in rows if row["head"] == head]
                own.sort(key=lambda row: (value(costs[row["input"]]), row["input"]))
                colour, marker = COLOURS[index], MARKERS[index]
                for joined in (False, True):
                    part = [row for row in own if ("+" in row["input"]) == joined]
                    axes.errorbar(
                        [value(costs[row["input"]]) for row in part],
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
        sizes = [cost.bytes / 1e3 for cost in costs.values()]
        all_axes[1].set_xscale("log")
        all_axes[1].set_xticks(_ticks(sizes), [f"{tick:g}" for tick in _ticks(sizes)])
        all_axes[1].minorticks_off()
        for axes, (_, value) in list(zip(all_axes, quantities, strict=True))[:2]:
            _name_inputs(axes, {row["input"]: value(costs[row["input"]]) for row in rows})
        all_axes[0].set_ylabel(f"test {NAMES[metric]}")
        if len(heads) > 1:
            all_axes[-1].legend(frameon=False, loc="lower right")
    return svgs[0]


def _ticks(sizes: Sequence[float]) -> list[float]:
    """Return ticks over the range of sizes: 1, 2 and 5 times powers of ten; for a wide range only powers of ten."""
    low, high = int(np.floor(np.log10(min(sizes)))), int(np.ceil(np.log10(max(sizes))))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return [tick for tick in ticks if min(sizes) / 2 <= tick <= max(sizes) * 2]


def _name_inputs(axes: "Axes", x: Mapping[str, float]) -> None:
    """Write the name of each input vertically at its value on the axis; two names with equal values on both sides."""
    last = None
    for name, value in sorted(x.items(), key=lambda item: (item[1], item[0])):
        axes.text(
            value,
            0.02,
            name,
            transform=axes.get_xaxis_transform(),
            rotation=90,
            ha="left" if value == last else "right",
            va="bottom",
            fontsize=7,
            color="#5b6775",
            zorder=1,
        )
        last = value


def method(row: Mapping[str, Any], run: Run) -> str:
    """Return the name of a method in a figure: its input, with its head where the run has several."""
    several_heads = len({other["head"] for other in run["table"]}) > 1
    return f"{row['head']} on {row['input']}" if several_heads else str(row["input"])


def _measured(run: Run) -> list[dict[str, Any]]:
    return [row for row in run["table"] if row[run["metric"]] is not None]


def _at_most_labels(run: Run) -> list[dict[str, Any]]:
    return [row for row in _measured(run) if row["labels"] == run["selected"]["labels"]]


def _errors(rows: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    """Return the distances to the lower and upper ends of the intervals, (2, rows); 0 where there is no interval."""
    values = [(row[metric], row[f"{metric}_low"], row[f"{metric}_high"]) for row in rows]
    ends = [(0.0, 0.0) if low is None or high is None else (value - low, high - value) for value, low, high in values]
    return np.asarray(np.maximum(np.array(ends).T, 0))
