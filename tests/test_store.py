"""The feature store: identities, keys, shards, the index, the cache that projects share, and reading it all back."""

import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backbones.spec import BackboneSpec, InputSpec, Tap, TapSpec
from pipeline.errors import StoreError
from pipeline.files import content_key, sha256_file
from pipeline.readers.image import ImageSpec
from pipeline.store import cache, index, shard
from pipeline.store import keys as key_arrays
from pipeline.store.cache import Column
from pipeline.store.features import Features
from pipeline.store.identity import address, differences, identity
from pipeline.store.shard import ShardRecord

# Keys of all kinds, many of them with the zero bytes at the end that NumPy likes to drop.
SIXTEEN = st.binary(min_size=16, max_size=16)
KEY = st.builds(lambda data, zeros: (data[: 16 - zeros] + bytes(zeros)).hex(), SIXTEEN, st.integers(0, 16))
KEYS = st.sets(KEY, max_size=20)


def key(number: int) -> str:
    """A key, as a sample of that number would have it."""
    return content_key(str(number).encode())


def rows_of(keys: Sequence[str], *, width: int = 3) -> np.ndarray:
    """Features that can be told apart: each row's values follow from its key."""
    return np.array([[int(k[:3], 16) + column / 8 for column in range(width)] for k in keys], dtype=np.float32)


def add(column: Column, numbers: Sequence[int]) -> ShardRecord:
    """Store the samples of some numbers as one shard."""
    keys = sorted(key(number) for number in numbers)
    return column.add(key_arrays.from_hex(keys), rows_of(keys), provenance={"engine": "test"})


def commit(
    folder: Path, records: Sequence[ShardRecord], *, samples: int, rejected: dict[str, str] | None = None
) -> None:
    """Write an index over shards that lie in the folder."""
    refused = [index.Rejected(key=k, reason=reason) for k, reason in (rejected or {}).items()]
    written = index.Index(
        address="0" * 64,
        identity={"node": "block1", "dtype": "float32"},
        shape=(3,),
        dtype="float32",
        samples=samples + len(refused),
        stored=samples,
        rejected=tuple(refused),
        shards=tuple(records),
    )
    index.write(folder, written)


def store(folder: Path, *parts: Sequence[int], rejected: dict[str, str] | None = None) -> Features:
    """A features folder with a shard a part."""
    records = []
    for numbers in parts:
        keys = sorted(key(number) for number in numbers)
        records.append(shard.write(folder, key_arrays.from_hex(keys), rows_of(keys), address="0" * 64))
    commit(folder, records, samples=len({number for part in parts for number in part}), rejected=rejected)
    return Features.open(folder)


def replace(path: Path, data: bytes) -> None:
    """Put other bytes in the place of a read-only file."""
    path.unlink()
    path.write_bytes(data)


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    replace(path, bytes(data))


# Identity -------------------------------------------------------------------------------------------------------------

TAP = TapSpec(node="block1", pool="mean")


