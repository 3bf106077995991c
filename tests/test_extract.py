"""Extraction: the plan, incremental runs, what happens to damaged and changed files, and runs that are interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import TapSpec
from pipeline.engines import parity
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError, DataError, EngineError, StoreError
from pipeline.extract import compute, logit_check
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_forecast import Forecast
from pipeline.extract.plan import Plan, plan
from pipeline.extract.run import extract
from pipeline.extract.summary import Extracted
from pipeline.loading.decoders import Threads
from pipeline.loading.samples import WHERE, Item, Reject, Samples, read_sample, read_samples
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.image import ImageReader
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.settings.check import Section, check
from pipeline.sources import SampleLocation
from pipeline.store import cache, index, key_arrays, maintenance
from pipeline.store.features import Features
from pipeline.text import Line

Folder = Callable[..., Path]

TAPS = {
    "deep": {"node": "block2", "pool": "mean"},
    "logits": {"node": "logits", "dtype": "float32"},
    "pixels": {"node": "input", "pool": "avg8x8"},
}
# A row of this tap has 128 KiB: eight of them make a shard of `shard_mb: 1`, and so a unit.
WIDE = {"wide": {"node": "block1.0", "dtype": "float32"}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GlyphNet of random weights."""
    folder = tmp_path_factory.mktemp("backbones") / "net"
    write_backbone(folder)
    return folder


def write_backbone(folder: Path, *, scale: float = 1.0) -> None:
    """Write a small GlyphNet of random weights; `scale` is applied to its classifier."""
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(32, 8))
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        network.classifier.weight.mul_(scale)
    architecture = {"family": "glyphs", "classes": 3, "widths": [32, 8]}
    serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)


def list_files(manifests: Path, dataset: str, paths: list[Path]) -> None:
    """Write the list of files that extraction reads, as prepare would."""
    rows = [{"key": content_key(p.read_bytes()), "path": p.as_posix(), "size": p.stat().st_size} for p in paths]
    target = ManifestPaths(manifests, dataset).files
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=FILES_SCHEMA), target)


class Job:
    """A data set, a backbone, a cache and a features folder: what one extraction after another works on."""

    def __init__(self, root: Path, backbone: Path, photos: Path) -> None:
        self.root, self.backbone, self.photos = root, backbone, photos
        self.manifests, self.out, self.cache = root / "manifests", root / "features", root / "cache"
        self.list()

    @property
    def files(self) -> list[Path]:
        """All pictures, sorted."""
        return sorted(self.photos.rglob("*.png"))

    @property
    def keys(self) -> list[str]:
        """The keys of all pictures, in the order of the files."""
        return [content_key(path.read_bytes()) for path in self.files]

    def list(self) -> None:
        """Write the manifest of the pictures that are there now."""
        list_files(self.manifests, "photos", self.files)

    def extract(self, taps: Mapping[str, Any] = TAPS, *, out: Path | None = None, **settings: Any) -> Extracted:
        """Extract some taps."""
        reports = {name: settings.pop(name) for name in ("progress", "message") if name in settings}
        passed = {"cache_root": settings.pop("cache_root", self.cache), "reporter": Reporter(**reports)}
        config = ExtractConfig(
            **{"datasets": ("photos",), "taps": taps, "batch_size": 4, "shard_mb": 1, "engine": "torch"} | settings
        )
        where = {"backbone": self.backbone, "manifests": self.manifests, "out": out or self.out}
        return extract(config, **where, **passed)

    def missing(self, *args: Any, **settings: Any) -> dict[str, int]:
        """Extract, and return how many rows of each tap had to be computed."""
        return self.extract(*args, **settings).plan.missing

    def features(self, tap: str) -> Features:
        """Open the features of a tap."""
        return Features.open(self.out / tap)

    def index(self, tap: str) -> index.Index:
        """The index of a tap."""
        return index.read(self.out / tap)

    def reasons(self, tap: str) -> dict[str, str]:
        """Rejected keys and reasons in the index of a tap."""
        return {item.key: item.reason for item in self.index(tap).rejected}


@pytest.fixture
def job(tmp_path: Path, backbone: Path, image_folder: Folder) -> Job:
    """Twelve pictures that nothing was extracted of."""
    return Job(tmp_path, backbone, image_folder())


def add_pictures(folder: Path, count: int, *, seed: int) -> None:
    """Put some more pictures into a folder."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{seed}-{number:02d}.png")


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their relative paths."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forbid(done: int, total: int) -> None:
    """A progress callback for runs that must compute nothing."""
    raise AssertionError(f"{done} of {total} samples were computed")


# The plan -------------------------------------------------------------------------------------------------------------


@st.composite
def knowledge(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Which samples are known, for one to four taps."""
    samples = draw(st.integers(0, 30))
    taps = draw(st.integers(1, 4))
    row = st.lists(st.booleans(), min_size=samples, max_size=samples)
    return {f"tap{number}": np.array(draw(row), dtype=bool) for number in range(taps)}


