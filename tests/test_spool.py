"""The writer of a column: rows that come in batches make the shard that all of them together would have made."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shards

from pipeline.errors import StoreError
from pipeline.readers.sample_key import content_key
from pipeline.store import cache, key_arrays
from pipeline.store.cache import CacheEntry
from pipeline.store.dtypes import ON_DISK, Stored
from pipeline.store.row_buffer import row_bytes
from pipeline.store.shard_reader import Shard

SIXTEEN = st.binary(min_size=16, max_size=16)
KEY = st.builds(lambda data, zeros: (data[: 16 - zeros] + bytes(zeros)).hex(), SIXTEEN, st.integers(0, 16))
# The last two have rows wider than a block, and than what is spooled together; a chunk of the last has three rows.
SHAPES = [(1,), (3,), (2, 3), (2, 5, 5), (3_000,), (3, 300, 290)]


def column_in(folder: Path, dtype: Stored = "float32") -> CacheEntry:
    """A column that does not exist yet."""
    return cache.column(folder, {"node": "block1", "dtype": dtype})


def keys_of(*numbers: int) -> np.ndarray:
    """The keys of the samples of some numbers, in their order."""
    return key_arrays.from_hex(content_key(str(number).encode()) for number in numbers)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, temporary ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def batches(keys: np.ndarray, values: np.ndarray, cuts: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys and rows, cut at some places; a batch may be empty."""
    yield from zip(np.split(keys, sorted(cuts)), np.split(values, sorted(cuts)), strict=True)


@settings(deadline=None)
@given(
    keys=st.lists(KEY, unique=True, min_size=1, max_size=12),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(sorted(ON_DISK)),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    order=st.sampled_from(["sorted", "reversed", "as they come"]),
    seed=st.integers(0, 9),
)
def test_batches_make_the_shard_that_one_of_the_sorted_rows_makes(
    keys: list[str], shape: tuple[int, ...], dtype: Stored, cuts: list[int], order: str, seed: int
) -> None:
    came = {"sorted": sorted(keys), "reversed": sorted(keys)[::-1], "as they come": keys}[order]
    rows = np.random.default_rng(seed).normal(size=(len(keys), *shape), scale=10**seed / 1e3).astype(np.float32)
    rows[rows > 60_000] = 0  # float16 holds no more
    rows[rows < -60_000] = 0
    own, told = key_arrays.from_hex(came), {"provenance": {"engine": "test"}, "rejected": {"00" * 16: "cut"}}
    with tempfile.TemporaryDirectory() as name:
        together, apart = (column_in(Path(name) / side, dtype) for side in ("together", "apart"))
        by_key = np.argsort(own)
        expected = shards.add(together, own[by_key], rows[by_key], **told)
        with apart.writer(shape) as writer:
            for some, values in batches(own, rows, cuts):
                writer.append(some, values)
            assert writer.finish(**told) == expected
            assert files_of(apart.folder) == files_of(together.folder)


