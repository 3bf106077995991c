"""Training samples: every sample once an epoch, in an order and with pixels or rows that seed, epoch and key decide."""

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support import shards

from pipeline.backbones import glyphs
from pipeline.errors import DataError, StoreError
from pipeline.extract.commit import commit
from pipeline.loading import image_cache as pixels_module
from pipeline.loading.image_cache import Pixels, load_pixels
from pipeline.loading.samples import Samples as Stored
from pipeline.loading.samples import read_samples, reading_order
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.augment import Views
from pipeline.readers.transforms import AugmentConfig
from pipeline.runtime import Reporter
from pipeline.store import cache, key_arrays
from pipeline.store.features import Features
from pipeline.training import data as module
from pipeline.training.data import Batch, FeatureSamples, PixelSamples, Samples, _batches, batch_count, view_of_epoch

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]
TRANSFORMS = TypeAdapter(AugmentConfig).validate_python([{"name": "random_crop"}, {"name": "horizontal_flip"}])


def keys_of(count: int) -> np.ndarray:
    found = np.random.default_rng(count).integers(1, 256, (count, 16), dtype=np.uint8).view("S16").reshape(-1)
    return np.sort(found)


def of_pixels(count: int = 30, *, transforms: AugmentConfig = (), views: Views | None = None) -> PixelSamples:
    """Samples of random pixels, their targets numbered, their keys in no order."""
    random = np.random.default_rng(0)
    keys = keys_of(count)
    pixels = Pixels(keys, random.integers(0, 256, (count, 12, 12, 1), dtype=np.uint8))
    order = random.permutation(count)
    return PixelSamples(pixels, torch.from_numpy(order), keys[order], seed=3, transforms=transforms, views=views)


def write_features(
    folder: Path, keys: np.ndarray, values: np.ndarray, *, dtype: str = "float32", view: int | None = None
) -> Features:
    """Features of some keys, sorted, in several shards."""
    reader = {"reader": "image", **({} if view is None else {"view": {"number": view}})}
    column = cache.column(folder.parent / "cache", {"node": "x", "dtype": dtype, "reader": reader})
    for part in np.array_split(np.arange(len(keys)), 3):
        shards.add(column, keys[part], values[part].astype(np.float32), provenance={})
    commit(folder, column, keys, values.shape[1:], {})
    return Features.open(folder)


def of_features(root: Path, count: int = 60, views: int = 1, *, width: tuple[int, ...] = (4, 3)) -> FeatureSamples:
    """Rows that say their place and their view; keys in no order."""
    keys = keys_of(count)
    stored = []
    for view in range(views):
        values = np.zeros((count, *width))
        values[:, 0] = np.arange(count).reshape(-1, *[1] * (len(width) - 1))
        values[:, 1] = view
        stored.append(write_features(root / f"view{view}", keys, values, view=view))
    order = np.random.default_rng(1).permutation(count)
    return FeatureSamples(stored, torch.from_numpy(order), keys[order], seed=3)


