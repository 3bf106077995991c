"""Reading bytes: whole files and URLs, members of tar archives, rows of Parquet; and what damage does to each."""

import errno
import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.sources import LIMIT, UNKNOWN, SampleLocation, filesystem, parquet, read, read_many, tar


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """The file system behind memory:// , empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def archive(contents: dict[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of some files."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format) as packed:
        for name, data in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            packed.addfile(header, io.BytesIO(data))
    return written.getvalue()


def found(data: bytes) -> list[tar.Member | tar.Damage]:
    """What is in an archive."""
    return list(tar.members(io.BytesIO(data)))


def good(data: bytes) -> dict[str, bytes]:
    """The members that can be read, with their bytes."""
    inside = [one for one in found(data) if isinstance(one, tar.Member) and one.refused is None and one.kind == "file"]
    return {one.name: data[one.offset : one.offset + one.size] for one in inside}


def last_reason(data: bytes) -> str:
    """Why an archive cannot be read on."""
    last = found(data)[-1]
    return str(last.reason if isinstance(last, tar.Damage) else last.refused)


def places(path: Path | str, data: bytes) -> list[SampleLocation]:
    """The members of an archive as places."""
    inside = [one for one in found(data) if isinstance(one, tar.Member)]
    return [SampleLocation(f"{path}/{one.name}", str(path), one.offset, one.size) for one in inside]


def reasons(answers: Iterator[bytes | OSError]) -> list[str | None]:
    """Why samples could not be read; None where they could."""
    return [one.strerror if isinstance(one, OSError) else None for one in answers]


PHOTOS = {f"cat/{number}.jpg": bytes([number]) * (700 * number) for number in range(4)}

# Members of tar archives ---------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.binary(max_size=1500), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_sees(contents: dict[str, bytes], format: int) -> None:
    data = archive(contents, format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        expected = [(one.name, one.offset_data, one.size) for one in packed]
    inside = found(data)
    assert [(one.name, one.offset, one.size) for one in inside if isinstance(one, tar.Member)] == expected
    assert len(inside) == len(expected)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 7000), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]))
def test_an_archive_that_is_cut_off_gives_what_is_whole_and_says_that_it_ends(length: int, format: int) -> None:
    contents = {"a.jpg": b"a" * 600, "b" * (90 if format == tarfile.USTAR_FORMAT else 200): b"b", "c.jpg": b"c" * 1024}
    whole = archive(contents, format=format)
    cut = whole[:length]
    kept = good(cut)
    assert list(kept.items()) == list(contents.items())[: len(kept)]
    if len(kept) < len(contents):
        assert any(text in last_reason(cut) for text in ("the archive ends", "no end mark", "of a name", "a name of"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_makes_it_fail_or_read_beyond_the_file(changes: list[tuple[int, int]]) -> None:
    data = bytearray(archive({"a.jpg": b"a" * 600, "long/" * 50 + "b": b"b", "c.jpg": b"c" * 1024}))
    for at, value in changes:
        data[at] = value
    inside = found(bytes(data))
    assert len(inside) < 20
    for one in inside:
        assert one.offset <= len(data)
        if isinstance(one, tar.Member) and one.refused is None:
            assert 0 <= one.size <= len(data) - one.offset


def header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size is written as these bytes, with the right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
FIRST = archive({"a.jpg": b"a"})[:1024]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header("b.jpg", b"\x80" + (10 * 2**30).to_bytes(11)) + b"b" * 512, "expected 10,737,418,240 bytes, got 512"),
        (header("b.jpg", b"\xff" * 12) + END, "a size of -1 bytes; the rest of the archive is not read"),
        (header("b.jpg", b"12x") + END, "damaged header: the rest of the archive is not read"),
        (b"x" * 512 + END, "damaged header: the rest of the archive is not read"),
        (b"x" * 100, "the archive ends inside a header"),
        (b"", "the archive has no end mark: it may be truncated"),
        (header("b", b"77777777777", tarfile.GNUTYPE_LONGNAME) + END, "a name of 8,589,934,591 bytes"),
        (header("b", b"14", tarfile.XHDTYPE) + b"12 path".ljust(512, b"\0"), "invalid pax records"),
        (header("b", b"14", tarfile.XHDTYPE) + b"12 size=-10\n" + bytes(500) + FIRST + END, "a size of -10 bytes"),
        (header("b", b"12", tarfile.XHDTYPE) + b"10 size=x\n" + bytes(502) + FIRST + END, "damaged header"),
    ],
    ids=["10 GB", "negative", "no number", "no header", "half", "no end", "long name", "pax", "pax size", "pax text"],
)
def test_damage_is_named_and_what_comes_before_it_is_kept(data: bytes, reason: str) -> None:
    inside = found(FIRST + data)
    assert inside[0] == tar.Member("a.jpg", "file", 512, 1)
    assert len(inside) == 2
    assert reason in last_reason(FIRST + data)


def test_what_is_no_regular_file_is_told_apart() -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as packed:
        for name, kind in [("d.jpg", tarfile.DIRTYPE), ("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)]:
            one = tarfile.TarInfo(name)
            one.type, one.linkname = kind, "a" * 150
            packed.addfile(one)
        one = tarfile.TarInfo("p.jpg")
        one.type = tarfile.FIFOTYPE
        packed.addfile(one)
    kinds = {one.name: (one.kind, one.refused) for one in found(written.getvalue()) if isinstance(one, tar.Member)}
    link = ("link", "a link: pack the file that it points to")
    assert kinds == {
        "d.jpg": ("folder", None),
        "s.jpg": link,
        "h.jpg": link,
        "p.jpg": ("special", "not a regular file"),
    }


def test_a_sparse_file_is_refused_and_the_next_member_is_found() -> None:
    sparse = bytearray(header("s.jpg", b"00000001000", tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    inside = found(bytes(sparse) + bytes(512) + b"s" * 512 + FIRST + END)
    assert inside[0] == tar.Member("s.jpg", "file", 1024, 512, "a sparse file: pack it without --sparse")
    assert inside[1:] == [tar.Member("a.jpg", "file", 2048, 1)]
    modern = b"22 GNU.sparse.major=1\n"
    inside = found(header("x", b"26", tarfile.XHDTYPE) + modern.ljust(512, b"\0") + FIRST + END)
    assert [one.refused for one in inside if isinstance(one, tar.Member)] == ["a sparse file: pack it without --sparse"]


def test_archives_that_were_joined_are_read_as_one() -> None:
    assert list(good(archive({"a": b"1"}) + archive({"b": b"2"}))) == ["a", "b"]


def test_more_bytes_than_a_sample_may_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(header("big.jpg", b"\x80" + (LIMIT + 512).to_bytes(11)))
    os.truncate(path, 512 + LIMIT + 512 + 1024)  # the file has a hole: it takes no room
    with filesystem.open_file(str(path)) as file:
        [one] = tar.members(file)
    assert isinstance(one, tar.Member)
    assert one.refused == "expected at most 2,147,483,648 bytes, got 2,147,484,160"
    [answer] = read_many(str(path), [SampleLocation("x", str(path), one.offset, one.size)])
    assert isinstance(answer, OSError)
    assert answer.errno == errno.EFBIG


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\x28\xb5\x2f\xfd"])
def test_compression_is_told_by_its_first_bytes(start: bytes) -> None:
    assert tar.compression(start + b"more") in ("gzip", "bzip2", "zstd")
    assert tar.compression(FIRST) is None


# Bytes out of tar archives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "file", "memory"])
def test_the_bytes_of_members_come_in_the_order_asked_for(where: str, tmp_path: Path, memory: Any) -> None:
    data = archive(PHOTOS)
    path = {"local": str(tmp_path / "a.tar"), "file": f"file://{tmp_path}/a.tar", "memory": "memory://b/a.tar"}[where]
    (tmp_path / "a.tar").write_bytes(data)
    memory.pipe_file("/b/a.tar", data)
    every = places(path, data)
    assert list(read_many(path, every)) == list(PHOTOS.values())
    assert list(read_many(path, every[1::2])) == list(PHOTOS.values())[1::2]
    assert list(read_many(path, [])) == []


def test_an_archive_that_is_gone_is_an_error_for_each_place(tmp_path: Path) -> None:
    for path in (str(tmp_path / "a.tar"), "memory://nothing/a.tar"):
        every = places(path, archive(PHOTOS))
        assert reasons(read_many(path, every)) == ["No such file or directory"] * 4
    (tmp_path / "a.tar").mkdir()
    assert reasons(read_many(str(tmp_path / "a.tar"), every)) == ["not a regular file"] * 4


def test_an_archive_that_became_shorter_gives_no_bytes_of_the_wrong_length(tmp_path: Path) -> None:
    data = archive(PHOTOS)
    path = tmp_path / "a.tar"
    every = places(path, data)
    path.write_bytes(data[: (every[2].offset or 0) + 100])
    answers = reasons(read_many(str(path), every))
    assert answers == [
        None,
        None,
        "the archive ends inside this member: expected 1,400 bytes, got 100",
        "the archive ends inside this member: expected 2,100 bytes, got 0",
    ]


# Rows of Parquet -----------------------------------------------------------------------------------------------------

ROWS = [bytes([number]) * (number * 10) for number in range(20)]
KINDS = {
    "binary": pa.array(ROWS, pa.binary()),
    "large_binary": pa.array(ROWS, pa.large_binary()),
    "struct": pa.array([{"bytes": row, "path": None} for row in ROWS]),
}


def row_places(path: Path | str, rows: list[int], *, size: int | None = None) -> list[SampleLocation]:
    """Rows of a Parquet file as places."""
    return [
        SampleLocation(f"{path}/{row}", f"{path}#image", row, len(ROWS[row]) if size is None else size) for row in rows
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_bytes_of_rows_come_in_the_order_asked_for(kind: str, where: str, tmp_path: Path, memory: Any) -> None:
    pq.write_table(pa.table({"label": list(range(20)), "image": KINDS[kind]}), tmp_path / "a.parquet", row_group_size=3)
    path = str(tmp_path / "a.parquet") if where == "local" else "memory://b/a.parquet"
    memory.pipe_file("/b/a.parquet", (tmp_path / "a.parquet").read_bytes())
    container = parquet.container(path, "image")
    for rows in ([*range(20)], [0, 1, 7, 8, 19], [4], []):
        assert list(read_many(container, row_places(path, rows))) == [ROWS[row] for row in rows]
        assert list(read_many(container, row_places(path, rows, size=UNKNOWN))) == [ROWS[row] for row in rows]


def test_a_column_and_a_file_may_have_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "a#b.Parquet"
    pq.write_table(pa.table({"im.age#1": KINDS["struct"], "plain.2": KINDS["binary"]}), path)
    for column in ("im.age#1", "plain.2"):
        assert list(read_many(parquet.container(str(path), column), row_places(path, [3, 4]))) == ROWS[3:5]


def test_rows_that_are_not_what_they_were_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shorter = [{"bytes": b"new", "path": "x"}, {"bytes": None, "path": "x"}, None]
    pq.write_table(pa.table({"image": shorter, "text": ["a"] * 3}), path)
    assert reasons(read_many(f"{path}#image", row_places(path, [0, 1, 2, 5]))) == [
        "expected 0 bytes, got 3",
        "no bytes: the column is null in this row",
        "no bytes: the column is null in this row",
        "the file has 3 rows: it was changed",
    ]
    gone = "the file has no column '{}' of bytes any more"
    assert reasons(read_many(f"{path}#text", row_places(path, [0]))) == [gone.format("text")]
    assert reasons(read_many(f"{path}#nothing", row_places(path, [0, 1]))) == [gone.format("nothing")] * 2
    path.write_bytes(b"PAR1 and no more")
    [reason] = reasons(read_many(f"{path}#image", row_places(path, [0])))
    assert "Parquet" in str(reason)
    path.unlink()
    assert reasons(read_many(f"{path}#image", row_places(path, [0, 1]))) == ["No such file or directory"] * 2


def test_only_the_row_groups_that_are_needed_are_read_and_damage_stays_in_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": KINDS["binary"]}), path, row_group_size=5, compression="zstd")
    begin = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 30] = b"\xff" * 30
    path.write_bytes(data)
    outside = [0, 4, 10, 19]
    assert list(read_many(f"{path}#image", row_places(path, outside))) == [ROWS[row] for row in outside]
    answers = reasons(read_many(f"{path}#image", row_places(path, [4, 5, 9, 10])))
    assert [answer is None for answer in answers] == [True, False, False, True]


def test_a_large_row_group_is_read_a_few_megabytes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    noise = np.random.default_rng(0).bytes(100_000)
    pq.write_table(pa.table({"image": [noise] * 1000}), path, use_dictionary=False, write_batch_size=8)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0
    wanted = [SampleLocation(f"{path}/{row}", f"{path}#image", row, len(noise)) for row in range(1000)]
    for answer in read_many(f"{path}#image", wanted):
        assert answer == noise
        most = max(most, pool.bytes_allocated() - before)
    assert most < 60e6  # of 100 MB


# Whole files and URLs ------------------------------------------------------------------------------------------------


def test_whole_files_are_read_wherever_they_lie(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(b"local")
    memory.pipe_file("/b/a.jpg", b"remote")
    assert read(str(tmp_path / "a.jpg")) == read(f"file://{tmp_path}/a.jpg") == b"local"
    assert read("memory://b/a.jpg") == b"remote"
    for path in (str(tmp_path / "b.jpg"), "memory://b/b.jpg"):
        with pytest.raises(FileNotFoundError, match="No such file or directory"):
            read(path)
    with pytest.raises(OSError, match="not a regular file"):
        read(str(tmp_path))


@pytest.mark.parametrize("where", ["local", "file", "memory"])
def test_folders_are_walked_in_order(where: str, tmp_path: Path, memory: Any) -> None:
    names = [("a.jpg",), ("cat", "0.jpg"), ("cat", "deep", "1.jpg"), ("dog", "0.jpg")]
    for parts in names:
        path = tmp_path.joinpath("photos", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        memory.pipe_file("/b/photos/" + "/".join(parts), b"x")
    root = {"local": f"{tmp_path}/photos", "file": f"file://{tmp_path}/photos", "memory": "memory://b/photos"}[where]
    assert [entry.names for entry in filesystem.walk(root)] == names
    assert [entry.path for entry in filesystem.walk(root)] == [f"{root}/{'/'.join(parts)}" for parts in names]
    assert sorted(filesystem.folders(root)) == ["cat", "dog"]
    assert [filesystem.path_kind(f"{root}{below}") for below in ("", "/a.jpg", "/b.jpg")] == ["folder", "file", None]


def test_paths_are_joined_as_they_are_written() -> None:
    assert filesystem.join("/d", "./a.jpg") == "/d/a.jpg"
    assert filesystem.join("/d", "/e/a.jpg") == filesystem.join("s3://b/d", "/e/a.jpg") == "/e/a.jpg"
    assert filesystem.join("s3://b/d", "./c/a.jpg") == "s3://b/d/c/a.jpg"
    assert filesystem.join("/d", "gs://b/a.jpg") == filesystem.join("s3://b", "gs://b/a.jpg") == "gs://b/a.jpg"
    assert [filesystem.parent(path) for path in ("s3://b/d/a.csv", "/d/a.csv", "a.csv")] == ["s3://b/d", "/d", "."]


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/x.jpg", "s3fs"), ("gs://bucket/x.jpg", "gcsfs")])
def test_a_package_that_a_url_needs_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    loaded: Any = sys.modules["fsspec.registry"]  # `fsspec.registry` is a view of what it has
    monkeypatch.delitem(loaded._registry, url.partition(":")[0], raising=False)  # an earlier test may have used it
    with pytest.raises(
        DataError, match=f"{url}: .* needs a package that is not installed. Run `pip install {package}`"
    ):
        read(url)


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"zzz://b/x: fsspec cannot open this URL: .*zzz.* Use a protocol that it knows, such as"
    ):
        read("zzz://b/x")


class Failing(MemoryFileSystem):
    """A file system that fails as those of clouds do, with errors of its own."""

    protocol = "failing"
    store: dict[str, Any] = {}

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no credentials")

    cat_file = ls = info = open = _fail


def test_what_a_remote_file_system_raises_becomes_an_os_error_with_the_reason() -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    for act in (read, filesystem.path_kind, filesystem.folders, lambda url: list(filesystem.walk(url))):
        with pytest.raises(OSError, match="RuntimeError: no credentials"):
            act("failing://b/x")
    answers = list(read_many("failing://b/a.tar", places("failing://b/a.tar", archive(PHOTOS))))
    assert reasons(iter(answers)) == ["RuntimeError: no credentials"] * 4
