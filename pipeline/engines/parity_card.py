"""The parity card: what was measured of an engine, kept with the cached features and shown with them.

    <column>/parity/<digest>.json              a card an engine, device, precision and versions; the first one stays
    data/features/<backbone>/<tap>/card.json   all cards of the column, in the order of their names

A card has no time in it, neither of day nor of running: equal caches give equal folders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engines import Engine
from pipeline.engines.parity_gate import ParityCard
from pipeline.files import digest, write_json
from pipeline.store.cache import CacheEntry, read_note
from pipeline.store.location import writable

NAME = "card.json"


def path_of(column: CacheEntry, provenance: Mapping[str, Any]) -> Path:
    """Return where the card of an engine lies."""
    return column.folder / "parity" / f"{digest(dict(provenance))[:32]}.json"


def has_card(column: CacheEntry, engine: Engine) -> bool:
    """Return whether an engine has passed the gate for a column before."""
    return path_of(column, engine.provenance).is_file()


def write(column: CacheEntry, card: ParityCard, tap: str) -> None:
    """Keep a tap's part of a card, unless the column has one of this engine."""
    path = path_of(column, card.engine)
    if path.is_file():
        return
    found: dict[str, Any] = {
        "engine": card.engine,
        "against": "torch float32",
        "parity": card.parity[tap].model_dump(),
        "batches": {name: parity.model_dump() for name, parity in card.batches[tap].items()},
    }
    if card.autocast is not None:
        found["torch_autocast"] = card.autocast[tap].model_dump()
    with writable(column.folder.parent.parent):
        write_json(path, found)


def link(column: CacheEntry, folder: Path) -> None:
    """Write the column's cards into a folder of features; raises StoreError for one that is damaged."""
    cards = [read_note(path) for path in sorted((column.folder / "parity").glob("*.json"))]
    write_json(folder / NAME, {"address": column.address, "cards": cards})