def spec(**changes: Any) -> BackboneSpec:
    """What a backbone says of itself; some of it can be changed, the image's settings by their names."""
    image = {name: changes.pop(name) for name in ("mode", "resize", "crop", "interpolation") if name in changes}
    inputs = {
        "image": ImageSpec(**{"resize": 40, "crop": (32, 32)} | image),
        "mean": changes.pop("mean", (0.5, 0.5, 0.5)),
        "std": changes.pop("std", (0.2, 0.2, 0.2)),
    }
    return BackboneSpec(
        **{
            "architecture": {"family": "glyphs", "widths": [4, 8]},
            "origin": {"source": "pretrained"},
            "weights_digest": "ab" * 32,
            "input": InputSpec(**inputs),
            "taps": {"block1": Tap(shape=(4, 16, 16), layout="CHW")},
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "L"}, "reader.mode: expected 'RGB', got 'L'"),
        ({"resize": 41}, "reader.resize: expected 40, got 41"),
        ({"resize": (40, 40)}, "reader.resize: expected 40, got [40, 40]"),
        ({"crop": (32, 33)}, "reader.crop: expected [32, 32], got [32, 33]"),
        ({"interpolation": "bicubic"}, "reader.interpolation: expected 'bilinear', got 'bicubic'"),
        ({"mean": (0.5, 0.5, 0.4)}, "normalise.mean: expected [0.5, 0.5, 0.5], got [0.5, 0.5, 0.4]"),
        ({"std": (0.2, 0.2, 0.1)}, "normalise.std: expected [0.2, 0.2, 0.2], got [0.2, 0.2, 0.1]"),
        ({"weights_digest": "cd" * 32}, f"weights: expected '{'ab' * 32}', got '{'cd' * 32}'"),
        (
            {"architecture": {"family": "glyphs", "widths": [4, 9]}},
            "architecture.widths: expected [4, 8], got [4, 9]",
        ),
        (
            {"architecture": {"family": "glyphs", "widths": [4, 8], "image_size": 3}},
            "architecture.image_size: expected None, got 3",
        ),
    ],
)
def test_whatever_shapes_a_feature_changes_its_address_and_is_named(changes: dict[str, Any], said: str) -> None:
    before, after = identity(spec(), TAP), identity(spec(**changes), TAP)
    assert address(before) != address(after)
    assert differences(before, after) == [said]


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        (TapSpec(node="block2", pool="mean"), "node: expected 'block1', got 'block2'"),
        (TapSpec(node="block1", pool="max"), "pool: expected 'mean', got 'max'"),
        (TapSpec(node="block1", pool="mean", dtype="float32"), "dtype: expected 'float16', got 'float32'"),
    ],
)
def test_whatever_a_tap_keeps_changes_its_address_and_is_named(tap: TapSpec, said: str) -> None:
    before, after = identity(spec(), TAP), identity(spec(), tap)
    assert address(before) != address(after)
    assert differences(before, after) == [said]


def test_every_field_of_an_identity_counts() -> None:
    whole = identity(spec(), TAP)
    assert {"format", "precision", "reader", "weights"} <= set(whole)
    for field in whole:
        changed = whole | {field: "other"}
        assert address(changed) != address(whole)
        assert differences(whole, changed) == [f"{field}: expected {whole[field]!r}, got 'other'"]
    assert differences(whole, {"node": "block1"})[0].endswith("got None")


def test_what_shapes_no_value_is_not_in_the_identity() -> None:
    other = spec(origin={"source": "elsewhere"}, classes=("a",), taps={"x": Tap(shape=(1,))})
    assert identity(other, TAP) == identity(spec(), TAP)


def test_an_address_survives_json() -> None:
    whole = identity(spec(), TAP)
    assert address(json.loads(json.dumps(whole))) == address(whole)
    assert address(dict(reversed(whole.items()))) == address(whole)
    assert differences(whole, json.loads(json.dumps(whole))) == []


# Keys -----------------------------------------------------------------------------------------------------------------


@given(st.lists(KEY))
def test_keys_come_back_as_the_text_they_were(keys: list[str]) -> None:
    found = key_arrays.from_hex(keys)
    assert found.shape == (len(keys),)
    assert key_arrays.to_hex(found) == keys


@given(st.lists(KEY))
def test_keys_sort_as_their_text_does(keys: list[str]) -> None:
    assert key_arrays.to_hex(np.sort(key_arrays.from_hex(keys))) == sorted(keys)
    assert key_arrays.to_hex(np.unique(key_arrays.from_hex(keys))) == sorted(set(keys))


@given(KEYS, st.lists(KEY))
def test_finding_keys_is_what_a_dictionary_does(held: set[str], wanted: list[str]) -> None:
    wanted += sorted(held)[::2]
    places = {k: place for place, k in enumerate(sorted(held))}
    found = key_arrays.find(key_arrays.from_hex(sorted(held)), key_arrays.from_hex(wanted))
    assert found.dtype == np.int64
    assert found.tolist() == [places.get(k, -1) for k in wanted]


