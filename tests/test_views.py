"""Views: augmented copies of every sample, stored under identities of their own, and made again from these."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import BackboneSpec, InputSpec, Tap, TapSpec, read_spec
from pipeline.engines import create
from pipeline.errors import EngineError, StoreError
from pipeline.extract import job_files
from pipeline.extract.config import ExtractConfig, folder_of
from pipeline.extract.disk_check import explain_shortage, forecast_disk
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.plan import Plan
from pipeline.extract.request import read
from pipeline.extract.run import extract
from pipeline.extract.summary import Extracted
from pipeline.files import digest
from pipeline.finetune.inputs import open_features
from pipeline.loading.image_cache import Pixels, load_pixels
from pipeline.loading.samples import read_samples
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.augment import View, Views, upgrade_view
from pipeline.readers.image import ImageReader, ImageSpec
from pipeline.readers.sample_key import content_key
from pipeline.runtime import SILENT, Reporter
from pipeline.settings.check import Section, check
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.store.identity import address, identity
from pipeline.training.data import FeatureSamples, PixelSamples

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]

AUGMENT = [{"name": "random_resized_crop", "scale": [0.5, 1]}, {"name": "horizontal_flip"}, {"name": "color_jitter"}]
TAPS = {
    "deep": {"node": "block2", "pool": "mean", "dtype": "float32"},
    "seen": {"node": "input", "dtype": "float32"},
    "penultimate": {"node": "penultimate", "dtype": "float32"},
}


def views(count: int, **settings: Any) -> dict[str, Any]:
    return {"count": count, "augment": AUGMENT, **settings}


class Job:
    """Twelve pictures and a backbone."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root, self.photos, self.backbone = root, photos, root / "backbone"
        self.manifests, self.out, self.cache = root / "manifests", root / "features", root / "cache"
        torch.manual_seed(0)
        network = glyphs.GlyphNet(classes=3, widths=(8, 8))
        architecture = {"family": "glyphs", "classes": 3, "widths": [8, 8]}
        serialization.write(self.backbone, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
        prepare(PrepareConfig(root=photos, max_rejected=0.5), ManifestPaths(self.manifests, "photos"))

    def config(self, **settings: Any) -> ExtractConfig:
        given = {
            "datasets": ("photos",),
            "taps": TAPS,
            "batch_size": 4,
            "engine": "torch",
            "run": {"decode": "threads"},
        }
        return ExtractConfig(**given | settings)

    def extract(self, *, reporter: Reporter = SILENT, **settings: Any) -> Extracted:
        where = {"backbone": self.backbone, "manifests": self.manifests, "out": self.out, "cache_root": self.cache}
        return extract(self.config(**settings), **where, reporter=reporter)

    def features(self, tap: str, view: int | None = None) -> Features:
        return Features.open(self.out / folder_of(tap, view))

    @property
    def pixels(self) -> Pixels:
        spec = read_spec(self.backbone)
        return load_pixels(spec.input, read_samples(self.manifests, ("photos",)), folder=self.root)


@pytest.fixture
def job(tmp_path: Path, image_folder: Folder) -> Job:
    return Job(tmp_path, image_folder())


# Identity ------------------------------------------------------------------------------------------------------------


def test_addresses_of_samples_as_they_are_stay_what_they_were() -> None:
    taps = {"block1": Tap(shape=(32, 16, 16), layout="CHW")}
    architecture = {"family": "glyphs", "classes": 3, "widths": [32, 8]}
    spec = BackboneSpec(architecture=architecture, origin={}, weights_digest="ab" * 32, input=glyphs.INPUT, taps=taps)
    found = address(identity(spec, TapSpec(node="block1", pool="mean")))
    assert found == "708b024cba975ae1cbc05e6fa967d1ec4171e34fecc053d49215f6c7037f3844"
    assert "view" not in spec.input.image.model_dump()
    assert spec.viewed(None) is spec


def test_a_view_has_an_address_by_its_transforms_seed_number_and_torchvision() -> None:
    spec = BackboneSpec(architecture={}, origin={}, weights_digest="", input=glyphs.INPUT, taps={"x": Tap(shape=(1,))})
    base = Views.model_validate(views(3)).view(0)
    others = [
        base,
        base.model_copy(update={"number": 1}),
        base.model_copy(update={"seed": 1}),
        base.model_copy(update={"augment": base.augment[:1]}),
        base.model_copy(update={"torchvision": "0.1"}),
    ]
    found = {address(identity(spec.viewed(view), TapSpec(node="x"))) for view in (None, *others)}
    assert len(found) == 6
    assert identity(spec.viewed(base), TapSpec(node="x"))["reader"]["view"] == json.loads(base.model_dump_json())


def test_views_that_crop_or_warp_have_a_version_and_addresses_of_all_others_stay() -> None:
    """Crops and warps got the centre crop before: their old views must not be mixed with new ones."""
    crop = ImageSpec(resize=256, crop=(224, 224))
    inputs = InputSpec(image=crop, mean=(0.5,) * 3, std=(0.5,) * 3)
    spec = BackboneSpec(
        architecture={"a": 1}, origin={}, weights_digest="cd" * 32, input=inputs, taps={"x": Tap(shape=(1,))}
    )
    flip, rotation = (
        {"augment": [{"name": name}], "number": 1, "torchvision": "0.1"} for name in ("horizontal_flip", "rotation")
    )
    addresses = {
        None: "69746446563ae283abed75e7bc596fd10faa0c329c00a52b41f5e95b767de590",
        "flip": "230dc58267b52df1fc512b061d4324f4fa6940997812091d54a43b29b0d49ee2",
        "rotation": "a8de753f518ea6f9eb81b03d75c06866a3dacff7dc7cc427995bad3c86fffe99",
    }
    for name, view in {None: None, "flip": flip, "rotation": rotation}.items():
        seen = spec.viewed(None if view is None else View.model_validate(view))
        assert address(identity(seen, TapSpec(node="x"))) == addresses[name], name
    written = View.model_validate(rotation).model_dump(mode="json")
    assert (written["version"], "version" in View.model_validate(flip).model_dump(mode="json")) == (2, False)
    assert upgrade_view({name: value for name, value in written.items() if name != "version"}) == written


# Extraction ----------------------------------------------------------------------------------------------------------


def test_each_view_is_what_the_network_makes_of_the_augmented_pixels(job: Job) -> None:
    calls: list[tuple[int, int]] = []
    found = job.extract(views=views(2, seed=7), reporter=Reporter(progress=lambda *told: calls.append(told)))
    assert sorted(path.name for path in job.out.iterdir()) == sorted(
        folder_of(tap, view) for tap in TAPS for view in (None, 0, 1)
    )
    assert (found.plan.samples, found.plan.passes, found.spent.samples) == (12, 3, 36)
    assert found.plan.missing == {folder_of(tap, view): 12 for view in (None, 0, 1) for tap in TAPS}
    assert calls[-1] == (36, 36)
    assert calls == sorted(calls)
    backbone = serialization.read(job.backbone)
    engine = create("torch", backbone, job.config().taps, batch_size=12)
    pixels = job.pixels
    for number in (0, 1):
        seen = View(augment=AUGMENT, seed=7, number=number)(pixels.array, pixels.keys)
        for tap, rows in engine.run({"pixels": seen}).items():
            stored = job.features(tap, number)
            np.testing.assert_allclose(stored.load(pixels.keys), rows, atol=1e-5)
            assert View.model_validate(stored.identity["reader"]["view"]) == View(
                augment=AUGMENT, seed=7, number=number
            )
    assert "view" not in job.features("deep").identity["reader"]


def test_adding_a_view_computes_that_view_only_and_another_seed_all_views(job: Job) -> None:
    plain = job.extract()
    assert plain.plan.passes == 1
    name = job.features("deep").index.shards[0].name
    missing = {}
    for label, asked in (("one", views(1)), ("two", views(2)), ("again", views(2)), ("seed", views(2, seed=1))):
        found = job.extract(views=asked)
        missing[label] = {tap for tap, rows in found.plan.missing.items() if rows}
        assert found.plan.spared + found.spent.samples == 12 * found.plan.passes
    assert missing["one"] == {folder_of(tap, 0) for tap in TAPS}
    assert missing["two"] == {folder_of(tap, 1) for tap in TAPS}
    assert missing["again"] == set()
    assert missing["seed"] == {folder_of(tap, view) for tap in TAPS for view in (0, 1)}
    assert job.features("deep").index.shards[0].name == name


@pytest.mark.slow
def test_decoding_processes_and_the_number_of_views_change_no_byte(job: Job) -> None:
    job.extract(views=views(2))
    before = {path.name: path.read_bytes() for path in (job.out / "deep.view0").iterdir()}
    job.cache, job.out = job.root / "cache-2", job.root / "features-2"
    job.extract(views=views(1), run={"decode": "processes"})
    assert {path.name: path.read_bytes() for path in (job.out / "deep.view0").iterdir()} == before


def test_a_sample_that_cannot_be_read_is_accounted_for_in_every_view(job: Job) -> None:
    victim = sorted(job.photos.rglob("*.png"))[0]
    victim.write_bytes(b"other bytes than those that were prepared")
    found = job.extract(views=views(2), max_rejected=0.2)
    assert (found.rejected, sum(found.reasons.values())) == (1, 1)
    for view in (None, 0, 1):
        assert len(job.features("deep", view)) == 11
        assert len(job.features("deep", view).index.rejected) == 1


def test_a_view_of_another_torchvision_ends_the_run_and_rejects_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(self: Views, number: int) -> View:
        return View(augment=self.augment, number=number, torchvision="0.1")

    monkeypatch.setattr(Views, "view", old)
    with pytest.raises(EngineError, match=r"view 0: expected torchvision 0\.1, got"):
        job.extract(views=views(1))
    assert not list(job.cache.glob("v2/*/rejected"))


def test_a_replayed_row_of_a_view_is_compared_with_that_view(job: Job) -> None:
    said: list[str] = []
    job.extract(views=views(1), reporter=Reporter(message=lambda line: said.append(str(line))))
    replayed = [line for line in said if "stored rows through the network's own last layer" in line]
    assert [line.partition(":")[0] for line in replayed] == ["penultimate", "penultimate.view0"]


# Forecast ------------------------------------------------------------------------------------------------------------


def test_views_are_in_the_forecast_and_without_them_it_may_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"backbone": job.backbone, "manifests": job.manifests, "cache_root": job.cache}
    room = {"cache_root": job.cache, "out": job.out}
    plain = forecast_disk(read(job.config(), **where), **room)
    request = read(job.config(views=views(3)), **where)
    found = forecast_disk(request, **room)
    assert found.bytes == 4 * plain.bytes
    assert found.spaces[0].passing == plain.spaces[0].passing  # one view is made after another
    assert "seen.view2: 12 rows to compute, 0 known" in str(found)
    monkeypatch.setattr("pipeline.extract.disk_forecast.free_disk", lambda _: plain.spaces[0].needed)
    message = explain_shortage(request, forecast_disk(request, **room), **room)
    assert message is not None
    assert "would fit: without views" in message
    assert "would fit: without seen" in message
    job.extract()
    assert forecast_disk(read(job.config(views=views(3)), **where), **room).hits == 1 / 4