def as_text(todo: Plan) -> list[tuple[list[int], tuple[str, ...]]]:
    """Units as plain values."""
    return [(unit.rows.tolist(), unit.taps) for unit in todo.units]


@given(known=knowledge(), unit_rows=st.integers(1, 8))
def test_every_missing_row_of_every_tap_is_in_one_unit_and_no_other_row(
    known: dict[str, np.ndarray], unit_rows: int
) -> None:
    before = {tap: rows.copy() for tap, rows in known.items()}
    todo = plan(known, unit_rows=unit_rows)
    for tap, rows in known.items():
        planned = [row for unit in todo.units if tap in unit.taps for row in unit.rows.tolist()]
        assert sorted(planned) == np.flatnonzero(~rows).tolist()
        assert todo.missing[tap] == len(planned)
    for unit in todo.units:
        assert 0 < len(unit.rows) <= unit_rows
        assert unit.rows.tolist() == sorted(unit.rows.tolist())
        assert unit.taps
    assert as_text(plan(known, unit_rows=unit_rows)) == as_text(todo)
    assert all(np.array_equal(known[tap], rows) for tap, rows in before.items())


@given(known=knowledge(), unit_rows=st.integers(1, 8), data=st.data())
def test_where_units_are_cut_does_not_depend_on_which_of_them_are_done(
    known: dict[str, np.ndarray], unit_rows: int, data: st.DataObject
) -> None:
    todo = plan(known, unit_rows=unit_rows)
    done = data.draw(st.sets(st.integers(0, max(0, len(todo.units) - 1))))
    later = {tap: rows.copy() for tap, rows in known.items()}
    for number, unit in enumerate(todo.units):
        if number in done:
            for tap in unit.taps:
                later[tap][unit.rows] = True
    left = [unit for number, unit in enumerate(as_text(todo)) if number not in done]
    assert as_text(plan(later, unit_rows=unit_rows)) == left


@given(knowledge(), st.integers(1, 5))
def test_units_come_in_the_order_of_what_they_lack(known: dict[str, np.ndarray], unit_rows: int) -> None:
    lacking = ~np.stack(list(known.values()), axis=1)
    patterns, which = np.unique(lacking, axis=0, return_inverse=True)
    expected = []
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which == number).tolist() if pattern.any() else []
        taps = tuple(tap for tap, missing in zip(known, pattern.tolist(), strict=True) if missing)
        expected += [(rows[start : start + unit_rows], taps) for start in range(0, len(rows), unit_rows)]
    assert as_text(plan(known, unit_rows=unit_rows)) == expected


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=12), st.integers(1, 3))
def test_containers_are_cut_in_the_order_of_their_first_samples(numbers: list[int], unit_rows: int) -> None:
    containers = np.array(numbers, dtype=np.int32)
    order = sorted(range(len(numbers)), key=lambda row: (numbers.index(numbers[row]), row))
    expected = [sorted(order[start : start + unit_rows]) for start in range(0, len(order), unit_rows)]
    todo = plan({"a": np.zeros(len(numbers), bool)}, unit_rows=unit_rows, containers=containers)
    assert [unit.rows.tolist() for unit in todo.units] == expected


def test_a_plan_of_no_samples_has_no_units() -> None:
    todo = plan({str(number): np.zeros(0, bool) for number in range(100)}, unit_rows=2)
    assert (todo.samples, todo.units) == (0, ())


def test_more_taps_than_a_machine_word_has_bits_are_planned() -> None:
    known = {f"tap{number}": np.array([number % 2 == 0, False]) for number in range(130)}
    todo = plan(known, unit_rows=10)
    assert sorted(len(unit.taps) for unit in todo.units) == [65, 130]
    assert sum(todo.missing.values()) == 65 + 130


def test_a_plan_says_how_much_there_is_to_do() -> None:
    todo = plan({"a": np.zeros(1500, dtype=bool), "b": np.arange(1500) > 3}, unit_rows=10)
    assert str(todo) == "a: 1,500 rows to compute, 0 known\nb: 4 rows to compute, 1,496 known"


# What is computed -----------------------------------------------------------------------------------------------------


def test_all_rows_are_accounted_for(job: Job) -> None:
    done = job.extract()
    assert done.plan.missing == {"deep": 12, "logits": 12, "pixels": 12}
    assert done.rejected == 0
    for tap, shape, dtype in (("deep", (8,), "float16"), ("logits", (3,), "float32"), ("pixels", (64,), "float16")):
        written = job.index(tap)
        assert (written.samples, written.stored, written.rejected) == (12, 12, ())
        assert (written.shape, written.dtype) == (shape, dtype)
        assert job.features(tap).keys == sorted(job.keys)
        assert job.features(tap).load(job.keys).dtype == np.dtype(dtype)


