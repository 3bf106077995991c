"""What is said at the end of an extraction: what was computed, reused and rejected, and where the time went."""

from pipeline.extract.clock import peak_memory
from pipeline.extract.run import Extracted
from pipeline.text import duration, human

REASONS = 5  # that are named


def text(name: str, done: Extracted) -> str:
    """The summary, a line a fact. The time that reuse saved is that of the samples the network did not run on."""
    todo, spent = done.plan, done.spent
    computed, reused = sum(todo.missing.values()), sum(done.stored.values())
    lines = [
        f"{name}: {todo.samples:,} samples, {done.rejected:,} rejected; rows of all taps: {computed:,} to compute, "
        f"{reused:,} reused"
    ]
    reasons = list(done.reasons.items())
    lines += [f"  rejected: {count:,} × {reason}" for reason, count in reasons[:REASONS]]
    if len(reasons) > REASONS:
        lines.append(f"  rejected: {sum(count for _, count in reasons[REASONS:]):,} for other reasons")
    if spent.rate is not None:
        lines.append(f"{spent.samples:,} samples in {duration(spent.whole)}: {spent}")
        spared = todo.samples - sum(len(unit.rows) for unit in todo.units)
        if spared:
            lines.append(f"reuse spared {spared:,} samples: about {duration(spared / spent.rate)} at this rate")
    peak = peak_memory()
    if peak is not None:
        lines.append(f"peak memory: {human(peak)}")
    return "\n".join(lines)
