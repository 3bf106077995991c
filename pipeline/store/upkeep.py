"""Looking after the feature cache: what is damaged, how large it is, what may go."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.files import sweep
from pipeline.store import shard
from pipeline.store.cache import Column, columns
from pipeline.store.layout import ShardRecord


def damage(column: Column, *, whole: bool) -> Iterator[tuple[ShardRecord, str]]:
    """Every damaged shard of a column and what is wrong with it; sizes and keys, and if `whole` every byte."""
    for record in column.records():
        try:
            column.keys(record)
            shard.verify(column.path_of(record), record, whole=whole)
        except StoreError as error:
            yield record, str(error)


def leftovers(column: Column) -> int:
    """Remove what killed writers left in a column: temporary files of dead processes."""
    return sweep(column.folder) + sweep(column.folder / "rejected")


def prune(root: Path, *, unused_for: float | None = None, max_bytes: int | None = None, now: float) -> list[Column]:
    """Remove whole columns: those not used for so many seconds, then the longest unused until `max_bytes` suffice.

    What `data/features/` of a project links stays there. Returns the columns that were removed.
    """
    ordered = sorted(columns(root), key=lambda column: column.last_used())
    kept: list[Column] = []
    removed: list[Column] = []
    for column in ordered:
        stale = unused_for is not None and now - column.last_used() > unused_for
        (removed if stale else kept).append(column)
    while max_bytes is not None and kept and sum(map(size, kept)) > max_bytes:
        removed.append(kept.pop(0))
    for column in removed:
        # Aside first: a reader sees the whole column or none of it.
        aside = column.folder.with_name(f".{column.folder.name}.removed")
        column.folder.rename(aside)
        shutil.rmtree(aside)
    return removed


def parse_size(text: str) -> int:
    """Bytes, from text such as 200GB; raises StoreError if it is no size."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise StoreError(f"{text!r}: expected a size such as 500MB, 200GB or 2TB.") from None


def parse_duration(text: str) -> float:
    """Seconds, from text such as 30d; raises StoreError if it is no duration."""
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if not found:
        raise StoreError(f"{text!r}: expected hours, days or weeks such as 12h, 30d or 8w.")
    return int(found[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[found[2]]


def size(column: Column) -> int:
    """Bytes of a column's shards."""
    return sum(record.bytes for record in column.records())
