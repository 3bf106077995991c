"""The samples of an extraction: keys and places out of manifests, without a Python object a row."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.loading.samples import read_samples
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.sources import SampleLocation
from pipeline.store import key_arrays


def manifest_of(folder: Path, dataset: str, rows: list[tuple[str, str, str | None, int | None, int]]) -> None:
    """Write the list of files of a data set: text that is hashed for a key, path, container, offset, size."""
    records = [
        {"key": content_key(text.encode()), "path": path, "container": container, "offset": offset, "size": size}
        for text, path, container, offset, size in rows
    ]
    path = ManifestPaths(folder, dataset).files
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=FILES_SCHEMA), path)


def test_places_come_with_their_keys_in_any_order(tmp_path: Path) -> None:
    manifest_of(tmp_path, "a", [("x", "a.tar/x", "a.tar", 512, 7), ("y", "y.png", None, None, 8)])
    manifest_of(tmp_path, "b", [("z", "b.parquet/3", "b.parquet#image", 3, 9), ("x", "other", None, None, 7)])
    samples = read_samples(tmp_path, ("a", "b"))
    where = {
        content_key(b"x"): SampleLocation("a.tar/x", "a.tar", 512, 7),
        content_key(b"y"): SampleLocation("y.png", None, None, 8),
        content_key(b"z"): SampleLocation("b.parquet/3", "b.parquet#image", 3, 9),
    }
    assert key_arrays.to_hex(samples.keys) == sorted(where)
    rows = np.array([2, 0, 1, 0])
    held = key_arrays.to_hex(samples.keys)
    assert samples.take(rows).places() == [where[held[row]] for row in rows]
    assert samples.take(np.empty(0, np.int64)).places() == []
    assert pa.types.is_dictionary(samples.where["container"].type)


def test_manifests_without_containers_and_without_rows_are_read(tmp_path: Path) -> None:
    manifest_of(tmp_path, "none", [])
    manifest_of(tmp_path, "new", [("x", "x.png", None, None, 1)])
    old = pq.read_table(ManifestPaths(tmp_path, "new").files).drop_columns(["container", "offset"])
    pq.write_table(old, ManifestPaths(tmp_path, "old").files)
    samples = read_samples(tmp_path, ("none", "old"))
    assert samples.places() == [SampleLocation("x.png", None, None, 1)]
    assert len(read_samples(tmp_path, ("none",)).keys) == 0


@given(st.lists(st.binary(min_size=16, max_size=16)), st.integers(0, 3), st.booleans())
def test_keys_are_read_as_bytes_reads_hex(values: list[bytes], first: int, large: bool) -> None:
    texts = pa.array([value.hex() for value in values], pa.large_string() if large else pa.string()).slice(first)
    assert key_arrays.to_hex(key_arrays.from_arrow(texts)) == [value.hex() for value in values[first:]]


@given(st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([b"a" * 16, b"a" * 8 + bytes(8), bytes(16)])))
def test_distinct_keys_come_sorted_with_the_place_of_the_first(values: list[bytes]) -> None:
    found, first = key_arrays.distinct(np.array(values, key_arrays.DTYPE))
    assert key_arrays.to_hex(found) == [value.hex() for value in sorted(set(values))]
    assert first.tolist() == [values.index(value) for value in sorted(set(values))]


@pytest.mark.parametrize("wrong", ["ab" * 15, "ab" * 17, "g" + "a" * 31, "é" + "a" * 30])
def test_what_is_no_key_is_refused(wrong: str) -> None:
    texts = pa.array(["ab" * 16] * 3 + [wrong] + ["cd" * 16])
    with pytest.raises(DataError, match=f"keys: expected 32 hex digits each, got '{wrong}'. Run prepare again"):
        key_arrays.from_arrow(texts)
    with pytest.raises(DataError, match=r"keys: expected 32 hex digits each, got a row without a key. Run prepare"):
        key_arrays.from_arrow(pa.array(["ab" * 16, None]))


def test_a_million_keys_take_little_more_than_what_is_made_of_them() -> None:
    count = 1_000_000
    values = np.random.default_rng(0).bytes(16 * count)
    text = values.hex()
    starts = pa.py_buffer(np.arange(0, 32 * count + 1, 32, dtype=np.int32))
    column = pa.StringArray.from_buffers(count, starts, pa.py_buffer(text.encode()))
    pool = pa.default_memory_pool()
    before, begun = pool.bytes_allocated(), time.monotonic()
    tracemalloc.start()
    found = key_arrays.from_arrow(column)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tobytes() == values
    assert peak < 4 * found.nbytes
    assert pool.bytes_allocated() - before < found.nbytes
    assert time.monotonic() - begun < 30  # a second or less; minutes would be a loop in Python
