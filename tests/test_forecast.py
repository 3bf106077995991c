"""What is said before, after and at the end of an extraction, and what is refused: bytes against the room on the disk,
measured rates, the summary, an interruption, a second process.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.backbones import glyphs, serialization
from pipeline.cli import main
from pipeline.errors import DataError, Interrupted, StoreError
from pipeline.extract import disk_forecast, summary
from pipeline.extract import throughput as pilot_module
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_check import forecast_disk
from pipeline.extract.disk_forecast import Forecast, Size, Space
from pipeline.extract.plan import plan
from pipeline.extract.request import Request, read
from pipeline.extract.run import extract
from pipeline.extract.summary import Extracted
from pipeline.extract.throughput import measure_throughput, sample
from pipeline.extract.timing import NAMES, Timings
from pipeline.loading.decoders import Threads
from pipeline.loading.image_cache import load_pixels
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.image import ImageReader
from pipeline.runtime import Reporter
from pipeline.store import index
from pipeline.store.lock import exclusive_lock, path_of
from pipeline.store.shard_format import Layout
from stages import project

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
        serialization.write(
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
        """Extract; `passed` are those of a reporter."""
        folders = {"backbone": self.backbone, "manifests": self.manifests, "out": self.out, "cache_root": self.cache}
        return extract(self.config(**settings), **folders, reporter=Reporter(**passed or {}))

    def request(self, **settings: Any) -> Request:
        """What an extraction would be asked for."""
        return read(self.config(**settings), backbone=self.backbone, manifests=self.manifests, cache_root=self.cache)

    def foresee(self, **settings: Any) -> Forecast:
        """The forecast of an extraction."""
        return forecast_disk(self.request(**settings), cache_root=self.cache, out=self.out)


@pytest.fixture
def work(tmp_path: Path, image_folder: Folder) -> Work:
    """A project's folders, nothing extracted."""
    return Work(tmp_path, image_folder())


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the forecast find so many bytes left on every file system; there are more."""
    monkeypatch.setattr("pipeline.extract.disk_forecast.free_disk", lambda _: free)


# Bytes ----------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_tap_are_rows_checksums_keys_and_a_little_for_each_shard() -> None:
    todo = plan({"a": np.arange(10) > 6, "b": np.ones(10, bool)}, unit_rows=4)
    layouts = {"a": Layout("x", "int8", (512,)), "b": Layout("x", "float16", (4, 2, 2))}
    sizes = disk_forecast.sizes(todo, layouts)
    assert sizes["a"] == Size(
        7, 2, 512, 7 * 512 + 2 * 8 + 7 * 32 + 2 * (4 * 512 + disk_forecast.SHARD_BYTES), False, 4 * 2048
    )
    assert sizes["b"] == Size(0, 0, 32, 0, True)
    assert [disk_forecast.sizes(todo, layouts, processes=count)["a"].spool for count in (2, 3)] == 2 * [7 * 2048]


def test_the_forecast_of_vectors_is_what_is_written_and_no_less(work: Work) -> None:
    taps = {"deep": {"node": "block1", "pool": "avg2x2"}, "logits": TAPS["logits"]}
    found = work.foresee(taps=taps)
    work.extract(taps=taps)
    written = sum(path.stat().st_size for path in work.cache.rglob("*") if path.suffix in (".h5", ".keys"))
    assert written <= found.bytes <= written + len(taps) * disk_forecast.SHARD_BYTES
    assert work.foresee(taps=taps).bytes == 0


def test_a_forecast_says_rows_shards_bytes_and_the_room_there_is(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 3 * 10**9)
    announced: list[Forecast] = []
    work.extract(passed={"message": announced.append})
    lines = str(announced[0]).splitlines()
    assert lines[0].startswith("logits: 12 rows to compute, 0 known; 2 shards, 16.")
    assert lines[1] == "wide: 12 rows to compute, 0 known; 2 shards, 1.6 MB before compression"
    assert lines[2] == f"{work.cache}: 2.7 MB needed (1.0 MB of them while it runs), 3.0 GB free"
    assert str(work.foresee()).splitlines() == [f"{tap}: 0 rows to compute, 12 known" for tap in TAPS]
    found = announced[0].to_json()
    assert found["taps"]["wide"].items() >= {"missing": 12, "known": 0, "shards": 2, "row_bytes": 131_072}.items()
    assert found["taps"]["wide"]["spool"] == 8 * 131_072  # of the larger of two units
    passing = 8 * (131_072 + 12)
    needed = found["bytes"] + passing
    assert found["spaces"] == [{"folder": str(work.cache), "needed": needed, "passing": passing, "free": 3 * 10**9}]


# The room -------------------------------------------------------------------------------------------------------------


def test_features_that_do_not_fit_are_refused_before_anything_is_computed_with_what_would_fit(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 2_200_000)
    with pytest.raises(StoreError) as caught:
        work.extract()
    title, *lines, remedy = str(caught.value).splitlines()
    assert title == "the features do not fit on the disk (1.6 MB to compute, maps before compression)"
    room = "2.7 MB needed (1.0 MB of them while it runs), 2.2 MB free: 455.2 kB are missing"
    assert lines[0] == f"  - {work.cache}: expected {room}"
    kinds = [line.partition(": ")[2].rpartition(":")[0] for line in lines[1:]]
    assert kinds == ["all taps in int8", "wide pooled by mean", "the same in int8", "without wide"]
    assert remedy.startswith("Change the taps in params.yaml, make room (`icecore cache prune`)")
    assert [path for path in work.cache.rglob("*") if path.is_file()] == [path_of(work.cache, work.out)]


def test_every_process_makes_a_unit_at_a_time(work: Work) -> None:
    two = work.foresee(run={"workers": 2}).spaces[0]
    assert (two.passing, two.needed - work.foresee().spaces[0].needed) == (12 * (131_072 + 12), 4 * (131_072 + 12))


def test_int8_needs_room_for_its_rows_as_float32_and_is_not_offered_without(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 1_500_000)  # the shard would have 0.4 MB, the spool of its one unit 1.6
    with pytest.raises(StoreError) as caught:
        work.extract()
    assert "pooled by mean" in str(caught.value)
    assert "all taps in int8" not in str(caught.value)


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
    work.extract(disk="warn", passed={"message": lambda line: said.append(str(line))})
    assert sum(line.startswith("the features do not fit on the disk") for line in said) == 1
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
    assert disk_forecast.fewer(sizes, 200) == []
    assert disk_forecast.fewer(sizes, 70) == ["b"]
    assert disk_forecast.fewer(sizes, 20) == ["b", "a"]
    assert disk_forecast.fewer(sizes, 0) == ["b", "a"]


def test_what_would_fit_is_measured_against_the_fullest_file_system() -> None:
    todo = plan({"a": np.zeros(4, bool)}, unit_rows=4)
    spaces = (Space(Path("cache"), 100, 90), Space(Path("out"), 160, 110))  # 60 bytes are copies of what is known
    others = {
        label: Forecast(todo, {"a": Size(4, 1, 12, count, False)}, (Space(Path("cache"), count, 90), out))
        for label, count, out in [
            ("one", 50, Space(Path("out"), 110, 110)),
            ("two", 51, Space(Path("out"), 111, 110)),
        ]
    }
    text = disk_forecast.shortage_message(Forecast(todo, {"a": Size(4, 1, 25, 100, False)}, spaces), others)
    assert text is not None
    assert "would fit: one: 50 B" in text
    assert "two" not in text
    assert "cache: expected 100 B needed, 90 B free: 10 B are missing" in text
    assert "out: expected 160 B needed, 110 B free: 50 B are missing" in text


# The pilot ------------------------------------------------------------------------------------------------------------


def test_the_pilot_stores_the_rows_of_an_archive_under_their_keys(image_folder: Folder, tmp_path: Path) -> None:
    files = sorted(image_folder().rglob("*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for place in np.random.default_rng(1).permutation(len(files)):
            archive.add(files[place], f"{files[place].parent.name}/{files[place].name}")
    (tmp_path / "packed").mkdir()
    packed = Work(tmp_path / "packed", tmp_path / "a.tar")
    request = packed.request()
    pixels = load_pixels(request.spec.input, request.samples, folder=tmp_path)
    with contextlib.closing(Threads(ImageReader(request.spec.input.image), 1)) as pool:
        keys, batches, rejects, _ = pilot_module._read(request, np.arange(2, 9), pool, 3)
    assert (keys.tolist(), rejects) == (request.samples.keys[2:9].tolist(), [])
    np.testing.assert_array_equal(np.concatenate(batches), pixels.eval_images(pixels.rows(keys)))


def test_the_pilot_measures_every_part_and_keeps_nothing(work: Work) -> None:
    found = measure_throughput(work.request(), cache_root=work.cache)
    assert found is not None
    assert (found.engine, found.sampled, found.unreadable, found.samples) == ("torch, float32", 12, 0, 12)
    assert set(found.rates) == {"read", "forward", "write"}
    assert all(rate > 0 for rate in found.rates.values())
    assert 0 <= found.low <= found.seconds <= found.high
    assert found.bottleneck == NAMES[min(found.rates, key=lambda part: found.rates[part])]
    assert f"the bottleneck is {found.bottleneck}; 12 samples take about " in str(found)
    assert list(work.cache.iterdir()) == []


def test_the_pilot_of_nothing_is_none_and_of_auto_says_that_another_engine_may_be_faster(work: Work) -> None:
    found = measure_throughput(work.request(engine="auto"), cache_root=work.cache, images=3)
    assert found is not None
    assert found.engine == "torch, float32 (auto has not measured here yet and may be faster)"
    assert found.sampled == 3
    work.extract()
    assert measure_throughput(work.request(), cache_root=work.cache) is None


def test_the_pilot_counts_the_views_that_are_missing(work: Work) -> None:
    work.extract()
    views = {"count": 2, "augment": [{"name": "horizontal_flip"}]}
    found = measure_throughput(work.request(views=views), cache_root=work.cache)
    assert found is not None
    assert (found.samples, found.sampled) == (24, 24)  # 12 of each view, none of the samples as they are
    assert found.low < found.seconds < found.high
    work.extract(views={**views, "count": 1})
    rest = measure_throughput(work.request(views=views), cache_root=work.cache)
    assert rest is not None
    assert rest.samples == 12


def test_the_pilot_counts_what_it_cannot_read_and_fails_where_that_is_all(work: Work) -> None:
    request = work.request()
    paths = [Path(path) for path in request.samples.where["path"].to_pylist()]
    paths[0].unlink()
    found = measure_throughput(request, cache_root=work.cache)
    assert found is not None
    assert "pilot: 12 samples, 1 of them unreadable, engine torch" in str(found)
    for path in paths[1:]:
        path.unlink()
    message = r"pilot: expected samples that can be read, got none of 12: .*png: No such file or directory"
    with pytest.raises(DataError, match=message):
        measure_throughput(request, cache_root=work.cache)


def test_the_sample_of_the_pilot_is_seeded_sorted_and_without_one_twice() -> None:
    rows = np.arange(100, 200)
    chosen = sample(rows, 64, seed=0)
    assert chosen.tolist() == sorted(set(chosen.tolist()) & set(rows.tolist()))
    assert len(chosen) == 64
    assert np.array_equal(chosen, sample(rows, 64, seed=0))
    assert not np.array_equal(chosen, sample(rows, 64, seed=1))
    assert sample(rows, 1000, seed=0).tolist() == rows.tolist()


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def icecore(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """A function that runs the command in a project; returns what it prints, and the error it ends with."""
    data = tmp_path / "project" / "data"
    data.mkdir(parents=True)
    shutil.copytree(work.backbone, data / "backbones" / "net")
    shutil.copytree(work.manifests, data / "manifests")
    settings = {"datasets": ["photos"], "taps": TAPS, "batch_size": 4, "engine": "torch"}
    params: dict[str, Any] = {name: {} for name in project.SECTIONS} | {
        "prepare": {"photos": {"root": "photos"}},
        "freeze": {"net": {"source": "pretrained", "network": "x"}},
        "pretrain": {"x": {"dataset": "photos"}},
        "extract": {"net": settings},
    }
    (data.parent / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("ICECORE_CACHE", str(work.cache))

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["icecore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return capsys.readouterr().out, str(ended.value.code or "")

    return run


def test_plan_and_forecast_print_rows_bytes_and_rates_and_compute_nothing(
    icecore: Callable[..., tuple[str, str]], work: Work
) -> None:
    out, error = icecore("plan", "net")
    assert error == ""
    assert out.startswith("logits: 12 rows to compute, 0 known; 1 shard, ")
    assert not work.cache.exists()
    out, error = icecore("forecast", "net", "--images", "6")
    assert error == ""
    assert "pilot: 6 samples, engine torch, float32; samples/s: read " in out
    found = json.loads(icecore("forecast", "net", "--json")[0])
    assert found["taps"]["wide"]["missing"] == 12
    assert found["pilot"]["bottleneck"] in NAMES.values()
    assert json.loads(icecore("plan", "net", "--json")[0])["samples"] == 12
    assert icecore("plan", "nte")[1].startswith(
        "error: params.yaml: unknown entry of extract 'nte'. Did you mean 'net'"
    )


def test_plan_and_forecast_of_what_is_there_and_of_what_does_not_fit(
    icecore: Callable[..., tuple[str, str]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 500_000)
    for command in ("plan", "forecast"):
        out, error = icecore(command, "net")
        assert out.startswith("logits: 12 rows to compute")
        assert error.startswith("error: the features do not fit on the disk")
    leave(monkeypatch, 10**9)
    work.extract()
    assert icecore("forecast", "net")[0].splitlines()[-1] == "nothing is missing"
    assert json.loads(icecore("forecast", "net", "--json")[0])["pilot"] is None


# The summary ----------------------------------------------------------------------------------------------------------


def test_the_time_of_a_run_is_split_into_reading_the_forward_pass_and_writing(work: Work) -> None:
    told: list[str] = []
    announced: list[Forecast] = []
    callbacks = {"message": announced.append, "timings": told.append}
    spent = work.extract(passed=callbacks).spent
    assert len(told) == 3
    assert told[0].startswith("read ")
    assert announced[0].hits == 0
    assert work.foresee().hits == 1
    assert spent.samples == 12
    assert all(seconds > 0 for seconds in spent.seconds.values())
    assert spent.rate == pytest.approx(12 / sum(spent.seconds.values()))


def test_time_is_counted_where_it_is_spent_also_where_a_part_fails() -> None:
    spent = Timings()
    assert str(spent) == "nothing was computed"
    assert list(spent.waiting([1, 2])) == [1, 2]
    with pytest.raises(ValueError, match="no forward"), spent.on("forward"):
        raise ValueError("no forward")
    assert spent.seconds["read"] > 0
    assert spent.seconds["forward"] > 0
    assert spent.seconds["write"] == 0
    spent = Timings(10, {"read": 1.0, "forward": 3.0, "write": 1.0})
    assert str(spent) == "2.0 samples/s (read 20%, forward 60%, write 20%); the bottleneck is the forward pass"


def test_the_summary_says_what_was_computed_reused_and_rejected(work: Work) -> None:
    lines = summary.text("net", work.extract(), process=50.0).splitlines()
    assert lines[0] == "net: 12 samples, 0 rejected; rows of all taps: 24 to compute, 0 reused"
    assert lines[1].startswith("12 samples in ")
    assert "the bottleneck is " in lines[1]
    assert lines[2].startswith("50.0 s in all: before the extraction ")
    assert lines[3].startswith("peak memory: ")
    assert len(lines) == 4
    again = summary.text("net", work.extract(), process=50.0).splitlines()
    assert again[0] == "net: 12 samples, 0 rejected; rows of all taps: 0 to compute, 24 reused"
    assert len(again) == 3


def test_the_summary_counts_reasons_and_the_time_that_reuse_spared(work: Work) -> None:
    work.extract()
    todo = plan({"a": np.arange(12) < 8}, unit_rows=4)
    reasons = {f"reason {number}": 9 - number for number in range(7)}
    done = Extracted(todo, 42, reasons, {"a": 8}, Timings(4, {"read": 1.0, "forward": 0.5, "write": 0.5}), 12.5)
    lines = summary.text("net", done, process=50.0).splitlines()
    assert lines[0] == "net: 12 samples, 42 rejected; rows of all taps: 4 to compute, 8 reused"
    assert lines[1] == "  rejected: 9 × reason 0"
    assert lines[6] == "  rejected: 7 for other reasons"
    assert "the bottleneck is reading and decoding" in lines[7]
    parts = "before the extraction 37.5 s, engine, checks and links 10.5 s, the samples 2.0 s"
    assert lines[8] == f"50.0 s in all: {parts}"
    assert lines[9] == "reuse spared 8 samples: about 4.0 s at this rate"


def test_rejected_samples_are_counted_by_reason_now_and_when_they_are_known(work: Work) -> None:
    paths = [Path(path) for path in work.request().samples.where["path"].to_pylist()]
    for path in paths[:2]:
        path.unlink()
    paths[2].write_bytes(b"changed")
    done = work.extract(max_rejected=1)
    assert done.rejected == 3
    changed = "changed since its data set was prepared; run prepare again"
    assert done.reasons == {"No such file or directory": 2, changed: 1}
    assert list(done.reasons) == ["No such file or directory", changed]
    assert "  rejected: 2 × No such file or directory" in summary.text("net", done, process=50.0)


# An interruption ------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_says_what_is_kept_and_goes_on_from_there(work: Work) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(
        Interrupted, match=r"^16 of 24 rows are in the feature cache; the same command goes on from there$"
    ):
        work.extract(passed={"progress": interrupt})
    assert not work.out.exists()
    assert work.extract().plan.missing == {"logits": 4, "wide": 4}


STAGE = """
import os, signal, sys
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_forecast import Forecast
from pipeline.extract.run import extract
from pipeline.loading.image_cache import load_pixels
from pipeline.runtime import Reporter
from stages import project

