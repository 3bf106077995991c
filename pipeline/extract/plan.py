"""The plan of an extraction: which rows of which taps are missing, cut into units. Pure, and printable.

A unit is a run of keys, in their order, that lack the same taps; it makes one shard a tap. Where units are cut depends
on the missing keys alone, so a job that was killed and started again makes the shards it would have made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Unit:
    """Rows to compute together: places in the sorted keys, and the taps that lack them."""

    rows: np.ndarray
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All units, and how many rows of each tap are missing."""

    samples: int
    missing: dict[str, int]
    units: tuple[Unit, ...]

    def __str__(self) -> str:
        lines = [
            f"{tap}: {missing:,} rows to compute, {self.samples - missing:,} known"
            for tap, missing in self.missing.items()
        ]
        return "\n".join(lines)


def plan(known: Mapping[str, np.ndarray], *, unit_rows: int, containers: np.ndarray | None = None) -> Plan:
    """Cut the missing rows into units of at most `unit_rows`.

    `known`: for each tap, which of the samples, in the order of their keys, are stored or rejected: bool (samples,).
    `containers`: a number for the file that holds each sample among others; those of one file are cut one after
    another, so that few files are read for a unit.
    """
    taps = list(known)
    samples = len(next(iter(known.values())))
    patterns, which = np.unique(~np.stack([known[tap] for tap in taps], axis=1), axis=0, return_inverse=True)
    units = []
    for number, pattern in enumerate(patterns):
        lacking = tuple(tap for tap, missing in zip(taps, pattern, strict=True) if missing)
        rows = np.flatnonzero((which == number) & pattern.any())
        if containers is not None:
            rows = rows[np.argsort(_ranks(containers)[rows], kind="stable")]
        cuts = (rows[start : start + unit_rows] for start in range(0, len(rows), unit_rows))
        units += [Unit(np.sort(cut), lacking) for cut in cuts]
    missing = {tap: int((~known[tap]).sum()) for tap in taps}
    return Plan(samples=samples, missing=missing, units=tuple(units))


def _ranks(containers: np.ndarray) -> np.ndarray:
    """Each sample's container by its place among all, in the order of their first keys: names do not matter."""
    _, first, which = np.unique(containers, return_index=True, return_inverse=True)
    ranks: np.ndarray = np.argsort(np.argsort(first))[which]
    return ranks
