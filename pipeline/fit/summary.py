"""Summarise a run: one line per head and input, and notes where it deviates from its settings."""

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
    """The number of fits of a run, one line per head and input, and notes where the run deviates from its settings."""

    fits: int
    lines: list[str]
    notes: list[str]


def summarise(fits: Sequence[HeadFit], failed: Sequence[FailedFit], notes: Sequence[str]) -> Summary:
    """Return the summary of a run; notes on failed fits and on searches that chose an end value follow `notes`."""
    causes = [f"not fitted: {fit.cause}" for fit in failed]
    return Summary(len(fits), _describe_fits(fits), [*notes, *causes, *_notes_on_end_values(fits)])


def describe_workers(heads_of_run: Sequence[Head], *, started: bool) -> list[str]:
    """Return notes on the heads that workers did not help with; `started`: whether workers were started."""
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


def _describe_fits(fits: Sequence[HeadFit]) -> list[str]:
    """Return the chosen values, one line per head and input."""
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
            parts.append(f"{first['metric']} {mean:.4f} on {_describe_held_out(group)}")
        if temperatures := [fit.temperature for fit in group if fit.temperature is not None]:
            parts.append(f"temperature {np.mean(temperatures):.3g}")
        if stopped := [fit for fit in group if fit.not_converged is not None]:
            parts.append(
                f"{len(stopped):,} did not converge ({stopped[0].file}: {stopped[0].not_converged}); raise "
                "`max_iter` in `params`, or regularise more"
            )
        lines.append(f"{head} on {name}: {'; '.join(parts)}")
    return lines


def _describe_held_out(fits: Sequence[HeadFit]) -> str:
    """Return the number of held-out rows and of folds, in words."""
    rows = sorted({fit.validation["held_rows"] for fit in fits})
    many = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    folds = max(fit.validation.get("folds", 0) for fit in fits)
    return f"{many} held-out rows" + (f" ({folds} folds)" if folds else "")


def _notes_on_end_values(fits: Sequence[HeadFit]) -> list[str]:
    """Return one line per head and input whose best value is the first or the last of the searched values."""
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
