"""Choose among the methods of a run, given rows with the marks of `pipeline.evaluate.undecided`; pure functions.

1) Where every method gives probabilities and the metric is the default one, the least log loss on held-out rows wins.
2) Otherwise the metric decides. If all methods within one standard error of the best give probabilities, the least log
loss among them wins.
"""

from collections.abc import Sequence
from typing import Any

LOG_LOSS = "log_loss"
MOST_NAMED = 5

Row = dict[str, Any]


def best_of(rows: Sequence[Row], metric: str, *, higher: bool) -> Row:
    """Return the best row by its marks, or by the metric if there are no marks; ties go to the first.

    higher: whether larger values of the metric are better.
    """
    close = [row for row in rows if row.get("close")] or list(rows)
    by_loss = all(row.get("close") and row.get("validation_log_loss") is not None for row in close)
    if by_loss:
        return min(close, key=lambda row: loss(row, LOG_LOSS, higher=False))
    return min(close, key=lambda row: loss(row, metric, higher=higher))


def best_by_validation(rows: Sequence[Row], metric: str, *, higher: bool) -> Row | None:
    """Return the only row, or the best row by held-out rows; None if no row of several has a held-out value."""
    if len(rows) == 1:
        return rows[0]
    known = [row for row in rows if row[f"validation_{metric}"] is not None]
    return best_of(known, metric, higher=higher) if known else None


def loss(row: Row, metric: str, *, higher: bool) -> float:
    """Return a metric on held-out rows, negated if higher is better; infinity where there is no value."""
    value = row[f"validation_{metric}"]
    if value is None:
        return float("inf")
    return float(-value if higher else value)


def sentence(rows: Sequence[Row], best: Row) -> str | None:
    """Return a sentence on the methods that held-out rows cannot tell from the best; None where there are none."""
    close = [row for row in rows if row["labels"] == best["labels"] and row.get("close")]
    if len(close) < 2:
        return None
    several_heads, several_inputs = len({row["head"] for row in rows}) > 1, len({row["input"] for row in rows}) > 1
    ordered = [best, *(row for row in close if row is not best)]
    names = [_name(row, several_heads, several_inputs) for row in ordered[:MOST_NAMED]]
    if len(ordered) > MOST_NAMED:
        names.append(f"{len(ordered) - MOST_NAMED:,} more")
    decided = str(best["decided_by"]).replace("_", " ")
    return (
        f"{', '.join(names[:-1])} and {names[-1]} are within one standard error by {decided} on "
        f"{best['validation_rows']:,} held-out rows: validation cannot tell them apart"
    )


def _name(row: Row, heads: bool, inputs: bool) -> str:
    return f"{row['head']} on {row['input']}" if heads and inputs else str(row["input" if inputs else "head"])