# Shards ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    keys=st.sets(KEY, min_size=1, max_size=9), dtype=st.sampled_from(["float16", "float32"]), width=st.integers(1, 4)
)
def test_a_shard_gives_back_what_was_written(keys: set[str], dtype: str, width: int) -> None:
    ordered = sorted(keys)
    features = rows_of(ordered, width=width).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        record = shard.write(Path(folder), key_arrays.from_hex(ordered), features, address="a")
        path = shard.path_of(Path(folder), record.name)
        shard.verify(path, record)
        assert key_arrays.to_hex(shard.read_keys(path)) == ordered
        found = shard.read_rows(path, np.arange(len(ordered)))
        assert found.dtype == np.dtype(dtype)
        assert np.array_equal(found, features)
        assert (record.rows, record.first, record.last) == (len(ordered), ordered[0], ordered[-1])
        assert (record.name, record.bytes) == (sha256_file(path), path.stat().st_size)


@pytest.mark.parametrize("rows", [[3], [0, 39], list(range(0, 40, 2)), list(range(40))])
def test_few_rows_and_many_rows_of_a_shard_are_the_same_rows(tmp_path: Path, rows: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(40, 2, 3)).astype(np.float32)
    record = shard.write(tmp_path, key_arrays.from_hex(sorted(map(key, range(40)))), features, address="a")
    found = shard.read_rows(shard.path_of(tmp_path, record.name), np.array(rows))
    assert np.array_equal(found, features[rows])


def test_equal_rows_give_equal_bytes_and_one_file(tmp_path: Path) -> None:
    keys = key_arrays.from_hex(sorted(map(key, range(5))))
    features = np.arange(15, dtype=np.float16).reshape(5, 3)
    one = shard.write(tmp_path / "one", keys, features, address="a")
    two = shard.write(tmp_path / "two", keys, np.asfortranarray(features), address="a")
    assert one == two
    path = shard.path_of(tmp_path / "one", one.name)
    assert path.read_bytes() == shard.path_of(tmp_path / "two", two.name).read_bytes()
    assert shard.write(tmp_path / "one", keys, features, address="a") == one
    assert list((tmp_path / "one").iterdir()) == [path]
    assert shard.write(tmp_path, keys, features, address="b").name != one.name
    assert shard.write(tmp_path, keys, features + 1, address="a").name != one.name
    assert path.stat().st_mode & 0o222 == 0


def test_a_shard_says_whose_it_is(tmp_path: Path) -> None:
    record = shard.write(tmp_path, key_arrays.from_hex([key(1)]), np.ones((1, 2), np.float16), address="ab12")
    with h5py.File(shard.path_of(tmp_path, record.name)) as file:
        assert dict(file.attrs) == {"format": 1, "identity": "ab12"}
        assert file["features"].chunks is None


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e5])
def test_an_overflow_is_refused_by_its_key_before_it_is_stored(tmp_path: Path, bad: float) -> None:
    keys = sorted(map(key, range(4)))
    features = np.ones((4, 2, 2), np.float32)
    features[2, 0, 1] = bad
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    message = rf"1 of 4 rows have values that float16 cannot hold .*first of key {keys[2]}. Store .* `dtype: float32`"
    with pytest.raises(StoreError, match=message):
        shard.write(tmp_path / "s", key_arrays.from_hex(keys), half, address="a")
    assert not (tmp_path / "s").exists()


def test_a_network_that_gives_no_numbers_is_not_told_to_use_float32(tmp_path: Path) -> None:
    features = np.full((1, 2), np.nan, np.float32)
    with pytest.raises(StoreError, match=r"float32 cannot hold .* The network itself gives them: look at its weights"):
        shard.write(tmp_path, key_arrays.from_hex([key(0)]), features, address="a")


def test_the_largest_number_of_float16_is_stored(tmp_path: Path) -> None:
    features = np.array([[65504.0, -65504.0]], np.float16)
    record = shard.write(tmp_path, key_arrays.from_hex([key(0)]), features, address="a")
    assert np.array_equal(shard.read_rows(shard.path_of(tmp_path, record.name), np.array([0])), features)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, ShardRecord]:
    """A shard and its record."""
    keys = sorted(map(key, range(20)))
    record = shard.write(tmp_path / "s", key_arrays.from_hex(keys), rows_of(keys), address="a")
    return shard.path_of(tmp_path / "s", record.name), record


