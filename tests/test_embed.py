"""One-off embedding jobs: what is computed, what lies where, and what can be wrong."""

import contextlib
import csv
import re
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline import embed
from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import SPEC_FILE, read_spec
from pipeline.embed import Embedded
from pipeline.errors import BackboneError, ConfigError, DataError
from pipeline.extract.run import extract
from pipeline.files import sha256_file
from pipeline.freeze.config import Timm, Torchvision
from pipeline.freeze.library_model import Weights
from pipeline.manifest import ManifestPaths
from pipeline.prepare.run import prepare
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.store.features import Features

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GlyphNet of random weights."""
    folder = tmp_path_factory.mktemp("backbones") / "net"
    torch.manual_seed(0)
    architecture = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    return folder


def run(backbone: Path | str, taps: list[str], data: Path, root: Path, **settings: Any) -> Embedded:
    """A job on torch, with its cache beside its features."""
    job = embed.job(str(backbone), taps, data, **{"engine": "torch", "batch_size": 4} | settings)
    return embed.embed(job, root / "features", cache_root=root / "cache")


# What is written -----------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_a_new_photo_is_one_row(
    backbone: Path, image_folder: Folder, tmp_path: Path
) -> None:
    photos = image_folder(each=3)
    taps = ["penultimate", "block1:avg2x2"]
    first = run(backbone, taps, photos, tmp_path)
    assert first.extracted.plan.missing == {"penultimate": 6, "block1-avg2x2": 6}
    before = Features.open(tmp_path / "features" / "block1-avg2x2")
    assert (len(before), before.shape, before.dtype) == (6, (32,), np.float16)
    rows = before.load()
    again = run(backbone, taps, photos, tmp_path)
    assert again.extracted.plan.missing == {"penultimate": 0, "block1-avg2x2": 0}

    new = photos / "cat" / "new.png"
    Image.new("RGB", (8, 8), "red").save(new)
    third = run(backbone, taps, photos, tmp_path)
    assert third.extracted.plan.missing == {"penultimate": 1, "block1-avg2x2": 1}
    after = Features.open(tmp_path / "features" / "block1-avg2x2")
    assert sorted({*before.keys, content_key(new.read_bytes())}) == after.keys
    assert np.array_equal(after.load(before.keys), rows)


def test_all_images_are_opened_where_that_is_asked_for(
    backbone: Path, image_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.known_files.SETTLED", -1.0)
    job = embed.job(str(backbone), ["penultimate"], image_folder(each=2))
    out = tmp_path / "features"

    def keys(*, rehash: bool) -> set[str]:
        embed.plan(job, out, cache_root=tmp_path / "cache", rehash=rehash)
        return {*pq.read_table(out / "files.parquet")["key"].to_pylist()}

    first = keys(rehash=False)
    with contextlib.closing(sqlite3.connect(out / ".icecore" / "known.sqlite")) as database, database:
        database.execute("UPDATE known SET key = ? WHERE path = (SELECT max(path) FROM known)", (bytes(16),))
    assert len(keys(rehash=False) ^ first) == 2, "the key that is known was taken"
    assert keys(rehash=True) == first
    assert keys(rehash=False) == first


def test_rows_are_joined_to_files_and_labels_by_key(backbone: Path, image_folder: Folder, tmp_path: Path) -> None:
    photos = image_folder(each=2)
    (photos / "cat" / "copy.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    run(backbone, ["penultimate"], photos, tmp_path)
    files = pq.read_table(tmp_path / "features" / "files.parquet")
    assert files.column_names == ["key", "path", "size", "label"]
    for row in files.to_pylist():
        path = Path(row["path"])
        assert (row["key"], row["size"]) == (content_key(path.read_bytes()), path.stat().st_size)
        assert row["label"] == path.parent.name
    assert sorted(files["key"].to_pylist()) == Features.open(tmp_path / "features" / "penultimate").keys
    [left_out] = csv.DictReader((tmp_path / "features" / "excluded.csv").read_text().splitlines())
    assert left_out["path"].endswith("cat/copy.png")
    assert left_out["reason"].startswith("same content as ")
    assert left_out["reason"].endswith("cat/000.png")


def test_a_folder_without_classes_gives_files_without_labels(
    backbone: Path, image_folder: Folder, tmp_path: Path
) -> None:
    photos = image_folder(("cat",), each=2) / "cat"
    run(backbone, ["penultimate"], photos, tmp_path)
    assert pq.read_schema(tmp_path / "features" / "files.parquet").names == ["key", "path", "size"]


def test_a_list_of_files_keeps_its_columns(backbone: Path, image_folder: Folder, tmp_path: Path) -> None:
    photos = image_folder(("cat",), each=3)
    (photos / "list.csv").write_text("path,title\ncat/000.png,first\ncat/002.png,last\n")
    found = run(backbone, ["logits"], photos / "list.csv", tmp_path)
    assert found.extracted.plan.samples == 2
    assert pq.read_table(tmp_path / "features" / "files.parquet")["title"].to_pylist() == ["first", "last"]


def prepared_only(job: embed.Job, out: Path) -> pa.Table:
    """What a job writes of its samples, without the network."""
    paths = ManifestPaths(out / "manifests", embed.DATASET)
    prepare(job.prepare, paths)
    embed._write_files(paths, out)
    return pq.read_table(out / "files.parquet")


def test_rows_do_not_depend_on_where_the_bytes_lie(backbone: Path, image_folder: Folder, tmp_path: Path) -> None:
    photos = image_folder(each=9)
    files = sorted(photos.rglob("*.png"))
    for number, some in enumerate((files[::2], files[1::2])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for file in some:
                archive.add(file, f"{file.parent.name}/{file.name}")
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        (tmp_path / f"{number}.tar").rename(shards / f"{number}.tar")
    images = [file.read_bytes() for file in files]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=5)

    taps, small = ["penultimate", "block1"], {"shard_mb": 1, "max_rejected": 0}
    run(backbone, taps, photos, tmp_path / "whole", **small)
    whole = Features.open(tmp_path / "whole" / "features" / "block1")
    for data, image in ((shards, None), (tmp_path / "a.parquet", "image"), (f"file://{photos}", None)):
        root = tmp_path / f"from-{str(data).rpartition('/')[2]}"
        found = run(backbone, taps, data, root, **small, image=image).extracted
        assert found.plan.missing == {"penultimate": 18, "block1": 18}
        packed = Features.open(root / "features" / "block1")
        assert packed.keys == whole.keys
        assert np.array_equal(packed.load(), whole.load())
        # Of the units that make it, each reads one archive; the rows of all are those of the folder.
        assert run(backbone, taps, data, root, **small, image=image).extracted.plan.missing["block1"] == 0
    # The bytes are the same content: nothing is computed for them in the folder's cache.
    again = embed.job(str(backbone), taps, shards, engine="torch", batch_size=4, **small)
    found = embed.embed(again, tmp_path / "other", cache_root=tmp_path / "whole" / "cache").extracted
    assert found.plan.missing == {"penultimate": 0, "block1": 0}


def test_what_is_gone_from_an_archive_is_rejected_and_the_rest_is_not(
    backbone: Path, image_folder: Folder, tmp_path: Path
) -> None:
    photos = image_folder(each=5)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos, "photos")
    files = sorted(photos.rglob("*.png"))
    job = embed.job(str(backbone), ["penultimate"], tmp_path / "a.tar", engine="torch", batch_size=4, max_rejected=0.5)
    embed.embed(job, tmp_path / "first", cache_root=tmp_path / "cache")
    rows = pq.read_table(tmp_path / "first" / "files.parquet").to_pylist()
    last = max(row["offset"] for row in rows)
    whole = (tmp_path / "a.tar").read_bytes()
    manifests = tmp_path / "first" / ".icecore" / "manifests"
    (tmp_path / "a.tar").write_bytes(whole[: last + 3])  # cut in the last picture
    found = extract(
        job.extract, backbone=backbone, manifests=manifests, out=tmp_path / "second", cache_root=tmp_path / "empty"
    )
    assert found.rejected == 1
    (reason,) = found.reasons
    assert len(Features.open(tmp_path / "second" / "penultimate")) == len(files) - 1
    assert re.fullmatch(r"the archive ends inside this member: expected \d+ bytes, got 3", reason)


def test_images_may_lie_in_archives_in_parquet_and_behind_urls(image_folder: Folder, tmp_path: Path) -> None:
    photos = image_folder(each=2)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos, "photos")
    images = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    pq.write_table(pa.table({"image": images, "title": ["a", "b", "c", "d"]}), tmp_path / "a.parquet")
    keys = sorted(content_key(data) for data in images)
    for data, image, columns in [
        (tmp_path / "a.tar", None, ["container", "offset", "label"]),
        (tmp_path / "a.parquet", "image", ["container", "offset", "title"]),
        (f"file://{photos}", None, ["label"]),
    ]:
        job = embed.job("resnet50", ["penultimate"], data, image=image)
        files = prepared_only(job, tmp_path / "out")
        assert files.column_names == ["key", "path", "size", *columns]
        assert sorted(files["key"].to_pylist()) == keys


def test_progress_and_findings_are_told(backbone: Path, image_folder: Folder, tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen: list[Any] = []

    @contextmanager
    def stage(name: str) -> Any:
        yield lambda done, total: seen.append((name, done, total))

    job = embed.job(str(backbone), ["penultimate"], image_folder(("cat",), each=2), engine="torch")
    reporter = Reporter(message=seen.append, bar=stage)
    embed.embed(job, tmp_path / "features", cache_root=tmp_path / "cache", reporter=reporter)
    assert ("prepare", 2, 2) in seen
    assert ("extract", 2, 2) in seen
    assert any(str(text).startswith("penultimate: 2 rows to compute, 0 known") for text in seen)


def test_real_photos_through_weights_on_disk(assets: Path, tmp_path: Path) -> None:
    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        members = [member for member in archive if member.name.endswith("/frame_0001.jpg") and "amazon" in member.name]
        archive.extractall(tmp_path, members=members[:4], filter="data")
    photos = tmp_path / "office_caltech10" / "amazon"
    weights = Weights(file=next((assets / "weights").glob("squeezenet1_1-*.pth")))
    taps = ["features.12:mean", "logits"]
    first = run("squeezenet1_1", taps, photos, tmp_path, weights=weights)
    assert first.extracted.plan.missing == {"features-12-mean": 4, "logits": 4}
    assert first.backbone.parent == tmp_path / "features" / ".icecore" / "backbones"
    features = Features.open(tmp_path / "features" / "features-12-mean")
    assert features.shape == (512,)
    # The photos are of things that ImageNet has; the first class is a word for what the folder is named after.
    spec = read_spec(first.backbone)
    logits = Features.open(tmp_path / "features" / "logits")
    files = pq.read_table(tmp_path / "features" / "files.parquet").to_pylist()
    named = {row["label"]: spec.classes[int(logits.load([row["key"]]).argmax())] for row in files}
    assert named["backpack"] == "backpack"

    written = (first.backbone / SPEC_FILE).stat().st_mtime_ns
    again = run("squeezenet1_1", taps, photos, tmp_path, weights=weights)
    assert again.extracted.plan.missing == {"features-12-mean": 0, "logits": 0}
    assert (again.backbone, (again.backbone / SPEC_FILE).stat().st_mtime_ns) == (first.backbone, written)


# What is asked for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("penultimate", "penultimate", {"node": "penultimate"}),
        ("layer3:mean", "layer3-mean", {"node": "layer3", "pool": "mean"}),
        ("features.13:avg2x2", "features-13-avg2x2", {"node": "features.13", "pool": "avg2x2"}),
        ("relu4_3:mean+std", "relu4_3-mean-std", {"node": "relu4_3", "pool": "mean+std"}),
    ],
)
def test_a_tap_is_written_as_its_node_and_pooling(text: str, name: str, settings: dict[str, str]) -> None:
    assert embed.parse_tap(text, "int8") == (name, settings | {"dtype": "int8"})


def test_a_backbone_is_looked_for_in_torchvision_then_in_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: it is the extra `timm`")
    of = {name: embed.job(name, ["x"], tmp_path).backbone for name in ("resnet50", "resnet26", "resnet26.bt_in1k")}
    assert of["resnet50"] == Torchvision(source="torchvision", model="resnet50", weights="DEFAULT")
    assert of["resnet26"] == Timm(source="timm", model="resnet26", weights=None)
    assert of["resnet26.bt_in1k"] == Timm(source="timm", model="resnet26", weights="bt_in1k")
    tagged = embed.job("resnet50", ["x"], tmp_path, weights=Weights(source="timm", name="a1_in1k")).backbone
    assert tagged == Timm(source="timm", model="resnet50", weights="a1_in1k")


def test_weights_on_disk_are_pinned_by_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    job = embed.job("resnet50", ["x"], tmp_path, weights=Weights(file=file))
    assert isinstance(job.backbone, Torchvision)
    assert job.backbone.sha256 == sha256_file(file)


def test_every_wrong_setting_is_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        embed.job(
            "resnet50", ["layer3:men", ""], tmp_path, weights=Weights(sha256="0" * 64), batch_size=0, engine="tensor"
        )
    first, *problems = str(raised.value).splitlines()
    assert first == f"resnet50: {len(problems)} problems"
    message = str(raised.value)
    assert "layer3-men.pool: unknown pooling. Expected one of: none, flatten, mean" in message
    assert "extract.batch_size: expected greater than or equal to 1, got 0." in message
    assert "extract.engine: unknown value 'tensor'" in message
    assert "`sha256` belongs to `file`, and there is none" in message


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"freeze.source: unknown value 'torchvison'. Did you mean 'torchvision'"):
        embed.job("resnet50", ["x"], tmp_path, weights=Weights(source="torchvison"))


def test_two_taps_do_not_share_a_folder(tmp_path: Path) -> None:
    assert list(embed.job("resnet50", ["a:mean", "a:mean"], tmp_path).extract.taps) == ["a-mean"]
    with pytest.raises(ConfigError, match=r"the taps 'a.b' and 'a-b': expected two folders, got 'a-b' for both"):
        embed.job("resnet50", ["a.b", "a-b"], tmp_path)


def test_a_model_that_no_library_has_is_an_error_with_names_near_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = "unknown backbone 'resnet5O'. Did you mean 'resnet50'"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=near) as without:
        embed.job("resnet5O", ["x"], tmp_path)
    assert "models of torchvision (timm is not installed: `pip install 'icecore-features[timm]'`)" in str(without.value)
    monkeypatch.undo()
    pytest.importorskip("timm", reason="timm is not installed: it is the extra `timm`")
    with pytest.raises(BackboneError, match="unknown backbone 'resnet5O'") as both:
        embed.job("resnet5O", ["x"], tmp_path)
    assert "These are the models of torchvision and timm; or name the folder of a backbone" in str(both.value)


def test_images_that_are_missing_are_named_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos: no such folder or list. Expected a folder of images, or a .csv"):
        embed.job("resnet50", ["penultimate"], tmp_path / "photos")
    with pytest.raises(DataError, match=r"memory://nowhere/a.tar: no such folder or list. .*or a URL of one of these"):
        embed.job("resnet50", ["penultimate"], "memory://nowhere/a.tar")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"w.pth: no such weights file. Expected a .safetensors or .pth state dict"):
        embed.job("resnet50", ["penultimate"], tmp_path, weights=Weights(file=tmp_path / "w.pth"))


def test_weights_for_a_backbone_that_has_its_own_are_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"net: a backbone's folder has its weights. Leave out source, weights, file"):
        embed.job(str(backbone), ["penultimate"], tmp_path, weights=Weights(name="DEFAULT"))


def test_a_draft_is_a_setting_of_the_backbone_that_is_frozen(backbone: Path, tmp_path: Path) -> None:
    for draft in (True, False):
        found = embed.job("resnet50", ["penultimate"], tmp_path, draft=draft).backbone
        assert isinstance(found, Torchvision)
        assert found.input.draft is draft
    with pytest.raises(ConfigError, match=r"net: expected a model's name with `draft`, got a backbone's folder, which"):
        embed.job(str(backbone), ["penultimate"], tmp_path, draft=True)


def test_taps_are_checked_before_the_images_are_read(backbone: Path, image_folder: Folder, tmp_path: Path) -> None:
    photos = image_folder(("cat",), each=1)
    with pytest.raises(BackboneError, match=r"tap 'block9': unknown node 'block9'. Did you mean 'block"):
        run(backbone, ["block9"], photos, tmp_path)
    with pytest.raises(BackboneError, match="tap 'logits-mean', node 'logits': pooling 'mean' averages over height"):
        run(backbone, ["logits:mean"], photos, tmp_path)
    assert not (tmp_path / "features").exists()


def test_features_are_not_written_among_the_images(backbone: Path, image_folder: Folder) -> None:
    photos = image_folder(("cat", "logits"), each=1)
    job = embed.job(str(backbone), ["logits"], photos)
    with pytest.raises(ConfigError, match=r"features: expected a folder outside .*photos, which is read whole. Choose"):
        embed.embed(job, photos / "features", cache_root=photos.parent / "cache")
    job = embed.job(str(backbone), ["logits"], photos / "logits")
    with pytest.raises(ConfigError, match=r"photos/logits: expected a folder outside .*photos/logits, which is read"):
        embed.embed(job, photos, cache_root=photos.parent / "cache")


def test_too_many_unusable_files_stop_it_unless_that_is_allowed(
    backbone: Path, image_folder: Folder, tmp_path: Path
) -> None:
    photos = image_folder(("cat",), each=3)
    (photos / "cat" / "damaged.png").write_text("no picture")
    with pytest.raises(
        DataError, match=r"1 of 4 files cannot be used, more than the share of 0.05 that `max_rejected`"
    ):
        run(backbone, ["logits"], photos, tmp_path)
    found = run(backbone, ["logits"], photos, tmp_path, max_rejected=0.5)
    assert found.prepared.excluded == {"unreadable": 1}
    assert found.extracted.plan.samples == 3
