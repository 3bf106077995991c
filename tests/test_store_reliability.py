"""The store on awkward file systems: full, read-only, elsewhere, gone in between, or written by a newer icecore."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import shards
from test_extract import Job, contents, forbid, write_backbone

from pipeline.errors import StoreError
from pipeline.extract.disk_forecast import Forecast
from pipeline.readers.sample_key import content_key
from pipeline.store import cache, index, key_arrays, maintenance
from pipeline.store.cache import CacheEntry
from pipeline.store.shard_reader import ShardRecord

Folder = Callable[..., Path]

IDENTITY = {"node": "block1", "dtype": "float32"}
PAGE = 4096
NOTHING = {"deep": 0, "logits": 0, "pixels": 0}
EVERYTHING = {"deep": 12, "logits": 12, "pixels": 12}


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def free(self) -> int:
        """Bytes that can still be written."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def fill(self, *, leave: int = 0) -> None:
        """Write a file that leaves only so many bytes, rounded up to pages."""
        with self._filler.open("wb") as file:
            if (size := self.free() - -(-leave // PAGE) * PAGE) > 0:
                os.posix_fallocate(file.fileno(), 0, size)

    def make_room(self) -> None:
        """Remove what `fill` wrote."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        """Let nobody write any more, root neither."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk of 4 MiB."""
    # Not below tmp_path, which pytest removes with all that is in it.
    with tempfile.TemporaryDirectory(prefix="icecore-disk-") as folder:
        mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        try:
            done = subprocess.run(mounting, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount: a disk of its own cannot be had")
        if done.returncode:
            pytest.skip(f"a disk of its own cannot be had: {done.stderr.strip()}")
        try:
            yield Disk(Path(folder))
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GlyphNet of random weights."""
    folder = tmp_path_factory.mktemp("backbones") / "net"
    write_backbone(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, backbone: Path, image_folder: Folder) -> Job:
    """Twelve pictures that nothing was extracted of."""
    return Job(tmp_path, backbone, image_folder())


SPOOLED = 64 * 2_000 * 4  # bytes of the rows of one part, which wait in a file until their shard is written


def add(column: CacheEntry, part: int) -> ShardRecord:
    """Add one of many shards, of 64 rows and about 500 kB."""
    keys = sorted(content_key(f"{part}/{number}".encode()) for number in range(64))
    rows = np.array([[int(key[:5], 16) + place for place in range(2_000)] for key in keys], dtype=np.float32)
    return shards.add(column, key_arrays.from_hex(keys), rows, provenance={})


def temporary_files(folder: Path) -> list[Path]:
    """What unfinished writes left."""
    return list(folder.rglob(".*.tmp"))


def damaged(column: CacheEntry) -> list[tuple[ShardRecord, str]]:
    """The shards of which any byte is wrong."""
    return list(maintenance.find_damage(column, whole=True))


def extract_some(job: Job, **settings: Any) -> None:
    """Extract all pictures but four, which are there again afterwards."""
    later = job.files[:4]
    for path in later:
        path.rename(path.with_suffix(".later"))
    job.list()
    job.extract(**settings)
    for path in later:
        path.with_suffix(".later").rename(path)
    job.list()


# A full disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_keeps_what_was_committed_and_adding_goes_on(disk: Disk, tmp_path: Path) -> None:
    column = cache.column(disk.folder / "cache", IDENTITY)
    disk.fill(leave=2 * 2**20 + SPOOLED // 2)
    kept = [add(column, part) for part in range(3)]
    message = r"no space left for a shard of up to [\d,]+ bytes: [\d,]+ are free, [1-9][\d,]* are missing"
    with pytest.raises(StoreError, match=message):
        add(column, 3)
    assert sorted(record.name for record in column.records()) == sorted(record.name for record in kept)
    assert damaged(column) == []
    assert temporary_files(column.folder) == []

    disk.make_room()
    for part in range(6):
        add(column, part)
        add(cache.column(tmp_path / "undisturbed", IDENTITY), part)
    assert contents(disk.folder / "cache") == contents(tmp_path / "undisturbed")


def test_a_disk_that_is_full_when_the_small_files_are_written_keeps_what_was_committed(
    disk: Disk, tmp_path: Path
) -> None:
    column, other = (cache.column(root, IDENTITY) for root in (disk.folder / "cache", tmp_path / "undisturbed"))
    kept = add(column, 0)
    add(other, 0)
    shard_bytes = other.path_of(add(other, 1)).stat().st_size
    message = r"cache: the feature cache cannot be written: No space left on device\. All finished shards are kept"
    for pages in (0, 1):  # neither is enough for both .keys and .json
        disk.fill(leave=SPOOLED + shard_bytes + pages * PAGE)
        with pytest.raises(StoreError, match=message):
            add(column, 1)
        assert column.records() == [kept]
        assert damaged(column) == []
        assert temporary_files(column.folder) == []
        disk.fill()  # the rows that waited are gone
        with pytest.raises(StoreError, match=message):
            column.reject({content_key(b"cut"): "truncated"})
        assert column.rejected() == {}
        disk.make_room()
        for path in column.folder.glob("*.h5"):  # so that the next turn has to write them again
            if path != column.path_of(kept):
                path.unlink()
    add(column, 1)
    assert contents(disk.folder / "cache") == contents(tmp_path / "undisturbed")


def test_a_writer_whose_cache_cannot_be_written_says_what_to_set(disk: Disk) -> None:
    column, row = cache.column(disk.folder / "cache", IDENTITY), np.ones((1, 3), np.float32)
    kept = add(column, 0)
    disk.make_read_only()
    message = (
        r"cache: the feature cache cannot be written: Read-only file system\. Set ICECORE_CACHE to a writable folder"
    )
    with column.writer((3,)) as writer, pytest.raises(StoreError, match=message):
        writer.append(key_arrays.from_hex([content_key(b"1")]), row)
    assert column.records() == [kept]


def test_a_new_column_on_a_full_disk_is_refused(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(
        StoreError, match=r"the feature cache cannot be written: No space left on device\. .*free some space"
    ):
        add(cache.column(disk.folder / "cache", IDENTITY), 0)
    disk.make_room()
    add(cache.column(disk.folder / "cache", IDENTITY), 0)


@pytest.mark.parametrize("shape", [(2_000,), (2, 25, 40)])
@pytest.mark.parametrize("moment", ["append", "finish", "the small files"])
def test_a_disk_that_fills_up_under_a_writer_leaves_nothing_of_it(
    disk: Disk, tmp_path: Path, moment: str, shape: tuple[int, ...]
) -> None:
    column, other = (cache.column(root, IDENTITY) for root in (disk.folder / "cache", tmp_path / "undisturbed"))
    kept = add(column, 0)
    add(other, 0)
    keys = key_arrays.from_hex(sorted(content_key(str(number).encode()) for number in range(128)))
    rows = np.random.default_rng(0).normal(size=(128, *shape)).astype(np.float32)
    size = other.path_of(shards.add(other, keys, rows, provenance={})).stat().st_size

    def write() -> None:
        with column.writer(shape) as writer:
            writer.append(keys[:64], rows[:64])
            writer.append(keys[64:], rows[64:])
            if moment == "finish":
                disk.fill(leave=size // 2)
            elif moment == "the small files":
                disk.fill(leave=-(-size // PAGE) * PAGE)
            writer.finish(provenance={})

    if moment == "append":
        disk.fill(leave=rows.nbytes * 3 // 4)
    message = r"cache: the feature cache cannot be written: No space left on device\. All finished shards are kept"
    if moment != "the small files":
        message = r"no space left for a shard of up to [\d,]+ bytes: [\d,]+ are free, [1-9][\d,]* are missing\. All fin"
    with pytest.raises(StoreError, match=message):
        write()
    assert column.records() == [kept]
    assert damaged(column) == []
    assert temporary_files(column.folder) == []
    disk.make_room()
    moment = "never"
    write()
    assert contents(disk.folder / "cache") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("pages", [0, 1])
def test_a_disk_that_is_full_when_features_are_committed_commits_nothing(disk: Disk, job: Job, pages: int) -> None:
    job.extract(out=job.root / "undisturbed")
    job.out = disk.folder / "features"
    job.extract()
    shutil.rmtree(job.out)
    # The first tap is linked by copying; then there is no room for the table of rows, or for index.json.
    shards = [path.stat().st_size for path in (job.root / "undisturbed" / "deep").glob("*.h5")]
    disk.fill(leave=sum(-(-size // PAGE) * PAGE for size in shards) + pages * PAGE)
    with pytest.raises(StoreError, match=r"features: expected [\d.]+ kB needed, [\d.]+ kB free: [\d.]+ kB are missing"):
        job.extract(progress=forbid)
    with pytest.raises(OSError, match=r"No space left") as caught:
        job.extract(progress=forbid, disk="warn")
    assert str(job.out) in str(caught.value)
    assert temporary_files(job.out) == []
    with pytest.raises(StoreError, match=r"deep: not features .* the extraction has not finished"):
        job.features("deep")
    disk.make_room()
    assert job.missing(progress=forbid) == NOTHING
    assert contents(job.out) == contents(job.root / "undisturbed")


# Another file system, and one that cannot be written ------------------------------------------------------------------


def test_a_cache_on_another_file_system_is_copied_from(job: Job) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == job.root.stat().st_dev:
        pytest.skip("there is no second file system")
    job.extract(out=job.root / "beside")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        (Path(folder) / "file").touch()
        with pytest.raises(OSError) as caught:
            os.link(Path(folder) / "file", job.root / "link")
        assert caught.value.errno == errno.EXDEV
        assert job.missing(cache_root=Path(folder)) == EVERYTHING
    assert contents(job.out) == contents(job.root / "beside")
    shards = list(job.out.rglob("*.h5"))
    assert {path.stat().st_nlink for path in shards} == {1}
    assert {path.stat().st_mode & 0o777 for path in shards} == {0o444}
    assert job.features("deep").load().shape == (12, 8)


def test_a_read_only_cache_that_has_everything_serves(disk: Disk, job: Job) -> None:
    job.extract(out=job.root / "before", cache_root=disk.folder)
    disk.make_read_only()
    assert job.missing(cache_root=disk.folder, progress=forbid) == NOTHING
    assert contents(job.out) == contents(job.root / "before")


@pytest.mark.parametrize("known", ["a column that lacks rows", "no column"])
def test_a_read_only_cache_that_lacks_rows_says_what_to_set(disk: Disk, job: Job, known: str) -> None:
    if known == "a column that lacks rows":
        extract_some(job, cache_root=disk.folder)
    before = contents(job.out)
    disk.make_read_only()
    message = rf"{disk.folder}: the feature cache cannot be written: Read-only file system\. Set ICECORE_CA"
    with pytest.raises(StoreError, match=message):
        job.extract(cache_root=disk.folder)
    assert contents(job.out) == before
    assert len(job.extract(cache_root=job.root / "elsewhere").plan.units) > 0
    assert len(job.features("deep")) == 12


# A cache that goes away -----------------------------------------------------------------------------------------------


def test_a_cache_that_vanished_between_two_extractions_is_computed_again(job: Job) -> None:
    job.extract()
    before, rows = contents(job.out), job.features("deep").load()
    shutil.rmtree(job.cache)

    def read(done: int, total: int) -> None:
        assert done <= total
        assert np.array_equal(job.features("deep").load(), rows)

    assert job.missing(progress=read) == EVERYTHING
    assert contents(job.out) == before


def test_a_cache_that_vanishes_after_the_plan_commits_nothing_and_the_next_run_mends_it(job: Job) -> None:
    job.extract()
    before = contents(job.out)
    message = r"deep: 12 samples were requested, but 0 are stored and 0 rejected\. Nothing was committed: run the extra"
    with pytest.raises(StoreError, match=message):
        job.extract(message=lambda line: isinstance(line, Forecast) and shutil.rmtree(job.cache))
    assert contents(job.out) == before
    assert job.missing() == EVERYTHING
    assert contents(job.out) == before


def test_a_cache_that_vanishes_while_rows_are_computed_commits_nothing_and_the_next_run_mends_it(
    tmp_path: Path, backbone: Path, image_folder: Folder
) -> None:
    wide = {"wide": {"node": "block1.0", "dtype": "float32"}}  # eight rows a unit
    job = Job(tmp_path, backbone, image_folder(each=15))
    job.extract(wide, out=job.root / "undisturbed", cache_root=job.root / "other cache")

    def vanish(done: int, total: int) -> None:
        if done == 16:
            assert total == 30
            shutil.rmtree(job.cache)

    message = r"wide: 30 samples were requested, but 22 are stored and 0 rejected\. Nothing was committed"
    with pytest.raises(StoreError, match=message):
        job.extract(wide, progress=vanish)
    assert not (job.out / "wide" / index.NAME).exists()
    assert job.missing(wide) == {"wide": 8}
    assert contents(job.out) == contents(job.root / "undisturbed")


# Updates that are cut short -------------------------------------------------------------------------------------------


def test_an_update_that_is_cut_between_its_two_files_leaves_what_was_there(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.extract(out=job.root / "undisturbed")
    extract_some(job)
    rows = job.features("deep").load()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(index, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            job.extract()
    assert np.array_equal(job.features("deep").load(), rows)
    assert job.missing(progress=forbid) == NOTHING
    assert contents(job.out) == contents(job.root / "undisturbed")


# A newer icecore ------------------------------------------------------------------------------------------------------


def test_another_layout_beside_ours_is_let_be(job: Job) -> None:
    newer = job.cache / "v3" / "abc"
    newer.mkdir(parents=True)
    for name in ("identity.json", f"{'0' * 64}.json", f"{'0' * 64}.h5", ".shard.1.2.3.tmp"):
        (newer / name).write_text("not what a column has here")
    before = contents(job.cache / "v3")
    assert job.missing() == EVERYTHING
    assert job.missing(progress=forbid) == NOTHING
    maintenance.prune(job.cache, unused_for=0, now=2e10)
    assert list(cache.columns(job.cache)) == []
    assert contents(job.cache / "v3") == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda note: note["shard"].update(codec="lz4"), "unexpected keyword argument 'codec'"),
        (lambda note: note["shard"].pop("first"), "missing 1 required positional argument: 'first'"),
        (lambda note: note.pop("shard"), "'shard'"),
        (lambda note: note.update(shard=["a", "b"]), "must be a mapping"),
    ],
)
def test_a_record_of_a_newer_icecore_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    column = cache.column(tmp_path, IDENTITY)
    path = column.folder / f"{add(column, 0).name}.json"
    note = json.loads(path.read_text())
    change(note)
    path.write_text(json.dumps(note))
    message = rf"{path}: not a record of this version of icecore: .*{why}.* Update icecore, or remove the file"
    with pytest.raises(StoreError, match=message):
        column.records()
    path.unlink()
    assert column.records() == []


def test_a_record_that_names_its_keys_in_another_way_is_refused(tmp_path: Path) -> None:
    column = cache.column(tmp_path, IDENTITY)
    record = add(column, 0)
    path = column.folder / f"{record.name}.json"
    note = json.loads(path.read_text())
    del note["keys"]
    path.write_text(json.dumps(note))
    with pytest.raises(StoreError, match=r"\.keys: damaged: its digest is not the digest in the shard's record"):
        column.keys(record)
