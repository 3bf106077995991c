"""A thousand images of which one in a hundred is unusable, through prepare and extract: each is accounted for."""

import contextlib
import csv
import io
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.odd_images import bomb
from support.unprivileged import closed, open_folder

from pipeline.backbones import glyphs, serialization
from pipeline.errors import DataError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.extract.summary import Extracted
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import PrepareSummary, prepare
from pipeline.readers.sample_key import content_key
from pipeline.store import index
from pipeline.store.features import Features

GOOD = 986
TAPS = {"deep": {"node": "block2", "pool": "mean", "dtype": "float32"}, "pixels": {"node": "input", "pool": "avg8x8"}}


def noise(seed: int, mode: str = "RGB", side: int = 12) -> Image.Image:
    """A small picture that no other seed gives."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (side, side, bands), dtype=np.uint8)
    return Image.frombytes(mode, (side, side), values.tobytes())


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


BOMB = (
    "more than 89,478,485 pixels: refused as a decompression bomb. If the image is genuine, allow its 60000 × 60000 "
    "pixels with `max_pixels`"
)

# What prepare finds in the header: what a file holds, and the reason.
AT_PREPARE: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "text.jpg": (b"no picture, but a text\n", "not an image that Pillow can read"),
    "empty.jpg": (b"", "empty file"),
    "bomb.png": (bomb(), BOMB),
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "loop.jpg": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "No such file or directory"),
}
# What only the decoder finds, and what happens to files afterwards: the reason.
LASTING = {"half.jpg": "damaged image: image file is truncated", "half.png": "damaged image: "}
PASSING = {"gone.jpg": "No such file or directory", "other.jpg": "changed since its data set was prepared; run prepare"}
# Odd, and readable.
READABLE = {
    "a png.jpg": encoded(noise(4), "PNG"),
    "animated.gif": encoded(noise(1, "L"), "GIF", save_all=True, append_images=[noise(2, "L")]),
    "cmyk.jpg": encoded(noise(3, "CMYK"), "JPEG"),
    "grey16.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG"),
}


def halved(kind: str) -> bytes:
    """An image whose second half is missing: its header is whole."""
    data = encoded(noise(5, side=64), kind)
    return data[: len(data) // 2]


@dataclass
class Run:
    """A data set, a backbone, a cache and a features folder."""

    root: Path
    backbone: Path

    @property
    def photos(self) -> Path:
        """The class folder that the images lie in."""
        return self.root / "photos" / "all"

    def prepare(self, **settings: Any) -> PrepareSummary:
        """Write the manifest."""
        config = PrepareConfig(root=self.root / "photos", **{"check": "header"} | settings)
        return prepare(config, ManifestPaths(self.root / "manifests", "photos"))

    def extract(self, **settings: Any) -> Extracted:
        """Extract, by eager torch."""
        config = ExtractConfig.model_validate(
            {"datasets": ["photos"], "taps": TAPS, "engine": "torch", "batch_size": 32} | settings
        )
        where = {"manifests": self.root / "manifests", "out": self.root / "features", "cache_root": self.root / "cache"}
        return extract(config, backbone=self.backbone, **where)

    def features(self, tap: str) -> Features:
        """The features of a tap."""
        return Features.open(self.root / "features" / tap)

    def manifest(self) -> dict[str, str]:
        """The name of each file in the manifest, with its key."""
        table = pq.read_table(ManifestPaths(self.root / "manifests", "photos").rows, columns=["path", "key"])
        return {Path(path).name: key for path, key in zip(*table.to_pydict().values(), strict=True)}

    def excluded(self) -> dict[str, str]:
        """The name of each file that is no row, with the reason."""
        text = ManifestPaths(self.root / "manifests", "photos").excluded.read_text()
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(text.splitlines())}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GlyphNet of random weights."""
    folder = tmp_path_factory.mktemp("backbones") / "net"
    torch.manual_seed(0)
    architecture = {"family": "glyphs", "classes": 3, "widths": [8, 8]}
    network = glyphs.GlyphNet(classes=3, widths=(8, 8))
    serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    return folder


