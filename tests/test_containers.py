"""Preparing data sets in tar archives, in Parquet and behind URLs: labels, places, and all that can be wrong."""

import csv
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import manifest
from pipeline.errors import DataError
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.run import PrepareSummary, prepare
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.sources import SampleLocation, read, read_many

Members = list[tuple[str, bytes]]


def picture(seed: int, *, side: int = 8) -> bytes:
    """A small PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(noise).save(written, "PNG")
    return written.getvalue()


def pack(path: Path, members: Members, *, links: dict[str, str] | None = None, folders: tuple[str, ...] = ()) -> Path:
    """A tar archive of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in folders:
            one = tarfile.TarInfo(name)
            one.type = tarfile.DIRTYPE
            archive.addfile(one)
        for name, data in members:
            one = tarfile.TarInfo(name)
            one.size = len(data)
            archive.addfile(one, io.BytesIO(data))
        for name, target in (links or {}).items():
            one = tarfile.TarInfo(name)
            one.type, one.linkname = tarfile.SYMTYPE, target
            archive.addfile(one)
    return path


def pictures(*names: str, first: int = 0) -> Members:
    """A different picture under each name."""
    return [(name, picture(first + number)) for number, name in enumerate(names)]


class Outcome:
    """What prepare said and wrote, with paths as they stand below the root."""

    def __init__(self, root: Path | str, manifests: Path, **config: Any) -> None:
        self.root = str(root)
        self.paths = ManifestPaths(manifests, "photos")
        self.prepared = prepare(PrepareConfig(root=root, **config), self.paths)
        self.table = manifest.read(manifests, "photos")
        self.rows = {self.below(row["path"]): row for row in self.table.to_pylist()}
        with self.paths.excluded.open(newline="", encoding="utf-8") as file:
            self.excluded = {self.below(row["path"]): (row["kind"], row["reason"]) for row in csv.DictReader(file)}

    def below(self, path: str) -> str:
        """A path as it is seen from the root."""
        return path.removeprefix(f"{self.root}/")

    def column(self, name: str) -> dict[str, Any]:
        """The values of a column by path."""
        return {path: row[name] for path, row in self.rows.items()}

    def reread(self) -> dict[str, str]:
        """The key of what now stands at the place of each row, as extraction reads it."""
        files = pq.read_table(self.paths.files).sort_by("offset").to_pylist()
        found = {}
        for row in files:
            place = SampleLocation(row["path"], row["container"], row["offset"], row["size"])
            [data] = [read(place.path)] if place.container is None else read_many(place.container, [place])
            assert isinstance(data, bytes)
            found[self.below(row["path"])] = content_key(data)
        return found


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system behind memory:// , empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


# Samples in the WebDataset convention --------------------------------------------------------------------------------


