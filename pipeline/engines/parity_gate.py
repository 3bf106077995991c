"""Check the parity of an engine before a large run, with torch float32 and with itself in other batches.

The error names each tap that fails. The measurements are stored with the features as a parity card.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.backbones.spec import TapSpec
from pipeline.engines import Engine
from pipeline.engines.parity import Parity, compare, describe_parity
from pipeline.errors import EngineError, bullets
from pipeline.settings.check import Settings

ROWS = 16
"""The number of rows compared in float32; a wrong computation shows in the first rows."""

REDUCED_ROWS = 512
"""The number of rows compared in reduced precision; the share of equal neighbours needs many rows."""

ROW_BYTES = 2**28  # limit of all compared rows of the widest tap


class ParityCard(Settings):
    """What was measured of each tap: against torch float32, in other batches, and torch's own reduced precision."""

    engine: dict[str, Any]
    parity: dict[str, Parity]
    batches: dict[str, dict[str, Parity]]
    autocast: dict[str, Parity] | None = None

    @property
    def verdict(self) -> str:
        """Return the measurements in a phrase."""
        taps = self.parity.values()
        if self.engine["precision"] == "float32":
            off = max(parity.relative for parity in taps)
            if off == 0:
                return "the values of torch float32, bit for bit"
            return f"the values of torch float32 (off by at most {off:.0e} of the largest)"
        cosine = min(parity.median_cosine for parity in taps)
        return f"near torch float32: median cosine {cosine:.4f}"

    def __str__(self) -> str:
        title = f"{self.engine['engine']}, {self.engine['precision']}, against torch float32"
        return f"{title}\n{describe_parity(self.parity)}"


def rows_for(shapes: Mapping[str, tuple[int, ...]], batch_size: int, precision: str) -> int:
    """Return the number of samples to compare: one batch; in reduced precision 512, or fewer for wide taps."""
    if precision == "float32":
        return batch_size
    widest = max(4 * int(np.prod(shape)) for shape in shapes.values())
    return max(batch_size, min(REDUCED_ROWS, ROW_BYTES // widest))


def run_all(engine: Engine, pixels: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """Run an engine on any number of samples, in batches; return the rows of each tap."""
    parts = [engine.run({"pixels": pixels[start : start + batch_size]}) for start in range(0, len(pixels), batch_size)]
    return {tap: np.concatenate([part[tap] for part in parts]) for tap in parts[0]}


def batch_invariance(engine: Engine, batch: np.ndarray, full: Mapping[str, np.ndarray]) -> dict[str, dict[str, Parity]]:
    """Compare the rows of each tap with those of two other batches: a batch of one row, and an odd number of rows in
    reverse order. Returns the parity by tap and batch.
    """
    odd = len(batch) - (len(batch) > 1 and len(batch) % 2 == 0)
    orders = {"1": np.arange(1), f"{odd} reversed": np.arange(odd)[::-1]}
    result: dict[str, dict[str, Parity]] = {tap: {} for tap in full}
    for name, order in orders.items():
        reordered = engine.run({"pixels": np.ascontiguousarray(batch[order])})
        for tap, rows in full.items():
            result[tap][name] = compare(rows[order], reordered[tap])
    return result


def batch_of(pixels: np.ndarray, batch_size: int) -> np.ndarray:
    """Return one batch of real samples, filled up with their negatives if there are too few."""
    batch = pixels[:batch_size]
    return batch if len(batch) == batch_size else np.concatenate([batch, 255 - batch])[:batch_size]


def check_parity(
    engine: Engine,
    reference: Engine,
    pixels: np.ndarray,
    specs: Mapping[str, TapSpec],
    *,
    batch_size: int,
    autocast: Engine | None = None,
) -> ParityCard:
    """Measure an engine on real samples, uint8 (n, height, width, channels).

    `reference`: the engine torch in float32. Raises EngineError with every tap that differs too much from the
    reference, or whose values depend on the batch.
    """
    provenance = dict(engine.provenance)
    reduced = provenance["precision"] != "float32"
    rows = batch_size if reduced else min(batch_size, ROWS)
    pixels = pixels if reduced else pixels[:rows]
    batch = batch_of(pixels, rows)
    expected = run_all(reference, pixels, batch_size)
    actual = expected if engine is reference else run_all(engine, pixels, batch_size)
    parity = {tap: compare(expected[tap], actual[tap], neighbours=reduced) for tap in specs}
    enough = len(pixels) >= rows
    full = {tap: values[:rows] for tap, values in actual.items()} if enough else engine.run({"pixels": batch})
    batches = batch_invariance(engine, batch, full)
    problems = [
        f"tap {tap!r}, node {specs[tap].node!r}: {problem}"
        for tap, measured in parity.items()
        for problem in measured.problems(reduced=reduced)
    ]
    problems += [
        f"tap {tap!r}, node {specs[tap].node!r}: its values depend on the batch ({name}: {problem[0]})"
        for tap, measured in batches.items()
        for name, comparison in measured.items()
        if (problem := comparison.problems(reduced=reduced))
    ]
    if problems:
        named = f"engine {provenance['engine']!r}, {provenance['precision']}"
        title = f"{named}: taps that it does not compute as torch float32 does"
        raise EngineError(bullets(title, problems))
    torch_autocast = None
    if reduced and autocast is not None:
        drifted = run_all(autocast, pixels, batch_size)
        torch_autocast = {tap: compare(expected[tap], drifted[tap], neighbours=True) for tap in specs}
    return ParityCard(engine=provenance, parity=parity, batches=batches, autocast=torch_autocast)