def write_good(folder: Path, count: int) -> None:
    """Small JPEG and PNG files, and the readable ones that are odd."""
    folder.mkdir(parents=True)
    for number in range(count):
        kind = "PNG" if number % 2 else "JPEG"
        (folder / f"{number:04d}.{kind.lower()}").write_bytes(encoded(noise(1000 + number), kind))
    for name, data in READABLE.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def prepared(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PrepareSummary]:
    """A thousand files, ten of them unusable, after prepare and after what happened to two of them since."""
    run = Run(tmp_path_factory.mktemp("corrupt"), backbone)
    write_good(run.photos, GOOD)
    for name, (content, _) in AT_PREPARE.items():
        path = run.photos / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    for kind in ("JPEG", "PNG"):
        (run.photos / f"half.{'jpg' if kind == 'JPEG' else 'png'}").write_bytes(halved(kind))
    (run.photos / "gone.jpg").write_bytes(encoded(noise(6), "JPEG"))
    (run.photos / "other.jpg").write_bytes(encoded(noise(7), "JPEG"))
    found = run.prepare()
    (run.photos / "gone.jpg").unlink()
    (run.photos / "other.jpg").write_bytes(encoded(noise(8), "JPEG"))
    return run, found


@pytest.fixture
def corrupt(prepared: tuple[Run, PrepareSummary], tmp_path: Path) -> Run:
    """The same data set with a cache and features of the test's own."""
    run = Run(tmp_path, prepared[0].backbone)
    shutil.copytree(prepared[0].root / "manifests", tmp_path / "manifests")
    return run


def test_prepare_finds_what_the_header_tells_and_accounts_for_every_file(prepared: tuple[Run, PrepareSummary]) -> None:
    run, found = prepared
    there = GOOD + len(READABLE) + len(AT_PREPARE) + len(LASTING) + len(PASSING)
    assert there == 1000
    assert (found.files, found.rows, found.excluded) == (1000, 994, {"unreadable": len(AT_PREPARE)})
    excluded = run.excluded()
    assert excluded == {name: reason for name, (_, reason) in AT_PREPARE.items()}
    names = set(run.manifest())
    assert {*READABLE, *LASTING, *PASSING} <= names
    assert not names & set(excluded)
    assert len(names) + len(excluded) == 1000


def test_what_is_unusable_is_recorded_and_every_other_row_is_that_of_a_run_without_it(
    prepared: tuple[Run, PrepareSummary], corrupt: Run, tmp_path: Path
) -> None:
    keys = prepared[0].manifest()
    done = corrupt.extract()
    assert (done.plan.samples, done.rejected, done.stored) == (994, 4, dict.fromkeys(TAPS, 0))

    alone = Run(tmp_path / "alone", corrupt.backbone)
    write_good(alone.photos, GOOD)
    alone.prepare()
    assert alone.extract(max_rejected=0).rejected == 0
    bad = {keys[name]: reason for name, reason in (LASTING | PASSING).items()}
    for tap in TAPS:
        ours, theirs = corrupt.features(tap), alone.features(tap)
        told = index.read(corrupt.root / "features" / tap)
        assert (told.samples, told.stored, len(told.rejected)) == (994, 990, 4)
        assert {item.key for item in told.rejected} == set(bad)
        assert all(bad[item.key] in item.reason for item in told.rejected)
        assert ours.keys == theirs.keys == sorted(set(keys.values()) - set(bad))
        assert ours.load().tobytes() == theirs.load().tobytes()
    assert len(np.unique(corrupt.features("deep").load(), axis=0)) == 990


def test_what_can_never_be_read_is_not_tried_again_and_what_comes_back_is_computed(
    prepared: tuple[Run, PrepareSummary], corrupt: Run
) -> None:
    photos, keys = prepared[0].photos, prepared[0].manifest()
    corrupt.extract()
    again = corrupt.extract()
    assert again.plan.missing == dict.fromkeys(TAPS, len(PASSING))
    assert (again.rejected, sum(again.reasons.values())) == (4, 4)
    before = {tap: corrupt.features(tap).load() for tap in TAPS}
    gone = photos / "gone.jpg"
    gone.write_bytes(encoded(noise(6), "JPEG"))
    try:
        assert content_key(gone.read_bytes()) == keys["gone.jpg"]
        assert corrupt.extract().rejected == 3
    finally:
        gone.unlink()
    for tap in TAPS:
        features = corrupt.features(tap)
        assert keys["gone.jpg"] in features.keys
        rest = [key for key in features.keys if key != keys["gone.jpg"]]
        assert np.array_equal(features.load(rest), before[tap])


