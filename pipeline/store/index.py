"""index.json of a features folder: which shards belong to it. Written last, it is the commit.

format, address, identity    what the features are
shape, dtype                 of one row as stored
samples                      rows that were asked for = stored + len(rejected)
stored                       of them, how many lie in the shards (which may hold more)
rejected                     [{key, reason}, ...]
shards                       [{name (SHA-256), rows, bytes, first, last}, ...]
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import Settings
from pipeline.errors import StoreError
from pipeline.files import read_json, write_json
from pipeline.store.shard import ShardRecord

NAME = "index.json"
FORMAT = 1


class Rejected(Settings):
    """A sample that has no features, and why."""

    key: str
    reason: str


class Index(Settings):
    """The whole of index.json."""

    format: int = FORMAT
    address: str
    identity: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    samples: int
    stored: int
    rejected: tuple[Rejected, ...]
    shards: tuple[ShardRecord, ...]


def write(folder: Path, index: Index) -> None:
    """Commit a features folder; raises StoreError if its rows do not add up."""
    if index.samples != index.stored + len(index.rejected):
        raise StoreError(
            f"{folder}: {index.samples:,} samples were asked for, but {index.stored:,} are stored and "
            f"{len(index.rejected):,} rejected. Nothing was committed."
        )
    write_json(folder / NAME, index.model_dump(mode="json"))


def read(folder: Path) -> Index:
    """Read index.json; raises StoreError if it is missing, unreadable or of another format."""
    path = folder / NAME
    if not path.is_file():
        raise StoreError(f"{folder}: no features there ({NAME} is missing: the extraction has not finished).")
    try:
        index = Index.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise StoreError(f"{path}: not an index that this version of icecore can read. {error}") from None
    if index.format != FORMAT:
        raise StoreError(f"{path}: expected format {FORMAT}, got {index.format}. Update icecore, or extract again.")
    return index
