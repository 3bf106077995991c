"""The summary of an extraction: rows computed, reused and rejected, and the time of each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import counted
from pipeline.extract.plan import Plan
from pipeline.extract.request import Request, of_samples
from pipeline.extract.timing import Timings, bottleneck, peak_memory
from pipeline.text import duration, human

REASONS = 5  # most reasons of rejects that the summary names


@dataclass(frozen=True)
class Extracted:
    """The result of an extraction.

    rejected: the number of samples without features.
    reasons: the number of these by reason.
    stored: the rows that were cached before, by tap.
    spent: the time of reading, running and writing samples.
    seconds: the time of the whole extraction.
    """

    plan: Plan
    rejected: int
    reasons: Mapping[str, int]
    stored: Mapping[str, int]
    spent: Timings
    seconds: float


def text(name: str, done: Extracted, *, process: float) -> str:
    """Return the summary as text, one line per fact.

    `process`: seconds since the start of the process.
    """
    todo, spent = done.plan, done.spent
    computed, reused = sum(todo.missing.values()), sum(done.stored.values())
    lines = [
        f"{name}: {counted(todo.samples, 'sample')}, {done.rejected:,} rejected; rows of all taps: {computed:,} to "
        f"compute, {reused:,} reused"
    ]
    reasons = list(done.reasons.items())
    lines += [f"  rejected: {count:,} × {reason}" for reason, count in reasons[:REASONS]]
    if len(reasons) > REASONS:
        lines.append(f"  rejected: {sum(count for _, count in reasons[REASONS:]):,} for other reasons")
    if spent.rate is not None:
        lines.append(f"{counted(spent.samples, 'sample')} in {duration(spent.whole)}: {spent}")
    parts = {
        "before the extraction": process - done.seconds,
        "engine, checks and links": done.seconds - spent.whole,
        "the samples": spent.whole,
    }
    parts_shown = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items() if seconds >= 0.05)
    lines.append(f"{duration(process)} in all: {parts_shown}")
    if spent.rate is not None and todo.spared:
        saved = duration(todo.spared / spent.rate)
        lines.append(f"reuse spared {counted(todo.spared, 'sample')}: about {saved} at this rate")
    lines.append(f"peak memory: {human(peak_memory())}")
    return "\n".join(lines)


def describe_cache(root: Path, done: Extracted) -> str:
    """Return a line with the path of the feature cache, and the number of rows that were cached before."""
    linked = sum(done.stored.values())
    if not linked:
        return f"feature cache: {root}"
    rows = counted(linked, "row was", "rows were")
    return f"feature cache: {root}; {rows} computed before, by this project or another, and linked from there"


def describe_cached(request: Request, cache_root: Path) -> str:
    """Return a line with the number of rows of all taps that an interrupted run leaves in the cache."""
    now = of_samples(
        request.config, backbone=request.backbone, spec=request.spec, samples=request.samples, cache_root=cache_root
    ).whole
    missing, rows = sum(now.missing.values()), len(now.missing) * now.samples
    return f"{rows - missing:,} of {rows:,} rows are in the feature cache; the same command goes on from there"


def to_json(done: Extracted) -> dict[str, Any]:
    """Return the summary as plain values: rows of all taps, seconds, bytes."""
    todo, spent = done.plan, done.spent
    return {
        "samples": todo.samples,
        "samples_run": spent.samples,
        "rows_computed": sum(todo.missing.values()),
        "rows_reused": sum(done.stored.values()),
        "rejected": done.rejected,
        "reasons": dict(done.reasons),
        "seconds": round(spent.whole, 3),
        "seconds_of": {part: round(seconds, 3) for part, seconds in spent.seconds.items()},
        "processes": spent.processes,
        "samples_per_second": None if spent.rate is None else round(spent.rate, 1),
        "seconds_saved_by_reuse": None if spent.rate is None else round(todo.spared / spent.rate, 3),
        "bottleneck": None if spent.rate is None else bottleneck(spent.seconds),
        "peak_memory_bytes": peak_memory(),
    }
