"""One shard: an immutable HDF5 file with some rows of one column.

    /keys       uint8 (rows, 16), sorted
    /features   float16 or float32 (rows, ...), contiguous
    attributes of /: format, identity (the column's address)

Written once under a temporary name, in one session and in row order, without times or host names: equal rows give equal
bytes. Never opened for writing again.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import StoreError
from pipeline.files import KEY_BYTES, publish, scratch, sha256_file
from pipeline.store import keys as key_arrays

FORMAT = 1
REMEDY = "Remove the file and run the extraction again: only its rows are computed."


@dataclass(frozen=True)
class ShardRecord:
    """What an index says of a shard; `name` is the file's SHA-256 and so its name."""

    name: str
    rows: int
    bytes: int
    first: str
    last: str

    def to_json(self) -> dict[str, Any]:
        """For an index."""
        return asdict(self)


def write(folder: Path, keys: np.ndarray, features: np.ndarray, *, address: str) -> ShardRecord:
    """Write a shard into `folder` under the name of its content.

    `keys`: S16 (rows,), sorted. `features`: (rows, ...). Raises StoreError if a value is not finite: an overflow of
    float16 (65,504) is found here, before it is stored.
    """
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        bad = key_arrays.to_hex(keys[~finite])
        half = "Store this tap as `dtype: float32`."
        raise StoreError(
            f"{len(bad):,} of {len(keys):,} rows have values that {features.dtype} cannot hold (above its largest "
            f"number, or NaN), the first of key {bad[0]}. "
            f"{half if features.dtype == np.float16 else 'The network itself gives them: look at its weights.'}"
        )
    with scratch(folder, "shard") as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["identity"] = address
            file.create_dataset("keys", data=keys.view(np.uint8).reshape(len(keys), KEY_BYTES))
            file.create_dataset("features", data=features)
        temporary.chmod(0o444)
        first, last = key_arrays.to_hex(keys[[0, -1]])
        record = ShardRecord(sha256_file(temporary), len(keys), temporary.stat().st_size, first, last)
        publish(temporary, path_of(folder, record.name))
    return record


def path_of(folder: Path, name: str) -> Path:
    """Where the shard of that name lies in a folder."""
    return folder / f"{name}.h5"


def verify(path: Path, record: ShardRecord) -> None:
    """Raise StoreError if a shard is missing or is not, byte for byte, what its record says."""
    if not path.is_file():
        raise StoreError(f"{path}: the shard is missing. {REMEDY}")
    if (size := path.stat().st_size) != record.bytes:
        raise StoreError(f"{path}: expected {record.bytes:,} bytes, got {size:,}. {REMEDY}")
    if (found := sha256_file(path)) != record.name:
        raise StoreError(f"{path}: expected SHA-256 {record.name}, got {found}: the shard is damaged. {REMEDY}")


def read_keys(path: Path) -> np.ndarray:
    """The keys of a shard, S16 (rows,)."""
    with h5py.File(path, "r") as file:
        keys: np.ndarray = file["keys"][:]
    return keys.reshape(-1).view(key_arrays.DTYPE)


def read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """Some rows of a shard, by number, in ascending order, in the stored dtype (len(rows), ...)."""
    with h5py.File(path, "r") as file:
        features = file["features"]
        whole = len(rows) * 4 > len(features)
        found: np.ndarray = features[:][rows] if whole else features[rows]
    return found
