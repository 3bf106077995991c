"""Features: stored activations by sample key. The one class through which heads and training read the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.store import index, shard
from pipeline.store import keys as key_arrays


class Features:
    """One tap of one backbone. Rows are found by key; their order on disk means nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = index.read(folder)
        held = []
        for record in self.index.shards:
            path = shard.path_of(folder, record.name)
            shard.verify(path, record)
            held.append(shard.read_keys(path))
        every = np.concatenate(held) if held else np.empty(0, dtype=key_arrays.DTYPE)
        shards = np.repeat(np.arange(len(held)), [len(keys) for keys in held])
        rows = np.concatenate([np.arange(len(keys)) for keys in held]) if held else np.empty(0, dtype=np.int64)
        # Stable, and the first of equal keys is kept: where two jobs computed a row, the earlier shard serves.
        self._keys, first = np.unique(every, return_index=True)
        self._shard, self._row = shards[first], rows[first]

    @classmethod
    def open(cls, folder: Path) -> "Features":
        """Open a features folder and check every shard against its digest; raises StoreError with what is wrong."""
        return cls(folder)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.index.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype."""
        return np.dtype(self.index.dtype)

    @property
    def keys(self) -> list[str]:
        """All keys, sorted, as hex text."""
        return key_arrays.to_hex(self._keys)

    @property
    def identity(self) -> dict[str, Any]:
        """What shaped the features."""
        return dict(self.index.identity)

    def load(self, keys: Sequence[str]) -> np.ndarray:
        """The rows of some keys, in their order, in the stored dtype (len(keys), ...).

        Raises StoreError that counts the keys without features and gives the reasons that are known.
        """
        places = key_arrays.find(self._keys, key_arrays.from_hex(keys))
        self._refuse_missing([key for key, place in zip(keys, places, strict=True) if place < 0])
        found = np.empty((len(keys), *self.shape), dtype=self.dtype)
        shards, rows = self._shard[places], self._row[places]
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            distinct, back = np.unique(rows[here], return_inverse=True)
            path = shard.path_of(self.folder, self.index.shards[number].name)
            found[here] = shard.read_rows(path, distinct)[back]
        return found

    def _refuse_missing(self, missing: list[str]) -> None:
        if not missing:
            return
        reasons = {item.key: item.reason for item in self.index.rejected}
        known = sorted({reasons[key] for key in missing if key in reasons})
        why = f" Some were rejected: {'; '.join(known[:3])}." if known else ""
        raise StoreError(
            f"{self.folder}: {len(missing):,} of the keys asked for have no features, the first is {missing[0]}.{why} "
            "Extract the data set they belong to (`datasets` of the extraction), or leave them out of the task."
        )
