"""What is said before a run, and what is refused: bytes against the room on the disk, measured rates."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.backbones import artefact, glyphs
from pipeline.errors import StoreError
from pipeline.extract import ExtractConfig, forecast
from pipeline.extract.forecast import Forecast, Size, Space
from pipeline.extract.plan import plan
from pipeline.extract.request import Request, read
from pipeline.extract.room import foresee
from pipeline.extract.run import Extracted, extract
from pipeline.manifest import ManifestPaths
from pipeline.prepare import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.store import index
from pipeline.store.layout import Layout

Folder = Callable[..., Path]

# A row of `wide` has 128 KiB: eight of them make a shard of `shard_mb: 1`.
TAPS: dict[str, Any] = {
    "logits": {"node": "logits", "dtype": "float32"},
    "wide": {"node": "block1.0", "dtype": "float32"},
}


class Work:
    """Twelve pictures, a small network, and folders for what is made of them."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.backbone, self.manifests, self.out, self.cache = (
            root / name for name in ("net", "manifests", "features", "cache")
        )
        torch.manual_seed(0)
        artefact.write(
            self.backbone,
            glyphs.GlyphNet(classes=3, widths=(32, 8)),
            architecture={"family": "glyphs", "classes": 3, "widths": [32, 8]},
            origin={},
            inputs=glyphs.INPUT,
        )
        prepare(PrepareConfig(root=photos), ManifestPaths(self.manifests, "photos"))

    def config(self, **settings: Any) -> ExtractConfig:
        """The settings of an extraction."""
        given = {"datasets": ("photos",), "taps": TAPS, "batch_size": 4, "shard_mb": 1, "engine": "torch"}
        return ExtractConfig(**given | settings)

    def extract(self, *, passed: dict[str, Any] | None = None, **settings: Any) -> Extracted:
        """Extract; `passed` are callbacks."""
        folders = {"backbone": self.backbone, "manifests": self.manifests, "out": self.out, "cache_root": self.cache}
        return extract(self.config(**settings), **folders, **passed or {})

    def request(self, **settings: Any) -> Request:
        """What an extraction would be asked for."""
        return read(self.config(**settings), backbone=self.backbone, manifests=self.manifests, cache_root=self.cache)

    def foresee(self, **settings: Any) -> Forecast:
        """The forecast of an extraction."""
        return foresee(self.request(**settings), cache_root=self.cache, out=self.out)


@pytest.fixture
def work(tmp_path: Path, image_folder: Folder) -> Work:
    """A project's folders, nothing extracted."""
    return Work(tmp_path, image_folder())


class Usage(NamedTuple):
    """As shutil.disk_usage returns it."""

    total: int
    used: int
    free: int


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Make every file system have so many bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - free, free))


# Bytes ----------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_tap_are_rows_checksums_keys_and_a_little_for_each_shard() -> None:
    todo = plan({"a": np.arange(10) > 6, "b": np.ones(10, bool)}, unit_rows=4)
    layouts = {"a": Layout("x", "int8", (512,)), "b": Layout("x", "float16", (4, 2, 2))}
    sizes = forecast.sizes(todo, layouts)
    assert sizes["a"] == Size(7, 2, 512, 7 * 512 + 2 * 8 + 7 * 32 + 2 * (4 * 512 + forecast.SHARD_BYTES), False)
    assert sizes["b"] == Size(0, 0, 32, 0, True)


def test_the_forecast_of_vectors_is_what_is_written_and_no_less(work: Work) -> None:
    taps = {"deep": {"node": "block1", "pool": "avg2x2"}, "logits": TAPS["logits"]}
    found = work.foresee(taps=taps)
    work.extract(taps=taps)
    written = sum(path.stat().st_size for path in work.cache.rglob("*") if path.suffix in (".h5", ".keys"))
    assert written <= found.bytes <= written + len(taps) * forecast.SHARD_BYTES
    assert work.foresee(taps=taps).bytes == 0


