"""Preparing a data set: every file ends in the manifest or in the list of excluded files, with the reason."""

import contextlib
import csv
import datetime
import decimal
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.projects import SHIPPED
from support.unprivileged import closed

import stages.prepare
from pipeline import manifest
from pipeline.errors import DataError
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare.check_images import inspect
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.roots import inspect_roots
from pipeline.prepare.run import PrepareSummary, prepare
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from stages import project

Folder = Callable[..., Path]
ROOT = Path(__file__).parent.parent


def write_image(path: Path, *, seed: int = 0, side: int = 8) -> Path:
    """A small image file of noise; another seed, another content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return path


@dataclass(frozen=True)
class Outcome:
    """What prepare said and wrote."""

    root: Path
    config: PrepareConfig
    paths: ManifestPaths
    prepared: PrepareSummary

    @property
    def table(self) -> pa.Table:
        """The manifest."""
        return manifest.read(self.paths.folder, self.paths.dataset)

    @property
    def excluded(self) -> dict[str, dict[str, str]]:
        """The excluded files, by their path below the root."""
        with self.paths.excluded.open(newline="", encoding="utf-8") as file:
            return {row["path"].removeprefix(f"{self.root.as_posix()}/"): row for row in csv.DictReader(file)}

    def column(self, name: str) -> dict[str, Any]:
        """The values of a column, by the path below the root."""
        below = [path.removeprefix(f"{self.root.as_posix()}/") for path in self.table["path"].to_pylist()]
        return dict(zip(below, self.table[name].to_pylist(), strict=True))


def prepared(root: Path, manifests: Path, **config: Any) -> Outcome:
    """Prepare what lies at `root`, which is a folder or a list."""
    settings, paths = PrepareConfig(root=root, **config), ManifestPaths(manifests, "photos")
    return Outcome(root if root.is_dir() else root.parent, settings, paths, prepare(settings, paths))


def found(root: Path, **config: Any) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """The labels and the place of each file, by the path below the root."""
    return {
        file.path.removeprefix(f"{root.as_posix()}/"): (file.labels, file.place)
        for file in find(PrepareConfig(root=root, **config))
    }


# A folder of class folders, with everything in it that can be wrong --------------------------------------------------


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Good images of two classes among all kinds of trouble, prepared."""
    root = tmp_path_factory.mktemp("messy") / "photos"
    for number in range(6):
        write_image(root / "cat" / f"{number}.png", seed=number)
        write_image(root / "dog" / "deep" / "er" / f"{number}.png", seed=100 + number)
    write_image(root / "above.png", seed=200)
    # Folders are walked as deep, deep-; as texts, the paths stand the other way round.
    write_image(root / "dog" / "deep-" / "0.png", seed=210)
    for folder in ("deep", "deep-"):
        (root / "dog" / folder / "note.txt").write_text("walk the dog")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "1st.png")
    shutil.copy(root / "cat" / "5.png", root / "dog" / "a cat.png")
    (root / "dog" / "empty.png").touch()
    (root / "dog" / "notes.txt").write_text("buy food")
    whole = write_image(root / "dog" / "cut.png", seed=300, side=64)
    whole.write_bytes(whole.read_bytes()[:2000])
    Image.new("1", (10_000, 10_000)).save(root / "dog" / "warned.png")
    Image.new("1", (20_000, 10_000)).save(root / "dog" / "bomb.png")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    write_image(root / ".thumbnails" / "cat" / "large" / "0.png", seed=400)
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/caf\xe9.png")).write_bytes(b"latin-1")
    write_image(root / "cat" / 'a, "quoted"\nname ü.png', seed=500)
    return prepared(root, tmp_path_factory.mktemp("manifests") / "new", max_rejected=0.9)


def test_good_images_are_rows_with_the_top_folder_as_label(messy: Outcome) -> None:
    labels = messy.column("label")
    assert labels == {
        **{f"cat/{number}.png": "cat" for number in range(5)},
        **{f"dog/deep/er/{number}.png": "dog" for number in range(6)},
        "dog/deep-/0.png": "dog",
        'cat/a, "quoted"\nname ü.png': "cat",
        "above.png": None,
    }


def test_a_row_has_the_key_and_the_size_of_its_file(messy: Outcome) -> None:
    for row in messy.table.to_pylist():
        data = Path(row["path"]).read_bytes()
        assert (row["key"], row["size"]) == (content_key(data), len(data))


def test_rows_are_sorted_by_path_and_extraction_reads_the_same_ones_without_labels(messy: Outcome) -> None:
    paths = messy.table["path"].to_pylist()
    assert paths == sorted(paths)
    files = pq.read_table(messy.paths.files)
    assert files.schema.equals(FILES_SCHEMA)
    assert files.equals(messy.table.select(files.column_names))
    assert messy.table.column_names == ["key", "path", "size", "container", "offset", "label"]