def test_what_is_spared_counts_passes() -> None:
    assert Plan(samples=5, missing={}, units=(), passes=3).spared == 15


def test_orders_of_a_job_name_its_view(job: Job) -> None:
    request = read(job.config(views=views(2)), backbone=job.backbone, manifests=job.manifests, cache_root=job.cache)
    for one in request.all:
        assignment = WorkerJob(one.config, job.backbone, job.cache, 12, one.missing_taps, one.view)
        with job_files.written(assignment, iter(())) as (folder, _):
            assert job_files.read_assignment(folder) == dataclasses.replace(assignment, cache_root=job.cache.absolute())


# Training and extraction see the same --------------------------------------------------------------------------------


def normalised(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5).numpy() / 0.5


def test_view_three_has_the_pixels_that_a_loop_sees_in_epoch_three(job: Job) -> None:
    job.extract(views=views(4, seed=5))
    pixels = job.pixels
    transforms = Views.model_validate(views(1)).augment
    samples = PixelSamples(pixels, torch.arange(12), pixels.keys, seed=5, transforms=transforms)
    for epoch in (0, 3):
        for batch in samples.batches(5, epoch=epoch):
            stored = job.features("seen", epoch).load(batch.keys)
            np.testing.assert_allclose(normalised(batch.inputs), stored, atol=1e-6)


