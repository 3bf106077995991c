"""Export features to a single file for other programs, in the order of their keys.

.parquet   columns `key` and `features`, a list of fixed size
.npy       a matrix of float16 or float32, and the keys in `<path>.keys.txt`
.f32       float32 without a header, for programs that map files, such as FAISS; shape in `<path>.json`, keys likewise
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import StoreError
from pipeline.files import AnyPath, as_path, atomic, write_json
from pipeline.store import key_arrays
from pipeline.store.features import Features


def export(features: Features, path: AnyPath) -> int:
    """Write all rows in the format of the file's suffix, one of EXPORTS; return their number.

    Raises StoreError for another suffix. A file gets its name when it is complete.
    """
    path = as_path(path, "export: path")
    if path.suffix not in EXPORTS:
        raise StoreError(f"{path}: expected a name that ends in {', '.join(EXPORTS)}, got {path.suffix!r}.")
    EXPORTS[path.suffix](features, path)
    return len(features)


def write_parquet(features: Features, path: Path) -> None:
    """Write all rows to a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.from_numpy_dtype(features.dtype), int(np.prod(features.shape)))
    schema = pa.schema([("key", pa.string()), ("features", kind)])
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
        for batch in features.to_arrow():
            file.write_batch(batch)


def write_npy(features: Features, path: Path) -> None:
    """Write all rows, flattened, as one .npy matrix of the features' `dtype`, with `<path>.keys.txt`.

    Line n of the keys file is the key of row n. `np.load(path, mmap_mode="r")` reads rows on demand.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(features.dtype),
        "fortran_order": False,
        "shape": (len(features), int(np.prod(features.shape))),
    }
    with atomic(path) as temporary, atomic(Path(f"{path}.keys.txt")) as keys:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            _write_rows(features, file, features.dtype, keys)
        path.unlink(missing_ok=True)  # so that new keys never lie next to old rows


def write_raw(features: Features, path: Path) -> None:
    """Write all rows, flattened, as float32 little-endian without a header.

    FAISS and others map such a file. `<path>.keys.txt` is as in `write_npy`; `<path>.json` has rows, dimensions, dtype
    and identity.
    """
    dimensions = int(np.prod(features.shape))
    description = {"rows": len(features), "dimensions": dimensions, "dtype": "<f4", "identity": features.identity}
    with atomic(path) as temporary, atomic(Path(f"{path}.keys.txt")) as keys:
        with temporary.open("wb") as file:
            _write_rows(features, file, np.dtype("<f4"), keys)
        path.unlink(missing_ok=True)
        write_json(Path(f"{path}.json"), description)


def _write_rows(features: Features, file: BinaryIO, dtype: np.dtype[Any], keys: Path) -> None:
    # Plain writes, not a mapped file, on which a full disk would end the process.
    with keys.open("w", encoding="ascii") as keys_file:
        for block_keys, rows in features.blocks():
            file.write(np.ascontiguousarray(rows, dtype=dtype).data)
            keys_file.writelines(f"{key}\n" for key in key_arrays.to_hex(block_keys))


EXPORTS: Mapping[str, Callable[[Features, Path], None]] = {
    ".parquet": write_parquet,
    ".npy": write_npy,
    ".f32": write_raw,
}
"""{suffix: function that writes such a file}."""
