"""Break-even of training from the middle: after how many epochs stored activations pay for themselves.

Without them, each epoch reads pixels and runs the frozen part of the network. With them the frozen part runs once for
each view, and each epoch reads the stored rows.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BreakEven:
    """Measured seconds a row, and what follows from them.

    `frozen`: of the forward pass up to the tap. `reading`: of a stored row. `stored`: whether all rows are there.
    """

    tap: str
    rows: int
    row_bytes: int
    epochs: int
    frozen: float
    reading: float
    views: int = 1
    stored: bool = True

    @property
    def bytes(self) -> int:
        """Of the stored rows of all views."""
        return self.rows * self.row_bytes * self.views

    @property
    def needed(self) -> float:
        """Epochs after which it has paid, whoever extracts: infinite where reading takes as long as computing."""
        saved = self.frozen - self.reading
        return math.ceil(self.views * self.frozen / saved) if saved > 0 else math.inf

    @property
    def pays(self) -> bool:
        """Whether stored rows make this run shorter."""
        return self.frozen > self.reading if self.stored else self.epochs >= self.needed

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:,.1f} MiB" if self.bytes < 2**30 else f"{self.bytes / 2**30:,.1f} GiB"
        copies = f" in {self.views} views" if self.views > 1 else ""
        costs = f"{self.frozen * 1e3:.3g} ms a row to compute, {self.reading * 1e3:.3g} ms to read"
        needed = f"{self.needed:,} epochs" if math.isfinite(self.needed) else "never"
        told = f"{self.tap}: {self.rows:,} rows{copies}, {size} stored; {costs}; pays after: {needed}"
        if not self.pays:
            advice = "`input: pixels` is faster" if self.stored else "train from pixels, as it is"
            return f"{told}. It does not pay here, in {self.epochs:,} epochs: {advice}."
        return f"{told}. It pays here, in {self.epochs:,} epochs."