REASONS = {
    "dog/empty.png": ("unreadable", "empty file"),
    "dog/notes.txt": ("other", "no image, by its extension"),
    "dog/deep/note.txt": ("other", "no image, by its extension"),
    "dog/deep-/note.txt": ("other", "no image, by its extension"),
    "dog/cut.png": ("unreadable", "damaged image: image file is truncated"),
    "dog/warned.png": ("unreadable", "more than 89,478,485 pixels: refused as a decompression bomb"),
    "dog/bomb.png": ("unreadable", "more than 89,478,485 pixels: refused as a decompression bomb"),
    "cat/gone.png": ("unreadable", "No such file or directory"),
    "cat/self.png": ("unreadable", "Too many levels of symbolic links"),
    "cat/pipe.png": ("unreadable", "not a regular file"),
    "cat/caf\\udce9.png": ("unreadable", "its name, or that of its folder, is not UTF-8: rename it"),
    "cat/.DS_Store": ("hidden", "a hidden file, or a file in a hidden folder"),
    ".thumbnails/cat/large/0.png": ("hidden", "a hidden file, or a file in a hidden folder"),
    "cat/copy.png": ("duplicate", "same content as {root}/cat/0.png"),
    "cat/1st.png": ("duplicate", "same content as {root}/cat/0.png"),
    "cat/5.png": ("conflict", 'one content with several labels: {{"label": "cat"}} and {{"label": "dog"}}'),
    "dog/a cat.png": ("conflict", 'one content with several labels: {{"label": "cat"}} and {{"label": "dog"}}'),
}


@pytest.mark.parametrize("path", REASONS)
def test_every_other_file_is_listed_with_the_reason(messy: Outcome, path: str) -> None:
    kind, reason = REASONS[path]
    row = messy.excluded[path]
    assert row["kind"] == kind
    assert row["reason"].startswith(reason.format(root=messy.root.as_posix()))


def test_nothing_else_is_excluded_and_all_files_are_accounted_for(messy: Outcome) -> None:
    assert set(messy.excluded) == set(REASONS)
    assert messy.prepared.excluded == Counter(kind for kind, _ in REASONS.values())
    assert messy.prepared.files == messy.prepared.rows + sum(messy.prepared.excluded.values()) == 14 + 17
    assert messy.prepared.rows == len(messy.table)


def test_the_list_of_excluded_files_has_their_sizes_where_they_were_opened(messy: Outcome) -> None:
    excluded = messy.excluded
    assert list(excluded) == sorted(excluded)
    assert excluded["dog/empty.png"]["size"] == "0"
    assert (
        excluded["dog/notes.txt"]["size"] == excluded["cat/gone.png"]["size"] == excluded["cat/.DS_Store"]["size"] == ""
    )