@pytest.fixture
def samples(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Each kind of samples."""
    if request.param == "pixels":
        return of_pixels(60, transforms=TRANSFORMS)
    if request.param == "windows":
        monkeypatch.setattr(module, "IN_MEMORY", 0)
        monkeypatch.setattr(module, "WINDOW_BYTES", 20 * 48)
        monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 48)
    return of_features(tmp_path, views=2)


def targets(batches: Sequence[Batch]) -> list[int]:
    return [int(target) for batch in batches for target in batch.targets]


# Orders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", ["pixels", "held", "windows"], indirect=True)
@pytest.mark.parametrize("size", [1, 7, 16, 59, 100])
def test_every_sample_comes_once_with_its_own_target_and_key(samples: Samples, size: int) -> None:
    known = keys_of(60)
    for epoch in (None, 0, 5):
        batches = list(samples.batches(size, epoch=epoch))
        sizes = [size] * (60 // size) + [60 % size] * bool(60 % size)
        assert [len(batch.keys) for batch in batches] == ([60] if size == 59 else sizes)
        assert sorted(targets(batches)) == list(range(60))
        for batch in batches:
            assert (known[batch.targets.numpy()] == batch.keys).all()
            assert batch.inputs.shape == (len(batch.keys), *samples.shape)


@pytest.mark.parametrize("samples", ["pixels", "held", "windows"], indirect=True)
def test_an_order_follows_from_seed_and_epoch_and_none_is_that_of_the_keys(samples: Samples) -> None:
    first = targets(list(samples.batches(8, epoch=4)))
    list(samples.batches(8, epoch=7))
    assert targets(list(samples.batches(8, epoch=4))) == first
    assert targets(list(samples.batches(8, epoch=5))) != first
    plain = list(samples.batches(8))
    assert (np.concatenate([batch.keys for batch in plain]) == samples.keys).all()  # type: ignore[attr-defined]
    assert targets(plain) != sorted(targets(plain))


@pytest.mark.parametrize("samples", ["pixels", "held", "windows"], indirect=True)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 7, 8, 20])
def test_an_epoch_that_is_resumed_goes_on_as_it_would_have(samples: Samples, start: int) -> None:
    whole = list(samples.batches(8, epoch=2))
    rest = list(samples.batches(8, epoch=2, start=start))
    assert len(rest) == max(0, 8 - start)
    for left, right in zip(whole[start:], rest, strict=True):
        assert torch.equal(left.inputs, right.inputs)
        assert torch.equal(left.targets, right.targets)
        assert (left.keys == right.keys).all()


@pytest.mark.parametrize("samples", ["pixels", "held", "windows"], indirect=True)
def test_an_epoch_that_is_left_early_disturbs_no_other(samples: Samples) -> None:
    whole = targets(list(samples.batches(8, epoch=2)))
    batches = samples.batches(8, epoch=2)
    next(iter(batches))
    del batches
    assert targets(list(samples.batches(8, epoch=2))) == whole


def test_pixels_and_rows_in_memory_come_in_the_same_order(tmp_path: Path) -> None:
    rows = of_features(tmp_path)
    pixels = of_pixels(60)
    pixels = PixelSamples(pixels._pixels, rows.targets, rows.keys, seed=3)
    for epoch in (None, 0, 1):
        assert targets(list(rows.batches(8, epoch=epoch))) == targets(list(pixels.batches(8, epoch=epoch)))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 20), window=st.integers(1, 30), block=st.integers(1, 9))
def test_windows_hold_every_row_once_whatever_their_sizes(count: int, size: int, window: int, block: int) -> None:
    rows = FeatureSamples.__new__(FeatureSamples)
    rows.keys, rows.seed = keys_of(count), 0
    rows.__dict__["_in_memory"] = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", block)
        patch.setattr(FeatureSamples, "_row_bytes", 1)
        step = max(1, window // size) * size
        order = rows._shuffled(1, step)
        assert sorted(order.tolist()) == list(range(count))
        assert (order == rows._shuffled(1, step)).all()


@pytest.mark.parametrize("kind", ["pixels", "held", "windows"])
def test_a_last_batch_of_one_is_put_into_the_batch_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm cannot train on one sample. Batches, resumed epochs and counts agree on it."""
    if kind == "windows":
        monkeypatch.setattr(module, "IN_MEMORY", 0)
        monkeypatch.setattr(module, "WINDOW_BYTES", 20 * 48)
    found: Samples = of_pixels(41) if kind == "pixels" else of_features(tmp_path, 41)
    for epoch in (None, 1):
        whole = list(found.batches(10, epoch=epoch))
        assert [len(batch.keys) for batch in whole] == [10, 10, 10, 11]
        assert len({key for batch in whole for key in batch.keys.tolist()}) == 41
        for start in range(6):
            rest = list(found.batches(10, epoch=epoch, start=start))
            assert len(rest) == max(0, 4 - start)
            assert all((left.keys == right.keys).all() for left, right in zip(whole[start:], rest, strict=True))
            assert all(torch.equal(left.inputs, right.inputs) for left, right in zip(whole[start:], rest, strict=True))


@given(rows=st.integers(1, 50), size=st.integers(1, 12))
def test_batches_are_as_many_as_their_count_and_none_of_several_has_one_row(rows: int, size: int) -> None:
    parts = _batches(np.arange(rows), size, 0)
    assert len(parts) == batch_count(rows, size)
    assert np.concatenate(parts).tolist() == list(range(rows))
    assert rows == 1 or size == 1 or min(map(len, parts)) > 1
    assert max(map(len, parts)) <= size + (size > 1)


# Pixels --------------------------------------------------------------------------------------------------------------


def test_pixels_are_clean_without_an_epoch_and_augmented_by_their_key_in_one() -> None:
    clean, augmented = of_pixels(), of_pixels(transforms=TRANSFORMS)

    def by_key(found: PixelSamples, size: int, epoch: int | None) -> dict[bytes, bytes]:
        return {
            key: pixels.numpy().tobytes()
            for batch in found.batches(size, epoch=epoch)
            for key, pixels in zip(batch.keys.tolist(), batch.inputs, strict=True)
        }

    plain = by_key(clean, 8, None)
    assert by_key(clean, 8, 1) == plain
    assert by_key(augmented, 8, None) == plain
    first = by_key(augmented, 8, 1)
    assert first == by_key(augmented, 30, 1)  # whatever the batches
    assert sum(first[key] != plain[key] for key in plain) > 20
    assert by_key(augmented, 8, 2) != first


def test_inputs_may_be_changed_by_who_gets_them() -> None:
    found = of_pixels()
    before = found._pixels.array.copy()
    for batch in found.batches(8):
        batch.inputs.zero_()
    np.testing.assert_array_equal(found._pixels.array, before)


def test_a_sample_that_was_not_decoded_is_named() -> None:
    keys = keys_of(4)
    pixels = Pixels(keys[:3], np.zeros((3, 2, 2, 1), np.uint8))
    with pytest.raises(DataError, match=rf"got 1 that were not decoded; the first is {key_arrays.to_hex(keys[3:])[0]}"):
        PixelSamples(pixels, torch.zeros(4), keys, seed=0)


@pytest.fixture
def stored(tmp_path: Path, image_folder: Folder) -> Stored:
    """Twelve pictures in a manifest."""
    prepare(PrepareConfig(root=image_folder()), ManifestPaths(tmp_path / "manifests", "photos"))
    return read_samples(tmp_path / "manifests", ("photos",))


def test_samples_are_decoded_once_into_memory_or_into_a_file_that_is_used_again(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    folder = tmp_path / "scratch"
    held = load_pixels(
        glyphs.INPUT, stored, folder=folder, reporter=Reporter(progress=lambda *told: calls.append(told))
    )
    assert not folder.exists()
    assert held.array.shape == (12, 32, 32, 1)
    assert calls[-1] == (12, 12)
    monkeypatch.setattr(pixels_module, "IN_MEMORY", 1000)
    first = load_pixels(glyphs.INPUT, stored, folder=folder)
    np.testing.assert_array_equal(first.array, held.array)
    assert isinstance(first.array, np.memmap)
    (file,) = folder.iterdir()
    before = file.stat().st_ino
    os.utime(file, (1, 1))
    for path in (tmp_path / "photos").rglob("*.png"):
        path.unlink()
    again = load_pixels(glyphs.INPUT, stored, folder=folder)
    np.testing.assert_array_equal(again.array, held.array)
    assert file.stat().st_ino == before
    assert file.stat().st_mtime > 1  # its age counts from the last use
    batches = list(PixelSamples(again, torch.arange(12), stored.keys, seed=0).batches(5, epoch=0))
    assert sorted(targets(batches)) == list(range(12))


@pytest.mark.parametrize("in_memory", [0, 2**28])
def test_a_sample_that_cannot_be_read_ends_it_and_leaves_no_file(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(pixels_module, "IN_MEMORY", in_memory)
    victim = next((tmp_path / "photos").rglob("*.png"))
    victim.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"expected images that can be read, got 1 of 12 that cannot") as caught:
        load_pixels(glyphs.INPUT, stored, folder=tmp_path / "scratch")
    assert victim.as_posix() in str(caught.value)
    assert not list((tmp_path / "scratch").glob("*"))


@pytest.mark.parametrize("form", ["array", "mapped", "uncropped"])
def test_pixels_of_an_archive_are_those_of_the_folder_in_whatever_order_it_has_them(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    files = sorted((tmp_path / "photos").rglob("*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for place in np.random.default_rng(1).permutation(len(files)):
            archive.add(files[place], f"{files[place].parent.name}/{files[place].name}")
        archive.add(files[0], "cat/copy.png")
    prepare(PrepareConfig(root=tmp_path / "a.tar"), ManifestPaths(tmp_path / "manifests", "packed"))
    packed = read_samples(tmp_path / "manifests", ("packed",))
    assert (np.diff(reading_order(packed)) < 0).any()  # which is not the order of the keys
    monkeypatch.setattr(pixels_module, "IN_MEMORY", 2**28 if form == "array" else 1000)
    monkeypatch.setattr(pixels_module, "BATCH_SIZE", 5)
    inputs = glyphs.INPUT
    if form == "uncropped":
        image = inputs.image.model_copy(update={"resize": 40, "crop": (32, 32)})
        inputs = inputs.model_copy(update={"image": image})
    chosen = {"transforms": TRANSFORMS} if form == "uncropped" else {}
    one, other = (
        load_pixels(inputs, samples, folder=tmp_path / name, **chosen)
        for name, samples in (("folder", stored), ("archive", packed))
    )
    assert one.keys.tolist() == other.keys.tolist()
    rows = np.random.default_rng(2).integers(0, 12, 20)
    np.testing.assert_array_equal(one.eval_images(rows), other.eval_images(rows))
    for row, image in zip(rows, other.images(rows), strict=True):
        np.testing.assert_array_equal(one.images(np.array([row]))[0], image)


# Stored rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", ["held", "windows"], indirect=True)
def test_rows_are_those_of_their_keys_and_epochs_draw_among_views(samples: Samples) -> None:
    seen = []
    for epoch in (None, 0, 1, 2):
        views = np.zeros(60, int)
        for batch in samples.batches(7, epoch=epoch):
            rows = batch.inputs.numpy()
            assert batch.inputs.dtype == torch.float32
            assert (rows[:, 0, 0] == batch.targets.numpy()).all()
            views[batch.targets.numpy()] = rows[:, 1, 0]
            expected = 0 if epoch is None else view_of_epoch(3, epoch, batch.keys, 2)
            assert (rows[:, 1, 0] == expected).all()
        seen.append(views)
    assert not seen[0].any()
    assert 10 < seen[1].sum() < 50
    assert len({views.tobytes() for views in seen}) == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_rows_are_float32_whatever_they_are_stored_in(tmp_path: Path, dtype: str) -> None:
    keys = keys_of(6)
    values = np.linspace(-1, 1, 24).reshape(6, 4)
    features = write_features(tmp_path / "tap", keys, values, dtype=dtype)
    (batch,) = FeatureSamples([features], torch.arange(6), keys, seed=0).batches(6)
    assert batch.inputs.dtype == torch.float32
    np.testing.assert_array_equal(batch.inputs.numpy(), features.load(keys).astype(np.float32))


def test_a_key_without_a_row_and_views_of_other_features_are_refused(tmp_path: Path) -> None:
    keys = keys_of(6)
    first = write_features(tmp_path / "first", keys, np.zeros((6, 4)), view=0)
    lacking = write_features(tmp_path / "lacking", keys[:5], np.zeros((5, 4)), view=1)
    other = write_features(tmp_path / "other", keys, np.zeros((6, 4)), dtype="float16")
    with pytest.raises(StoreError, match="1 of the requested keys have no features"):
        FeatureSamples([first, lacking], torch.zeros(6), keys, seed=0)
    with pytest.raises(
        StoreError, match=r"expected a view of the features in .*first, got other features: dtype: expected"
    ):
        FeatureSamples([first, other], torch.zeros(6), keys, seed=0)


def test_few_rows_of_a_large_store_are_all_that_is_held(tmp_path: Path) -> None:
    keys = keys_of(40)
    features = write_features(tmp_path / "tap", keys, np.arange(80.0).reshape(40, 2))
    few = FeatureSamples([features], torch.arange(3), keys[[30, 2, 17]], seed=0)
    assert [len(view) for view in few._views] == [3]
    (batch,) = few.batches(10)
    assert batch.inputs[:, 0].tolist() == [60, 4, 34]