def test_a_forecast_says_rows_shards_bytes_and_the_room_there_is(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 3 * 10**9)
    announced: list[Forecast] = []
    work.extract(passed={"announce": announced.append})
    lines = str(announced[0]).splitlines()
    assert lines[0].startswith("logits: 12 rows to compute, 0 known; 2 shards, 16.")
    assert lines[1] == "wide: 12 rows to compute, 0 known; 2 shards, 1.6 MB before compression"
    assert lines[2] == f"{work.cache}: 1.6 MB needed, 3.0 GB free"
    assert str(work.foresee()).splitlines() == [f"{tap}: 0 rows to compute, 12 known" for tap in TAPS]
    found = announced[0].to_json()
    assert found["taps"]["wide"].items() >= {"missing": 12, "known": 0, "shards": 2, "row_bytes": 131_072}.items()
    assert found["spaces"] == [{"folder": str(work.cache), "needed": found["bytes"], "free": 3 * 10**9}]


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1000, "1.0 kB"), (51_380_224, "51.4 MB"), (2e9, "2.0 GB"), (3e12, "3.0 TB")]
)
def test_bytes_are_readable(size: int, text: str) -> None:
    assert forecast.human(size) == text


# The room -------------------------------------------------------------------------------------------------------------


def test_features_that_do_not_fit_are_refused_before_anything_is_computed_with_what_would_fit(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 500_000)
    with pytest.raises(StoreError) as caught:
        work.extract()
    title, *lines, remedy = str(caught.value).splitlines()
    assert title == "the features do not fit on the disk (1.6 MB to compute, maps before compression)"
    assert lines[0] == f"  - {work.cache}: expected 1.6 MB needed, 500.0 kB free: 1.1 MB are missing"
    kinds = [line.partition(": ")[2].rpartition(":")[0] for line in lines[1:]]
    assert kinds == ["all taps in int8", "wide pooled by mean", "the same in int8", "without wide"]
    assert remedy.startswith("Change the taps in params.yaml, make room (`icecore cache prune`)")
    assert not work.cache.exists()


def test_only_missing_rows_count(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    work.extract()
    leave(monkeypatch, 0)
    assert set(work.extract().plan.missing.values()) == {0}


def test_where_nothing_else_would_fit_that_is_said(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 10)
    with pytest.raises(StoreError, match="no other dtype or pooling of these taps would fit") as caught:
        work.extract(taps={"logits": TAPS["logits"]})
    assert "disk: warn" not in str(caught.value)


def test_with_a_warning_instead_of_a_refusal_it_is_tried(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 10)
    said: list[str] = []
    work.extract(disk="warn", passed={"say": said.append})
    assert said[0].startswith("the features do not fit on the disk")
    assert index.read(work.out / "wide").stored == 12


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system; skips where there is none."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_features_folder_on_another_file_system_needs_room_for_copies(work: Work, elsewhere: Path) -> None:
    here = work.foresee()
    assert [space.folder for space in here.spaces] == [work.cache]
    work.extract()
    work.out = elsewhere / "features" / "net"
    cache, copies = work.foresee().spaces
    assert (cache.folder, cache.needed) == (work.cache, 0)
    assert copies.folder == work.out
    assert copies.needed == sum(path.stat().st_size for path in work.cache.rglob("*.h5"))
    work.extract()
    assert [space.needed for space in work.foresee().spaces] == [0, 0]


def test_the_fewest_taps_are_left_out_and_never_all() -> None:
    sizes = {tap: Size(1, 1, bytes, bytes, False) for tap, bytes in (("a", 50), ("b", 100), ("c", 20))}
    assert forecast.fewer(sizes, 200) == []
    assert forecast.fewer(sizes, 70) == ["b"]
    assert forecast.fewer(sizes, 20) == ["b", "a"]
    assert forecast.fewer(sizes, 0) == ["b", "a"]


def test_what_would_fit_is_measured_against_the_fullest_file_system() -> None:
    todo = plan({"a": np.zeros(4, bool)}, unit_rows=4)
    spaces = (Space(Path("cache"), 100, 90), Space(Path("out"), 160, 110))  # 60 bytes are copies of what is known
    text = forecast.shortage(Forecast(todo, {"a": Size(4, 1, 25, 100, False)}, spaces), {"one": 50, "two": 51})
    assert text is not None
    assert "would fit: one: 50 B" in text
    assert "two" not in text
    assert "cache: expected 100 B needed, 90 B free: 10 B are missing" in text
    assert "out: expected 160 B needed, 110 B free: 50 B are missing" in text