@pytest.mark.parametrize("shape", [(700,), (4, 90, 90)])
@pytest.mark.parametrize("dtype", sorted(ON_DISK))
def test_many_rows_in_a_wild_order_make_the_same_shard(tmp_path: Path, dtype: Stored, shape: tuple[int, ...]) -> None:
    count = 3_000 if len(shape) == 1 else 90  # several pieces, blocks and chunks
    random = np.random.default_rng(0)
    keys = np.frombuffer(random.bytes(16 * count), key_arrays.DTYPE)
    keys = np.concatenate([np.sort(keys[: count // 2]), keys[count // 2 :]])
    rows = random.normal(size=(count, *shape)).astype(np.float32)
    order = np.argsort(keys)
    expected = shards.add(column_in(tmp_path / "together", dtype), keys[order], rows[order], provenance={})
    apart = column_in(tmp_path / "apart", dtype)
    with apart.writer(shape) as writer:
        for some, values in batches(keys, rows, list(range(7, count, count // 5))):
            writer.append(some, values)
        record = writer.finish(provenance={})
    assert record == expected
    assert files_of(apart.folder) == files_of(tmp_path / "together" / "v2" / apart.address)
    opened = Shard(apart.path_of(expected), expected, apart.layout(shape))
    assert np.array_equal(opened.keys, keys[order])


def test_the_arrays_of_a_batch_may_be_used_again(tmp_path: Path) -> None:
    keys, values = keys_of(1, 2).copy(), np.empty((2, 3), np.float32)
    column = column_in(tmp_path)
    with column.writer((3,)) as writer:
        for number in range(3):
            keys[:], values[:] = keys_of(2 * number, 2 * number + 1), number
            writer.append(keys, values)
        keys[:], values[:] = keys_of(100, 101), np.nan
        record = writer.finish(provenance={})
    assert record is not None
    found = Shard(column.path_of(record), record, column.layout((3,)))
    assert sorted(found.read(0, 6)[:, 0].tolist()) == [0, 0, 1, 1, 2, 2]
    assert sorted(key_arrays.to_hex(found.keys)) == sorted(key_arrays.to_hex(keys_of(*range(6))))


@pytest.mark.parametrize("dtype", sorted(ON_DISK))
def test_a_spool_takes_the_bytes_that_are_counted_for_its_rows(tmp_path: Path, dtype: Stored) -> None:
    column = column_in(tmp_path, dtype)
    with column.writer((2, 3)) as writer:
        writer.append(keys_of(1, 2, 3), np.ones((3, 2, 3), np.float32))
        writer.append(keys_of(4), np.ones((1, 2, 3), np.float32))
        [spooled] = column.folder.glob(".spool.*.tmp")
        assert spooled.stat().st_size == 4 * row_bytes(column.layout((2, 3)))


def test_a_finished_writer_is_empty_and_may_go_on_with_another_shard(tmp_path: Path) -> None:
    column = column_in(tmp_path)
    with column.writer((1,)) as writer:
        for number in (1, 2):
            writer.append(keys_of(number), np.ones((1, 1), np.float32))
            assert writer.finish(provenance={}) is not None
            assert not [name for name in files_of(tmp_path) if name.endswith(".tmp")]
        assert writer.finish(provenance={}) is None
    assert len(column.records()) == 2


def test_a_writer_without_rows_stores_nothing_but_what_is_rejected(tmp_path: Path) -> None:
    column = column_in(tmp_path)
    with column.writer((3,)) as writer:
        writer.append(keys_of(), np.empty((0, 3), np.float32))
        assert writer.finish(provenance={}) is None
        assert not column.folder.exists()
        assert writer.finish(provenance={}, rejected={"ab" * 16: "truncated"}) is None
    assert column.records() == []
    assert column.rejected() == {"ab" * 16: "truncated"}


@pytest.mark.parametrize("why", ["not finished", "interrupted"])
def test_a_writer_that_does_not_finish_leaves_no_file(tmp_path: Path, why: str) -> None:
    column = column_in(tmp_path)
    try:
        with column.writer((3,)) as writer:
            writer.append(keys_of(1), np.ones((1, 3), np.float32))
            assert [name.split("/")[-1].split(".")[1] for name in files_of(tmp_path) if name.endswith("tmp")] == [
                "spool"
            ]
            if why == "interrupted":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert why == "interrupted"
    assert [path.name for path in column.folder.iterdir()] == ["identity.json"]


def test_batches_may_come_from_other_threads(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    keys = np.sort(keys_of(*range(20)))
    expected = shards.add(column_in(tmp_path / "together"), keys, rows, provenance={})
    with column_in(tmp_path / "apart").writer((3,)) as writer:
        for start in range(0, 20, 5):
            with ThreadPoolExecutor(1) as other:
                other.submit(writer.append, keys[start : start + 5], rows[start : start + 5]).result()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lambda: writer.finish(provenance={})).result() == expected


@pytest.mark.parametrize(
    ("dtype", "bad", "remedy"),
    [("float16", 1e5, "Store this tap as `dtype: bfloat16` or `float32`."), ("int8", np.nan, "The network computes")],
)
def test_a_value_that_cannot_be_stored_is_refused_when_it_comes(
    tmp_path: Path, dtype: Stored, bad: float, remedy: str
) -> None:
    column, keys = column_in(tmp_path, dtype), keys_of(1, 2, 3)
    rows = np.ones((3, 2), np.float32)
    rows[1, 1] = bad
    with column.writer((2,)) as writer:
        writer.append(keys_of(4), rows[:1])
        name = key_arrays.to_hex(keys)[1]
        message = rf"1 of 3 rows have values that {dtype} cannot hold .*the first key is {name}\. {remedy}"
        with pytest.raises(StoreError, match=message):
            writer.append(keys, rows)
        record = writer.finish(provenance={})  # whoever goes on has what came before, and no part of that batch
    assert record is not None
    assert key_arrays.to_hex(column.keys(record)) == key_arrays.to_hex(keys_of(4))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    column = column_in(tmp_path)
    with column.writer((1,)) as writer:
        for numbers in [(1, 2), (3, 2)]:
            writer.append(keys_of(*numbers), np.ones((2, 1), np.float32))
        name = key_arrays.to_hex(keys_of(2))[0]
        message = rf"expected rows of different keys, got 1 of 4 twice; the first key is {name}\. Append each key once"
        with pytest.raises(StoreError, match=message):
            writer.finish(provenance={})
    assert column.records() == []


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2,), (2, 3, 1)])
def test_rows_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with (
        column_in(tmp_path).writer((3,)) as writer,
        pytest.raises(
            StoreError, match=r"expected rows of shape \(2, 3\), got \(.*\)\. Append a row per key, of the sh"
        ),
    ):
        writer.append(keys_of(1, 2), np.ones(shape, np.float32))


@pytest.mark.parametrize("damage", ["flipped", "cut"])
@pytest.mark.parametrize("shape", [(300,), (2, 20, 20)])
def test_rows_that_are_damaged_before_they_are_a_shard_are_not_stored(
    tmp_path: Path, damage: str, shape: tuple[int, ...]
) -> None:
    column = column_in(tmp_path)
    with column.writer(shape) as writer:
        writer.append(keys_of(*range(50)), np.ones((50, *shape), np.float32))
        (path,) = column.folder.glob(".spool.*")
        data = bytearray(path.read_bytes())
        data[17_000] ^= 1
        path.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:17_000]))
        with pytest.raises(StoreError, match=r"\.spool\..*: buffered rows .* were damaged.* Nothing was st"):
            writer.finish(provenance={})
    assert [path.name for path in column.folder.iterdir()] == ["identity.json"]


MEMORY = """
import sys, pathlib
import numpy as np
from pipeline.store import cache

column = cache.column(pathlib.Path(sys.argv[1]), {"node": "block1", "dtype": sys.argv[2]})
shape, batches = tuple(map(int, sys.argv[3].split("x"))), int(sys.argv[4])
random = np.random.default_rng(0)
values = random.normal(size=(2**19 // int(np.prod(shape)), *shape)).astype(np.float32)
with column.writer(shape) as writer:
    for _ in range(batches):
        writer.append(np.frombuffer(random.bytes(16 * len(values)), "S16"), values)
    record = writer.finish(provenance={})
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(record.rows * int(np.prod(shape)), peak / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process took")
@pytest.mark.parametrize(("dtype", "shape"), [("float16", "2048"), ("int8", "2048"), ("float16", "16x32x32")])
def test_memory_does_not_grow_with_the_rows_of_a_shard(tmp_path: Path, dtype: str, shape: str) -> None:
    def peak(count: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"{count}"), dtype, shape, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
        values, megabytes = done.stdout.split()
        assert int(values) == count * 2**19
        return float(megabytes)

    few, many = peak(12), peak(112)  # in batches of 2 MiB: 100 of them more are 200 MiB
    assert many - few < 16
