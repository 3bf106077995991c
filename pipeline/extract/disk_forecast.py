"""The forecast of an extraction: the bytes of the missing rows, and the free bytes of the disk. Pure, and printable.

The bytes are those of the new shards, with checksums and keys; maps count before compression. Shards are written to the
feature cache. If the features folder is on another file system, it needs a copy instead of links. While a unit is
computed, the rows of all of its taps are also in spool files in the cache; spools of int8 are four times as large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError, bullets, counted
from pipeline.extract.plan import Plan
from pipeline.readers.sample_key import KEY_BYTES
from pipeline.runtime import free_disk, nearest_existing
from pipeline.store.row_buffer import row_bytes
from pipeline.store.shard_format import Layout
from pipeline.text import human

SHARD_BYTES = 8192  # overhead of a shard: superblock, attributes, and its record


@dataclass(frozen=True)
class Size:
    """The missing rows of a tap. `maps`: `bytes` are before compression. `spool`: most bytes of spools at one time."""

    rows: int
    shards: int
    row_bytes: int
    bytes: int
    maps: bool
    spool: int = 0

    @property
    def needed(self) -> int:
        """Bytes that must be free in the cache."""
        return self.bytes + self.spool

    def __add__(self, other: "Size") -> "Size":
        """Return the size of the rows of two plans, of which the second is computed after the first."""
        return replace(
            self,
            rows=self.rows + other.rows,
            shards=self.shards + other.shards,
            bytes=self.bytes + other.bytes,
            spool=max(self.spool, other.spool),
        )


@dataclass(frozen=True)
class Space:
    """Needed and free bytes of a file system. `passing`: bytes needed only while the extraction runs."""

    folder: Path
    needed: int
    free: int
    passing: int = 0


@dataclass(frozen=True)
class Forecast:
    """The plan, the bytes of each tap, and the file systems."""

    plan: Plan
    sizes: Mapping[str, Size]
    spaces: tuple[Space, ...]

    @property
    def bytes(self) -> int:
        """The bytes of all taps together."""
        return sum(size.bytes for size in self.sizes.values())

    @property
    def fits(self) -> bool:
        """Whether every file system has enough free bytes."""
        return all(space.needed <= space.free for space in self.spaces)

    @property
    def hits(self) -> float:
        """The share of all rows that are in the cache."""
        rows = self.plan.samples * len(self.sizes)
        return 1 - sum(self.plan.missing.values()) / rows if rows else 1.0

    def __str__(self) -> str:
        lines = []
        for line, size in zip(str(self.plan).splitlines(), self.sizes.values(), strict=True):
            note = " before compression" if size.maps else ""
            made = counted(size.shards, "shard")
            lines.append(f"{line}; {made}, {human(size.bytes)}{note}" if size.rows else line)
        return "\n".join(
            [*lines, *(f"{space.folder}: {_describe_space(space)}" for space in self.spaces if space.needed)]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as plain values."""
        taps = {
            tap: {
                "missing": size.rows,
                "known": self.plan.samples - size.rows,
                "shards": size.shards,
                "row_bytes": size.row_bytes,
                "bytes": size.bytes,
                "spool": size.spool,
                "before_compression": size.maps,
            }
            for tap, size in self.sizes.items()
        }
        spaces = [
            {"folder": str(one.folder), "needed": one.needed, "passing": one.passing, "free": one.free}
            for one in self.spaces
        ]
        return {"samples": self.plan.samples, "taps": taps, "bytes": self.bytes, "spaces": spaces}


def sizes(plan: Plan, layouts: Mapping[str, Layout], *, processes: int = 1) -> dict[str, Size]:
    """Return the bytes of each tap of a plan, if each of some processes computes one unit at a time."""
    result = {}
    for tap, layout in layouts.items():
        rows = [len(unit.rows) for unit in plan.units if tap in unit.taps]
        total = sum(_shard(layout, count) for count in rows)
        spooled = row_bytes(layout) * sum(sorted(rows)[-processes:])
        result[tap] = Size(sum(rows), len(rows), layout.row_bytes, total, layout.chunked, spooled)
    return result


def _shard(layout: Layout, rows: int) -> int:
    scale = 4 * layout.shape[0] if layout.dtype == "int8" else 0
    keys = 2 * KEY_BYTES * rows  # in the shard, and in its file of keys
    return rows * layout.row_bytes + 8 * layout.blocks(rows) + keys + scale + SHARD_BYTES


def spaces(*, cache_root: Path, out: Path, written: int, spooled: int, linked: int) -> tuple[Space, ...]:
    """Return the file systems that an extraction writes to.

    `written`: bytes of new shards. `spooled`: most bytes of spools at one time. `linked`: bytes of existing shards that
    `out` lacks.
    """
    cache = Space(cache_root, written + spooled, free_disk(cache_root), spooled)
    if _device(cache_root) == _device(out):
        return (cache,)
    return (cache, Space(out, written + linked, free_disk(out)))


def _device(folder: Path) -> int:
    return nearest_existing(folder).stat().st_dev


def shortage_message(forecast: Forecast, others: Mapping[str, Forecast]) -> str | None:
    """Return what is said where the features do not fit on the disk, or None where they do.

    `others`: what else could be asked for.
    """
    if forecast.fits:
        return None
    short = [space for space in forecast.spaces if space.needed > space.free]
    compressed = any(size.maps and size.rows for size in forecast.sizes.values())
    note = ", maps before compression" if compressed else ""
    lines = [
        f"{one.folder}: expected {_describe_space(one)}: {human(one.needed - one.free)} are missing" for one in short
    ]
    fitting = [f"{label}: {human(other.bytes)}" for label, other in others.items() if other.fits]
    lines += [f"would fit: {line}" for line in fitting] or ["no other dtype or pooling of these taps would fit"]
    title = f"the features do not fit on the disk ({human(forecast.bytes)} to compute{note})"
    remedy = "Change the taps in params.yaml, make room (`icecore cache prune`), or set ICECORE_CACHE to a larger disk."
    if compressed:
        remedy += " `disk: warn` tries it all the same."
    return bullets(title, lines) + f"\n{remedy}"


def raise_if_short(message: str | None) -> None:
    """Raise StoreError where the features do not fit."""
    if message is not None:
        raise StoreError(message)


def fewer(sizes: Mapping[str, Size], room: int) -> Sequence[str]:
    """Return the taps to leave out, largest first, until the rest fits in `room` bytes; all but one at most."""
    left = sum(size.needed for size in sizes.values())
    dropped: list[str] = []
    for tap in sorted(sizes, key=lambda tap: -sizes[tap].needed)[: len(sizes) - 1]:
        if left <= room:
            break
        dropped.append(tap)
        left -= sizes[tap].needed
    return dropped


def _describe_space(space: Space) -> str:
    passing = f" ({human(space.passing)} of them while it runs)" if space.passing else ""
    return f"{human(space.needed)} needed{passing}, {human(space.free)} free"
