"""Assign a split to each row, by the hash of its key or by its domain; few-shot draws; limits per class."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import DataError, bullets, unknown
from pipeline.split.config import Domains, FewShot, SplitConfig

Assigned = list[str | None]
"""The split of each row; None for rows outside the task."""

ORDER = ("test", "validation", "train")
"""Test comes first: with 20% test rows, a position below 0.2 is test whatever the other two shares are."""


def position(text: str, *, salt: str) -> float:
    """Hash a text with a salt to a number in [0, 1): the first 53 bits of BLAKE2b."""
    number = hashlib.blake2b(text.encode(), digest_size=8, key=salt.encode()).digest()
    return (int.from_bytes(number, "big") >> 11) / 2**53


def assign(strata: Sequence[str], groups: Sequence[str], config: SplitConfig) -> Assigned:
    """Return the split of each row; None for a class's surplus rows, where `sizes` are counts.

    strata: the class of each row, or its stand-in in other kinds of tasks.
    groups: the group of each row, which is not divided; the key where there are no groups.
    """
    return assign_shares(strata, groups, config, {name: getattr(config.sizes, name) for name in ORDER})


def assign_by_domain(
    strata: Sequence[str], groups: Sequence[str], domains: Sequence[str], asked: Domains, config: SplitConfig
) -> Assigned:
    """Return the split of each row by its domain; None for rows of a domain that `asked` does not name.

    Without domains for validation, a part of the rows of the train domains becomes validation rows, in the proportion
    of the two sizes, by hash. Sizes in rows per class limit each split. Raises DataError for domains that no row has.
    """
    named = {"train": asked.train, "validation": asked.validation, "test": asked.test}
    known = set(domains)
    if odd := [unknown("domain", name, known) for names in named.values() for name in names if name not in known]:
        raise DataError(bullets(f"`domains` of a task on {', '.join(config.datasets)}", odd))
    result: Assigned = [None] * len(domains)
    for split, names in named.items():
        sharing = ("train", "validation") if split == "train" and not asked.validation else (split,)
        wanted = {name: getattr(config.sizes, name) if name in sharing else 0.0 for name in ORDER}
        if not config.sizes.as_counts:
            wanted = normalise(wanted) or {name: float(name == split) for name in ORDER}
        rows = [row for row, domain in enumerate(domains) if domain in names]
        parts = assign_shares([strata[row] for row in rows], [groups[row] for row in rows], config, wanted)
        for row, part in zip(rows, parts, strict=True):
            result[row] = part
    return result


def normalise(wanted: Mapping[str, float]) -> dict[str, float]:
    """Return shares scaled to sum to 1; an empty dict where all are 0."""
    total = sum(wanted.values())
    return {name: size / total for name, size in wanted.items()} if total else {}


def assign_shares(
    strata: Sequence[str], groups: Sequence[str], config: SplitConfig, wanted: Mapping[str, float]
) -> Assigned:
    """Return the split of each row, with `wanted` as shares that sum to 1 or as rows per class for each split."""
    counts = config.sizes.as_counts
    positions = {group: position(group, salt=f"split-{config.seed}") for group in dict.fromkeys(groups)}
    if not (config.stratify or counts):
        cuts = np.cumsum([wanted["test"], wanted["validation"], 1.0])
        return [ORDER[int(np.searchsorted(cuts, positions[group], side="right"))] for group in groups]
    members: dict[str, list[str]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        members.setdefault(group, []).append(stratum)
    by_stratum: dict[str, list[str]] = {}
    for group in sorted(members, key=lambda g: (positions[g], g)):
        by_stratum.setdefault(Counter(members[group]).most_common(1)[0][0], []).append(group)
    splits: dict[str, str | None] = {}
    for ordered in by_stratum.values():
        splits.update(_cut(ordered, [len(members[group]) for group in ordered], wanted, counts=counts))
    return [splits[group] for group in groups]


def _cut(ordered: list[str], rows: list[int], wanted: Mapping[str, float], *, counts: bool) -> dict[str, str | None]:
    """Cut the ordered groups of a stratum at the number of rows that each split may have."""
    scale = 1 if counts else sum(rows)
    cuts = np.cumsum([wanted[name] * scale for name in ORDER]).round()
    names: tuple[str | None, ...] = (*ORDER, None if counts else "train")
    before = np.concatenate([[0], np.cumsum(rows)[:-1]])
    return {g: names[int(np.searchsorted(cuts, start, side="right"))] for g, start in zip(ordered, before, strict=True)}


def limit_training_rows(
    keys: Sequence[str], targets: Sequence[str], splits: Sequence[str | None], most: int, *, seed: int
) -> Assigned:
    """Return the splits with at most `most` training rows per class; surplus rows are None.

    The rows whose keys come first in a seeded order stay. So a larger limit keeps all rows of a smaller limit, and new
    rows displace at most as many rows as were added.
    """
    order = sorted(range(len(keys)), key=lambda row: position(keys[row], salt=f"limit-{seed}"))
    result, counts = list(splits), Counter[str]()
    for row in order:
        if splits[row] == "train":
            counts[targets[row]] += 1
            result[row] = "train" if counts[targets[row]] <= most else None
    return result


def few_shot_ranks(
    keys: Sequence[str], targets: Sequence[str], splits: Sequence[str | None], few: FewShot, *, seed: int
) -> list[list[int]]:
    """Return for each draw the rank of every training row in its class; -1 for other rows and ranks past the limit."""
    draws = []
    for draw in range(few.draws):
        salt = f"draw-{seed}-{draw}"
        order = sorted(range(len(keys)), key=lambda row: position(keys[row], salt=salt))
        ranks, counts = [-1] * len(keys), Counter[str]()
        for row in order:
            if splits[row] == "train":
                rank = counts[targets[row]]
                counts[targets[row]] += 1
                ranks[row] = rank if rank < few.labels_per_class else -1
        draws.append(ranks)
    return draws