def test_a_student_on_pixels_sees_the_views_whose_features_come_from_the_store(job: Job) -> None:
    asked = views(3, seed=5)
    job.extract(views=asked)
    pixels = job.pixels
    own = {"targets": torch.arange(12), "keys": pixels.keys, "seed": 1}
    student = PixelSamples(pixels, **own, views=Views.model_validate(asked))
    teacher = FeatureSamples([job.features("seen", view) for view in range(3)], **own)
    seen = []
    for epoch in (0, 1):
        pairs = list(zip(student.batches(5, epoch=epoch), teacher.batches(5, epoch=epoch), strict=True))
        for left, right in pairs:
            assert (left.keys == right.keys).all()
            assert torch.equal(left.targets, right.targets)
            np.testing.assert_allclose(normalised(left.inputs), right.inputs.numpy(), atol=1e-6)
        seen.append(np.concatenate([left.inputs.numpy() for left, _ in pairs]))
    assert not np.array_equal(seen[0], seen[1])


def test_old_views_that_were_cropped_before_they_were_augmented_are_refused(job: Job) -> None:
    job.extract(views=views(1))
    spec = read_spec(job.backbone)
    assert len(open_features(job.out, "seen", spec, views=1)[1]) == 1
    index = job.out / "seen.view0" / "index.json"
    text = json.loads(index.read_text())
    del text["identity"]["reader"]["view"]["version"]
    text["address"] = address(text["identity"])
    text["digest"] = digest({name: value for name, value in text.items() if name != "digest"})
    index.write_text(json.dumps(text))
    with pytest.raises(StoreError, match=r"(?s)Extract again.*reader\.view\.version: expected 2, got None"):
        open_features(job.out, "seen", spec, views=1)