def progress(done, total):
    if done == total:
        os.kill(os.getpid(), signal.SIGINT)

def main():
    config = ExtractConfig.model_validate_json(sys.argv[1])
    backbone, manifests, out, cache = map(Path, sys.argv[2:6])
    if len(sys.argv) > 6:  # hold the lock until told
        def message(line):
            if not isinstance(line, Forecast):
                return
            print("started", flush=True)
            sys.stdin.readline()
    else:
        message = lambda _: None
    extract(config, backbone=backbone, manifests=manifests, out=out, cache_root=cache,
            reporter=Reporter(progress=progress, message=message))

project.run(main)
"""


def command(work: Work, *more: str) -> list[str]:
    """A process that extracts, and gets a Ctrl-C at the last sample."""
    folders = map(str, (work.backbone, work.manifests, work.out, work.cache))
    return [sys.executable, "-c", STAGE, work.config().model_dump_json(), *folders, *more]


def test_ctrl_c_ends_the_stage_without_a_traceback(work: Work) -> None:
    done = subprocess.run(command(work), capture_output=True, text=True, check=False)
    assert done.stderr == "interrupted: 16 of 24 rows are in the feature cache; the same command goes on from there\n"
    assert done.returncode == 130


# The lock -------------------------------------------------------------------------------------------------------------


def test_a_second_extraction_into_the_same_folder_is_refused_and_names_the_first(work: Work) -> None:
    first = subprocess.Popen(command(work, "wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "started\n"
        message = (
            rf"{work.out}: expected no other extraction into this folder, got one: process {first.pid} on .*\. "
            "Wait until it has ended"
        )
        with pytest.raises(StoreError, match=message):
            work.extract()
        here, work.out = work.out, work.out.with_name("another")
        work.extract()  # into another folder, with the same cache
        work.out = here
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdin.close()
        first.stdout.close()
    work.extract()  # a lock of a dead process is no lock
    assert index.read(work.out / "wide").stored == 12


def test_the_lock_is_free_after_a_run_that_fails_and_names_its_process(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), exclusive_lock(tmp_path, tmp_path / "out"):
        raise ValueError("no")
    with exclusive_lock(tmp_path, tmp_path / "out"):
        assert path_of(tmp_path, tmp_path / "out").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_that_was_just_taken_names_no_process(tmp_path: Path) -> None:
    path = path_of(tmp_path, tmp_path / "out")
    path.parent.mkdir()
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="got one: just started"), exclusive_lock(tmp_path, tmp_path / "out"):
            pass


def test_where_no_lock_can_be_made_the_work_is_done_without_one(work: Work) -> None:
    work.cache.mkdir()
    (work.cache / "locks").write_text("a file")
    work.extract()
    assert index.read(work.out / "wide").stored == 12
