"""The plan of an extraction: which rows of which taps are missing, cut into units. Pure, and printable.

A unit is a run of keys, in order, that lack the same taps; it makes one shard per tap. Where units are cut depends
on the missing keys alone, so a job that was killed and started again makes the shards it would have made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import counted


@dataclass(frozen=True)
class Unit:
    """Rows to compute together: places in the sorted keys, and the taps that lack them."""

    rows: np.ndarray
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All units, and how many rows of each tap are missing. `passes`: how often each sample is read, a view each."""

    samples: int
    missing: dict[str, int]
    units: tuple[Unit, ...]
    passes: int = 1

    @property
    def spared(self) -> int:
        """How often the network need not run on a sample."""
        return self.samples * self.passes - sum(len(unit.rows) for unit in self.units)

    def __str__(self) -> str:
        lines = [
            f"{tap}: {counted(missing, 'row')} to compute, {self.samples - missing:,} known"
            for tap, missing in self.missing.items()
        ]
        return "\n".join(lines)


def plan(known: Mapping[str, np.ndarray], *, unit_rows: int, containers: np.ndarray | None = None) -> Plan:
    """Cut the missing rows into units of at most `unit_rows`.

    `known`: for each tap, which of the samples, in the order of their keys, are stored or rejected: bool (samples,).
    `containers`: a number for the file that holds each sample among others; those of one file are cut one after
    another, so that few files are read for a unit.
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
    """Yield the places of the samples that lack the same taps, for all taps that some sample lacks together.

    Samples are told apart by one tap after another, since sorting what each of them lacks would take longer than all
    the rest of a plan. Those that lack the first tap come last, as if what they lack were sorted.
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
    """Return each sample's container by its place among all, in the order of their first keys: names do not matter."""
    own = containers + 1  # -1 is that of files of their own
    first = np.full(int(own.max(initial=0)) + 1, len(own))
    first[own[::-1]] = np.arange(len(own))[::-1]  # the last one that is written stays: that of the first sample
    ranks: np.ndarray = np.argsort(np.argsort(first, kind="stable"))[own]
    return ranks