def webdataset(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Samples of a PNG, `.json` and `.cls` where they are given, and a caption."""
    members: Members = []
    for number, sample in enumerate(samples):
        stem = f"{number:06d}"
        members += [(f"{stem}.txt", b"a caption"), (f"{stem}.png", picture(number))]
        members += [(f"{stem}.{kind}", sample[kind].encode()) for kind in ("json", "cls") if kind in sample]
    return pack(path, members)


def test_class_and_columns_come_from_the_members_beside_the_image(tmp_path: Path) -> None:
    values = {
        "width": 8,
        "score": 0.5,
        "safe": True,
        "url": "http://x",
        "mixed": 1,
        "both": 1,
        "tags": ["a"],
        "key": "k",
    }
    more = {
        "width": None,
        "score": 2.5,
        "safe": False,
        "mixed": "a",
        "both": 2.5,
        "big": 2**70,
        "inf": 1e999,
        "nan": math.nan,
    }
    samples = [
        {"cls": "3\n", "json": json.dumps(values)},
        {"cls": "0", "json": json.dumps(more)},
        {"cls": "-1", "json": '{"split": "test", "domain": 7, "mixed": false}'},
    ]
    found = Outcome(webdataset(tmp_path / "a.tar", samples), tmp_path / "manifests")
    assert found.prepared == PrepareSummary(files=3, rows=3, excluded={})
    types = {field.name: field.type for field in found.table.schema if field.name not in FILES_SCHEMA.names}
    assert types == {
        "label": pa.int64(),
        "data:key": pa.string(),
        "big": pa.string(),
        "both": pa.float64(),
        "inf": pa.string(),
        "mixed": pa.string(),
        "safe": pa.bool_(),
        "score": pa.float64(),
        "tags": pa.list_(pa.string()),
        "url": pa.string(),
        "width": pa.int64(),
        "domain": pa.string(),
        "split": pa.string(),
    }
    assert list(found.column("label").values()) == [3, 0, -1]
    assert list(found.column("mixed").values()) == ["1", "a", "false"]
    assert list(found.column("both").values()) == [1.0, 2.5, None]
    assert list(found.column("big").values()) == [None, str(2**70), None]
    assert list(found.column("inf").values()) == [None, "Infinity", None]
    assert (found.rows["000002.png"]["split"], found.rows["000002.png"]["domain"]) == ("test", "7")
    assert found.reread() == found.column("key")
    assert [(row["container"], row["size"]) for row in found.rows.values()] == [
        (f"{tmp_path}/a.tar", len(picture(number))) for number in range(3)
    ]


def test_classes_are_numbers_only_where_all_are(tmp_path: Path) -> None:
    samples = [{"cls": "7"}, {"cls": "007"}, {"json": '{"label": "seven"}'}, {}]
    found = Outcome(webdataset(tmp_path / "a.tar", samples), tmp_path / "manifests")
    assert list(found.column("label").values()) == ["7", "007", "seven", None]


def test_lists_of_texts_are_lists_of_labels_and_of_numbers_where_they_are_asked_for(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"json": '{"label": ["sun", "sea"], "classes": [3, 7], "box": [0.5, 1], "odd": ["a"]}'},
        {"json": '{"label": [], "classes": [true], "box": [1, 2], "odd": "b"}'},
    ]
    path = webdataset(tmp_path / "a.tar", samples)
    found = Outcome(path, tmp_path / "manifests")
    assert found.table.column_names == [*FILES_SCHEMA.names, "label", "odd"]
    assert found.table["label"].type == pa.list_(pa.string())
    assert list(found.column("label").values()) == [["sun", "sea"], []]
    assert list(found.column("odd").values()) == ['["a"]', "b"]
    chosen = Outcome(path, tmp_path / "manifests", columns=("classes", "box"))
    assert list(chosen.column("classes").values()) == [["3", "7"], ["true"]]
    assert list(chosen.column("box").values()) == ["[0.5, 1]", "[1, 2]"]


def test_the_columns_of_json_can_be_chosen(tmp_path: Path) -> None:
    samples = [{"json": '{"a": 1, "b": [1, {"c": "ü"}], "d": 2}', "cls": "x"}, {"json": "{}"}]
    path = webdataset(tmp_path / "a.tar", samples)
    found = Outcome(path, tmp_path / "manifests", columns=("b",))
    assert found.table.column_names == [*FILES_SCHEMA.names, "label", "b"]
    assert found.rows["000000.png"]["b"] == '[1, {"c": "ü"}]'
    with pytest.raises(DataError, match=r"unknown column 'bb'. Did you mean 'b'.* None of the .json members has it"):
        Outcome(path, tmp_path / "manifests", columns=("b", "bb"))


def test_json_that_would_give_thousands_of_columns_is_an_error(tmp_path: Path) -> None:
    samples = [{"json": json.dumps({f"c{number}": 1 for number in range(1001)})}]
    with pytest.raises(DataError, match=r"expected at most 1,000 label columns, got 1,001. Choose some with `columns`"):
        Outcome(webdataset(tmp_path / "a.tar", samples), tmp_path / "manifests")


BESIDE = {
    "its .json is damaged": {"json": b"{"},
    "its .json holds no object": {"json": b"[1]"},
    "its .json is not UTF-8": {"json": b'{"a": "\xff"}'},
    "its .cls is not UTF-8": {"cls": b"\xff"},
    "its .json: expected at most 16,777,216 bytes, got 16,777,217": {"json": b" " * (2**24 + 1)},
}


def test_a_sample_whose_labels_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    members: Members = pictures("whole.png", first=100)
    for number, beside in enumerate(BESIDE.values()):
        members += [(f"{number}.{kind}", data) for kind, data in beside.items()]
        members += [(f"{number}.png", picture(number))]
    members += [("deep.png", picture(50)), ("deep.json", b"[" * 100_000)]
    members += [("two.cls", b"1"), ("two.png", picture(60)), ("two.cls", b"2")]
    found = Outcome(pack(tmp_path / "a.tar", members), tmp_path / "manifests", max_rejected=0.95)
    assert list(found.rows) == ["whole.png"]
    assert found.excluded == {
        **{f"{number}.png": ("unreadable", reason) for number, reason in enumerate(BESIDE)},
        "deep.png": ("unreadable", "its .json is damaged"),
        "two.png": ("unreadable", "its sample has two .cls members"),
    }


def test_all_that_is_no_sample_is_listed_with_the_reason(tmp_path: Path) -> None:
    members = [
        *pictures("cat/0.png", "./cat/1.png", "cat/2.left.png", "cat/2.right.png", "cat/3.PNG"),
        ("cat/4.json", b"{}"),
        ("cat/4.txt", b"no image"),
        ("readme", b"hello"),
        ("cat/.DS_Store", b"x"),
        ("cat/._0.png", b"x"),
        *pictures("dog/0.png", first=10),
        ("dog/1.png", b"no picture"),
        ("dog/2.png", picture(0)),
        ("dog/3.png", picture(10)),
        *pictures("dog/caf\udce9.png", "cat/0.png", first=20),
    ]
    path = pack(tmp_path / "a.tar", members, links={"cat/link.png": "0.png"}, folders=("cat", "cat/f.png"))
    found = Outcome(path, tmp_path / "manifests", max_rejected=0.9)
    assert set(found.rows) == {"cat/1.png", "cat/2.left.png", "cat/3.PNG", "dog/0.png"}
    conflict = 'one content with several labels: {"label": "cat"} and {"label": "dog"}'
    assert found.excluded == {
        "cat/0.png": ("unreadable", "a second member of this name in its archive"),
        "cat/2.right.png": ("unreadable", "a second image of the same sample: the first is cat/2.left.png"),
        "cat/4.json": ("unreadable", "a sample without an image: it has .json, .txt"),
        "readme": ("unreadable", "a sample without an image: it has no extension"),
        "cat/.DS_Store": ("hidden", "a hidden file, or a file in a hidden folder"),
        "cat/._0.png": ("hidden", "a hidden file, or a file in a hidden folder"),
        "cat/f.png": ("unreadable", "a folder with the name of an image"),
        "cat/link.png": ("unreadable", "a link: pack the file that it points to"),
        "dog/1.png": ("unreadable", "not an image that Pillow can read"),
        "dog/2.png": ("conflict", conflict),
        "dog/3.png": ("duplicate", f"same content as {path}/dog/0.png"),
        "dog/caf\\udce9.png": ("unreadable", "its name, or that of its folder, is not UTF-8: rename it"),
    }
    # The first cat/0.png is the other side of the conflict; both stand under one path.
    assert found.prepared.excluded == {"conflict": 2, "duplicate": 1, "hidden": 2, "unreadable": 8}
    assert found.prepared.files == found.prepared.rows + sum(found.prepared.excluded.values())
    assert found.column("label")["cat/1.png"] == "cat"


@pytest.mark.parametrize(
    ("damage", "where", "reason"),
    [
        (lambda data, at: data[: at - 300], "2.png", "the archive ends inside this member: expected"),
        (lambda data, at: data[: at + 100], "", "the archive ends inside a header"),
        (lambda data, at: data[:at], "", "the archive has no end mark: it may be truncated"),
        (lambda data, at: data[:at] + b"x" + data[at + 1 :], "", "damaged header: the rest of the archive is not read"),
    ],
    ids=["in a member", "in a header", "between members", "a header"],
)
def test_what_comes_before_the_damage_is_kept(tmp_path: Path, damage: Any, where: str, reason: str) -> None:
    path = pack(tmp_path / "a.tar", pictures("0.png", "1.png", "2.png", "3.png", "4.png"))
    with tarfile.open(path) as archive:
        third = archive.getmember("3.png").offset
    path.write_bytes(damage(path.read_bytes(), third))
    found = Outcome(path, tmp_path / "manifests", max_rejected=0.9)
    assert list(found.rows) == (["0.png", "1.png"] if where else ["0.png", "1.png", "2.png"])
    [(at, (kind, said))] = found.excluded.items()
    assert (at, kind) == (where or str(path), "unreadable")
    assert reason in said


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["png", "jpg", "cls", "json", "x"])), max_size=12))
def test_every_image_is_found_once_or_refused(tmp_path_factory: pytest.TempPathFactory, names: Any) -> None:
    data = {"cls": b"1", "json": b"{}"}
    members = [(f"{stem}.{kind}", data.get(kind, b"x")) for stem, kind in names]
    path = pack(tmp_path_factory.mktemp("tar") / "a.tar", members)
    listed = list(find(PrepareConfig(root=path)))
    images = [f"{path}/{name}" for name, _ in members if name.endswith(("png", "jpg"))]
    assert Counter(one.path for one in listed if one.path.endswith(("png", "jpg"))) == Counter(images)
    assert sum(one.refused[0] is None for one in listed) <= len(images)


# Labels from the folders of members ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        (("cat/0.png", "dog/0.png"), ["cat", "dog"], [None, None]),
        (("pets/cat/0.png", "pets/dog/0.png"), ["cat", "dog"], [None, None]),
        (("cat/0.png", "cat/1.png"), ["cat", "cat"], [None, None]),
        (("pets/cat/0.png", "pets/1.png"), ["pets", "pets"], [None, None]),
        (("train/cat/0.png", "val/dog/0.png"), ["cat", "dog"], ["train", "validation"]),
        (("train/cat/0.png", "train/dog/0.png"), ["cat", "dog"], ["train", "train"]),
        (("pets/train/cat/0.png", "pets/val/dog/0.png"), ["cat", "dog"], ["train", "validation"]),
        (("pets/train/cat/0.png", "pets/bus/0.png"), ["bus", "train"], [None, None]),
        (("a/b/c/0.png", "a/b/d/0.png"), ["b", "b"], [None, None]),
        (("0.png", "1.png"), [None, None], [None, None]),
    ],
)
def test_the_first_folder_below_a_common_one_is_the_label(
    names: tuple[str, ...], labels: list[str | None], splits: list[str | None], tmp_path: Path
) -> None:
    listed = sorted(find(PrepareConfig(root=pack(tmp_path / "a.tar", pictures(*names)))), key=lambda one: one.path)
    assert [one.labels.get("label") for one in listed] == labels
    assert [one.place.get("split") for one in listed] == splits


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            ("train-00000-of-00002.tar", "train-00001-of-00002.tar", "test-00000-of-00001.tar"),
            ["test", "train", "train"],
        ),
        (("pets-train-0000.tar", "pets-valid-0000.tar"), ["train", "validation"]),
        (("train-00000-of-00001-a09b74b3ef9c3b56.tar", "test_set.tar"), ["test", "train"]),
        (("train-0.tar", "train-1.tar"), [None, None]),  # one split divides nothing
        (("train-0.tar", "pretrain-test-extra.tar"), [None, None]),
        (("0000.tar", "test.tar"), [None, None]),
    ],
)
def test_the_files_of_a_hub_name_splits(names: tuple[str, ...], splits: list[str | None], tmp_path: Path) -> None:
    for name in names:
        pack(tmp_path / "data" / name, pictures(f"{name[:9]}.png"))
    assert sorted((one.place.get("split") for one in find(PrepareConfig(root=tmp_path))), key=str) == splits


def test_real_archives_of_class_folders(assets: Path, tmp_path: Path) -> None:
    found = Outcome(assets / "images" / "cifar10-subset.tar", tmp_path)
    assert found.prepared == PrepareSummary(files=7000, rows=7000, excluded={})
    assert Counter(found.column("split").values()) == {"train": 5000, "test": 2000}
    assert set(Counter(found.column("label").values()).values()) == {700}
    assert found.rows["cifar10-subset/test/airplane/0002.jpg"]["label"] == "airplane"
    few = dict(list(found.reread().items())[::500])
    assert few == {path: found.rows[path]["key"] for path in few}


# Folders of shards ---------------------------------------------------------------------------------------------------


def test_a_folder_of_archives_is_read_in_their_order(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    pack(root / "b.tar", pictures("pets/dog/0.png", first=10))
    pack(root / "a.tar", pictures("pets/cat/0.png", "pets/cat/1.png"))
    (root / ".hidden").touch()
    (root / "index.txt").write_text("a.tar b.tar")
    found = Outcome(root, tmp_path / "manifests")
    assert [(path, row["label"]) for path, row in found.rows.items()] == [
        ("a.tar/pets/cat/0.png", "cat"),
        ("a.tar/pets/cat/1.png", "cat"),
        ("b.tar/pets/dog/0.png", "dog"),
    ]
    assert found.excluded == {
        ".hidden": ("hidden", "a hidden file, or a file in a hidden folder"),
        "index.txt": ("other", "no image, by its extension"),
    }


def test_folders_of_archives_can_give_split_and_domain(tmp_path: Path) -> None:
    for number, name in enumerate(("web/train/0.tar", "web/val/0.tar", "phone/0.tar")):
        pack(tmp_path / "root" / name, pictures("x.png", first=number))
    found = Outcome(tmp_path / "root", tmp_path / "manifests", folders=("web", "phone"))
    assert [(row["domain"], row["split"]) for row in found.rows.values()] == [
        ("phone", None),
        ("web", "train"),
        ("web", "validation"),
    ]


def test_an_archive_among_images_is_a_file_that_is_no_image(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    pack(root / "cat" / "a.tar", pictures("0.png"))
    (root / "cat" / "0.png").write_bytes(picture(1))
    found = Outcome(root, tmp_path / "manifests", max_rejected=0.5)
    assert list(found.rows) == ["cat/0.png"]
    assert found.excluded == {"cat/a.tar": ("unreadable", "not an image that Pillow can read")}


def test_one_content_has_one_key_wherever_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    pack(root / "a.tar", pictures("cat/0.png", "cat/1.png"))
    pack(root / "b.tar", [("cat/again.png", picture(0)), ("dog/1.png", picture(1))])
    found = Outcome(root, tmp_path / "manifests", max_rejected=0.5)
    assert found.prepared == PrepareSummary(files=4, rows=1, excluded={"conflict": 2, "duplicate": 1})
    assert found.excluded["b.tar/cat/again.png"][1] == f"same content as {root}/a.tar/cat/0.png"
    (tmp_path / "files" / "cat").mkdir(parents=True)
    (tmp_path / "files" / "cat" / "0.png").write_bytes(picture(0))
    whole = Outcome(tmp_path / "files", tmp_path / "manifests")
    assert list(whole.column("key").values()) == list(found.column("key").values()) == [content_key(picture(0))]


# Parquet with the images in it ---------------------------------------------------------------------------------------


def table(path: Path, count: int, *, first: int = 0, **columns: list[Any]) -> Path:
    """A Parquet file as Hugging Face writes them."""
    images = [{"bytes": picture(first + number), "path": f"{number}.png"} for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=2)
    return path


def test_rows_of_parquet_are_samples_and_its_other_columns_are_labels(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", 5, label=[0, 1, None, 1, 0], split=["train", "test"] * 2 + [None])
    found = Outcome(path, tmp_path / "manifests", image="image")
    assert found.prepared == PrepareSummary(files=5, rows=5, excluded={})
    assert found.table.column_names == [*FILES_SCHEMA.names, "label", "split"]
    assert found.table.schema.field("label").type == pa.int64()
    assert found.column("label") == {"0": 0, "1": 1, "2": None, "3": 1, "4": 0}
    assert found.column("split")["3"] == "test"
    assert found.column("offset") == {str(row): row for row in range(5)}
    assert set(found.column("container").values()) == {f"{path}#image"}
    assert found.column("size") == {str(row): len(picture(row)) for row in range(5)}
    assert found.reread() == found.column("key") == {str(row): content_key(picture(row)) for row in range(5)}


def test_plain_bytes_will_do_and_rows_without_any_are_excluded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [picture(0), None, b"no image", picture(0)]}), path)
    found = Outcome(path, tmp_path / "manifests", image="jpg", max_rejected=0.9)
    assert list(found.rows) == ["0"]
    assert found.excluded == {
        "1": ("unreadable", "no bytes: the column is null in this row"),
        "2": ("unreadable", "not an image that Pillow can read"),
        "3": ("duplicate", f"same content as {path}/0"),
    }


def test_a_folder_of_parquet_keeps_what_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "data"
    table(root / "train" / "0.parquet", 3, label=["a", "b", "c"])
    table(root / "test" / "0.parquet", 3, first=10, label=["a", "b", "c"])
    (root / "train" / "1.parquet").write_bytes((root / "train" / "0.parquet").read_bytes()[:-100])
    (root / "README.md").write_text("about")
    found = Outcome(root, tmp_path / "manifests", image="image", max_rejected=0.5)
    assert Counter(found.column("split").values()) == {"train": 3, "test": 3}
    assert set(found.excluded) == {"train/1.parquet", "README.md"}
    assert "damaged Parquet file, from row 0 on: " in found.excluded["train/1.parquet"][1]


def test_parquet_files_that_differ_in_their_labels_are_an_error(tmp_path: Path) -> None:
    root = tmp_path / "data"
    table(root / "a.parquet", 2, label=["a", "b"])
    table(root / "b.parquet", 2, first=5, label=[1, 2], more=[1, 2])
    with pytest.raises(DataError) as caught:
        Outcome(root, tmp_path / "manifests", image="image")
    assert str(caught.value).splitlines() == [
        f"{root}/b.parquet: expected the label columns of {root}/a.parquet. Set one type for a column with `types`, "
        "or leave columns out with `columns`",
        "  - label: string and int64",
        "  - more: not there and int64",
    ]
    assert Outcome(root, tmp_path / "manifests", image="image", columns=()).prepared.rows == 4


def test_the_column_of_images_must_be_there_and_hold_bytes(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", 1, label=["a"], vector=[[1.0]])
    with pytest.raises(DataError, match=r"unknown column 'imag'. Did you mean 'image'"):
        Outcome(path, tmp_path / "manifests", image="imag")
    with pytest.raises(DataError, match=r"expected 'label' to be binary, or a struct with `bytes` in it, got string"):
        Outcome(path, tmp_path / "manifests", image="label", columns=())
    with pytest.raises(DataError, match=r"(?s)a.parquet: expected texts.* - vector: list"):
        Outcome(path, tmp_path / "manifests", image="image")


# Behind URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_every_kind_of_root_can_be_a_url(scheme: str, tmp_path: Path, memory: Any) -> None:
    root = tmp_path / "b"
    for number, name in enumerate(("photos/cat/0.png", "photos/dog/0.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    (root / "list.csv").write_text("path,label\nphotos/cat/0.png,x\nphotos/none.png,y\n")
    pq.write_table(pa.table({"path": ["photos/dog/0.png"], "label": ["z"]}), root / "list.parquet")
    pack(root / "shards" / "0.tar", pictures("cat/0.png", "dog/0.png"))
    table(root / "images.parquet", 2, label=["cat", "dog"])
    for path in (path for path in root.rglob("*") if path.is_file()):
        memory.pipe_file(f"/b/{path.relative_to(root)}", path.read_bytes())
    url = f"file://{root}" if scheme == "file" else "memory://b"
    both = ["cat", "dog"]
    for name, config, labels in [
        ("photos/", {}, both),
        ("list.csv", {"max_rejected": 0.5}, ["x"]),
        ("list.parquet", {}, ["z"]),
        ("shards", {}, both),
        ("shards/0.tar", {}, both),
        ("images.parquet", {"image": "image"}, both),
    ]:
        found = Outcome(f"{url}/{name}", tmp_path / "manifests", **config)
        assert list(found.column("label").values()) == labels
        assert all(row["path"].startswith(url) for row in found.rows.values())
        assert found.reread() == found.column("key")
        if name == "list.csv":
            assert found.excluded[f"{url}/photos/none.png"] == ("unreadable", "No such file or directory")


def test_a_list_on_disk_may_hold_urls(tmp_path: Path, memory: Any) -> None:
    memory.pipe_file("/b/0.png", picture(0))
    (tmp_path / "1.png").write_bytes(picture(1))
    (tmp_path / "list.csv").write_text("path\nmemory://b/0.png\n1.png\n")
    found = Outcome(tmp_path / "list.csv", tmp_path / "manifests")
    assert sorted(found.table["path"].to_pylist()) == [f"{tmp_path}/1.png", "memory://b/0.png"]
    (tmp_path / "base.csv").write_text("path\n0.png\n")
    based = Outcome(tmp_path / "base.csv", tmp_path / "manifests", base="memory://b/")
    assert based.table["path"].to_pylist() == ["memory://b/0.png"]


# Roots that cannot be read -------------------------------------------------------------------------------------------


def refused(root: Path | str, message: str, **config: Any) -> None:
    """Preparing it ends with this error."""
    with pytest.raises(DataError, match=message):
        list(find(PrepareConfig(root=root, **config)))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst", "a.TAR.GZ"])
def test_compressed_archives_are_to_be_unpacked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    message = f"{name}: compressed, so that samples in it cannot be located. Unpack it to a plain .tar."
    refused(tmp_path / name, message)
    pack(tmp_path / "b.tar", pictures("0.png"))
    refused(tmp_path, message)


def test_an_archive_that_is_compressed_under_another_name_is_found_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.add(__file__)
    refused(tmp_path / "a.tar", r"a.tar: compressed with gzip, so that samples in it cannot be located. Unpack it to")


def test_settings_that_do_not_fit_the_root_are_errors(tmp_path: Path) -> None:
    archive = pack(tmp_path / "tars" / "a.tar", pictures("0.png"))
    file = table(tmp_path / "tables" / "a.parquet", 1)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "tables", r"tables: a folder of .parquet files. Set `image` to the column that has the images'")
    refused(archive, r"a.tar: expected Parquet, since `image` names a column of bytes, got .tar. Leave it", image="x")
    refused(archive, r"a.tar: expected a folder, since `folders` names folders below it, got a file", folders=("x",))
    refused(tmp_path / "tars", r"tars: expected .parquet files, since `image` names their .*, got .tar", image="x")
    refused(tmp_path / "empty", r"empty: expected .parquet files, since `image` names .*, got none", image="x")
    refused(tmp_path, r"expected `folders` of one kind, got files and tar. Make a data", folders=("tars", "empty"))
    shutil.copy(file, tmp_path / "tars" / "b.parquet")
    refused(tmp_path / "tars", r"tars: expected either .tar or .parquet files, got both. Make a data set of each")
    refused(
        "memory://b/nothing", r"memory://b/nothing: no such folder or list. Set `root` to the folder, list or archive"
    )


def test_a_process_that_is_killed_is_an_error_that_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.check_images.START_WORKERS_AFTER", 0.0)
    path = pack(tmp_path / "a.tar", pictures(*(f"{number}.png" for number in range(2000))))

    def kill(done: int, _: int) -> None:
        if done == 1:
            for process in multiprocessing.active_children():
                os.kill(int(process.pid or 0), signal.SIGKILL)

    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(root=path), ManifestPaths(tmp_path / "manifests", "x"), reporter=Reporter(progress=kill))
    message = str(caught.value)
    assert message.startswith(f"{path}: a process that was checking images was killed, at {path}/")
    assert message.endswith("set `check: header`; then run it again.")
    assert caught.value.__suppress_context__
    assert not (tmp_path / "manifests").exists()


# Manifests of before -------------------------------------------------------------------------------------------------


def test_a_manifest_without_containers_is_read_as_one_of_whole_files(tmp_path: Path) -> None:
    old = pa.table({"key": ["ab" * 16], "path": ["0.png"], "size": [3], "label": ["cat"]})
    paths = ManifestPaths(tmp_path, "old")
    paths.files.parent.mkdir()
    pq.write_table(old, paths.rows)
    pq.write_table(old.drop_columns("label"), paths.files)
    row = {"key": "ab" * 16, "path": "0.png", "size": 3, "container": None, "offset": None}
    assert pa.Table.from_batches(manifest.read_files(tmp_path, ["old"]), schema=FILES_SCHEMA).to_pylist() == [row]
    assert [one.to_pylist() for one in manifest.read_files(tmp_path, ["old"], ["offset"])] == [[{"offset": None}]]
    assert manifest.read(tmp_path, "old", ["offset", "label"]).to_pylist() == [{"offset": None, "label": "cat"}]


def test_the_container_is_written_once_a_row_group(tmp_path: Path) -> None:
    found = Outcome(pack(tmp_path / "a.tar", pictures("0.png", "1.png")), tmp_path / "manifests")
    column = pq.read_metadata(found.paths.files).row_group(0).column(FILES_SCHEMA.get_field_index("container"))
    assert column.has_dictionary_page