@pytest.mark.parametrize("alone", [0.0, 3600.0], ids=["processes", "no processes"])
def test_preparing_twice_gives_the_same_bytes(
    messy: Outcome, tmp_path: Path, alone: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.check_images.START_WORKERS_AFTER", alone)
    again = prepared(messy.root, tmp_path, max_rejected=0.9)
    assert again.prepared == messy.prepared
    for name in ("rows", "files", "excluded"):
        assert getattr(again.paths, name).read_bytes() == getattr(messy.paths, name).read_bytes()
    assert (
        sorted(path.name for path in tmp_path.rglob("*")) == ["files", "photos.excluded.csv"] + ["photos.parquet"] * 2
    )


def test_too_many_unusable_files_are_an_error_that_names_the_first_and_writes_nothing(
    messy: Outcome, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        prepared(messy.root, tmp_path / "manifests")
    title, *lines = str(caught.value).splitlines()
    assert title == (
        f"{messy.root}: 10 of 26 files cannot be used, more than the share of 0.05 that `max_rejected` allows. "
        "The first of them:"
    )
    assert len(lines) == 5
    assert lines[0].startswith(f"  - {messy.root}/cat/5.png: one content with several labels")
    assert lines[2] == f"  - {messy.root}/cat/gone.png: No such file or directory"
    assert not (tmp_path / "manifests").exists()


# Layouts of folders --------------------------------------------------------------------------------------------------


def test_folders_named_train_val_and_test_give_the_split(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, (folder, label) in enumerate(
        (folder, label) for folder in ("train", "val", "test") for label in ("cat", "dog")
    ):
        write_image(root / folder / label / "0.png", seed=number)
    write_image(root / ".git" / "cat" / "0.png", seed=10)
    outcome = prepared(root, tmp_path / "manifests")
    assert outcome.table.column_names == ["key", "path", "size", "container", "offset", "label", "split"]
    assert outcome.column("split") == {
        f"{folder}/{label}/0.png": split
        for folder, split in (("train", "train"), ("val", "validation"), ("test", "test"))
        for label in ("cat", "dog")
    }
    assert outcome.column("label")["val/dog/0.png"] == "dog"
    assert outcome.prepared.excluded == {"hidden": 1}


LITTER = (
    "Thumbs.db",
    "desktop.ini",
    "cat/Thumbs.db",
    "__MACOSX/cat/._0.png",
    "@eaDir/0.png",
    "cat/~$list.tmp",
    "a.png~",
    "cat/photo.jpg_original",
    "found.000/0.png",
    "cat/_vti_cnf/0.png",
    "cat/@__thumb/0.png",
)
OTHER = ("README", "notes.TXT", "cat/labels.csv", "cat/clip.mp4", "dog/data.json")


def test_litter_and_files_that_are_no_images_are_no_rejects_and_no_rows(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, label in enumerate(("cat", "dog") * 3):
        write_image(root / label / f"{number}.png", seed=number)
    for number, name in enumerate((*LITTER, *OTHER)):
        write_image(root / f"{name}.png", seed=50 + number).rename(root / name)  # even where it could be decoded
    (root / "README").write_text("ten photos")
    outcome = prepared(root, tmp_path / "manifests", max_rejected=0)
    assert outcome.prepared.rows == 6
    assert outcome.prepared.excluded == {"hidden": 1, "other": len(LITTER) + len(OTHER) - 1}
    assert set(outcome.column("label").values()) == {"cat", "dog"}
    assert outcome.excluded["README"]["reason"] == "not an image that Pillow can read"
    assert outcome.excluded["desktop.ini"]["reason"].startswith("left behind by an operating system")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Training", "Testing", "__MACOSX"), {"train", "test"}),
        (("TRAIN", "Dev", ".ipynb_checkpoints", "@eaDir"), {"train", "validation"}),
    ],
)
def test_folders_of_splits_have_any_case_and_litter_beside_them(
    tmp_path: Path, folders: tuple[str, ...], splits: set[str]
) -> None:
    for number, folder in enumerate(folders):
        write_image(tmp_path / "photos" / folder / "cat" / "0.png", seed=number)
    outcome = prepared(tmp_path / "photos", tmp_path / "manifests")
    assert set(outcome.column("split").values()) == splits
    assert set(outcome.column("label").values()) == {"cat"}


def test_folders_of_splits_beside_others_are_refused_and_classes_like_splits_are_noted(
    tmp_path: Path,
) -> None:
    for number, folder in enumerate(("train", "Test", "extra")):
        write_image(tmp_path / "photos" / folder / "cat" / "0.png", seed=number)
    with pytest.raises(DataError, match=r"photos: expected either .*, got Test, train mixed with extra. Move the"):
        prepared(tmp_path / "photos", tmp_path / "manifests")
    for number, folder in enumerate(("train", "bus", "evals")):
        write_image(tmp_path / "vehicles" / folder / "0.png", seed=number)
    outcome = prepared(tmp_path / "vehicles", tmp_path / "manifests")
    assert set(outcome.column("label").values()) == {"train", "bus", "evals"}
    (note,) = outcome.prepared.notes
    assert note.startswith("classes that look like splits: evals, train. If they are, name their folders train,")
    for number, folder in enumerate(("seg_train", "seg_test", "crash_test")):
        write_image(tmp_path / "prefixed" / folder / "0.png", seed=number)
    (note,) = prepared(tmp_path / "prefixed", tmp_path / "manifests").prepared.notes
    assert note.startswith("classes that look like splits: crash_test, seg_test, seg_train. If they are")
    shutil.rmtree(tmp_path / "prefixed" / "seg_train")
    assert prepared(tmp_path / "prefixed", tmp_path / "manifests").prepared.notes == ()


def test_a_script_without_a_guard_checks_images_in_threads(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "photos" / "cat" / f"{number}.png", seed=number)
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from pipeline.manifest import ManifestPaths\n"
        "from pipeline.prepare import check_images\n"
        "from pipeline.prepare.config import PrepareConfig\n"
        "from pipeline.prepare.run import prepare\n"
        "check_images.START_WORKERS_AFTER = 0.0\n"
        "print(prepare(PrepareConfig(root='photos'), ManifestPaths(Path('manifests'), 'x')).rows)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_a_script_that_processes_cannot_run_again_is_told_of_the_guard(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "cat" / "0.png")
    (tmp_path / "script.py").write_text(
        "# __main__ stands here, but guards nothing\n"
        "from pathlib import Path\n"
        "from pipeline.errors import DataError\n"
        "from pipeline.manifest import ManifestPaths\n"
        "from pipeline.prepare import check_images\n"
        "from pipeline.prepare.config import PrepareConfig\n"
        "from pipeline.prepare.run import prepare\n"
        "check_images.START_WORKERS_AFTER = 0.0\n"
        "try: prepare(PrepareConfig(root='photos'), ManifestPaths(Path('manifests'), 'x'))\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    expected = "photos: the processes that check images could not start; their traceback is above. A script that prep"
    assert expected in done.stdout
    assert "memory" not in done.stdout


def test_what_a_list_names_and_images_of_other_kinds_are_rejects_where_they_cannot_be_read(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write_image(root / "cat" / "0.png")
    (root / "cat" / "1.mrw").write_bytes(b"\0MRM" + bytes(40))  # a raw file whose bytes nothing is known of
    (root / "cat" / "2").write_bytes(b"no image")
    outcome = prepared(root, tmp_path / "manifests", max_rejected=0.9)
    assert outcome.prepared.excluded == {"unreadable": 1, "other": 1}
    (root / "list.csv").write_text("path\ncat/0.png\ncat/1.mrw\ncat/2\n")
    outcome = prepared(root / "list.csv", tmp_path / "manifests", max_rejected=0.9)
    assert outcome.prepared.excluded == {"unreadable": 2}


def test_folders_that_are_read_as_one_split_are_noted(tmp_path: Path) -> None:
    for number, folder in enumerate(("training_set", "Test-Set", "holdout", "TR", "eval")):
        write_image(tmp_path / "photos" / folder / "cat" / "0.png", seed=number)
    outcome = prepared(tmp_path / "photos", tmp_path / "manifests")
    splits = sorted(outcome.column("split").values())
    assert splits == ["test"] * 3 + ["train"] * 2
    assert outcome.prepared.notes == (
        "TR, training_set: these folders are all read as train. If they are not one split, give a list with a column "
        "of splits.",
        "Test-Set, eval, holdout: these folders are all read as test. If they are not one split, give a list with a "
        "column of splits.",
    )


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_every_usual_name_of_the_validation_folder_is_known(tmp_path: Path, name: str) -> None:
    for folder in ("train", name, "test"):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / "0.png").touch()
    assert found(tmp_path)[f"{name}/cat/0.png"] == ({"label": "cat"}, {"split": "validation"})


def test_a_class_that_is_called_train_is_a_class_where_other_classes_stand_beside_it(tmp_path: Path) -> None:
    for folder in ("train", "bus"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").touch()
    assert found(tmp_path) == {"bus/0.png": ({"label": "bus"}, {}), "train/0.png": ({"label": "train"}, {})}


def test_several_roots_give_the_domain_and_share_their_classes(tmp_path: Path) -> None:
    root = tmp_path / "office"
    for number, domain in enumerate(("amazon", "webcam", "dslr")):
        write_image(root / domain / "mug" / "0.png", seed=number)
    outcome = prepared(root, tmp_path / "manifests", folders=("webcam", "amazon"))
    assert outcome.table.column_names == ["key", "path", "size", "container", "offset", "label", "domain"]
    assert outcome.column("domain") == {"amazon/mug/0.png": "amazon", "webcam/mug/0.png": "webcam"}
    assert set(outcome.column("label").values()) == {"mug"}


def test_each_of_several_roots_can_have_split_folders(tmp_path: Path) -> None:
    for folder in ("a/train/cat", "a/test/cat", "b/cat"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    assert found(tmp_path, folders=("a", "b")) == {
        "a/test/cat/0.png": ({"label": "cat"}, {"domain": "a", "split": "test"}),
        "a/train/cat/0.png": ({"label": "cat"}, {"domain": "a", "split": "train"}),
        "b/cat/0.png": ({"label": "cat"}, {"domain": "b"}),
    }


def test_a_root_below_a_hidden_folder_is_not_hidden(tmp_path: Path) -> None:
    write_image(tmp_path / ".data" / "0.png")
    assert [file.refused for file in find(PrepareConfig(root=tmp_path / ".data"))] == [(None, None)]


NAMES = st.text("ab.-é", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(NAMES, NAMES, NAMES) | st.tuples(NAMES, NAMES) | st.tuples(NAMES), min_size=1, max_size=8))
def test_every_file_of_a_tree_is_found_once(
    tmp_path_factory: pytest.TempPathFactory, tree: set[tuple[str, ...]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    written = set()
    for parts in tree:
        path = root.joinpath(*parts)
        if path.is_dir() or any(above.is_file() for above in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        written.add(path)
    files = list(find(PrepareConfig(root=root)))
    assert len(files) == len(written)
    assert {Path(file.path) for file in files} == written
    for file in files:
        parts = Path(file.path).relative_to(root).parts
        assert file.labels == {"label": parts[0] if len(parts) > 1 else None}
        assert (file.refused[0] == "hidden") == any(part.startswith(".") for part in parts)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "0.png")
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "more").symlink_to(tmp_path / "store", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (tmp_path / "store" / "back").symlink_to(root / "cat", target_is_directory=True)
    assert found(root) == {"cat/more/0.png": ({"label": "cat"}, {})}


# Lists ---------------------------------------------------------------------------------------------------------------

COLUMNS = {
    "file": pa.array(["0.png", "1.png", "2.png", "gone.png"]),
    "label": pa.array(["cat", "dog", "cat", "dog"]),
    "age": pa.array([3, None, 2**60 + 1, 5], pa.int64()),
    "weight": pa.array([0.1, 2.5, None, 1.0], pa.float32()),
    "tame": pa.array([True, False, None, True]),
    "born": pa.array([datetime.date(2020, 2, 29), None, datetime.date(1969, 1, 1), None]),
    "seen": pa.array([1, 1_700_000_000_123_456_789, None, 0], pa.timestamp("ns")),
    "taken": pa.array([0, 1_700_000_000_123, None, 0], pa.timestamp("ms", tz="UTC")),
    "lasted": pa.array([1, 2, None, 3], pa.duration("us")),
    "hour": pa.array([datetime.time(1, 2, 3), None, None, None], pa.time32("ms")),
    "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25"), None], pa.decimal128(10, 2)),
    "nothing": pa.nulls(4),
    "tags": pa.array([["sun", "sea"], [], None, ["sun"]], pa.list_(pa.string())),
    "codes": pa.array([[3, 2**60 + 1], [], None, [None]], pa.list_(pa.int64())),
    "flags": pa.array([[True, False], [None], [], []], pa.list_(pa.bool_())),
}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A Parquet list with labels of all types, one of its files gone, prepared."""
    root = tmp_path_factory.mktemp("listed")
    for number in range(3):
        write_image(root / f"{number}.png", seed=number)
    lists = {"large": COLUMNS["tags"].cast(pa.large_list(pa.large_string()))}
    lists["pairs"] = pa.array([["a", "b"]] * 4, pa.list_(pa.string(), 2))
    categories = {"kind": COLUMNS["label"].dictionary_encode()}
    pq.write_table(pa.table({**COLUMNS, **categories, **lists}), root / "list.parquet")
    return prepared(root / "list.parquet", root / "manifests", path="file", max_rejected=0.5)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "file"])
def test_a_label_column_of_a_parquet_list_keeps_its_type_and_values(listed: Outcome, name: str) -> None:
    column = listed.table[name].combine_chunks()
    assert column.type == COLUMNS[name].type
    assert column.equals(COLUMNS[name][:3])


def test_a_label_column_of_categories_becomes_text(listed: Outcome) -> None:
    assert listed.table["kind"].type == pa.string()
    assert listed.table["kind"].to_pylist() == ["cat", "dog", "cat"]


def test_lists_of_labels_of_other_makes_become_lists(listed: Outcome) -> None:
    assert listed.table["large"].to_pylist() == [["sun", "sea"], [], None]
    assert listed.table["pairs"].type == pa.list_(pa.string())
    assert listed.table["pairs"].to_pylist() == [["a", "b"]] * 3


def test_a_file_that_is_in_the_list_but_not_on_the_disk_is_excluded(listed: Outcome) -> None:
    assert listed.excluded["gone.png"]["reason"] == "No such file or directory"
    assert listed.prepared == PrepareSummary(files=4, rows=3, excluded={"unreadable": 1})


@pytest.fixture
def csv_list(tmp_path: Path) -> Folder:
    """A function that writes a CSV list beside four images."""
    for number in range(4):
        write_image(tmp_path / f"{number}.png", seed=number)

    def write(*lines: str, name: str = "list.csv") -> Path:
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def test_a_csv_list_has_typed_labels_and_places(csv_list: Folder, tmp_path: Path) -> None:
    path = csv_list(
        "path,breed,age,born,domain,split,size,key",
        "3.png,Münsterländer,3,2020-02-29,1,test,large,b",
        "./1.png,NA,,,2,train,large,a",
        f"{tmp_path}/2.png,,4,,1,,small,c",
    )
    outcome = prepared(path, tmp_path / "manifests")
    assert [(field.name, field.type) for field in outcome.table.schema][5:] == [
        ("breed", pa.string()),
        ("age", pa.int64()),
        ("born", pa.date32()),
        ("data:size", pa.string()),
        ("data:key", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
    ]
    assert outcome.column("data:size") == {"1.png": "large", "2.png": "small", "3.png": "large"}
    assert outcome.column("breed") == {"1.png": "NA", "2.png": None, "3.png": "Münsterländer"}
    assert outcome.column("age") == {"1.png": None, "2.png": 4, "3.png": 3}
    assert outcome.column("born")["3.png"] == datetime.date(2020, 2, 29)
    assert outcome.column("domain") == {"1.png": "2", "2.png": "1", "3.png": "1"}
    assert outcome.column("split") == {"1.png": "train", "2.png": None, "3.png": "test"}


def test_only_the_chosen_columns_of_a_list_are_kept_and_paths_are_relative_to_the_base(tmp_path: Path) -> None:
    images = tmp_path / "somewhere" / "else"
    write_image(images / "007", seed=1)
    write_image(images / "7", seed=2)
    (tmp_path / "list.csv").write_text("id,a,b,split,size\n007,1,x,test,3\n7,2,y,train,4\n")
    outcome = prepared(tmp_path / "list.csv", tmp_path / "manifests", path="id", columns=("b",), base=images)
    assert outcome.table.column_names == ["key", "path", "size", "container", "offset", "b"]
    assert outcome.table["path"].to_pylist() == [f"{images}/007", f"{images}/7"]
    assert outcome.table["b"].to_pylist() == ["x", "y"]
    assert outcome.table["size"].to_pylist() == [path.stat().st_size for path in (images / "007", images / "7")]


def test_duplicates_in_a_list_are_judged_by_the_columns_that_are_kept(csv_list: Folder, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "0.png", tmp_path / "a copy.png")
    path = csv_list("path,label,note", "a copy.png,cat,one", "0.png,cat,other", "1.png,dog,", "1.png,dog,")
    chosen = prepared(path, tmp_path / "chosen", columns=("label",))
    assert chosen.prepared.excluded == {"duplicate": 2}
    assert chosen.excluded["a copy.png"]["reason"] == f"same content as {tmp_path}/0.png"
    assert chosen.excluded["1.png"]["reason"] == f"same content as {tmp_path}/1.png"
    every = prepared(path, tmp_path / "every", max_rejected=0.5)
    assert every.prepared.excluded == {"conflict": 2, "duplicate": 1}


def test_unknown_columns_are_all_named_at_once(csv_list: Folder, tmp_path: Path) -> None:
    path = csv_list("file,label,age", "0.png,cat,3")
    with pytest.raises(DataError) as caught:
        prepared(path, tmp_path / "manifests", columns=("labels", "age", "zzz"))
    assert str(caught.value).splitlines() == [
        f"{path}: the list's columns are not as expected",
        "  - unknown column 'path'. Expected one of: age, file, label.",
        "  - unknown column 'labels'. Did you mean 'label'? Expected one of: age, file, label.",
        "  - unknown column 'zzz'. Expected one of: age, file, label.",
    ]


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_with_images_and_without_paths_names_the_setting_of_images(tmp_path: Path, struct: bool) -> None:
    image: Any = {"bytes": b"x", "path": None} if struct else b"x"
    pq.write_table(pa.table({"photo": [image], "label": ["cat"]}), tmp_path / "photos.parquet")
    with pytest.raises(DataError, match="expected a column of paths, 'path', or `image: photo` for the images in it"):
        prepare(PrepareConfig(root=str(tmp_path / "photos.parquet")), ManifestPaths(tmp_path, "photos"))


def test_two_columns_of_one_name_are_an_error(csv_list: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="- there are two columns 'label'"):
        prepared(csv_list("path,label,label", "0.png,cat,dog"), tmp_path / "manifests")


@pytest.mark.parametrize(("name", "value"), [("bytes", b"\xff"), ("vector", [1.0, 2.0]), ("struct", {"a": 1})])
def test_columns_that_are_no_labels_must_be_left_out(tmp_path: Path, name: str, value: Any) -> None:
    write_image(tmp_path / "0.png")
    pq.write_table(pa.table({"path": ["0.png"], "label": ["cat"], name: [value]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=f"(?s)leave other columns out with `columns`.*- {name}: "):
        prepared(tmp_path / "list.parquet", tmp_path / "manifests")
    config = PrepareConfig(root=tmp_path / "list.parquet", columns=("label",))
    assert [file.labels for file in find(config)] == [{"label": "cat"}]


@pytest.mark.parametrize("lines", [("path,label", "0.png,cat", ",dog"), ("path,label", '"",dog')])
def test_a_row_of_a_csv_list_without_a_path_is_an_error(csv_list: Folder, tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="a row without a value in 'path', the column of paths"):
        prepared(csv_list(*lines), tmp_path / "manifests")


def test_a_row_of_a_parquet_list_without_a_path_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["0.png", None]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="a row without a value in 'path', the column of paths"):
        prepared(tmp_path / "list.parquet", tmp_path / "manifests")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"", "not a .csv list: Empty CSV file"),
        (
            "list.csv",
            b"path,label\n0.png,cat,3\n",
            "not a .csv list: CSV parse error: Row #2: Expected 2 columns, got 3",
        ),
        (
            "list.csv",
            "path,label\n0.png,Löwe\n".encode("latin-1"),
            "not UTF-8: In CSV column #1: Row #2: .* Set `encoding: cp1252` where Windows wrote it",
        ),
        (
            "list.csv",
            "path,label\n0ö.png,cat\n".encode("latin-1"),
            "not UTF-8: In CSV column #0: Row #2: .*invalid UTF8",
        ),
        ("list.parquet", b"path,label\n0.png,cat\n", "not a .parquet list: Parquet magic bytes not found"),
    ],
    ids=["empty", "ragged", "latin-1 label", "latin-1 path", "not parquet"],
)
def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        prepared(tmp_path / name, tmp_path / "manifests")
    assert not (tmp_path / "manifests").exists()


# Roots that hold nothing ---------------------------------------------------------------------------------------------


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos: no such folder or list. Set `root` to the folder, list or archive"):
        prepared(tmp_path / "photos", tmp_path / "manifests")


def test_a_root_that_is_neither_folder_nor_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.txt").touch()
    with pytest.raises(DataError, match=r"list.txt: expected a folder, a .csv or a .parquet list"):
        prepared(tmp_path / "list.txt", tmp_path / "manifests")


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"path": "file"}, "`path`"),
        ({"base": "x"}, "`base`"),
        ({"path": "path", "encoding": "cp1252"}, "`path` and `enc"),
    ],
)
def test_settings_of_lists_are_refused_of_a_folder(tmp_path: Path, more: dict[str, Any], names: str) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path}: expected a list of files with {names}.*, got none\. Leave `"):
        inspect_roots(PrepareConfig(root=tmp_path, **more))
    (tmp_path / "list.csv").write_text("path,label\n")
    assert [root.kind for root in inspect_roots(PrepareConfig(root=tmp_path / "list.csv", **more))] == ["list"]
    with pytest.raises(DataError, match="expected a folder, since `folders` names folders below it, got a file"):
        inspect_roots(PrepareConfig(root=tmp_path / "list.csv", folders=("a",)))


def test_a_folder_of_several_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "amazon").mkdir()
    with pytest.raises(DataError, match=r"webcam: no such folder. `folders` names folders below `root`"):
        prepared(tmp_path, tmp_path / "manifests", folders=("amazon", "webcam"))


def test_an_empty_folder_or_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "list.csv").write_text("path,label\n")
    for root in (tmp_path / "photos", tmp_path / "list.csv"):
        with pytest.raises(DataError, match=f"{root.name}: there are no files in it. Give a folder, a list"):
            prepared(root, tmp_path / "manifests")


def test_a_folder_of_hidden_files_alone_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / ".cat" / "0.png")
    with pytest.raises(DataError, match="photos: there are only hidden files in it"):
        prepared(tmp_path / "photos", tmp_path / "manifests", max_rejected=1)


def test_where_no_file_can_be_used_the_share_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(DataError, match=r"(?s)1 of 1 files cannot be used.* - .*a.png: empty file"):
        prepared(tmp_path / "photos", tmp_path / "manifests", max_rejected=1)


# Opening one file ----------------------------------------------------------------------------------------------------


def test_a_look_at_the_header_is_enough_where_that_is_asked_for(tmp_path: Path) -> None:
    cut = write_image(tmp_path / "cut.png", side=64)
    cut.write_bytes(cut.read_bytes()[:2000])
    assert inspect(str(cut), "header") == (content_key(cut.read_bytes()), 2000, None, None)
    assert inspect(str(cut), "decode")[2:3] == ("unreadable",)


def test_a_file_that_vanished_since_it_was_found_is_unreadable(tmp_path: Path) -> None:
    assert inspect(str(tmp_path / "a.png"), "decode") == (None, None, "unreadable", "No such file or directory")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that even root cannot read is Linux's")
def test_a_file_that_the_system_does_not_let_us_read_is_unreadable() -> None:
    assert inspect("/proc/self/mem", "decode") == (None, None, "unreadable", "Input/output error")


def test_progress_counts_every_file_that_is_opened(image_folder: Folder, tmp_path: Path) -> None:
    root = image_folder(("cat", "dog"), each=3)
    (root / ".hidden").touch()
    seen: list[tuple[int, int]] = []
    paths = ManifestPaths(tmp_path / "manifests", "photos")
    prepare(PrepareConfig(root=root), paths, reporter=Reporter(progress=lambda done, total: seen.append((done, total))))
    assert seen == [(done, 6) for done in range(1, 7)]


# Reading a manifest --------------------------------------------------------------------------------------------------


def test_some_columns_of_a_manifest_can_be_read(messy: Outcome) -> None:
    table = manifest.read(messy.paths.folder, "photos", ["label", "key"])
    assert table.column_names == ["label", "key"]
    with pytest.raises(DataError, match=r"photos.parquet: unknown column 'lable'. Did you mean 'label'\?"):
        manifest.read(messy.paths.folder, "photos", ["lable"])


def test_the_files_of_several_data_sets_come_one_after_the_other(messy: Outcome) -> None:
    batches = list(manifest.read_files(messy.paths.folder, ["photos", "photos"]))
    assert pa.Table.from_batches(batches).equals(pa.concat_tables([pq.read_table(messy.paths.files)] * 2))


def test_a_manifest_that_was_never_made_is_an_error_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos.parquet: no such manifest. Run `icecore repro prepare@photos`"):
        manifest.read(tmp_path, "photos")
    with pytest.raises(DataError, match=r"files/photos.parquet: no such manifest. Run `icecore repro prepare@photos`"):
        list(manifest.read_files(tmp_path, ["photos"]))


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_project(image_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one data set below data/raw/, as the working directory of `python -m stages.prepare digits`."""
    root = image_folder(("cat", "dog"), each=3, name="data/raw/digits")
    shutil.copy(root / "cat" / "000.png", root / "cat" / "copy.png")
    (tmp_path / "params.yaml").write_text(SHIPPED.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare.py", "digits"])
    return tmp_path


def test_the_stage_says_how_many_samples_there_are_and_where_the_others_are_listed(
    in_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run(stages.prepare.main)
    assert capsys.readouterr().out.splitlines() == [
        "digits: 7 files, 6 samples",
        "  1 duplicate: see data/manifests/digits.excluded.csv",
    ]
    paths = manifest.read(in_project / "data" / "manifests", "digits")["path"].to_pylist()
    assert paths[0] == "data/raw/digits/cat/000.png"


@pytest.mark.parametrize("blocked", ["data/manifests", "data/manifests/files"])
def test_a_place_that_cannot_be_written_to_is_an_error_with_its_path_and_no_traceback(
    in_project: Path, blocked: str
) -> None:
    (in_project / blocked).parent.mkdir(exist_ok=True)
    (in_project / blocked).touch()
    with pytest.raises(SystemExit, match=f"^error: {blocked}.*: .* A file is in the place of a folder: move it"):
        project.run(stages.prepare.main)


def test_a_folder_that_may_not_be_read_is_an_error_with_its_path(in_project: Path) -> None:
    folder = "data/raw/digits/cat"
    (in_project / "data" / "manifests" / "files").mkdir(parents=True)
    with (
        closed(in_project / folder, root=in_project) as named,
        pytest.raises(SystemExit, match=f"^error: {folder}: Permission denied: it {named}. Change its owner or"),
    ):
        project.run(stages.prepare.main)


def test_a_data_set_without_files_is_an_error_of_one_line(in_project: Path) -> None:
    params = yaml.safe_load((in_project / "params.yaml").read_text())
    params["prepare"]["digits"]["root"] = "data/raw/nothing"
    (in_project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SystemExit, match=r"^error: data/raw/nothing: no such folder or list"):
        project.run(stages.prepare.main)


# Files that were opened before ---------------------------------------------------------------------------------------

MARK = b"\xab\xab"


def marked(root: Path, known: Path, **settings: Any) -> set[str]:
    """Prepare a root; the names of samples whose keys came from `known`, in which all keys are marked afterwards."""
    paths = ManifestPaths(root.parent / "manifests", "photos")
    prepare(PrepareConfig(root=root, max_rejected=1.0, **settings), paths, known=known)
    rows = manifest.read(paths.folder, "photos", ["key", "path"]).to_pylist()
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(known)) as database,
        database,
    ):
        keys = database.execute("SELECT key, path FROM known").fetchall()
        database.executemany("UPDATE known SET key = ? WHERE path = ?", [(MARK + key[2:], path) for key, path in keys])
    marks = {row["path"] for row in rows if bytes.fromhex(row["key"]).startswith(MARK)}
    assert all(row["key"] == content_key(read_member(row["path"])) for row in rows if row["path"] not in marks)
    return {Path(path).name for path in marks}


def read_member(path: str) -> bytes:
    """The bytes of a file, or of a member of an archive."""
    archive, suffix, name = path.partition(".tar/")
    if not suffix:
        return Path(path).read_bytes()
    with tarfile.open(f"{archive}.tar") as file:
        return file.extractfile(name).read()  # type: ignore[union-attr]


def draw(path: Path, shade: int) -> None:
    """Write a picture; all have one size in bytes."""
    Image.new("L", (4, 4), shade).save(path, "BMP")


@pytest.mark.parametrize("alone", [600.0, 0.0], ids=["in this process", "in processes"])
def test_files_that_are_as_they_were_are_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float
) -> None:
    monkeypatch.setattr("pipeline.prepare.check_images.START_WORKERS_AFTER", alone)
    root, known = tmp_path / "photos", tmp_path / "work" / "known.sqlite"
    root.mkdir()
    for number, name in enumerate(("same", "bytes", "mtime", "inode", "gone")):
        draw(root / f"{name}.bmp", number)
    (root / "broken.bmp").write_bytes(b"BM")
    monkeypatch.setattr("pipeline.prepare.known_files.SETTLED", 3600.0)  # however long this test takes
    assert marked(root, known) == set()
    assert marked(root, known) == set(), "a file that was written a moment ago may change without a trace"
    monkeypatch.setattr("pipeline.prepare.known_files.SETTLED", -1.0)
    assert marked(root, known) == set()
    assert marked(root, known) == {"same.bmp", "bytes.bmp", "mtime.bmp", "inode.bmp", "gone.bmp"}
    if not alone:
        return
    for name in ("bytes", "inode"):
        status = (root / f"{name}.bmp").stat()
        if name == "inode":
            (root / "inode.bmp").rename(tmp_path / "other")
        draw(root / f"{name}.bmp", {"bytes": 100, "inode": 101}[name])
        os.utime(root / f"{name}.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(root / "mtime.bmp", ns=(0, 10**18))
    (root / "gone.bmp").unlink()
    draw(root / "new.bmp", 50)
    assert marked(root, known) == {"same.bmp"}
    assert marked(root, known) == {"same.bmp", "bytes.bmp", "mtime.bmp", "inode.bmp", "new.bmp"}
    assert marked(root, known, check="header") == set()
    known.write_bytes(b"no database" * 100)
    assert marked(root, known) == set()
    assert "same.bmp" in marked(root, known)
    with contextlib.closing(sqlite3.connect(known)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert marked(root, known) == set()


def test_members_of_an_archive_that_is_as_it_was_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.known_files.SETTLED", -1.0)
    archive, known = tmp_path / "a.tar", tmp_path / "known.sqlite"
    for number, name in enumerate(("a.bmp", "b.bmp", "c.bmp")):
        draw(tmp_path / name, number)
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "a.bmp", "a.bmp")
        file.add(tmp_path / "b.bmp", "b.bmp")
    assert marked(archive, known) == set()
    assert marked(archive, known) == {"a.bmp", "b.bmp"}
    with tarfile.open(archive, "a") as file:
        file.add(tmp_path / "c.bmp", "c.bmp")
    assert marked(archive, known) == set()
    assert marked(archive, known) == {"a.bmp", "b.bmp", "c.bmp"}
