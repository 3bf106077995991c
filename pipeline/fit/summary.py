"""The summary of a run: a line for each head on each input, and what was not as the settings wanted it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import heads
from pipeline.errors import counted
from pipeline.fit.single_fit import Head
from pipeline.model_record import FailedFit, HeadFit


@dataclass(frozen=True)
class Summary:
    """What a run did: how many heads it fitted, a line of each, and what was not as the settings wanted it."""

    fits: int
    lines: list[str]
    notes: list[str]


def summarise(fits: Sequence[HeadFit], failed: Sequence[FailedFit], notes: Sequence[str]) -> Summary:
    """Return the summary of a run; `notes` come before those on fits that failed and searches without an end."""
    causes = [f"not fitted: {fit.cause}" for fit in failed]
    return Summary(len(fits), _lines(fits), [*notes, *causes, *_at_the_end(fits)])


def describe_workers(heads_of_run: Sequence[Head], *, started: bool) -> list[str]:
    """Return what workers have no part in; `started`: whether there was anything for them to do."""
    if not started:
        return ["run: no worker was started: every training set is one piece, or is held in memory."]
    notes = []
    for head in {head.called: head for head in heads_of_run}.values():
        if not head.streaming:
            notes.append(f"{head.called}: it holds its training rows; workers have no part in it.")
        elif head.name == "streaming_logistic":
            notes.append(f"{head.called}: workers make its first pass; its search reads the training rows here.")
        elif head.name not in heads.SUMMED:
            notes.append(f"{head.called}: it is not solved from sums; its training rows are read here.")
    return notes


def _lines(fits: Sequence[HeadFit]) -> list[str]:
    """Return what was chosen, a line for each head on each input."""
    groups: dict[tuple[str, str], list[HeadFit]] = defaultdict(list)
    for fit in fits:
        groups[fit.head, fit.input].append(fit)
    lines = []
    for (head, name), group in groups.items():
        parts = [counted(len(group), "fit")]
        if searches := [fit.search for fit in group if fit.search]:
            first = searches[0]
            values = dict.fromkeys(_text(search["chosen"]) for search in searches)
            parts.append(f"{first['parameter']} {', '.join(values)} of {len(first['values'])} values")
            curves = [dict(zip(map(_text, search["values"]), search["validation"], strict=True)) for search in searches]
            mean = np.mean([curve[_text(search["chosen"])] for search, curve in zip(searches, curves, strict=True)])
            parts.append(f"{first['metric']} {mean:.4f} on {_held_out(group)}")
        if temperatures := [fit.temperature for fit in group if fit.temperature is not None]:
            parts.append(f"temperature {np.mean(temperatures):.3g}")
        if stopped := [fit for fit in group if fit.not_converged is not None]:
            parts.append(
                f"{len(stopped):,} did not converge ({stopped[0].file}: {stopped[0].not_converged}); raise "
                "`max_iter` in `params`, or regularise more"
            )
        lines.append(f"{head} on {name}: {'; '.join(parts)}")
    return lines


def _held_out(fits: Sequence[HeadFit]) -> str:
    """Return how many rows were held out to choose by, and in how many folds."""
    rows = sorted({fit.validation["held_rows"] for fit in fits})
    many = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    folds = max(fit.validation.get("folds", 0) for fit in fits)
    return f"{many} held-out rows" + (f" ({folds} folds)" if folds else "")


def _at_the_end(fits: Sequence[HeadFit]) -> list[str]:
    """Return a line for each head on each input whose best value is the first or the last of its values."""
    lines = []
    for head, name in dict.fromkeys((fit.head, fit.input) for fit in fits):
        searches = [fit.search for fit in fits if (fit.head, fit.input) == (head, name) and fit.search]
        ends = [search for search in searches if search.get("at_the_end")]
        if ends:
            share = f" in {len(ends):,} of {len(searches):,} fits" if len(searches) > 1 else ""
            values = ", ".join(dict.fromkeys(_text(search["chosen"]) for search in ends))
            lines.append(
                f"{head} on {name}: the best {ends[0]['parameter']} is at the end of its values{share} ({values}). "
                "Name further `values` in `search` to see whether they are better."
            )
    return lines


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
