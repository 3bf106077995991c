"""The plan of an extraction: which rows of which taps are missing, cut into units. Pure, and printable.

A unit is a run of sorted keys that lack the same taps; it becomes one shard per tap. Cuts depend only on the missing
keys, so a killed job that is started again writes the same shards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import counted


@dataclass(frozen=True)
class Unit:
    """Rows to compute together: indices into the sorted keys, and the taps that lack them."""

    rows: np.ndarray
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All units, and the number of missing rows of each tap. `passes`: passes over the samples, one per view."""

    samples: int
    missing: dict[str, int]
    units: tuple[Unit, ...]
    passes: int = 1

    @property
    def spared(self) -> int:
        """The number of forward passes that cached rows save."""
        return self.samples * self.passes - sum(len(unit.rows) for unit in self.units)

    def __str__(self) -> str:
        lines = [
            f"{tap}: {counted(missing, 'row')} to compute, {self.samples - missing:,} known"
            for tap, missing in self.missing.items()
        ]
        return "\n".join(lines)


def plan(known: Mapping[str, np.ndarray], *, unit_rows: int, containers: np.ndarray | None = None) -> Plan:
    """Cut the missing rows into units of at most `unit_rows`.

    `known`: for each tap, which samples, in the order of their keys, are stored or rejected: bool (samples,).
    `containers`: for each sample, the number of its container; the samples of a container go into the same units, so
    that a unit reads few files.
    """
    samples = len(next(iter(known.values())))
    ranks = None if containers is None else _ranks(containers)
    units = []
    for taps, rows in _alike(known):
        if ranks is not None:
            rows = rows[np.argsort(ranks[rows], kind="stable")]
        cuts = (rows[start : start + unit_rows] for start in range(0, len(rows), unit_rows))
        units += [Unit(np.sort(cut), taps) for cut in cuts]
    missing = {tap: samples - int(np.count_nonzero(there)) for tap, there in known.items()}
    return Plan(samples=samples, missing=missing, units=tuple(units))


def _alike(known: Mapping[str, np.ndarray]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield groups of samples that lack the same taps: the taps, and the indices of the samples.

    Groups are divided by one tap at a time, since sorting the missing taps of every sample would take longer than all
    the rest of a plan. The order is the order of that sort: samples that lack the first tap come last.
    """
    samples = len(next(iter(known.values())))
    groups: list[tuple[tuple[str, ...], np.ndarray | None]] = [((), None)] if samples else []  # None: all samples
    for tap, there in known.items():
        apart = []
        for lacking, rows in groups:
            here = there if rows is None else there[rows]
            for names, chosen in ((lacking, here), ((*lacking, tap), ~here)):
                if chosen.all():
                    apart.append((names, rows))
                elif chosen.any():
                    apart.append((names, np.flatnonzero(chosen) if rows is None else rows[chosen]))
        groups = apart
    for lacking, rows in groups:
        if lacking:
            yield lacking, np.arange(samples) if rows is None else rows


def _ranks(containers: np.ndarray) -> np.ndarray:
    """Return the rank of each sample's container, by the first keys of the containers: names do not matter."""
    numbers = containers + 1  # -1 means no container
    first = np.full(int(numbers.max(initial=0)) + 1, len(numbers))
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]  # the last assignment wins: the first sample
    ranks: np.ndarray = np.argsort(np.argsort(first, kind="stable"))[numbers]
    return ranks