def test_progress_counts_every_sample_once(job: Job) -> None:
    told: list[tuple[int, int]] = []
    heard: list[Any] = []
    done = job.extract(progress=lambda *now: told.append(now), message=heard.append)
    assert told == [(4, 12), (8, 12), (12, 12)]
    assert [line.plan for line in heard if isinstance(line, Forecast)] == [done.plan]


def test_features_are_those_of_a_plain_forward_pass_on_the_same_pixels(job: Job) -> None:
    job.extract()
    reader = ImageReader(glyphs.INPUT.image)
    pixels = np.stack([reader(path.read_bytes())["pixels"] for path in job.files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    network = serialization.read(job.backbone).module
    with torch.inference_mode():
        deep = network.block2(network.block1(images.clone())).mean((2, 3)).numpy()
        logits = network(images).numpy()
    np.testing.assert_allclose(job.features("logits").load(job.keys), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(job.features("deep").load(job.keys), deep, rtol=2e-3, atol=1e-4)
    blocks = images.numpy().reshape(12, 8, 4, 8, 4).mean((2, 4)).reshape(12, 64)
    np.testing.assert_allclose(job.features("pixels").load(job.keys), blocks, rtol=2e-3, atol=1e-3)


def test_a_second_extraction_computes_nothing_and_writes_the_same(job: Job) -> None:
    job.extract()
    before = contents(job.out)
    assert job.missing(progress=forbid) == {"deep": 0, "logits": 0, "pixels": 0}
    assert contents(job.out) == before
    shutil.rmtree(job.out)
    job.extract(progress=forbid)
    assert contents(job.out) == before


def test_only_added_pictures_are_computed(job: Job) -> None:
    job.extract()
    before = contents(job.out)
    add_pictures(job.photos / "cat", 3, seed=5)
    job.list()
    assert job.missing() == {"deep": 3, "logits": 3, "pixels": 3}
    assert job.features("deep").keys == sorted(job.keys)
    assert len(job.keys) == 15
    after = contents(job.out)
    assert all(after[path] == data for path, data in before.items() if path.endswith(".h5"))


def test_an_added_tap_is_computed_for_all_rows_and_the_others_for_none(job: Job) -> None:
    job.extract()
    before = contents(job.out)
    extra = {"shallow": {"node": "block1", "pool": "max"}}
    assert job.missing({**TAPS, **extra}) == {"deep": 0, "logits": 0, "pixels": 0, "shallow": 12}
    after = contents(job.out)
    assert {path: data for path, data in after.items() if not path.startswith("shallow")} == before
    assert len(job.features("shallow")) == 12


def test_an_added_tap_and_added_pictures_are_each_computed_once(job: Job) -> None:
    job.extract({"deep": TAPS["deep"]})
    add_pictures(job.photos / "dog", 2, seed=6)
    job.list()
    assert job.missing({"deep": TAPS["deep"], "logits": TAPS["logits"]}) == {"deep": 2, "logits": 14}
    assert job.features("deep").keys == job.features("logits").keys == sorted(job.keys)


def test_a_tap_of_another_name_or_the_same_node_is_not_computed_again(job: Job) -> None:
    job.extract({"one": TAPS["deep"]})
    assert job.missing({"two": TAPS["deep"]}) == {"two": 0}
    assert job.missing({"two": {**TAPS["deep"], "dtype": "float32"}}) == {"two": 12}


def test_removed_pictures_need_no_work_and_leave_the_index(job: Job) -> None:
    job.extract()
    gone = job.keys[0]
    job.files[0].unlink()
    job.files[3].unlink()
    job.list()
    assert job.missing(progress=forbid) == {"deep": 0, "logits": 0, "pixels": 0}
    assert (job.index("deep").samples, job.index("deep").stored) == (10, 10)
    assert job.features("deep").load(job.keys).shape == (10, 8)
    assert gone not in job.keys


def test_a_content_that_lies_in_two_data_sets_is_computed_once(job: Job) -> None:
    add_pictures(job.root / "more", 2, seed=7)
    more = sorted((job.root / "more").glob("*.png"))
    list_files(job.manifests, "more", [job.files[0], *more, job.files[5]])
    assert job.missing(datasets=("photos", "more")) == {"deep": 14, "logits": 14, "pixels": 14}
    samples = read_samples(job.manifests, ("more", "photos"))
    assert len(samples) == len(samples.places()) == 14


def test_values_do_not_depend_on_what_else_is_asked_for(job: Job) -> None:
    job.extract({**TAPS, **WIDE})
    together = {tap: job.features(tap).load(job.keys) for tap in TAPS}
    for tap in TAPS:
        job.extract({tap: TAPS[tap]}, out=job.root / "alone", cache_root=job.root / f"cache-{tap}")
        alone = Features.open(job.root / "alone" / tap).load(job.keys)
        assert np.array_equal(alone, together[tap]), tap


def test_another_batch_size_gives_the_same_features_but_for_rounding(job: Job) -> None:
    job.extract()
    first = job.features("logits").load(job.keys)
    assert job.missing(batch_size=5) == {"deep": 0, "logits": 0, "pixels": 0}
    job.extract(batch_size=5, cache_root=job.root / "other cache")
    np.testing.assert_allclose(job.features("logits").load(job.keys), first, rtol=1e-4, atol=1e-6)


def test_a_wide_tap_is_cut_into_several_shards(job: Job) -> None:
    job.extract({**TAPS, **WIDE})
    assert [record.rows for record in job.index("wide").shards].count(8) == 1
    assert sum(record.rows for record in job.index("wide").shards) == 12
    assert job.features("wide").load(job.keys).shape == (12, 32, 32, 32)


def test_extraction_leaves_the_backbone_as_it_was(job: Job) -> None:
    before = contents(job.backbone)
    loaded = serialization.read(job.backbone)
    engine = TorchEngine(loaded, {"l": TapSpec(node="logits")}, batch_size=2)
    engine.run({"pixels": np.zeros((2, 32, 32, 1), np.uint8)})
    job.extract()
    assert contents(job.backbone) == before
    assert serialization.weights_digest(loaded.module.state_dict()) == loaded.spec.weights_digest
    assert not loaded.module.training


# What is refused ------------------------------------------------------------------------------------------------------


def test_an_unknown_node_is_refused_before_anything_is_done(job: Job) -> None:
    with pytest.raises(
        BackboneError,
        match=r"tap 'x': unknown node 'block3'. Did you mean 'block2.*\? `icecore layers NAME` lists",
    ):
        job.extract({"x": {"node": "block3"}})
    assert not job.cache.exists()


def test_poolings_that_do_not_fit_are_refused_together(job: Job) -> None:
    with pytest.raises(BackboneError) as caught:
        job.extract({"x": {"node": "logits", "pool": "mean"}, "y": {"node": "penultimate", "pool": "avg2x2"}, **TAPS})
    said = "averages over height and width, but a row has the shape"
    assert str(caught.value).splitlines() == [
        f"{job.backbone}: poolings that do not fit",
        f"  - tap 'x', node 'logits': pooling 'mean' {said} (3,). Use none or flatten.",
        f"  - tap 'y', node 'penultimate': pooling 'avg2x2' {said} (8,). Use none or flatten.",
    ]
    assert not job.cache.exists()


def test_a_data_set_that_was_not_prepared_is_named(job: Job) -> None:
    with pytest.raises(DataError, match=r"dogs.parquet: no such manifest. Run `icecore repro prepare@dogs`"):
        job.extract(datasets=("photos", "dogs"))


def test_a_missing_backbone_is_named(job: Job) -> None:
    job.backbone = job.root / "none"
    with pytest.raises(BackboneError, match=r"none: not a backbone"):
        job.extract()


def test_a_cache_that_cannot_be_written_says_what_to_set(job: Job) -> None:
    job.cache.write_text("a file")
    with pytest.raises(StoreError, match=r"Set ICECORE_CACHE to a writable folder"):
        job.extract()


@pytest.mark.parametrize(
    "settings", [{"datasets": ()}, {"taps": {}}, {"batch_size": 0}, {"shard_mb": 0}, {"max_rejected": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        ExtractConfig(**{"datasets": ("photos",), "taps": TAPS} | settings)


@pytest.mark.parametrize("name", ["a/b", "..", "", "block1.0"])
def test_a_tap_whose_name_is_no_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"the tap '{name}': a name has letters, digits, '-' and '_' only"):
        ExtractConfig(datasets=("photos",), taps={name: TAPS["deep"]})


def test_an_overflow_names_the_tap_and_the_remedy_and_stores_nothing_of_it(job: Job) -> None:
    job.backbone = job.root / "loud"
    write_backbone(job.backbone, scale=1e7)
    taps = {"deep": TAPS["deep"], "big": {"node": "logits"}}
    message = r"tap 'big': 4 of 4 rows have values that float16 cannot hold.*Store this tap as .*`float32`"
    with pytest.raises(StoreError, match=message):
        job.extract(taps)
    assert not job.out.exists()
    taps["big"]["dtype"] = "float32"
    assert job.missing(taps) == {"deep": 12, "big": 12}  # it was found in the first batch: no shard was finished
    assert np.abs(job.features("big").load(job.keys)).max() > 65504


# Files that changed or are damaged ------------------------------------------------------------------------------------


def test_a_sample_is_read_only_if_it_is_still_what_its_key_says(tmp_path: Path) -> None:
    add_pictures(tmp_path, 1, seed=1)
    path = next(tmp_path.glob("*.png"))
    reader = ImageReader(glyphs.INPUT.image)
    key = content_key(path.read_bytes())
    place = SampleLocation(str(path), None, None, path.stat().st_size)
    found = read_sample(reader, Item(key, place))
    assert isinstance(found, dict)
    assert found["pixels"].shape == (32, 32, 1)
    reason = "changed since its data set was prepared; run prepare again"
    assert read_sample(reader, Item(key[::-1], place)) == Reject(key[::-1], str(path), reason, permanent=False)
    path.write_text("no image")
    lasting = Reject(content_key(b"no image"), str(path), "not an image that Pillow can read", permanent=True)
    assert read_sample(reader, Item(content_key(b"no image"), place)) == lasting
    path.unlink()
    assert read_sample(reader, Item(key, place)) == Reject(key, str(path), "No such file or directory", permanent=False)


def test_a_file_that_changed_since_prepare_is_rejected_and_nothing_wrong_is_stored(job: Job) -> None:
    changed, key = job.files[4], job.keys[4]
    original = changed.read_bytes()
    changed.write_bytes(job.files[0].read_bytes())
    assert job.extract(max_rejected=0.5).rejected == 1
    assert job.reasons("deep") == {key: f"{changed}: changed since its data set was prepared; run prepare again"}
    assert (job.index("deep").samples, job.index("deep").stored) == (12, 11)
    assert key not in job.features("deep").keys
    with pytest.raises(StoreError, match=r"1 of the requested keys have no features.*changed since its data set"):
        job.features("deep").load([key])
    changed.write_bytes(original)
    assert job.missing() == {"deep": 1, "logits": 1, "pixels": 1}
    assert job.reasons("deep") == {}


def test_a_file_that_is_gone_is_rejected_with_the_reason_of_the_system(job: Job) -> None:
    path, key = job.files[2], job.keys[2]
    path.unlink()
    assert job.extract(max_rejected=0.5).rejected == 1
    assert job.reasons("logits") == {key: f"{path}: No such file or directory"}


@pytest.fixture
def truncated(job: Job) -> str:
    """The key of a cut PNG file, which was prepared with a look at its header only."""
    whole = Image.effect_noise((64, 64), 50)
    path = job.photos / "cat" / "cut.png"
    whole.save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    config = PrepareConfig(root=job.photos, check="header")
    done = prepare(config, ManifestPaths(job.manifests, "photos"))
    assert (done.files, done.rows) == (13, 13)
    return content_key(path.read_bytes())


def test_a_truncated_picture_is_rejected_remembered_and_not_tried_again(job: Job, truncated: str) -> None:
    assert job.extract(max_rejected=0.5).rejected == 1
    for tap in TAPS:
        assert list(job.reasons(tap)) == [truncated]
        assert "damaged image" in job.reasons(tap)[truncated]
        assert (job.index(tap).samples, job.index(tap).stored) == (13, 12)
    before = contents(job.out)
    done = job.extract(max_rejected=0.5, progress=forbid)
    assert done.plan.missing == {"deep": 0, "logits": 0, "pixels": 0}
    assert done.rejected == 1
    assert contents(job.out) == before


def test_above_max_rejected_it_fails_and_what_was_computed_is_kept(job: Job, truncated: str) -> None:
    with pytest.raises(DataError) as caught:
        job.extract(max_rejected=0.05)
    title, line = str(caught.value).splitlines()
    assert title == (
        "1 of 13 samples gave no features, more than the share of 0.05 that `max_rejected` allows. "
        "What was computed is kept. The first of them"
    )
    assert line.startswith(f"  - {truncated}: damaged image")
    assert job.missing(max_rejected=0.1, progress=forbid) == {"deep": 0, "logits": 0, "pixels": 0}
    assert len(job.features("deep")) == 12


def test_rejects_at_the_very_share_that_is_allowed_are_allowed(job: Job) -> None:
    for path in job.files[:3]:
        path.unlink()
    assert job.extract(max_rejected=0.25).rejected == 3
    with pytest.raises(DataError, match="3 of 12 samples gave no features"):
        job.extract(max_rejected=0.24)


def test_a_data_set_without_one_good_picture_makes_an_empty_store(job: Job) -> None:
    for path in job.files:
        path.write_bytes(f"no image, {path.name}, {path.parent.name}".encode())
    job.list()
    assert job.extract(max_rejected=1).rejected == 12
    assert len(job.features("deep")) == 0
    assert set(job.reasons("deep").values()) == {"not an image that Pillow can read"}
    assert job.missing(max_rejected=1, progress=forbid) == {"deep": 0, "logits": 0, "pixels": 0}


# Damage in the cache --------------------------------------------------------------------------------------------------


def test_a_damaged_shard_in_the_cache_is_found_and_the_remedy_works(job: Job) -> None:
    job.extract({**TAPS, **WIDE})
    before = contents(job.out)
    path = max(job.cache.rglob("*.h5"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)  # in place, and so in the features folder too, which shares the file
    with pytest.raises(StoreError, match=rf"{path.name}: expected SHA-256 .* the shard is damaged. Run `icecore cache"):
        job.features("wide").load()
    with pytest.raises(
        StoreError, match=rf"{path}: expected SHA-256 .* Run `icecore cache repair`, then the extraction again: only"
    ):
        job.extract({**TAPS, **WIDE})
    (column,) = (column for column in cache.columns(job.cache) if column.folder == path.parent)
    for record, _ in list(maintenance.find_damage(column, whole=True)):
        column.drop(record)
    assert job.missing({**TAPS, **WIDE}) == {"deep": 0, "logits": 0, "pixels": 0, "wide": 8}
    assert contents(job.out) == before


def test_a_features_folder_stands_on_its_own(job: Job) -> None:
    job.extract()
    keys = job.keys
    expected = job.features("deep").load(keys)
    for folder in (job.cache, job.photos, job.manifests):
        shutil.rmtree(folder)
    assert np.array_equal(job.features("deep").load(keys), expected)


# Interruption ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, backbone: Path, image_folder: Folder) -> Job:
    """Thirty pictures: four units, where the wide tap is among those that are wanted."""
    return Job(tmp_path, backbone, image_folder(each=15))


WANTED = {"deep": TAPS["deep"], **WIDE}


class Interrupted(Exception):  # noqa: N818 - it stands for a signal
    """Raised in the middle of an extraction."""


def interrupt_at(samples: int) -> Callable[[int, int], None]:
    """A progress callback that interrupts once so many samples were dealt with."""

    def progress(done: int, total: int) -> None:
        assert done <= total
        if done >= samples:
            raise Interrupted

    return progress


@pytest.mark.parametrize("after", [4, 12, 20, 30])
def test_an_interrupted_extraction_goes_on_where_it_was(large: Job, after: int) -> None:
    undisturbed = large.root / "undisturbed"
    large.extract(WANTED, out=undisturbed, cache_root=large.root / "other cache")

    with pytest.raises(Interrupted):
        large.extract(WANTED, progress=interrupt_at(after))
    assert not large.out.exists()
    stored = (after - 1) // 8 * 8
    assert large.missing(WANTED) == {"deep": 30 - stored, "wide": 30 - stored}
    assert contents(large.out) == contents(undisturbed)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.runtime import Reporter

def progress(done, total):
    if done >= 24:  # rows that the network has done with lie in a shard one batch later
        os.kill(os.getpid(), signal.SIGKILL)

config = ExtractConfig.model_validate_json(sys.argv[1])
backbone, manifests, out, cache = map(Path, sys.argv[2:])
extract(config, backbone=backbone, manifests=manifests, out=out, cache_root=cache,
        reporter=Reporter(progress=progress))
"""


def test_a_killed_extraction_goes_on_where_it_was(large: Job) -> None:
    undisturbed = large.root / "undisturbed"
    large.extract(WANTED, out=undisturbed, cache_root=large.root / "other cache")
    config = ExtractConfig(datasets=("photos",), taps=WANTED, batch_size=4, shard_mb=1, engine="torch")
    folders = map(str, (large.backbone, large.manifests, large.out, large.cache))
    command = [sys.executable, "-c", KILLED, config.model_dump_json(), *folders]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not large.out.exists()
    assert large.missing(WANTED) == {"deep": 14, "wide": 14}
    assert contents(large.out) == contents(undisturbed)


def test_what_was_killed_between_a_shard_and_its_record_is_computed_again(large: Job) -> None:
    undisturbed = large.root / "undisturbed"
    large.extract(WANTED, out=undisturbed)
    record = index.read(undisturbed / "wide").shards[1]
    (note,) = large.cache.rglob(f"{record.name}.json")
    note.unlink()
    # What a killed writer leaves behind is never taken for a shard or a record.
    shutil.copyfile(note.with_suffix(".h5"), note.parent / ".shard.1.abcd.tmp")
    (note.parent / f".{note.name}.1.abcd.tmp").write_text("{")
    assert large.missing(WANTED) == {"deep": 0, "wide": record.rows}
    assert contents(large.out) == contents(undisturbed)


def test_an_interrupted_extraction_with_damaged_pictures_goes_on_where_it_was(large: Job) -> None:
    for path in large.files[::7]:
        path.write_bytes(f"no image, {path.name}, {path.parent.name}".encode())
    large.list()
    undisturbed = large.root / "undisturbed"
    large.extract(WANTED, out=undisturbed, cache_root=large.root / "other cache", max_rejected=1)

    with pytest.raises(Interrupted):
        large.extract(WANTED, progress=interrupt_at(20), max_rejected=1)
    large.extract(WANTED, max_rejected=1)
    assert contents(large.out) == contents(undisturbed)
    assert len(large.index("wide").rejected) == 5


# Engines and the card -------------------------------------------------------------------------------------------------


def card_of(job: Job, tap: str) -> Any:
    """The reproducibility card beside the features of a tap."""
    return json.loads((job.out / tap / "card.json").read_text())


def test_the_card_lies_beside_the_features_also_when_nothing_was_computed(job: Job) -> None:
    job.extract()
    found = card_of(job, "deep")
    assert found["address"] == job.index("deep").address
    (card,) = found["cards"]
    assert (card["engine"]["engine"], card["engine"]["precision"], card["against"]) == (
        "torch",
        "float32",
        "torch float32",
    )
    assert card["parity"]["relative"] == 0
    assert set(card["batches"]) == {"1", "3 reversed"}
    shutil.rmtree(job.out)
    job.extract(progress=forbid)
    assert card_of(job, "deep") == found


def test_a_damaged_card_is_named_and_the_features_are_linked_once_it_is_removed(job: Job) -> None:
    job.extract()
    (path,) = (job.cache / "v2" / job.index("deep").address / "parity").iterdir()
    path.write_text("{")
    with pytest.raises(StoreError, match=rf"{path}: expected JSON: .*The file is damaged: remove it and run again"):
        job.extract(progress=forbid)
    path.unlink()
    job.extract(progress=forbid)
    assert card_of(job, "deep")["cards"] == []
    assert len(card_of(job, "logits")["cards"]) == 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_engine_makes_the_same_bytes_after_an_interruption(large: Job, engine: str) -> None:
    said: list[str] = []
    undisturbed = large.root / "undisturbed"
    large.extract(
        WANTED,
        out=undisturbed,
        cache_root=large.root / "other cache",
        engine=engine,
        message=lambda line: said.append(str(line)),
    )
    passed = f"engine: {engine}, float32, as the settings say; the values of torch float32"
    assert sum(line.startswith(passed) for line in said) == 1
    if engine == "onnxruntime":  # its graph has the same bytes whenever it is exported (test_engines), in seconds
        shutil.copytree(large.root / "other cache" / "onnx", large.cache / "onnx")
    with pytest.raises(Interrupted):
        large.extract(WANTED, progress=interrupt_at(12), engine=engine)
    # A kill between the two columns of a unit: one tap lacks what the other has.
    said.clear()
    record = index.read(undisturbed / "wide").shards[0]
    for note in large.cache.rglob(f"{record.name}.json"):
        note.unlink()
    large.extract(WANTED, engine=engine, message=lambda line: said.append(str(line)))
    # The gate was passed before.
    engines = [line for line in said if line.startswith("engine: ")]
    assert engines == [f"engine: {engine}, float32, as the settings say"]
    assert contents(large.out) == contents(undisturbed)
    (card,) = card_of(large, "wide")["cards"]
    assert card["engine"]["engine"] == engine
    assert 0 <= card["parity"]["relative"] < 1e-4  # 0 where a processor has the same kernels for both


def test_engines_compute_the_same_features_under_the_same_address(job: Job) -> None:
    job.extract()
    expected, address = job.features("logits").load(job.keys), job.index("logits").address
    assert job.missing(engine="onnxruntime", progress=forbid)["logits"] == 0
    job.extract(engine="onnxruntime", cache_root=job.root / "other cache")
    np.testing.assert_allclose(job.features("logits").load(job.keys), expected, rtol=1e-4, atol=1e-5)
    assert job.index("logits").address == address


def test_another_precision_gives_other_features(job: Job) -> None:
    job.extract()
    before = job.index("logits").address
    assert job.missing(precision="bfloat16")["logits"] == 12
    assert job.index("logits").address != before
    assert job.index("logits").identity["precision"] == "bfloat16"
    assert "torch_autocast" in card_of(job, "logits")["cards"][0]


def test_auto_tells_what_it_took_and_a_short_job_is_torch(job: Job) -> None:
    said: list[object] = []
    job.extract(engine="auto", message=said.append)
    line = next(line for line in said if isinstance(line, Line))  # the forecast comes first
    assert re.fullmatch(
        r"engine: torch, float32, the whole job takes it about \d+ s, too little to try others; the values of torch "
        "float32, bit for bit",
        str(line),
    )
    assert line.more.startswith("torch, float32, against torch float32\n")


def test_an_engine_or_a_precision_that_is_none_is_refused() -> None:
    for wrong in ({"engine": "tensorflow"}, {"precision": "float8"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            ExtractConfig(**{"datasets": ("photos",), "taps": TAPS, **wrong})


def test_the_check_of_the_settings_names_what_is_near() -> None:
    entry = {"datasets": ["a"], "taps": TAPS, "engine": "onxruntime", "precision": "bfloat"}
    gone = {"datasets": ["a"], "taps": TAPS, "engine": "onnxruntime_tensorrt"}
    _, problems = check({"extract": {"x": entry, "y": gone}}, {"extract": Section(ExtractConfig, named=True)})
    assert problems.pop() == (
        "extract.y.engine: unknown value 'onnxruntime_tensorrt'. Did you mean 'onnxruntime' or 'onnxruntime_cuda'? "
        "Expected one of: auto, onnxruntime, onnxruntime_cuda, openvino, torch, torch_compiled."
    )
    assert [line.partition("?")[0] for line in problems] == [
        "extract.x.engine: unknown value 'onxruntime'. Did you mean 'onnxruntime' or 'onnxruntime_cuda'",
        "extract.x.precision: unknown value 'bfloat'. Did you mean 'bfloat16' or 'float32' or 'float16'",
    ]


def test_limits_that_are_exceeded_stop_the_extraction_before_anything_is_stored(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MAX_RELATIVE", 1e-12)
    with pytest.raises(EngineError, match=r"tap 'deep', node 'block2': relative error"):
        job.extract(engine="onnxruntime")
    assert not job.out.exists()
    assert not list(job.cache.rglob("*.h5"))


def test_before_a_long_run_its_time_is_forecast(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "LONG", 12)
    said: list[str] = []
    job.extract({"deep": TAPS["deep"]}, message=lambda line: said.append(str(line)))
    assert sum(line.startswith("pilot: 12 samples, engine torch, float32; samples/s: read ") for line in said) == 1
    assert any("12 samples take about" in line and "(95 %:" in line for line in said)
    add_pictures(job.photos, 12, seed=3)
    job.list()
    known = set(job.features("deep").keys)
    for path in job.files:
        if content_key(path.read_bytes()) not in known:
            path.unlink()
    said.clear()
    job.extract({"deep": TAPS["deep"]}, message=lambda line: said.append(str(line)), max_rejected=1)
    assert any(line.startswith("pilot: expected samples that can be read, got none of 12: ") for line in said)


# The oracle -----------------------------------------------------------------------------------------------------------

LAST = {"last": {"node": "penultimate"}}


def test_penultimate_rows_are_replayed_after_they_are_computed_and_only_then(job: Job) -> None:
    said: list[str] = []
    job.extract({**TAPS, **LAST}, message=lambda line: said.append(str(line)))
    (line,) = [text for text in said if "own last layer" in text]
    assert line.startswith("last: 12 stored rows through the network's own last layer give its logits to within ")
    assert line.endswith("with the same first class in 100%")
    said.clear()
    job.extract({**TAPS, **LAST}, message=lambda line: said.append(str(line)))
    job.extract({"halved": {"node": "penultimate", "project": 4}}, message=lambda line: said.append(str(line)))
    assert [text for text in said if "own last layer" in text] == []


def decoding(backbone: serialization.Backbone) -> Threads:
    """Decoders for a backbone."""
    return Threads(ImageReader(backbone.spec.input.image), 1)


def one_sample(key: str, path: str) -> Samples:
    """A sample that is a file of its own."""
    where = pa.RecordBatch.from_pylist([{"path": path}], schema=WHERE)
    return Samples(key_arrays.from_hex([key]), where)


def test_rows_of_other_weights_do_not_pass_the_replay(job: Job) -> None:
    job.extract(LAST)
    other = serialization.read(job.backbone)
    with torch.no_grad():
        other.module.get_submodule("block1.0").weight.mul_(100)
    message = r"features/last: expected cached `penultimate` features to give the network's logits .* rows off"
    with pytest.raises(BackboneError, match=message):
        logit_check.check_logits(
            job.features("last"),
            TapSpec(**LAST["last"]),
            backbone=other,
            precision="float32",
            samples=read_samples(job.manifests, ("photos",)),
            runs=np.split(np.arange(len(job.keys)), [3, 4]),
            decoders=decoding(other),
        )


def test_rows_of_reduced_precision_are_replayed_within_the_limit_of_the_gate(job: Job) -> None:
    job.extract(LAST)
    backbone = serialization.read(job.backbone)
    rest = {
        "samples": read_samples(job.manifests, ("photos",)),
        "runs": [np.arange(12)],
        "decoders": decoding(backbone),
        "precision": "bfloat16",
    }
    found = logit_check.check_logits(job.features("last"), TapSpec(**LAST["last"]), backbone=backbone, **rest)
    assert found is not None
    assert found["rows"] == 12
    with torch.no_grad():
        for part in backbone.module.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.weight.normal_()
    message = r"features of reduced precision to give the network's logits with a median cosine of at least 0.98, got"
    with pytest.raises(BackboneError, match=message):
        logit_check.check_logits(job.features("last"), TapSpec(**LAST["last"]), backbone=backbone, **rest)


def test_a_replay_without_a_row_to_compare_says_nothing(job: Job) -> None:
    job.extract(LAST)
    backbone = serialization.read(job.backbone)
    rest = {
        "backbone": backbone,
        "precision": "float32",
        "runs": [np.arange(1)],
        "decoders": decoding(backbone),
    }
    unknown = one_sample(content_key(b"unknown"), "x")
    assert logit_check.check_logits(job.features("last"), TapSpec(**LAST["last"]), samples=unknown, **rest) is None
    # Its file has changed meanwhile.
    changed = one_sample(job.keys[0], job.files[1].as_posix())
    assert logit_check.check_logits(job.features("last"), TapSpec(**LAST["last"]), samples=changed, **rest) is None