def test_extract_fails_only_above_the_share_that_is_allowed(corrupt: Run) -> None:
    assert corrupt.extract(max_rejected=4 / 994).rejected == 4
    with pytest.raises(DataError, match=r"4 of 994 samples gave no features, more than the share of 0.004 that"):
        corrupt.extract(max_rejected=0.004)


def test_prepare_fails_only_above_the_share_that_is_allowed(
    prepared: tuple[Run, PrepareSummary], tmp_path: Path
) -> None:
    run = Run(tmp_path, prepared[0].backbone)
    (tmp_path / "photos").symlink_to(prepared[0].root / "photos", target_is_directory=True)
    # gone.jpg is no file any more.
    assert run.prepare(max_rejected=6 / 999).rows == 993
    with pytest.raises(DataError, match=r"6 of 999 files cannot be used, more than the share of 0.006 that"):
        run.prepare(max_rejected=0.006)


def test_prepare_that_decodes_finds_the_damaged_ones_too(prepared: tuple[Run, PrepareSummary], tmp_path: Path) -> None:
    run = Run(tmp_path, prepared[0].backbone)
    (tmp_path / "photos").symlink_to(prepared[0].root / "photos", target_is_directory=True)
    found = run.prepare(check="decode")
    assert (found.rows, found.excluded) == (991, {"unreadable": len(AT_PREPARE) + len(LASTING)})
    for name, reason in LASTING.items():
        assert run.excluded()[name].startswith(reason)
    assert run.extract(max_rejected=0).rejected == 0


@pytest.mark.parametrize(("allowed", "unusable", "files"), [(0.29, 29, 100), (1 / 49, 1, 49)])
def test_prepare_allows_the_very_share_that_was_set_however_it_rounds(
    tmp_path: Path, backbone: Path, allowed: float, unusable: int, files: int
) -> None:
    assert unusable > allowed * files  # in floating point
    run = Run(tmp_path, backbone)
    write_good(run.photos, files - unusable - len(READABLE))
    for number in range(unusable):
        (run.photos / f"text {number}.jpg").write_text("no picture")
    assert run.prepare(max_rejected=allowed).excluded == {"unreadable": unusable}


def test_extract_allows_the_very_share_that_was_set_however_it_rounds(tmp_path: Path, backbone: Path) -> None:
    run = Run(tmp_path, backbone)
    write_good(run.photos, 49 - len(READABLE))
    run.prepare()
    (run.photos / "0000.jpeg").unlink()
    assert run.extract(max_rejected=1 / 49).rejected == 1


def test_a_list_names_a_folder_as_a_file_and_has_the_reason(tmp_path: Path, backbone: Path) -> None:
    run = Run(tmp_path, backbone)
    write_good(run.photos, 2)
    (run.photos / "folder.jpg").mkdir()
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "".join(f"photos/all/{name}\n" for name in ("0000.jpeg", "folder.jpg", "0001.png")))
    found = prepare(PrepareConfig(root=listed, max_rejected=0.5), ManifestPaths(tmp_path / "manifests", "photos"))
    assert (found.rows, found.excluded) == (2, {"unreadable": 1})
    assert run.excluded() == {"folder.jpg": "not a regular file"}


def test_a_file_that_may_not_be_read_has_the_reason_of_the_system(backbone: Path) -> None:
    with open_folder() as root:
        run = Run(root, backbone)
        write_good(run.photos, 9)
        with closed(run.photos / "0000.jpeg", root=root):
            assert run.prepare(max_rejected=0.5).excluded == {"unreadable": 1}
        assert run.excluded() == {"0000.jpeg": "Permission denied"}


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, backbone: Path) -> None:
    run = Run(tmp_path, backbone)
    write_good(run.photos, 9)
    run.prepare()
    pipe = run.photos / "0000.jpeg"
    pipe.unlink()
    os.mkfifo(pipe)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run.extract(max_rejected=0.5).rejected))
    thread.start()
    try:
        thread.join(timeout=10)
        assert found == [1]
    finally:
        while thread.is_alive():  # let it go: a writer that comes and says nothing
            with contextlib.suppress(OSError):
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            thread.join(timeout=0.2)