def test_a_missing_shard_is_named(written: tuple[Path, ShardRecord]) -> None:
    path, record = written
    path.unlink()
    with pytest.raises(
        StoreError, match=rf"{path}: the shard is missing. Remove the file and run the extraction again"
    ):
        shard.verify(path, record)


def test_a_shard_of_another_size_is_named_with_both_sizes(written: tuple[Path, ShardRecord]) -> None:
    path, record = written
    replace(path, path.read_bytes()[:-1])
    with pytest.raises(
        StoreError, match=rf"expected {record.bytes:,} bytes, got {record.bytes - 1:,}. Remove the file"
    ):
        shard.verify(path, record)


@pytest.mark.parametrize("place", [0, 700, -1])
def test_one_flipped_bit_in_a_shard_is_found(written: tuple[Path, ShardRecord], place: int) -> None:
    path, record = written
    flip(path, place)
    with pytest.raises(
        StoreError, match=rf"expected SHA-256 {record.name}, got \w{{64}}: the shard is damaged. Remove"
    ):
        shard.verify(path, record)


# The index ------------------------------------------------------------------------------------------------------------


def test_an_index_whose_rows_do_not_add_up_is_not_committed(tmp_path: Path) -> None:
    store(tmp_path, [1, 2], rejected={key(3): "damaged"})
    whole = index.read(tmp_path)
    (tmp_path / "index.json").unlink()
    message = r"4 samples were asked for, but 2 are stored and 1 rejected. Nothing was committed"
    with pytest.raises(StoreError, match=message):
        index.write(tmp_path, whole.model_copy(update={"samples": 4}))
    assert not (tmp_path / "index.json").exists()


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store(tmp_path, [1, 2], [3], rejected={key(4): "damaged"})
    whole = index.read(tmp_path)
    assert (whole.samples, whole.stored, whole.shape, whole.dtype) == (4, 3, (3,), "float32")
    assert [(item.key, item.reason) for item in whole.rejected] == [(key(4), "damaged")]
    index.write(tmp_path / "again", whole)
    assert (tmp_path / "again/index.json").read_bytes() == (tmp_path / "index.json").read_bytes()


def test_a_folder_without_an_index_has_not_been_finished(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no features there \(index.json is missing: the extraction has not finished\)"
    ):
        index.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "address": "a"}', "\x00\xff"])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(StoreError, match=r"index.json: not an index that this version of icecore can read"):
        index.read(tmp_path)


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    store(tmp_path, [1])
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match=r"index.json: expected format 1, got 2. Update icecore, or extract again"):
        Features.open(tmp_path)


# The cache ------------------------------------------------------------------------------------------------------------

IDENTITY = {"node": "block1", "dtype": "float32"}


def cached_keys(column: Column) -> list[str]:
    """All keys of a column, sorted."""
    return sorted({k for record in column.records() for k in key_arrays.to_hex(column.keys(record))})


