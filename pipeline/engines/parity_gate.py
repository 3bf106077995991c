"""The gate before a bulk run: an engine's rows beside those of torch float32, and beside its own in other batches.

A tap that fails is refused by its name. What was measured is the reproducibility card, which lies beside the features.
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
"""Rows that float32 is compared on: what is computed otherwise shows in the first of them."""

REDUCED_ROWS = 512
"""Rows that reduced precision is compared on: a share of the neighbours of few rows says little."""

ROW_BYTES = 2**28  # of all rows of the widest tap together


class ParityCard(Settings):
    """What was measured of each tap: against torch float32, in other batches, and torch's own reduced precision."""

    engine: dict[str, Any]
    parity: dict[str, Parity]
    batches: dict[str, dict[str, Parity]]
    autocast: dict[str, Parity] | None = None

    @property
    def verdict(self) -> str:
        """What the gate measured, in some words."""
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
    """Return how many samples the gate wants: one batch; for reduced precision 512, or fewer of wide taps."""
    if precision == "float32":
        return batch_size
    widest = max(4 * int(np.prod(shape)) for shape in shapes.values())
    return max(batch_size, min(REDUCED_ROWS, ROW_BYTES // widest))


def run_all(engine: Engine, pixels: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """Return the rows of more samples than one batch has."""
    parts = [engine.run({"pixels": pixels[start : start + batch_size]}) for start in range(0, len(pixels), batch_size)]
    return {tap: np.concatenate([part[tap] for part in parts]) for tap in parts[0]}


def batch_invariance(engine: Engine, batch: np.ndarray, full: Mapping[str, np.ndarray]) -> dict[str, dict[str, Parity]]:
    """Return for each tap how two other batches of the same rows compare: the first row by itself, and an odd number of
    rows in reverse order.
    """
    odd = len(batch) - (len(batch) > 1 and len(batch) % 2 == 0)
    orders = {"1": np.arange(1), f"{odd} reversed": np.arange(odd)[::-1]}
    result: dict[str, dict[str, Parity]] = {tap: {} for tap in full}
    for name, order in orders.items():
        got = engine.run({"pixels": np.ascontiguousarray(batch[order])})
        for tap, rows in full.items():
            result[tap][name] = compare(rows[order], got[tap])
    return result


def batch_of(pixels: np.ndarray, batch_size: int) -> np.ndarray:
    """Return one batch of real samples; where there are too few, their negatives stand beside them."""
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

    `reference` is torch float32. Raises EngineError with every tap that is not near enough to it, or whose values
    depend on the batch.
    """
    provenance = dict(engine.provenance)
    reduced = provenance["precision"] != "float32"
    rows = batch_size if reduced else min(batch_size, ROWS)
    pixels = pixels if reduced else pixels[:rows]
    batch = batch_of(pixels, rows)
    expected = run_all(reference, pixels, batch_size)
    got = expected if engine is reference else run_all(engine, pixels, batch_size)
    parity = {tap: compare(expected[tap], got[tap], neighbours=reduced) for tap in specs}
    enough = len(pixels) >= rows
    full = {tap: values[:rows] for tap, values in got.items()} if enough else engine.run({"pixels": batch})
    batches = batch_invariance(engine, batch, full)
    problems = [
        f"tap {tap!r}, node {specs[tap].node!r}: {problem}"
        for tap, measured in parity.items()
        for problem in measured.problems(reduced=reduced)
    ]
    problems += [
        f"tap {tap!r}, node {specs[tap].node!r}: its values depend on the batch ({name}: {problem[0]})"
        for tap, measured in batches.items()
        for name, one in measured.items()
        if (problem := one.problems(reduced=reduced))
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