def test_views_that_were_never_extracted_are_said_to_be_missing(job: Job) -> None:
    job.extract(views=views(1))
    with pytest.raises(StoreError, match=r"deep\.view1.*extract"):
        job.features("deep", 1)


# Readers -------------------------------------------------------------------------------------------------------------


def test_a_reader_of_a_view_augments_what_the_plain_one_reads(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((60, 50), Image.Resampling.BICUBIC)
    view = View(augment=AUGMENT, seed=2, number=1)
    plain = ImageSpec(resize=32, crop=(24, 24))
    with_view = plain.model_copy(update={"view": view})
    for name in ("a.jpg", "a.png"):
        picture.save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        keys = key_arrays.from_hex([content_key(data)])
        uncropped = ImageReader(plain.model_copy(update={"crop": None}))(data)["pixels"]
        assert uncropped.shape == (32, 38, 3)
        np.testing.assert_array_equal(
            ImageReader(with_view)(data)["pixels"], view([uncropped], keys, size=(24, 24))[0], strict=True
        )
    assert ImageReader(with_view).identity["view"]["number"] == 1


# Settings ------------------------------------------------------------------------------------------------------------


def test_wrong_settings_of_views_are_said_with_their_place() -> None:
    wrong = [
        {"name": "horizontal_flip", "p": 3},
        {"name": "rotation", "degree": 3},
        {"name": "horizontal-flip"},
        {"p": 1},
        {"name": "random_erasing", "scale": [1, 0.5]},
    ]
    asked = {
        "datasets": ["a"],
        "taps": {"x": {"node": "y"}},
        "views": {"count": 0, "augment": wrong},
    }
    _, problems = check({"extract": {"net": asked}}, {"extract": Section(ExtractConfig, named=True)})
    places = "extract.net.views.count", *(f"extract.net.views.augment.{number}" for number in range(5))
    assert len(problems) == 6
    for problem, place in zip(problems, places, strict=True):
        assert problem.startswith(place)
    assert problems[1].endswith(".horizontal_flip.p: expected less than or equal to 1, got 3.")
    assert "unknown key 'degree'. Did you mean 'degrees'?" in problems[2]
    assert ".name: unknown value 'horizontal-flip'. Did you mean 'horizontal_flip' or" in problems[3]
    assert problems[4].endswith("augment.3.name: this key is missing.")
    assert problems[5].endswith("scale: expected the smaller number first, got [1, 0.5].")


def test_a_tap_cannot_have_the_name_of_a_view() -> None:
    with pytest.raises(ValueError, match="a name has letters"):
        ExtractConfig(datasets=("a",), taps={"deep.view0": {"node": "x"}})
