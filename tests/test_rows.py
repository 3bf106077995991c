"""Rows of features that need not fit into memory: taps side by side, blocks, what a source is, and what is refused."""

import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shards

from pipeline.errors import HeadError, StoreError
from pipeline.store import index, key_arrays
from pipeline.store.dtypes import Stored
from pipeline.store.features import Features
from pipeline.store.shard_format import Layout
from pipeline.streaming.rows import Rows, blocks, is_source, reading_order


def keys_of(rows: int) -> np.ndarray:
    """Some sorted keys, S16."""
    return np.sort(np.frombuffer(np.random.default_rng(rows).bytes(16 * rows), key_arrays.DTYPE))


def stored(folder: Path, rows: np.ndarray, keys: np.ndarray, kind: Stored = "float32", *, count: int = 3) -> Features:
    """A tap of some rows, dealt out to shards one by one, so that neighbours lie in different shards."""
    layout = Layout("0" * 64, kind, rows.shape[1:])
    held = [keys[number::count].copy() for number in range(count)]
    parts = [rows[number::count] for number in range(count)]
    records = [shards.write(folder, own, part, layout) for own, part in zip(held, parts, strict=True)]
    index.commit(folder, identity={}, layout=layout, shards=records, keys=held, wanted=keys, rejected={})
    return Features.open(folder)


@pytest.fixture(scope="module")
def taps(tmp_path_factory: pytest.TempPathFactory) -> list[Features]:
    """A tap of vectors and one of small maps, float16, of the same 50 samples."""
    root, random = tmp_path_factory.mktemp("taps"), np.random.default_rng(0)
    vectors = random.normal(size=(50, 5)).astype(np.float32)
    maps = random.normal(size=(50, 2, 3)).astype(np.float16)
    return [stored(root / "a", vectors, keys_of(50)), stored(root / "b", maps, keys_of(50), "float16")]


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 49), max_size=60), size=st.integers(1, 20))
def test_rows_are_those_that_load_gives_side_by_side(taps: list[Features], numbers: list[int], size: int) -> None:
    keys = taps[0].key_array[numbers]
    rows = Rows(taps, keys)
    parts = [tap.load(keys).reshape(len(keys), int(np.prod(tap.shape))) for tap in taps]
    expected = np.concatenate(parts, axis=1, dtype=np.float32)
    assert rows.shape == expected.shape == (len(rows), 11)
    assert np.array_equal(rows[:], expected)
    assert np.array_equal(rows[3:-1], expected[3:-1])
    found = list(blocks(rows, size=size))
    assert [part for part, _ in found] == [slice(n, min(n + size, len(keys))) for n in range(0, len(keys), size)]
    assert all(np.array_equal(block, expected[part]) and block.dtype == np.float32 for part, block in found)


def test_the_reading_order_is_that_of_the_disk(taps: list[Features]) -> None:
    keys = taps[0].key_array
    order = reading_order(taps[0], keys)
    assert sorted(order.tolist()) == list(range(50))
    places = taps[0].find(keys[order])
    assert (np.diff(places.astype(np.int64)) == 1).sum() == 50 - 3  # one run per shard


def test_rows_refuse_what_is_not_there(taps: list[Features]) -> None:
    with pytest.raises(StoreError, match=r"1 of the requested keys have no features; the first is f{32}"):
        Rows(taps, ["f" * 32])
    with pytest.raises(HeadError, match=r"rows of features: expected at least one tap, got none\. List the taps"):
        Rows([], [])


def test_what_a_source_is(tmp_path: Path, taps: list[Features]) -> None:
    import pyarrow as pa
    from scipy.sparse import csr_array

    x = np.zeros((4, 3))
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(4, 3))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert is_source(file.create_dataset("x", data=x))
    assert is_source(mapped)
    assert is_source(Rows(taps, taps[0].keys))
    others = [x, x.tolist(), csr_array(x), pa.table({"x": [1.0]}), mapped[0], np.ma.masked_array(x)]
    assert not any(map(is_source, others))


@pytest.mark.parametrize(
    ("dtype", "given"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int32", "float64")]
)
def test_blocks_of_arrays_and_of_sources_are_the_same_floats(dtype: str, given: str, tmp_path: Path) -> None:
    x = np.arange(30).reshape(10, 3).astype(dtype)
    mapped = np.memmap(tmp_path / "x", dtype=dtype, mode="w+", shape=x.shape)
    mapped[:] = x
    for source in (x, mapped):
        found = [block for _, block in blocks(source, size=4)]
        assert [len(block) for block in found] == [4, 4, 2]
        assert {block.dtype for block in found} == {np.dtype(given)}
        assert np.array_equal(np.concatenate(found), x)


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(10, 3))
    mapped[7, 2] = np.nan
    with pytest.raises(HeadError, match=r"features, row 7: expected finite numbers, got nan in column 2\. Leave"):
        list(blocks(mapped, size=4))
    with pytest.raises(ValueError, match=r"Input X contains NaN|Input contains NaN"):
        list(blocks(np.asarray(mapped)))
    assert len(list(blocks(mapped, size=4, check=False))) == 3


class Slow:
    """A source that says which rows were asked for, and in which thread."""

    def __init__(self) -> None:
        self.shape, self.dtype = (6, 1), np.dtype(np.float32)
        self.asked: list[tuple[int, str]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked.append((rows.start, threading.current_thread().name))
        return np.ones((rows.stop - rows.start, 1), dtype=np.float32)


def test_one_block_is_read_ahead_in_a_thread_and_no_more() -> None:
    source = Slow()
    reading = blocks(source, size=1)
    for number in range(3):
        next(reading)
        for _ in range(1000):
            if len(source.asked) == number + 2:
                break
            threading.Event().wait(0.001)
        assert [start for start, _ in source.asked] == list(range(number + 2))
    reading.close()  # a pass that ends early leaves no thread behind
    names = {name for _, name in source.asked}
    assert threading.current_thread().name not in names
    assert not {thread.name for thread in threading.enumerate()} & names


PASS = """
import resource, sys
import numpy as np
from pathlib import Path
from pipeline.streaming.rows import Rows, blocks, reading_order
from pipeline.store.features import Features
tap = Features.open(Path(sys.argv[1]))
keys = tap.key_array[: int(sys.argv[2])]
keys = keys[reading_order(tap, keys)]
print(sum(float(block.sum()) for _, block in blocks(Rows([tap, tap], keys), size=500)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_memory_of_a_pass_does_not_grow_with_its_rows(tmp_path: Path) -> None:
    ones = np.ones((40_000, 256), dtype=np.float16)  # 20 MiB stored, 80 MiB as two taps in float32
    stored(tmp_path, ones, keys_of(40_000), "float16")
    peaks = []
    for rows in (1_000, 40_000):
        command = [sys.executable, "-c", PASS, str(tmp_path), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        total, peak = done.stdout.split()
        assert float(total) == 2 * 256 * rows
        peaks.append(int(peak) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 2**24