def test_a_column_lies_under_the_address_of_its_identity(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    assert column.folder == tmp_path / "v1" / address(IDENTITY)
    assert column.address == address(IDENTITY)
    assert json.loads((column.folder / "identity.json").read_text()) == IDENTITY
    assert column.records() == []
    assert cache.column(tmp_path, {**IDENTITY, "node": "block2"}).folder != column.folder


def test_the_cache_lies_where_icecore_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "here"))
    assert cache.default_root() == tmp_path / "here"
    monkeypatch.setenv("ICECORE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_root().name == "icecore"


def test_added_rows_are_there_for_whoever_opens_the_column_next(tmp_path: Path) -> None:
    records = [add(cache.column(tmp_path, IDENTITY), numbers) for numbers in ([1, 2, 3], [4], [2, 5])]
    column = cache.column(tmp_path, IDENTITY)
    assert column.records() == sorted(records, key=lambda record: record.name)
    assert cached_keys(column) == sorted(map(key, range(1, 6)))
    for record in records:
        shard.verify(column.path_of(record), record)
        told = json.loads((column.folder / f"{record.name}.json").read_text())
        assert told["provenance"] == {"engine": "test"}


def test_adding_the_same_rows_again_changes_nothing(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    assert add(column, [1, 2]) == add(column, [1, 2])
    assert len(column.records()) == 1


def test_a_shard_without_a_record_and_a_record_without_a_shard_do_not_exist(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    one, two, three = add(column, [1]), add(column, [2]), add(column, [3])
    (column.folder / f"{one.name}.json").unlink()
    column.path_of(two).unlink()
    assert column.records() == [three]
    assert add(column, [1]) == one
    assert add(column, [2]) == two
    assert len(column.records()) == 3


def test_a_shard_that_does_not_fit_its_record_is_refused(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    record = add(column, [1, 2])
    replace(column.path_of(record), b"short")
    with pytest.raises(StoreError, match=rf"expected {record.bytes:,} bytes, got 5. Remove the file and run"):
        column.keys(record)
    column.path_of(record).unlink()
    with pytest.raises(StoreError, match="the shard is missing"):
        column.keys(record)


@settings(deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True), max_size=5),
    wanted=st.sets(st.integers(0, 15)),
)
def test_covering_chooses_shards_that_together_hold_all_that_can_be_had(
    parts: list[list[int]], wanted: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        column = cache.column(Path(root), IDENTITY)
        for numbers in parts:
            add(column, numbers)
        sought = sorted(map(key, wanted))
        chosen, held = cache.covering(column, key_arrays.from_hex(sought))
        stored = {key(number) for part in parts for number in part}
        assert held.tolist() == [k in stored for k in sought]
        covered: set[str] = set()
        for record in chosen:
            new = set(key_arrays.to_hex(column.keys(record))) & set(sought) - covered
            assert new, "each shard is needed for at least one key"
            covered |= new
        assert covered == stored & set(sought)


def test_rejected_keys_are_remembered_with_their_reasons(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    assert column.rejected() == {}
    column.reject({})
    assert not (column.folder / "rejected").exists()
    column.reject({key(1): "truncated", key(2): "no image"})
    column.reject({key(3): "empty file"})
    column.reject({key(1): "truncated", key(2): "no image"})
    expected = {key(1): "truncated", key(2): "no image", key(3): "empty file"}
    assert cache.column(tmp_path, IDENTITY).rejected() == expected
    assert len(list((column.folder / "rejected").iterdir())) == 2
    assert column.records() == []


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("not a folder")
    with pytest.raises(
        StoreError, match=r"file: the feature cache cannot be written: .*\. Set ICECORE_CACHE to a folder"
    ):
        cache.column(root, IDENTITY)


def test_an_identity_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    path = cache.column(tmp_path, IDENTITY).folder / "identity.json"
    path.write_text(json.dumps(IDENTITY | {"node": "block9"}))
    message = r"identity.json: the identity does not fit its address. node: expected 'block1', got 'block9'"
    with pytest.raises(StoreError, match=message):
        cache.column(tmp_path, IDENTITY)


def test_damaged_notes_in_the_cache_are_named_and_can_be_removed(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    record = add(column, [1])
    column.reject({key(2): "truncated"})
    for path in (
        column.folder / "identity.json",
        column.folder / f"{record.name}.json",
        *(column.folder / "rejected").iterdir(),
    ):
        path.write_text("{")
        with pytest.raises(StoreError, match=rf"{path}: expected JSON: .*The file is damaged: remove it and run again"):
            (cache.column(tmp_path, IDENTITY).records(), column.rejected())
        path.unlink()
    assert cache.column(tmp_path, IDENTITY).records() == []
    assert column.rejected() == {}


def add_many(root: Path, first: int) -> None:
    """Add overlapping blocks of rows to one column, and reject a few keys."""
    column = cache.column(root, IDENTITY)
    for start in range(first, first + 60, 3):
        add(column, range(start, start + 5))
        column.reject({key(1000 + start): "damaged"})


def test_two_processes_that_add_at_once_do_no_harm(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=add_many, args=(tmp_path, first)) for first in (0, 30)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    column = cache.column(tmp_path, IDENTITY)
    assert len(column.records()) == 30
    assert cached_keys(column) == sorted(map(key, range(92)))
    assert len(column.rejected()) == 30
    for record in column.records():
        shard.verify(column.path_of(record), record)
    assert [path for path in column.folder.rglob("*") if path.name.endswith(".tmp")] == []


# Features -------------------------------------------------------------------------------------------------------------

NUMBERS = range(24)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """24 samples in four shards, one of them large and two with rows in common."""
    return store(tmp_path_factory.mktemp("features"), range(3), range(3, 20), range(18, 23), [23])


@given(st.lists(st.sampled_from([key(number) for number in NUMBERS])))
def test_rows_come_in_the_order_that_was_asked_for_with_repeats(features: Features, keys: list[str]) -> None:
    found = features.load(keys)
    assert found.dtype == np.float32
    assert np.array_equal(found, rows_of(keys).reshape(-1, 3))


def test_features_say_what_they_hold(features: Features) -> None:
    assert len(features) == 24
    assert features.keys == sorted(map(key, NUMBERS))
    assert features.shape == (3,)
    assert features.dtype == np.float32
    assert features.identity == {"node": "block1", "dtype": "float32"}


def test_of_rows_that_two_shards_hold_the_first_shard_serves(tmp_path: Path) -> None:
    keys = key_arrays.from_hex(sorted([key(1), key(2)]))
    records = [
        shard.write(tmp_path, keys, np.full((2, 3), value, np.float32), address="0" * 64) for value in (1.0, 2.0)
    ]
    for order in (records, records[::-1]):
        commit(tmp_path, order, samples=2)
        expected = 1.0 + records.index(order[0])
        assert np.array_equal(Features.open(tmp_path).load([key(1), key(2)]), np.full((2, 3), expected))


def test_missing_keys_are_counted_and_known_reasons_given(tmp_path: Path) -> None:
    rejected = {key(8): "damaged image: cut", key(9): "empty file"}
    found = store(tmp_path, [1, 2], rejected=rejected)
    with pytest.raises(StoreError) as caught:
        found.load([key(1), key(9), key(2), key(8), key(7)])
    assert str(caught.value) == (
        f"{tmp_path}: 3 of the keys asked for have no features, the first is {key(9)}. Some were rejected: damaged "
        "image: cut; empty file. Extract the data set they belong to (`datasets` of the extraction), or leave them out "
        "of the task."
    )
    with pytest.raises(StoreError, match=rf"1 of the keys asked for have no features, the first is {key(7)}. Extract"):
        found.load([key(7)])


def test_a_store_without_rows_can_be_opened(tmp_path: Path) -> None:
    found = store(tmp_path, rejected={key(1): "empty file"})
    assert len(found) == 0
    assert found.keys == []
    assert found.load([]).shape == (0, 3)
    with pytest.raises(StoreError, match=r"1 of the keys asked for have no features.* Some were rejected: empty file"):
        found.load([key(1)])


def test_no_keys_are_no_rows(features: Features) -> None:
    assert features.load([]).shape == (0, 3)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_refused_when_the_store_is_opened(tmp_path: Path, damage: str) -> None:
    record = store(tmp_path, [1, 2], [3]).index.shards[1]
    path = shard.path_of(tmp_path, record.name)
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        replace(path, path.read_bytes()[:100])
    else:
        path.unlink()
    says = {"flipped": "the shard is damaged", "cut": "bytes, got 100", "gone": "the shard is missing"}
    with pytest.raises(StoreError, match=rf"{path}: .*{says[damage]}.*run the extraction again"):
        Features.open(tmp_path)


def test_a_store_without_an_index_is_refused(tmp_path: Path) -> None:
    store(tmp_path, [1])
    (tmp_path / "index.json").unlink()
    with pytest.raises(StoreError, match="the extraction has not finished"):
        Features.open(tmp_path)
