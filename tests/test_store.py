"""The feature store: identities, keys, shards, the index, the cache that projects share, and reading it all back."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import shards
from support.worker_tasks import read_by_data_loader

from pipeline.backbones.spec import BackboneSpec, InputSpec, Tap, TapSpec
from pipeline.errors import ConfigError, StoreError
from pipeline.files import digest, scratch, sha256_file, temporary_path
from pipeline.readers.image import ImageSpec
from pipeline.readers.sample_key import content_key
from pipeline.store import cache, index, key_arrays, location, maintenance, shard_reader
from pipeline.store.cache import CacheEntry
from pipeline.store.dtypes import ON_DISK, Stored, encode
from pipeline.store.export import export
from pipeline.store.features import Features
from pipeline.store.identity import address, differences, identity
from pipeline.store.shard_format import FORMAT, Layout, ShardRecord, path_of
from pipeline.store.shard_reader import Shard
from pipeline.store.use import hold

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


def add(column: CacheEntry, numbers: Sequence[int]) -> ShardRecord:
    """Store the samples of some numbers as one shard."""
    keys = sorted(key(number) for number in numbers)
    return shards.add(column, key_arrays.from_hex(keys), rows_of(keys), provenance={"engine": "test"})


def layout(stored: Stored = "float32", shape: tuple[int, ...] = (3,)) -> Layout:
    """What rows of a nameless column look like."""
    return Layout("0" * 64, stored, shape)


def write(folder: Path, keys: Sequence[str], rows: np.ndarray, stored: Stored = "float32") -> ShardRecord:
    """Write a shard; the keys are sorted hex text."""
    return shards.write(folder, key_arrays.from_hex(keys), rows, layout(stored, rows.shape[1:]))


def opened(folder: Path, record: ShardRecord, kind: Layout, **options: bool) -> Shard:
    """Open a shard of a folder."""
    return Shard(path_of(folder, record.name), record, kind, **options)


def commit(
    folder: Path,
    records: Sequence[ShardRecord],
    keys: Sequence[Sequence[str]],
    kind: Layout,
    *,
    wanted: Sequence[str] | None = None,
    rejected: dict[str, str] | None = None,
    identity: dict[str, str] | None = None,
) -> Features:
    """Commit a features folder of some shards, by default with all their rows, and open it."""
    arrays = [key_arrays.from_hex(own) for own in keys]
    every = sorted({*itertools.chain(*keys), *(rejected or {})}) if wanted is None else wanted
    index.commit(
        folder,
        identity=identity or {},
        layout=kind,
        shards=records,
        keys=arrays,
        wanted=key_arrays.from_hex(every),
        rejected=rejected or {},
    )
    return Features.open(folder)


def store(folder: Path, *parts: Sequence[int], rejected: dict[str, str] | None = None) -> Features:
    """A features folder with a shard a part."""
    keys = [sorted(key(number) for number in numbers) for numbers in parts]
    records = [write(folder, own, rows_of(own)) for own in keys]
    return commit(folder, records, keys, layout(), rejected=rejected, identity={"node": "block1", "dtype": "float32"})


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


@pytest.mark.parametrize(
    ("architecture", "tap", "precision", "expected"),
    [
        (None, TAP, "float32", "2f356ec36add7d8f40e2fc5f27625b080bb7a65f9fe4528f315c5e3eb38e2761"),
        (
            None,
            TapSpec(node="block2", dtype="float32"),
            "bfloat16",
            "1f98285bad70ffd38c61e3ce843a2714a63e0709053c01574e6feedc699ceb81",
        ),
        (
            {"family": "torchvision", "name": "vgg16", "image_size": None},
            TapSpec(node="block1", pool="max", dtype="int8"),
            "float32",
            "33e4acaa1eb3f4a64b7308345fd38fa852a70923619ff0d282a547169139101a",
        ),
    ],
)
def test_features_that_were_stored_before_modules_moved_keep_their_addresses(
    architecture: dict[str, Any] | None, tap: TapSpec, precision: str, expected: str
) -> None:
    changes = {} if architecture is None else {"architecture": architecture}
    assert address(identity(spec(**changes), tap, precision=precision)) == expected


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


@given(KEYS, st.lists(KEY), st.sampled_from([1, 3, key_arrays.LOOKUP_BLOCK]))
def test_finding_keys_is_what_a_dictionary_does(held: set[str], wanted: list[str], together: int) -> None:
    wanted += sorted(held)[::2]
    places = {k: place for place, k in enumerate(sorted(held))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_arrays, "LOOKUP_BLOCK", together)
        found = key_arrays.find(key_arrays.from_hex(sorted(held)), key_arrays.from_hex(wanted))
    assert found.dtype == np.int64
    assert found.tolist() == [places.get(k, -1) for k in wanted]


# Shards ---------------------------------------------------------------------------------------------------------------


SHAPES = st.sampled_from([(1,), (3,), (2, 3), (2, 5, 5)])


@settings(deadline=None)
@given(keys=st.sets(KEY, min_size=1, max_size=9), shape=SHAPES, stored=st.sampled_from(sorted(ON_DISK)))
def test_a_shard_gives_back_what_was_written(keys: set[str], shape: tuple[int, ...], stored: Stored) -> None:
    ordered = sorted(keys)
    rows = np.random.default_rng(len(keys)).normal(size=(len(ordered), *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = write(folder, ordered, rows, stored)
        path = path_of(folder, record.name)
        assert (record.name, record.bytes) == (sha256_file(path), path.stat().st_size)
        assert (record.rows, record.first, record.last) == (len(ordered), ordered[0], ordered[-1])
        found = opened(folder, record, layout(stored, shape))
        assert key_arrays.to_hex(found.keys) == ordered
        off = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}.get(stored)
        whole = found.read(0, len(ordered))
        if off is None:  # int8: half a step of each channel
            axes = tuple(axis for axis in range(rows.ndim) if axis != 1)
            step = np.abs(rows).max(axis=axes, keepdims=True) / 127
            assert (np.abs(whole - rows) <= step * 0.501).all()
        else:
            assert np.allclose(whole, rows, rtol=off, atol=1e-7)
        for number in range(len(ordered)):
            assert np.array_equal(found.rows(np.array([number])), whole[number : number + 1])
            assert np.array_equal(found.read(number, number + 1), whole[number : number + 1])


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    import torch

    rows = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32) * np.float32(1e5)
    expected = torch.from_numpy(rows).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(encode(rows, "bfloat16").values, expected)


@pytest.mark.parametrize("shape", [(300,), (3000,), (4, 90, 90)])
@pytest.mark.parametrize("rows", [[3], [0, 39], list(range(0, 40, 2)), list(range(40)), [5, 4, 4, 39, 0]])
def test_few_rows_and_many_rows_of_a_shard_are_the_same_rows(
    tmp_path: Path, rows: list[int], shape: tuple[int, ...]
) -> None:
    features = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    record = write(tmp_path, sorted(map(key, range(40))), features)
    found = opened(tmp_path, record, layout(shape=shape))
    assert np.array_equal(found.rows(np.array(rows)), features[rows])
    for start, stop in [(0, 40), (0, 1), (7, 33), (39, 40)]:
        assert np.array_equal(found.read(start, stop), features[start:stop])


def test_equal_rows_give_equal_bytes_and_one_file(tmp_path: Path) -> None:
    keys = sorted(map(key, range(5)))
    features = np.arange(15, dtype=np.float32).reshape(5, 3)
    one = write(tmp_path / "one", keys, features)
    two = write(tmp_path / "two", keys, np.asfortranarray(features))
    assert one == two
    path = path_of(tmp_path / "one", one.name)
    assert path.read_bytes() == path_of(tmp_path / "two", two.name).read_bytes()
    assert write(tmp_path / "one", keys, features) == one
    assert list((tmp_path / "one").iterdir()) == [path]
    assert write(tmp_path, keys, features + 1).name != one.name
    assert path.stat().st_mode & 0o222 == 0


def test_the_time_is_not_in_the_bytes(tmp_path: Path) -> None:
    keys, shapes = sorted(map(key, range(5))), [(3,), (3, 4, 4)]
    before = [write(tmp_path, keys, np.ones((5, *shape), np.float32)).name for shape in shapes]
    time.sleep(1.1)  # HDF5 keeps whole seconds
    assert [write(tmp_path, keys, np.ones((5, *shape), np.float32)).name for shape in shapes] == before


@pytest.mark.parametrize("shape", [(2,), (2, 4, 4)])
def test_hdf5_reads_what_is_written_and_says_whose_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    features = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    record = write(tmp_path, sorted(map(key, range(3))), features, "float16")
    with h5py.File(path_of(tmp_path, record.name)) as file:
        kind = layout("float16", shape)
        expected = {"format": FORMAT, "identity": "0" * 64, "dtype": "float16", "block_rows": kind.block_rows}
        assert dict(file.attrs) == expected
        assert file["features"].dtype == np.float16
        assert file["features"].shape == (3, *shape)
        if len(shape) == 1:
            assert np.array_equal(file["features"][:], features.astype(np.float16))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e5])
def test_an_overflow_is_refused_by_its_key_before_it_is_stored(tmp_path: Path, bad: float) -> None:
    keys = sorted(map(key, range(4)))
    features = np.ones((4, 2, 2), np.float32)
    features[2, 0, 1] = bad
    message = rf"1 of 4 rows have values that float16 cannot hold .*first key is {keys[2]}. Store .* `float32`"
    with pytest.raises(StoreError, match=message):
        write(tmp_path / "s", keys, features, "float16")
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_a_network_that_gives_no_numbers_is_not_told_to_use_float32(tmp_path: Path, stored: Stored) -> None:
    features = np.array([[1, 2], [np.nan, 1]], np.float32)
    message = rf"1 of 2 rows .*{stored} cannot hold .* The network computes such values: check its weights"
    with pytest.raises(StoreError, match=message):
        write(tmp_path, sorted(map(key, range(2))), features, stored)


def test_the_largest_number_of_float16_is_stored(tmp_path: Path) -> None:
    features = np.array([[65504.0, -65504.0]], np.float32)
    record = write(tmp_path, [key(0)], features, "float16")
    assert np.array_equal(opened(tmp_path, record, layout("float16", (2,))).read(0, 1), features)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, ShardRecord]:
    """A shard and its record."""
    keys = sorted(map(key, range(20)))
    record = write(tmp_path / "s", keys, rows_of(keys))
    return path_of(tmp_path / "s", record.name), record


def test_a_missing_shard_is_named(written: tuple[Path, ShardRecord]) -> None:
    path, record = written
    path.unlink()
    with pytest.raises(StoreError, match=rf"{path}: the shard is missing. Run `icecore cache repair`"):
        shard_reader.verify(path, record)


def test_a_shard_of_another_size_is_named_with_both_sizes(written: tuple[Path, ShardRecord]) -> None:
    path, record = written
    replace(path, path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"expected {record.bytes:,} bytes, got {record.bytes - 1:,}. Run"):
        shard_reader.verify(path, record, whole=False)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found_when_a_shard_is_opened(
    written: tuple[Path, ShardRecord], place: float, bit: int
) -> None:
    path, record = written
    before = path.read_bytes()
    data = bytearray(before)
    data[int(place * len(data))] ^= 1 << bit
    replace(path, bytes(data))
    with pytest.raises(StoreError, match=rf"expected SHA-256 {record.name}, got \w{{64}}: the shard is damaged"):
        Shard(path, record, layout())
    replace(path, before)


def end_of_rows(path: Path) -> int:
    """Where the last row of a shard ends in its file."""
    with h5py.File(path) as file:
        rows = file["features"]
        if rows.chunks is None:
            return int(rows.id.get_offset() + rows.nbytes)
        last = rows.id.get_chunk_info(rows.id.get_num_chunks() - 1)
        return int(last.byte_offset + last.size)


@pytest.mark.parametrize("shape", [(300,), (3000,), (4, 90, 90)])
def test_rows_that_change_under_an_open_shard_are_found_when_they_are_read(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    features = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    record = write(tmp_path, sorted(map(key, range(40))), features)
    path = path_of(tmp_path, record.name)
    checking, unchecked = (opened(tmp_path, record, layout(shape=shape), check=c) for c in (True, False))
    data = bytearray(path.read_bytes())
    data[end_of_rows(path) - 20] ^= 1
    replace(path, bytes(data))
    assert np.array_equal(checking.read(0, 3), features[:3])
    for read in (lambda s: s.read(0, 40), lambda s: s.rows(np.array([39]))):
        with pytest.raises(StoreError, match=r"rows [\d,]+ to 39 are damaged: .*Run `icecore cache repair`"):
            read(checking)
    if not layout(shape=shape).chunked:
        assert not np.array_equal(unchecked.read(0, 40), features)


def hostile(path: Path, kind: str, secret: Path) -> None:
    """Write a file that looks like a shard of two rows, and has one thing in it that a shard never has."""
    features, keys = np.ones((2, 3), "<f4"), np.zeros((2, 16), "|u1")
    with h5py.File(path, "w") as file:
        file["keys"] = keys
        file["checksums"] = np.zeros(1, "<u8")
        if kind == "external link":
            file["features"] = h5py.ExternalLink(str(secret), "features")
        elif kind == "soft link":
            file["features"] = h5py.SoftLink("/keys")
        elif kind == "external storage":
            file.create_dataset("features", (2, 3), "<f4", external=[(str(secret), 0, 24)])
        elif kind == "virtual":
            source = h5py.VirtualLayout((2, 3), "<f4")
            source[:] = h5py.VirtualSource(str(secret), "features", (2, 3))
            file.create_virtual_dataset("features", source)
        elif kind == "object":
            file.create_dataset("features", (2, 3), h5py.ref_dtype)
        elif kind == "variable length":
            file.create_dataset("features", (2, 3), h5py.string_dtype())
        elif kind == "filter":
            file.create_dataset("features", data=features, compression="gzip")
        elif kind == "bomb":
            file.create_dataset("features", (2**25, 1024), "<f4", chunks=(1024, 1024), compression="gzip")
        elif kind == "group":
            file.create_group("features")
        elif kind == "never written":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
            h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 3)), plist)
        else:
            file["features"] = features
            file["more"] = features


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("external link", "/features is a ExternalLink"),
        ("soft link", "/features is a SoftLink"),
        ("external storage", "/features takes its data from other files"),
        ("virtual", "/features takes its data from other files"),
        ("object", r"expected \(2, 3\) of <f4, got \(2, 3\) of \|O"),
        ("variable length", r"expected \(2, 3\) of <f4, got \(2, 3\) of \|O"),
        ("filter", "/features is chunked or filtered"),
        ("bomb", r"expected \(2, 3\) of <f4, got \(33554432, 1024\)"),
        ("group", "/features is a Group"),
        ("never written", "/features does not lie inside the file"),
        ("more", "expected checksums, features, keys in it, got checksums, features, keys, more"),
    ],
)
def test_whatever_a_shard_has_no_use_for_is_refused(tmp_path: Path, kind: str, why: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.full((2, 3), 7, "<f4")
    path = tmp_path / "hostile.h5"
    hostile(path, kind, secret)
    record = ShardRecord(sha256_file(path), 2, path.stat().st_size, key(0), key(1))
    with pytest.raises(StoreError, match=rf"not a shard of icecore: .*{why}.* Nothing was read from it"):
        Shard(path, record, layout())


@pytest.mark.parametrize("data", [b"", b"text", b"\x89HDF\r\n\x1a\n" + bytes(90)])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign.h5"
    path.write_bytes(data)
    record = ShardRecord(sha256_file(path), 2, len(data), key(0), key(1))
    with pytest.raises(StoreError, match="not a shard of icecore: HDF5 cannot read it"):
        Shard(path, record, layout())


def test_a_map_of_another_chunk_or_a_frame_that_is_no_frame_is_refused(tmp_path: Path) -> None:
    rows = np.ones((2, 3, 4), np.float32)
    record = write(tmp_path, sorted([key(0), key(1)]), rows)
    path = path_of(tmp_path, record.name)
    with h5py.File(path) as file:
        info = file["features"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[info.byte_offset : info.byte_offset + 4] = b"nope"
    replace(path, bytes(data))
    fitting = ShardRecord(sha256_file(path), 2, record.bytes, record.first, record.last)
    with pytest.raises(StoreError, match=r"rows 0 to 1 are damaged"):
        Shard(path, fitting, layout(shape=(3, 4))).read(0, 2)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["keys"], file["checksums"] = np.zeros((2, 16), "|u1"), np.zeros(1, "<u8")
        file.create_dataset("features", data=rows, chunks=(1, 3, 4))
    other = tmp_path / "other.h5"
    plain = ShardRecord(sha256_file(other), 2, other.stat().st_size, key(0), key(1))
    with pytest.raises(StoreError, match=r"chunks \(1, 3, 4\), filters \[\]"):
        Shard(other, plain, layout(shape=(3, 4)))


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    message = r"no space left for a shard of up to [\d,]+ bytes: [\d,]+ are free, \d+ are missing. All finished"
    with pytest.raises(StoreError, match=message):
        write(tmp_path, [key(0)], np.ones((1, 3), np.float32))
    assert list(tmp_path.iterdir()) == []


# The index ------------------------------------------------------------------------------------------------------------


def test_an_index_whose_rows_do_not_add_up_is_not_committed(tmp_path: Path) -> None:
    own = sorted([key(1), key(2)])
    record = write(tmp_path, own, rows_of(own))
    message = r"4 samples were requested, but 2 are stored and 1 rejected. Nothing was committed"
    with pytest.raises(StoreError, match=message):
        commit(
            tmp_path,
            [record],
            [own],
            layout(),
            wanted=sorted(map(key, range(1, 5))),
            rejected={key(3): "damaged"},
        )
    assert not (tmp_path / "index.json").exists()


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store(tmp_path / "one", [1, 2], [3], rejected={key(4): "damaged"})
    store(tmp_path / "two", [1, 2], [3], rejected={key(4): "damaged"})
    whole = index.read(tmp_path / "one")
    assert (whole.samples, whole.stored, whole.shape, whole.dtype) == (4, 3, (3,), "float32")
    assert [(item.key, item.reason) for item in whole.rejected] == [(key(4), "damaged")]
    for name in ("index.json", whole.rows.name):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_contents_of_a_folder_are_which_samples_have_which_features_whatever_shards_they_lie_in(
    tmp_path: Path,
) -> None:
    store(tmp_path / "one", [1, 2], [3], rejected={key(4): "damaged"})
    whole = index.contents(tmp_path / "one")
    others = {
        "one shard": ([1, 2, 3], {key(4): "damaged"}),
        "another sample": ([1, 2, 5], {key(4): "damaged"}),
        "another reason": ([1, 2, 3], {key(4): "empty"}),
        "none rejected": ([1, 2, 3], {}),
    }
    found = {}
    for name, (numbers, rejected) in others.items():
        store(tmp_path / name, numbers, rejected=rejected)
        found[name] = index.contents(tmp_path / name)
    assert found.pop("one shard") == whole
    assert index.read(tmp_path / "one").shards != index.read(tmp_path / "one shard").shards
    assert len({whole, *found.values()}) == 4


def test_a_commit_removes_what_it_does_not_name_and_nothing_else(tmp_path: Path) -> None:
    before = store(tmp_path, [1, 2], [3])
    (tmp_path / "note.txt").touch()
    after = store(tmp_path, [3], [4])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.json", "note.txt", after.index.rows.name, *(f"{s.name}.h5" for s in after.index.shards)}
    assert before.index.rows.name not in names


def test_a_folder_without_an_index_has_not_been_finished(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not features \(index.json is missing: the extraction has not finished\)"):
        index.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": "a"}', "\x00\xff"])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(StoreError, match=r"index.json: damaged: not an index"):
        index.read(tmp_path)


@pytest.mark.parametrize(("version", "remedy"), [(1, "Run the extraction again"), (index.FORMAT + 1, "Update icecore")])
def test_an_index_of_another_format_is_refused(tmp_path: Path, version: int, remedy: str) -> None:
    store(tmp_path, [1])
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace(f'"format": {index.FORMAT}', f'"format": {version}'))
    with pytest.raises(StoreError, match=rf"index.json: expected format {index.FORMAT}, got {version}. {remedy}"):
        Features.open(tmp_path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["index.json", "rows"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 6))
def test_a_flipped_bit_in_an_index_is_found_unless_it_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("index")
    store(folder, [1, 2], [3], rejected={key(4): "damaged"})
    whole = index.read(folder)
    name = name if name == index.NAME else whole.rows.name
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    replace(folder / name, bytes(data))
    try:
        found = Features.open(folder).index
    except StoreError as error:
        message = str(error)
    else:
        message, found = name, None if found != whole else found  # white space may change, and nothing else
        assert found is not None
    assert name in message


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    store(tmp_path, [1])
    path = tmp_path / "index.json"
    values = json.loads(path.read_text())
    values.pop("digest")
    path.write_text(json.dumps({**values, "stored": 2, "digest": digest(values | {"stored": 2})}))
    with pytest.raises(StoreError, match=r"rows-.*npy: expected uint64 \(3, 2\), got uint64 \(3, 1\)"):
        Features.open(tmp_path)
    values["shards"] = "none"
    path.write_text(json.dumps({**values, "digest": digest(values)}))
    with pytest.raises(StoreError, match=r"index.json: not an index of this version of icecore"):
        Features.open(tmp_path)
    other = store(tmp_path / "other", [1])
    (tmp_path / "other" / other.index.rows.name).unlink()
    with pytest.raises(StoreError, match=r"rows-.*npy: the table of rows is missing"):
        Features.open(tmp_path / "other")


# The cache ------------------------------------------------------------------------------------------------------------

IDENTITY = {"node": "block1", "dtype": "float32"}


def cached_keys(column: CacheEntry) -> list[str]:
    """All keys of a column, sorted."""
    return sorted({k for record in column.records() for k in key_arrays.to_hex(column.keys(record))})


def test_a_column_lies_under_the_address_of_its_identity(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    assert column.folder == tmp_path / "v2" / address(IDENTITY)
    assert column.address == address(IDENTITY)
    assert column.records() == []
    assert not column.folder.exists()
    add(column, [1])
    assert json.loads((column.folder / "identity.json").read_text()) == IDENTITY
    assert cache.column(tmp_path, {**IDENTITY, "node": "block2"}).folder != column.folder


def test_the_cache_lies_where_icecore_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "here"))
    assert location.default_root() == tmp_path / "here"
    monkeypatch.setenv("ICECORE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert location.default_root().name == "icecore"


def test_a_project_may_say_where_its_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / location.CONFIG
    config.parent.mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    config.write_text("cache: ./.cache\n")
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "here"))
    assert location.default_root() == tmp_path / "here"
    monkeypatch.delenv("ICECORE_CACHE")
    assert location.default_root() == tmp_path / ".cache"
    config.write_text("cache: /shared/features\n")
    assert location.default_root() == Path("/shared/features")
    for wrong in ("cache: 3", "cache: ''", "cach: .cache", "{}", "{cache: a, size: 3}"):
        config.write_text(wrong)
        with pytest.raises(ConfigError, match=r"\.icecore/config: expected a line such as `cache: \.cache`, got \{"):
            location.default_root()


def test_added_rows_are_there_for_whoever_opens_the_column_next(tmp_path: Path) -> None:
    records = [add(cache.column(tmp_path, IDENTITY), numbers) for numbers in ([1, 2, 3], [4], [2, 5])]
    column = cache.column(tmp_path, IDENTITY)
    assert column.records() == sorted(records, key=lambda record: record.name)
    assert cached_keys(column) == sorted(map(key, range(1, 6)))
    for record in records:
        shard_reader.verify(column.path_of(record), record)
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
    with pytest.raises(StoreError, match=rf"expected {record.bytes:,} bytes, got 5. Run `icecore cache repair`"):
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
        chosen, own, held = cache.shards_for_keys(column, key_arrays.from_hex(sought))
        stored = {key(number) for part in parts for number in part}
        assert held.tolist() == [k in stored for k in sought]
        covered: set[str] = set()
        for record, keys in zip(chosen, own, strict=True):
            assert np.array_equal(keys, column.keys(record))
            new = set(key_arrays.to_hex(keys)) & set(sought) - covered
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
        StoreError, match=r"file: the feature cache cannot be written: .*\. Set ICECORE_CACHE to a writable folder"
    ):
        add(cache.column(root, IDENTITY), [1])


def test_an_identity_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    add(cache.column(tmp_path, IDENTITY), [1])
    path = cache.column(tmp_path, IDENTITY).folder / "identity.json"
    path.write_text(json.dumps(IDENTITY | {"node": "block9"}))
    message = r"identity.json: the identity does not fit its address. node: expected 'block1', got 'block9'"
    with pytest.raises(StoreError, match=message):
        cache.column(tmp_path, IDENTITY)


def test_what_can_give_no_features_is_known_in_the_instant_of_the_rows_that_were_tried_with_it(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    keys = sorted([key(1), key(2)])
    record = shards.add(column, key_arrays.from_hex(keys), rows_of(keys), provenance={}, rejected={key(3): "truncated"})
    column.reject({key(4): "empty file"})
    assert column.rejected() == {key(3): "truncated", key(4): "empty file"}
    column.drop(record)
    assert column.rejected() == {key(4): "empty file"}


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
        shard_reader.verify(column.path_of(record), record)
    assert [path for path in column.folder.rglob("*") if path.name.endswith(".tmp")] == []


def test_damage_is_found_and_what_is_dropped_is_gone_while_the_rest_stays(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    good, flipped, cut, unkeyed = (add(column, [number]) for number in range(4))
    flip(column.path_of(flipped))
    replace(column.path_of(cut), b"short")
    (column.folder / f"{unkeyed.name}.keys").write_bytes(b"other")
    assert {record.name for record, _ in maintenance.find_damage(column, whole=False)} == {cut.name, unkeyed.name}
    found = {record.name: problem for record, problem in maintenance.find_damage(column, whole=True)}
    assert found.keys() == {flipped.name, cut.name, unkeyed.name}
    assert "the shard is damaged" in found[flipped.name]
    assert "its digest is not the digest in the shard's record" in found[unkeyed.name]
    for record in (flipped, cut, unkeyed):
        column.drop(record)
    assert column.records() == [good]
    assert add(column, [1]) == flipped


def test_what_a_killed_writer_left_is_swept_and_a_live_one_is_let_be(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    add(column, [1])
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with scratch(column.folder, "shard") as live:
        live.write_bytes(b"half")
        dead = column.folder / live.name.replace(f".{os.getpid()}.", f".{process.pid}.")
        elsewhere = column.folder / f".shard.0badhost.{process.pid}.00000000.tmp"
        for path in (dead, elsewhere):
            path.write_bytes(b"half")
        assert maintenance.remove_stale_files(column) == 1
        assert live.exists()
        assert elsewhere.exists()
        os.utime(elsewhere, (0, 0))
        assert maintenance.remove_stale_files(column) == 1
        assert not elsewhere.exists()


def test_pruning_leaves_what_a_running_job_holds(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    training = tmp_path / "training" / "one"
    with hold(column.folder), hold(training):
        add(column, [1])
        assert maintenance.prune(tmp_path, unused_for=0, max_bytes=0, address=column.address, now=1e11) == []
        assert len(column.records()) == 1
    removed = maintenance.prune(tmp_path, unused_for=0, now=1e11)
    assert {entry.path for entry in removed} == {column.folder, training}
    assert not column.folder.exists()
    assert not training.exists()


def test_pruning_removes_what_was_not_used_and_then_what_was_used_longest_ago(tmp_path: Path) -> None:
    columns = [cache.column(tmp_path, IDENTITY | {"node": f"block{number}"}) for number in range(4)]
    for number, column in enumerate(columns):
        add(column, [1, 2])
        column.touch()
        os.utime(column.folder / "used", (1000 * number, 1000 * number))
    assert [column.last_used() for column in columns] == [0, 1000, 2000, 3000]
    one = maintenance.size(columns[0])
    assert maintenance.prune(tmp_path, now=3000.0) == []
    assert [entry.column for entry in maintenance.prune(tmp_path, unused_for=2500, now=3000.0)] == [columns[0]]
    assert [entry.column for entry in maintenance.prune(tmp_path, max_bytes=one, now=3000.0)] == columns[1:3]
    assert list(cache.columns(tmp_path)) == [columns[3]]
    with pytest.raises(StoreError, match="expected a column whose address begins with 'zz', got none"):
        maintenance.prune(tmp_path, address="zz", now=3000.0)
    assert [entry.column for entry in maintenance.prune(tmp_path, address=columns[3].address[:8], now=0.0)] == [
        columns[3]
    ]


def test_pruning_goes_through_every_folder_and_leaves_what_was_used_within_the_hour(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    add(column, [1, 2])
    for number, folder in enumerate(maintenance.FOLDERS):
        for name, used in (("old", 1000 + number), ("new", 9000)):
            path = tmp_path / folder / name / "file" if number % 2 else tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(100))
            for one in (path, path.parent) if number % 2 else (path,):
                os.utime(one, (used, used))
    column.touch()
    os.utime(column.folder / "used", (9000, 9000))
    there = maintenance.entries(tmp_path)
    assert [entry.folder for entry in there[: len(maintenance.FOLDERS)]] == list(maintenance.FOLDERS)
    assert sum(entry.bytes for entry in there) == 200 * len(maintenance.FOLDERS) + maintenance.size(column)
    # What a prune that was killed had put aside, of this version and the one before, is no column and goes.
    for aside in (temporary_path(tmp_path / "v2", "a" * 64), tmp_path / "v2" / f".{column.address}.removed"):
        shutil.copytree(column.folder, aside)
    (tmp_path / "v2" / temporary_path(tmp_path, "b").name.replace(str(os.getpid()), "999999999")).mkdir()
    (tmp_path / "v2" / ".x.tmp").touch()  # somebody else's
    removed = maintenance.prune(tmp_path, max_bytes=0, now=9100.0)
    assert {entry.folder for entry in removed} == {*maintenance.FOLDERS, "v2"}
    assert {path.name for folder in maintenance.FOLDERS for path in (tmp_path / folder).iterdir()} == {"new"}
    assert not (tmp_path / "v2" / f".{column.address}.removed").exists()
    assert not list(cache.columns(tmp_path))
    assert maintenance.prune(tmp_path, unused_for=50, now=9100.0) != []
    assert [path for folder in maintenance.FOLDERS for path in (tmp_path / folder).iterdir()] == []


@pytest.mark.parametrize(("text", "size"), [("200GB", 200 * 10**9), ("1MiB", 2**20), ("12", 12)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert maintenance.parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("12h", 43_200), ("30d", 2_592_000), ("1w", 604_800)])
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert maintenance.parse_duration(text) == seconds


def test_what_is_no_size_or_duration_is_refused() -> None:
    with pytest.raises(StoreError, match=r"'much': expected a size such as 500MB"):
        maintenance.parse_size("much")
    with pytest.raises(StoreError, match=r"'30': expected hours, days or weeks such as 12h"):
        maintenance.parse_duration("30")


def test_the_table_of_rows_is_what_numpy_would_save(tmp_path: Path) -> None:
    wanted = np.sort(np.frombuffer(np.random.default_rng(0).bytes(16 * 7), key_arrays.DTYPE))
    layout = Layout("0" * 64, "float16", (1,))
    shards = [ShardRecord(f"{number:064x}", 3, 1, "0" * 32, "f" * 32) for number in range(2)]
    parts, rejected = [wanted[[0, 2, 4]], wanted[[5, 2, 6]]], dict.fromkeys(key_arrays.to_hex(wanted[[1, 3]]), "cut")
    made = index.commit(
        tmp_path, identity={}, layout=layout, shards=shards, keys=parts, wanted=wanted, rejected=rejected
    )
    places = np.array([0, 1, 2, 1 << 32, 1 << 32 | 2], dtype="<u8")  # of a key in two shards the first counts
    table = np.stack([*key_arrays.split_uint64(wanted[[0, 2, 4, 5, 6]]), places])
    np.save(tmp_path / "expected.npy", table)
    assert (tmp_path / made.rows.name).read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_thousands_of_shards_are_committed_in_seconds(tmp_path: Path) -> None:
    wanted = np.sort(np.frombuffer(np.random.default_rng(0).bytes(16 * 1_000_000), key_arrays.DTYPE))
    parts = np.array_split(wanted, 5_000)
    shards = [ShardRecord(f"{number:064x}", len(part), 1, "0" * 32, "f" * 32) for number, part in enumerate(parts)]
    layout, begun = Layout("0" * 64, "float16", (1,)), time.monotonic()
    made = index.commit(tmp_path, identity={}, layout=layout, shards=shards, keys=parts, wanted=wanted, rejected={})
    assert made.stored == len(wanted)
    assert time.monotonic() - begun < 30  # a second or two; minutes would be all samples for each shard


# Each writer is a process of its own, forked from one that has the libraries: sixty times their import would take long.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pipeline.store.cache", "pipeline.store.maintenance"])


def writer(root: Path, first: int) -> tuple[BaseProcess, Connection]:
    """A process that adds eight shards to a column, and where it says that it begins."""
    ready, tell = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=shards.add_eight, args=(root, first, tell))
    process.start()
    tell.close()
    return process, ready


def whole_writer(root: Path) -> None:
    """Let one add all eight."""
    process, ready = writer(root, 0)
    process.join()
    ready.close()
    assert process.exitcode == 0


def stored(root: Path) -> dict[str, bytes]:
    """Every file of a cache."""
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "used"}


def test_killed_writers_lose_nothing_and_leave_nothing_behind(tmp_path: Path) -> None:
    whole_writer(tmp_path / "whole")
    whole = stored(tmp_path / "whole")
    assert len(whole) == 1 + 3 * 8
    random = np.random.default_rng(0)
    for seed in range(10):
        root = tmp_path / f"killed-{seed}"
        kept: set[str] = set()
        for turn in range(3):  # three kills, the first of one of three writers: 30 in all
            writers = [writer(root, 3 * number) for number in range(3 if turn == 0 else 1)]
            killed, ready = writers[0]
            assert ready.recv()
            time.sleep(random.uniform(0, 0.03))
            killed.kill()
            for process, ready in writers:
                process.join()
                ready.close()
            now = {record.name for record in cache.column(root, IDENTITY).records()}
            assert kept <= now, "what was committed stays"
            kept = now
        whole_writer(root)
        assert stored(root) == whole


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
    keys = sorted([key(1), key(2)])
    records = [write(tmp_path, keys, np.full((2, 3), value, np.float32)) for value in (1.0, 2.0)]
    for order in (records, records[::-1]):
        expected = 1.0 + records.index(order[0])
        found = commit(tmp_path, order, [keys, keys], layout())
        assert np.array_equal(found.load([key(1), key(2)]), np.full((2, 3), expected))


def test_missing_keys_are_counted_and_known_reasons_given(tmp_path: Path) -> None:
    rejected = {key(8): "damaged image: cut", key(9): "empty file"}
    found = store(tmp_path, [1, 2], rejected=rejected)
    with pytest.raises(StoreError) as caught:
        found.load([key(1), key(9), key(2), key(8), key(7)])
    assert str(caught.value) == (
        f"{tmp_path}: 3 of the requested keys have no features; the first is {key(9)}. Some were rejected: damaged "
        "image: cut; empty file. Extract their data set (`datasets` of the extraction), or exclude them from the task."
    )
    with pytest.raises(StoreError, match=rf"1 of the requested keys have no features; the first is {key(7)}. Extract"):
        found.load([key(7)])


def test_a_store_without_rows_can_be_opened(tmp_path: Path) -> None:
    found = store(tmp_path, rejected={key(1): "empty file"})
    assert len(found) == 0
    assert found.keys == []
    assert found.load([]).shape == (0, 3)
    with pytest.raises(StoreError, match=r"1 of the requested keys have no features.* Some were rejected: empty file"):
        found.load([key(1)])


def test_no_keys_are_no_rows(features: Features) -> None:
    assert features.load([]).shape == (0, 3)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_refused_when_its_rows_are_read(tmp_path: Path, damage: str) -> None:
    record = store(tmp_path, [1, 2], [3]).index.shards[1]
    path = path_of(tmp_path, record.name)
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        replace(path, path.read_bytes()[:100])
    else:
        path.unlink()
    says = {"flipped": "the shard is damaged", "cut": "bytes, got 100", "gone": "the shard is missing"}
    found = Features.open(tmp_path)
    assert np.array_equal(found.load([key(1)]), rows_of([key(1)]))
    with pytest.raises(StoreError, match=rf"{path}: .*{says[damage]}.*Run `icecore cache repair`"):
        found.load([key(3)])


def test_a_store_without_an_index_is_refused(tmp_path: Path) -> None:
    store(tmp_path, [1])
    (tmp_path / "index.json").unlink()
    with pytest.raises(StoreError, match="the extraction has not finished"):
        Features.open(tmp_path)


def test_rows_that_were_not_asked_for_are_not_there(tmp_path: Path) -> None:
    own = sorted(map(key, range(6)))
    record = write(tmp_path, own, rows_of(own))
    found = commit(tmp_path, [record], [own], layout(), wanted=own[1::2])
    assert found.keys == own[1::2]
    assert np.array_equal(found.load(), rows_of(own[1::2]))
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        found.load(own[:1])


@given(size=st.integers(1, 9), some=st.sets(st.sampled_from(list(NUMBERS))))
def test_batches_give_every_row_once_with_its_key(features: Features, size: int, some: set[int]) -> None:
    keys = sorted(map(key, some)) or None
    batches = list(features.batches(size, keys=keys))
    assert [len(rows) for _, rows in batches[:-1]] == [size] * (len(batches) - 1)
    seen = [k for own, _ in batches for k in key_arrays.to_hex(own)]
    assert seen == (keys or features.keys)
    assert np.array_equal(np.concatenate([rows for _, rows in batches]), rows_of(seen))


def test_many_shards_take_few_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "MAPS", 4)
    found = store(tmp_path, *([number] for number in range(40)))
    keys = [key(number) for number in reversed(range(40))]

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = descriptors()
    for _ in range(2):  # one by one, which maps the shards; the second time those that gave their maps back
        assert np.array_equal(found.load(keys), rows_of(keys))
        assert descriptors() <= before + 4
    assert np.array_equal(np.concatenate([rows for _, rows in found.batches(7)]), rows_of(found.keys))
    assert descriptors() <= before + 4


def test_features_go_to_other_processes_and_other_libraries(features: Features, tmp_path: Path) -> None:
    import pickle

    import pyarrow.parquet as pq

    copy = pickle.loads(pickle.dumps(features))  # noqa: S301 - what DataLoader does with its own objects
    assert np.array_equal(copy.load(), features.load())
    assert np.array_equal(features.to_torch().numpy(), features.load())
    assert export(features, tmp_path / "f.parquet") == 24
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["key"].to_pylist() == features.keys
    assert np.array_equal(np.array(table["features"].to_pylist()), features.load())


def test_a_subset_is_a_store_of_its_rows_alone(features: Features, tmp_path: Path) -> None:
    import pickle

    some = [key(number) for number in (21, 3, 4, 3, 19)]
    subset = features.subset(some)
    assert (len(subset), len(features)) == (4, 24)
    assert subset.keys == sorted(set(some))
    copy = pickle.loads(pickle.dumps(subset))  # noqa: S301 - what DataLoader does with its own objects
    for view in (subset, copy):
        assert np.array_equal(view.load(), rows_of(subset.keys))
        assert np.array_equal(view.load(some), rows_of(some))
        seen = [k for own, _ in view.batches(3) for k in key_arrays.to_hex(own)]
        assert seen == subset.keys
    assert export(subset, tmp_path / "f.parquet") == 4
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        subset.load([key(5)])
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        features.subset([key(1000)])
    assert len(features.subset([])) == 0


EXPORTED = ["f.parquet", "f.npy", "f.f32"]


def exported(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys and rows of an export, each read with what its readers would use."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return table["key"].to_pylist(), np.array(table["features"].to_pylist(), dtype=np.float32)
    keys = Path(f"{path}.keys.txt").read_text().splitlines()
    if path.suffix == ".npy":
        return keys, np.load(path, mmap_mode="r", allow_pickle=False)
    said = json.loads(Path(f"{path}.json").read_text())
    return keys, np.memmap(path, said["dtype"], "r", shape=(said["rows"], said["dimensions"]))


@pytest.mark.parametrize("name", EXPORTED)
def test_every_export_has_all_rows_in_the_order_of_the_keys(
    features: Features, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.features.EXPORT_BYTES", 5 * 12)  # five rows a block
    assert [len(keys) for keys, _ in features.blocks()] == [5, 5, 5, 5, 4]
    assert export(features, tmp_path / name) == 24
    keys, rows = exported(tmp_path / name)
    assert keys == sorted(keys) == features.keys
    assert rows.dtype == np.float32
    assert np.array_equal(rows, features.load())
    some = features.subset(features.keys[3:9])
    assert export(some, tmp_path / name) == 6  # in the place of the first
    keys, rows = exported(tmp_path / name)
    assert keys == some.keys
    assert np.array_equal(rows, some.load())
    assert export(features.subset([]), tmp_path / f"none-{name}") == 0
    if name != "f.f32":  # an empty file cannot be mapped
        assert exported(tmp_path / f"none-{name}")[0] == []


def test_maps_are_exported_flat_and_half_precision_stays_so_in_npy(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float16)
    keys = sorted(map(key, range(3)))
    record, identity = write(tmp_path, keys, rows, "float16"), {"node": "block1"}
    found = commit(tmp_path, [record], [keys], layout("float16", (2, 4, 4)), identity=identity)
    for name in EXPORTED:
        export(found, tmp_path / name)
        assert np.array_equal(exported(tmp_path / name)[1], rows.reshape(3, 32)), name
    assert exported(tmp_path / "f.npy")[1].dtype == np.float16
    said = json.loads((tmp_path / "f.f32.json").read_text())
    assert said == {"rows": 3, "dimensions": 32, "dtype": "<f4", "identity": identity}
    assert (tmp_path / "f.f32").stat().st_size == 3 * 32 * 4


@pytest.mark.parametrize("name", EXPORTED)
def test_an_interrupted_export_leaves_no_file_under_its_name(
    features: Features, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.features.EXPORT_BYTES", 12)
    read = Features._range

    def interrupted(self: Features, start: int, stop: int) -> np.ndarray:
        if start == 20:
            raise KeyboardInterrupt
        return read(self, start, stop)

    monkeypatch.setattr(Features, "_range", interrupted)
    (tmp_path / "exports").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(features, tmp_path / "exports" / name)
    assert list((tmp_path / "exports").iterdir()) == []


def test_an_export_of_another_kind_names_those_there_are(features: Features, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"f.csv: expected a name that ends in .parquet, .npy, .f32, got '.csv'"):
        export(features, tmp_path / "f.csv")
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_a_data_loader_read_the_same_rows(features: Features, start: str, workers: int) -> None:
    # In a process of its own: this one has threads of other tests, which a fork would leave in the middle of things.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(read_by_data_loader, features.folder, start, workers).result()
    assert np.array_equal(found, features.load())


def test_bfloat16_stays_bfloat16_in_torch(tmp_path: Path) -> None:
    import torch

    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    keys = sorted(map(key, range(3)))
    record = write(tmp_path, keys, rows, "bfloat16")
    found = commit(tmp_path, [record], [keys], layout("bfloat16", (4,)))
    assert found.dtype == np.float32
    assert torch.equal(found.to_torch(), torch.from_numpy(rows).to(torch.bfloat16))
