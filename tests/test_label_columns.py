"""Labels come into the manifest, and into tasks, with the values and under the names that the data have for them."""

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.projects import SHIPPED
from test_containers import Outcome, pack, picture, table, webdataset

import stages.prepare
import stages.split
from pipeline.errors import DataError
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.file_list import label_types
from pipeline.prepare.find import find
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig
from pipeline.split.run import split
from pipeline.task import LEVEL
from pipeline.text import describe_alike, group_alike
from stages import project

Columns = dict[str, list[Any]]


def images(folder: Path, count: int) -> list[str]:
    """Different pictures in a folder; the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
    return [f"{number}.png" for number in range(count)]


def as_csv(folder: Path, columns: Columns, **config: Any) -> Outcome:
    names = images(folder, len(next(iter(columns.values()))))
    rows = zip(names, *columns.values(), strict=True)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", *columns), *rows])
    return Outcome(folder / "list.csv", folder / "manifests", path="file", **config)


def as_parquet_list(folder: Path, columns: Columns, **config: Any) -> Outcome:
    names = images(folder, len(next(iter(columns.values()))))
    pq.write_table(pa.table({"file": names, **columns}), folder / "list.parquet")
    return Outcome(folder / "list.parquet", folder / "manifests", path="file", **config)


def as_parquet(folder: Path, columns: Columns, **config: Any) -> Outcome:
    path = with_features(folder / "a.parquet", {}, **columns)
    return Outcome(path, folder / "manifests", image="image", **config)


def as_tar(folder: Path, columns: Columns, **config: Any) -> Outcome:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = webdataset(folder / "a.tar", [{"json": json.dumps(row)} for row in rows])
    return Outcome(path, folder / "manifests", **config)


WAYS = [as_csv, as_parquet_list, as_parquet, as_tar]


def task(folder: Path, **config: Any) -> Any:
    """The task of the manifest `photos` in a folder, and what was said of it."""
    said: list[str] = []
    sizes = {"train": 0.5, "validation": 0, "test": 0.5}
    found = split(
        SplitConfig(datasets=("photos",), **{"sizes": sizes, **config}), folder, reporter=Reporter(message=said.append)
    )
    return found, said


def write_manifest(folder: Path, rows: int = 40, **columns: Any) -> None:
    """A manifest with these columns, repeated to a number of rows."""
    (times,) = {len(values) for values in columns.values()}
    every = {name: list(values) * (rows // times) for name, values in columns.items()}
    fixed = {"key": [f"{n:032x}" for n in range(rows)], "path": [f"{n}.png" for n in range(rows)], "size": [9] * rows}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**fixed, **every}), ManifestPaths(folder, "photos").rows)


# Names that the manifest has too -------------------------------------------------------------------------------------

OWN: Columns = {
    "size": ["large", "small"] * 10,
    "key": [f"k{n}" for n in range(20)],
    "path": ["left", "right"] * 10,
    "container": ["box", "bag"] * 10,
    "offset": [3, 7] * 10,
    "Size": ["L", "S"] * 10,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_column_of_the_data_is_a_label_under_its_own_name(way: Callable[..., Outcome], tmp_path: Path) -> None:
    found = way(tmp_path, OWN)
    rows = found.table.sort_by("data:key").to_pylist()
    for name, values in OWN.items():
        expected = dict(zip(OWN["key"], values, strict=True))
        column = name if name == "Size" else f"data:{name}"
        assert {row["data:key"]: row[column] for row in rows} == expected
    assert sorted(found.prepared.notes) == sorted(
        f"{found.root}: the column {name!r} of the data is 'data:{name}' in the manifest, and {name!r} in settings."
        for name in OWN
        if name != "Size"
    )
    assert {row["size"] for row in rows} == {len(picture(number)) for number in range(20)}
    made, _ = task(tmp_path / "manifests", target="size", group="key", levels=("path", "offset"))
    assert set(made.targets) == {"large", "small"}
    assert set(made.table[LEVEL + "offset"].to_pylist()) == {"3", "7"}


@pytest.mark.parametrize("name", ["size", "key", "path", "offset"])
def test_the_manifests_own_columns_are_no_targets(name: str, tmp_path: Path) -> None:
    as_parquet(tmp_path, {"label": ["a", "b"]})
    for options in ({"target": name}, {"group": name}, {"levels": (name,)}, {"by": "column", "column": name}):
        with pytest.raises(DataError, match=rf"unknown column '{name}'.*\(The manifest's own '{name}' is no label.\)"):
            task(tmp_path / "manifests", **options)


def test_two_columns_that_would_have_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="- both 'size' and 'data:size' would be 'data:size'"):
        as_csv(tmp_path, {"size": ["a"], "data:size": ["b"]})
    left = Outcome(tmp_path / "list.csv", tmp_path / "manifests", path="file", columns=("data:size",))
    assert left.table["data:size"].to_pylist() == ["b"]


def test_a_label_in_json_that_differs_from_cls_is_kept_beside_it(tmp_path: Path) -> None:
    samples = [{"cls": "3", "json": '{"label": "owl"}'}, {"cls": "4", "json": '{"label": 4}'}]
    found = Outcome(webdataset(tmp_path / "a.tar", samples), tmp_path / "manifests")
    assert found.table["label"].to_pylist() == [3, 4]
    assert found.table["data:label"].to_pylist() == ["owl", None]
    assert found.prepared.notes == (
        f"{tmp_path}/a.tar: samples have a label in .cls and another in .json, stored as 'data:label'.",
    )


@pytest.mark.parametrize(("value", "kept"), [("test", False), ("train", True), ("Train", True)])
def test_a_split_that_differs_from_that_of_the_folder_is_no_row(value: str, kept: bool, tmp_path: Path) -> None:
    reason = "its split is both 'train' and 'test', by its folders or its own label"
    table(tmp_path / "tables" / "train" / "0.parquet", 2, split=["train", value])
    members = [("train/0.png", picture(0)), ("train/1.png", picture(1))]
    members += [("train/1.json", json.dumps({"split": value}).encode())]
    pack(tmp_path / "tars" / "0.tar", members)
    for name, config in (("tables", {"image": "image"}), ("tars", {})):
        found = Outcome(tmp_path / name, tmp_path / "manifests", max_rejected=0.5, **config)
        assert len(found.rows) == 1 + kept
        assert all(said.startswith(reason) for _, said in found.excluded.values())


def test_columns_without_a_name_are_left_out_aloud(tmp_path: Path) -> None:
    images(tmp_path, 2)
    (tmp_path / "list.csv").write_text(",file,label\n0,0.png,cat\n1,1.png,dog\n")
    found = Outcome(tmp_path / "list.csv", tmp_path / "manifests", path="file")
    assert found.table.column_names[5:] == ["label"]
    assert found.prepared.notes == (
        f"{tmp_path}/list.csv: a column without a name is left out (pandas writes one of row numbers: `index=False`).",
    )


# Values --------------------------------------------------------------------------------------------------------------

SPELLINGS = [
    ["007", "7"],
    ["01", "1"],
    ["1e5", "100000"],
    ["1.0", "1"],
    ["+1", "1"],
    ["-0", "0"],
    ["TRUE", "true"],
    ["0x1f", "31"],
    ["9007199254740993", "9007199254740993.0"],
    ["12345678901234567890", "12345678901234567891"],
    ["nan", "NaN"],
    ["NA", "null"],
    ["None", "N/A"],
    ["yes", "no"],
    ["0.10", "0.1"],
    ["1_000", "1000"],
    ["2020-2-9", "2020-02-09"],
    ["2020-02-09T00:00:00", "2020-02-09 00:00:00"],
    [" a", "a"],
    ["inf", "1.5"],
]


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """A column for each pair of spellings, in every way that labels come."""
    columns = {str(number): pair for number, pair in enumerate(SPELLINGS)}
    return {way.__name__: way(tmp_path_factory.mktemp("spelled"), columns) for way in WAYS}


@pytest.mark.parametrize("way", [way.__name__ for way in WAYS])
def test_two_spellings_are_two_values(way: str, spelled: dict[str, Outcome]) -> None:
    found = spelled[way].table
    assert [found[str(number)].to_pylist() for number in range(len(SPELLINGS))] == SPELLINGS


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "0"], pa.int64()),
        (["0.5", "-2.25", "1e-7"], pa.float64()),
        (["true", "false", ""], pa.bool_()),
        (["2020-02-29", "", "1969-01-01"], pa.date32()),
        (["2020-02-29 12:00:00", "", ""], pa.string()),
        (["", "", ""], pa.null()),
        (["1", "2", "b"], pa.string()),
        (["9223372036854775807", "1", "2"], pa.int64()),
        (["9223372036854775808", "1", "2"], pa.string()),
    ],
)
def test_a_column_of_a_list_has_the_type_that_writes_each_value_back(
    values: list[str], kind: pa.DataType, tmp_path: Path
) -> None:
    found = as_csv(tmp_path, {"label": values}).table["label"]
    assert found.type == kind
    assert [value or "" for value in found.cast(pa.string()).to_pylist()] == values


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are parsed in pieces of 1 KiB."""
    monkeypatch.setattr("pipeline.prepare.delimited_text.BLOCK", 1024)


@pytest.mark.usefixtures("small_blocks")
def test_the_last_row_of_a_long_list_decides_too(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\n" + "0.png,1\n" * 2000 + "0.png,007\n")
    config = PrepareConfig(root=tmp_path / "list.csv")
    labels = [one.labels["label"] for one in find(config)]
    assert (labels[0], labels[-1]) == ("1", "007")


@pytest.mark.parametrize("way", WAYS)
def test_the_type_of_a_column_can_be_given(way: Callable[..., Outcome], tmp_path: Path) -> None:
    columns: Columns = {"id": [1, 2], "code": ["1", "007"], "score": ["1", "2.5"], "good": ["true", "0"]}
    kinds = {"id": "text", "code": "integer", "score": "number", "good": "boolean"}
    found = way(tmp_path, columns, types=kinds).table
    assert found.select(list(columns)).to_pydict() == {
        "id": ["1", "2"],
        "code": [1, 7],
        "score": [1.0, 2.5],
        "good": [True, False],
    }
    with pytest.raises(DataError, match=r"(?s)'code': expected .*007x"):
        way(tmp_path, {**columns, "code": ["1", "007x"]}, types=kinds)
    with pytest.raises(DataError, match=r"unknown column 'cods'"):
        way(tmp_path, columns, types={"cods": "text"})


def test_types_that_cannot_be_given_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'file' is no label column: leave it out of `types`"):
        as_csv(tmp_path, {"label": ["a"]}, types={"file": "text"})
    with pytest.raises(DataError, match=r"the label of a folder is its name, a text. Leave `types` out."):
        Outcome(tmp_path, tmp_path / "manifests", types={"label": "text"})
    with pytest.raises(DataError, match=r"'count': expected bool in each row, got: numbers other than 0 and 1"):
        as_parquet(tmp_path, {"count": [1, 2]}, types={"count": "boolean"})
    for way in (as_parquet, as_parquet_list):
        with pytest.raises(DataError, match=r"the column 'box': expected string in each row, got: Unsupported cast"):
            way(tmp_path, {"box": [{"x": 1}]}, types={"box": "text"})
    with pytest.raises(DataError, match=r"the label 'n': expected int64, got 1.5. Set another type in `types`"):
        as_tar(tmp_path, {"n": [1, 1.5]}, types={"n": "integer"})


def test_json_values_of_several_types_are_texts_and_that_is_noted(tmp_path: Path) -> None:
    found = as_tar(tmp_path, {"label": [1, "01", True], "big": [2**53 + 1, 0.5, 1], "both": [1, 2.5, 3]})
    assert found.table["label"].to_pylist() == ["1", "01", "true"]
    assert found.table["big"].to_pylist() == [str(2**53 + 1), "0.5", "1"]
    assert found.table["both"].to_pylist() == [1.0, 2.5, 3.0]
    assert found.prepared.notes == (
        f"{found.root}: the values of 'label' are of several types (integer, text, true): all are read as texts, so "
        "that the number 7 and the text '7' are the same label.",
    )


def test_a_name_that_stands_twice_in_json_refuses_the_sample(tmp_path: Path) -> None:
    path = webdataset(tmp_path / "a.tar", [{"json": '{"label": 1, "label": 2}'}, {"json": "{}"}])
    found = Outcome(path, tmp_path / "manifests", max_rejected=0.5)
    assert found.excluded == {"000000.png": ("unreadable", "its .json has 'label' twice")}
    path = webdataset(tmp_path / "b.tar", [{"json": '{"odd": 1, "odd": 2, "label": 3}'}])
    assert Outcome(path, tmp_path / "manifests", columns=("label",)).table["label"].to_pylist() == [3]


def test_a_mark_at_the_front_of_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    path = webdataset(tmp_path / "a.tar", [{"cls": "\ufeff3\r\n", "json": '\ufeff{"a": 1}'}])
    [row] = Outcome(path, tmp_path / "manifests").rows.values()
    assert (row["label"], row["a"]) == (3, 1)


def test_texts_of_parquet_that_are_not_utf8_are_an_error(tmp_path: Path) -> None:
    images(tmp_path, 1)
    odd = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"path": ["0.png"], "label": odd}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"the column 'label': expected string in each row, got: .*UTF8"):
        Outcome(tmp_path / "list.parquet", tmp_path / "manifests")
    pq.write_table(pa.table({"path": odd}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="'path', the column of paths: expected text, got: "):
        Outcome(tmp_path / "list.parquet", tmp_path / "manifests")


LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=8)
TEXTS = LABELS | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["007", "1e5", "True", "NA", '"', ","])


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_any_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    names = [f"{number}.png" for number in range(len(labels))]
    for kind in ("csv", "parquet"):
        root = folder / f"list.{kind}"
        if kind == "csv":
            with root.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "label"), *zip(names, labels, strict=True)])
        else:
            pq.write_table(pa.table({"path": names, "label": labels}), root)
        config = PrepareConfig(root=root)
        typed = pa.array([one.labels["label"] for one in find(config)], label_types(config)["label"])
        assert typed.cast(pa.string()).to_pylist() == labels
    members = [(f"{n}.png", b"") for n in range(len(labels))] + [
        (f"{n}.json", json.dumps({"label": text}).encode()) for n, text in enumerate(labels)
    ]
    packed = find(PrepareConfig(root=pack(folder / "a.tar", sorted(members))))
    assert sorted(one.labels["label"] for one in packed) == sorted(labels)


# Class names of Hugging Face -----------------------------------------------------------------------------------------

NAMES = {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}


def with_features(file: Path, features: dict[str, Any], /, **columns: Any) -> Path:
    """A Parquet file with images and the features that `datasets` writes into its schema."""
    rows = len(next(iter(columns.values())))
    image = [{"bytes": picture(number), "path": None} for number in range(rows)]
    about = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
    found = pa.table({"image": image, **columns}).replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, file)
    return file


def test_numbers_of_a_class_label_are_its_names(tmp_path: Path) -> None:
    several = [[0, 2], [], [1], [-1]]
    features = {
        "label": NAMES,
        "old": {"feature": NAMES, "_type": "Sequence"},
        "new": {"feature": NAMES, "_type": "List"},
        "oldest": [NAMES],
        "twins": {"names": ["crane", "crane", "owl"], "_type": "ClassLabel"},
        "plain": {"dtype": "int64", "_type": "Value"},
        "floats": NAMES,
        "coded": NAMES,
        "unnamed": {"num_classes": 3, "names": None, "_type": "ClassLabel"},
    }
    columns = {name: [2, 0, -1, None] for name in ("label", "twins", "plain", "unnamed")}
    columns |= {"floats": [2.0, 0.0, -1.0, None], "coded": pa.array([2, 0, -1, None]).dictionary_encode()}
    columns |= dict.fromkeys(("old", "new", "oldest"), several)
    path = with_features(tmp_path / "a.parquet", features, **columns)
    found = Outcome(path, tmp_path / "manifests", image="image").table
    for name in ("label", "floats", "coded"):
        assert found[name].to_pylist() == ["owl", "cat", None, None]
    for name in ("old", "new", "oldest"):
        assert found[name].to_pylist() == [["cat", "owl"], [], ["dog"], [None]]
    assert found["twins"].to_pylist() == ["owl", "crane (0)", None, None]
    assert found["plain"].to_pylist() == found["unnamed"].to_pylist() == [2, 0, -1, None]
    numbers = Outcome(path, tmp_path / "manifests", image="image", types={"label": "integer"}).table
    assert numbers["label"].to_pylist() == [2, 0, -1, None]


def test_shards_that_number_their_classes_otherwise_agree_by_name(tmp_path: Path) -> None:
    other = {"names": ["owl", "cat"], "_type": "ClassLabel"}
    with_features(tmp_path / "d" / "0.parquet", {"label": NAMES}, label=[0, 2])
    with_features(tmp_path / "d" / "1.parquet", {"label": other}, label=[1, 1, 0])  # the second conflicts
    found = Outcome(tmp_path / "d", tmp_path / "manifests", image="image", max_rejected=0.9)
    assert found.column("label") == {"0.parquet/0": "cat", "1.parquet/2": "owl"}
    assert set(found.excluded) == {"0.parquet/1", "1.parquet/0", "1.parquet/1"}


def test_a_number_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    path = with_features(tmp_path / "a.parquet", {"label": NAMES}, label=[0, 3])
    with pytest.raises(
        DataError, match=r"'label': expected numbers of its 3 classes, 0 to 2, or -1 for none, got 3. Co"
    ):
        Outcome(path, tmp_path / "manifests", image="image")


@pytest.mark.parametrize("about", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"label": 3}}}'])
def test_metadata_of_another_make_is_passed_over(about: bytes, tmp_path: Path) -> None:
    found = pa.table({"image": [picture(0)], "label": [0]}).replace_schema_metadata({b"huggingface": about})
    pq.write_table(found, tmp_path / "a.parquet")
    assert Outcome(tmp_path / "a.parquet", tmp_path / "manifests", image="image").table["label"].to_pylist() == [0]


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string_view())]
)
def test_texts_are_labels_whatever_arrow_lays_them_out_as(kind: pa.DataType, tmp_path: Path) -> None:
    labels: list[Any] = [["cat"], ["owl"]] if pa.types.is_list(kind) else ["cat", "owl"]
    found = as_parquet(tmp_path, {"label": pa.array(labels, kind)})  # type: ignore[dict-item]
    assert found.table["label"].to_pylist() == labels
    assert found.table["label"].type in (pa.string(), pa.large_string(), pa.list_(pa.string()))


# Names that look the same --------------------------------------------------------------------------------------------

ALIKE = [
    ("café", unicodedata.normalize("NFD", "café")),
    ("cat", "cat "),
    ("cat", " cat"),
    ("red fox", "red  fox"),
    ("red fox", "red\u00a0fox"),
    ("red fox", "red\u2009fox"),
    ("cat", "c\u200bat"),
    ("cat", "cat\ufeff"),
    ("cat", "c\u00adat"),
    ("cat", "c\x07at"),
    ("cat", "cat\n"),
    ("cat", "c\u0430t"),
    ("KAPPA", "\u039aAPPA"),
    ("x-ray", "x\u2010ray"),
    ("cat", "\uff43\uff41\uff54"),
    ("Å", "\u212b"),
    ("men's", "men\u2019s"),
    ("IV", "\u2163"),
    ("❤", "❤\ufe0f"),
]


@pytest.mark.parametrize("pair", ALIKE, ids=[ascii(pair) for pair in ALIKE])
def test_classes_that_look_the_same_are_an_error_until_they_are_renamed(pair: tuple[str, str], tmp_path: Path) -> None:
    one, other = sorted(pair)
    write_manifest(tmp_path, label=[*pair, "dog", "emu"])
    with pytest.raises(DataError) as caught:
        task(tmp_path)
    assert str(caught.value).splitlines() == [
        "the target 'label' of photos: classes that look the same on a screen. Merge them with `rename`, or give "
        "them different names",
        f"  - {one!a} and {other!a}",
    ]
    with pytest.raises(DataError, match=r"class .* looks the same as .*: write its codes between double quotes"):
        task(tmp_path, rename={f"{one}\u2060\u200b": "x"})
    found, _ = task(tmp_path, rename={other: one})
    assert set(found.targets) == {one, "dog", "emu"}


def test_what_can_be_seen_is_told_apart() -> None:
    names = ["cat", "dog", "Cat", "cafe", "café", "o", "ö", "ø", "1", "l", "я", "r", "م", "m²", "m2", "①", "a b", "ab"]
    assert group_alike(names) == []
    assert describe_alike(names) == ["'Cat' and 'cat' differ in case only and are different values."]
    assert describe_alike(["cat ", "dog"]) == ["'cat ' has blanks or control characters that cannot be seen."]
    assert describe_alike(["می\u200cخواهم", "👩\u200d💻", "dog"]) == []  # joiners that are written


def test_preparing_says_which_labels_look_the_same_and_changes_none(tmp_path: Path) -> None:
    labels = ["café", unicodedata.normalize("NFD", "café"), "dog", "dog "]
    expected = {
        "'cafe\\u0301' and 'caf\\xe9' look the same and are different values.",
        "'dog' and 'dog ' look the same and are different values.",
    }
    members = []
    for number, label in enumerate(labels):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "0.png").write_bytes(picture(number))
        members.append((f"{label}/0.png", picture(number)))
    folder = Outcome(tmp_path / "photos", tmp_path / "manifests")
    packed = Outcome(pack(tmp_path / "a.tar", members), tmp_path / "manifests")
    listed = as_csv(tmp_path / "list", {"label": labels})
    for found in (folder, packed, listed):
        assert sorted(found.table["label"].to_pylist()) == sorted(labels)
        assert {note.partition("the values of 'label': ")[2] for note in found.prepared.notes} == expected


def test_groups_domains_and_levels_that_look_the_same_are_noted(tmp_path: Path) -> None:
    write_manifest(
        tmp_path,
        label=["a", "a", "b", "b"],
        patient=["p1", "p1 "] * 2,
        domain=["x", "\u0445"] * 2,
        kin=["k", "k", "K", "K"],
    )
    _, said = task(tmp_path, group="patient", levels=("kin",))
    assert said == [
        "the group of photos: 'p1' and 'p1 ' look the same and are different values.",
        "the domain of photos: 'x' and '\\u0445' look the same and are different values.",
        "the level:kin of photos: 'K' and 'k' differ in case only and are different values.",
    ]


def test_splits_in_a_column_of_another_name_are_noted(tmp_path: Path) -> None:
    def noted(name: str, columns: Columns) -> tuple[str, ...]:
        return as_csv(tmp_path / name, columns).prepared.notes

    assert [line.partition(": ")[2] for line in noted("found", {"Subset": ["train", "Valid", "test"]})] == [
        "the column 'Subset' names splits (Valid, test, train); tasks look for them in a column 'split'. "
        "Set `by: column` and `column: Subset` in a task that is to have them."
    ]
    assert noted("other", {"subset": ["train", "red", "test"]}) == ()
    assert noted("single", {"subset": ["train", "train"]}) == ()
    assert noted("both", {"Subset": ["train", "test"], "split": ["test", "train"]}) == ()


@pytest.mark.parametrize(
    ("file", "listed", "hint"),
    [
        (
            "a/0.png",
            "a\\0.png",
            "has backslashes between folders, as Windows writes them. Write / in their place.",
        ),
        ("a/0.PNG", "a/0.png", "/a has '0.PNG', the list has '0.png'. Write it as the folder does."),
        (
            "cafe\u0301/0.png",
            "caf\u00e9/0.png",
            r" has 'cafe\u0301', the list has 'caf\xe9'. Write it as the folder does.",
        ),
        ("a/0.png", "b/0.png", "b/0.png: No such file or directory"),
    ],
)
def test_a_path_that_almost_is_there_is_explained(file: str, listed: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(picture(0))
    (tmp_path / "list.csv").write_text(f"path\n{listed}\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        Outcome(tmp_path / "list.csv", tmp_path / "manifests")
    assert str(refused.value).endswith(hint)


def test_columns_whose_names_look_the_same_are_noted(tmp_path: Path) -> None:
    found = as_csv(tmp_path, {"label": ["a", "b"], " label": ["c", "d"]})
    assert found.table.select(["label", " label"]).to_pydict() == {"label": ["a", "b"], " label": ["c", "d"]}
    assert found.prepared.notes == (f"{found.root}: the columns ' label' and 'label' look the same.",)


def test_numbers_that_are_none_do_not_hide_what_labels_look_like(tmp_path: Path) -> None:
    found = as_parquet(tmp_path, {"label": ["a", "a "], "score": [float("nan"), float("inf")]})
    assert str(found.table["score"].to_pylist()) == "[nan, inf]"
    assert len(found.prepared.notes) == 1


def test_a_group_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    write_manifest(tmp_path, label=["a", "b"], patient=[1.0, float("nan")])
    with pytest.raises(DataError, match="the group 'patient' of photos: 20 rows have no value"):
        task(tmp_path, group="patient")


# Separators ----------------------------------------------------------------------------------------------------------

SETS = ["sea,sun", "sun", "sea", "dog,sun", "dog"]


def test_texts_with_another_separator_are_an_error_that_names_it(tmp_path: Path) -> None:
    write_manifest(tmp_path, tags=SETS)
    message = (
        r"the target 'tags' of photos: texts such as 'dog,sun' are read as a single label, since `separator` is ';', "
        r"and look like several labels separated by ','. Set `separator: ','`, or `separator: ';'` if each is a single"
    )
    with pytest.raises(DataError, match=message):
        task(tmp_path, kind="multilabel", target="tags")
    found, said = task(tmp_path, kind="multilabel", target="tags", separator=",")
    assert (found.classes, said) == (["dog", "sea", "sun"], [])
    found, said = task(tmp_path, kind="multilabel", target="tags", separator=";")
    assert found.classes == ["dog", "dog,sun", "sea", "sea,sun", "sun"]
    assert said == [message.partition(" Set")[0].replace("\\", "") + " If they are, set `separator: ','`."]


def test_a_mark_that_no_label_has_separates_whatever_the_parts_are(tmp_path: Path) -> None:
    write_manifest(tmp_path, tags=["red|round", "blue|square", "red|square", "green|oval"])
    with pytest.raises(DataError, match=r"texts such as 'blue\|square' are read as a .* Set `separator: '\|'`"):
        task(tmp_path, kind="multilabel", target="tags")
    write_manifest(tmp_path, tags=["red,round", "blue,square", "red,square"] * 2, rows=36)
    with pytest.raises(DataError, match=r"Set `separator: ','`"):
        task(tmp_path, kind="multilabel", target="tags")


def test_a_few_texts_with_another_separator_are_noted(tmp_path: Path) -> None:
    write_manifest(tmp_path, tags=["sea;sun", "sun|sea", "sea", "sun"])
    _, [said] = task(tmp_path, kind="multilabel", target="tags")
    assert "texts such as 'sun|sea' are read as a single label" in said


@pytest.mark.parametrize(
    "tags",
    [["Doe, John", "Doe, Jane", "Roe, Al"], ["cat, tabby", "owl", "dog"], ["a;b", "a", "b"], ["n/a", "cat", "owl"]],
)
def test_texts_that_may_well_be_one_label_are_left_as_they_are(tags: list[str], tmp_path: Path) -> None:
    write_manifest(tmp_path, rows=39, tags=tags)
    _, said = task(tmp_path, kind="multilabel", target="tags")
    assert said == []


def test_lists_that_are_written_as_text_are_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, tags=["['sea', 'sun']", "['sun']", "[]", "['sea']"])
    with pytest.raises(DataError, match=r"texts such as \"\['sea', 'sun'\]\" are lists written as text. Write them as"):
        task(tmp_path, kind="multilabel", target="tags")


def test_flags_may_be_texts(tmp_path: Path) -> None:
    write_manifest(tmp_path, sun=["1.0", "0.0"], sea=["True", "False"])
    found, _ = task(tmp_path, kind="multilabel", target=("sun", "sea"))
    assert sorted(map(tuple, found.table["target"].to_pylist())) == [()] * 20 + [("sea", "sun")] * 20


# Lists of other makes ------------------------------------------------------------------------------------------------

ROWS = [("path", "label"), ("0.png", "Löwe, alt"), ("1.png", "Bär")]


def lines(delimiter: str, rows: list[tuple[str, ...]] = ROWS) -> str:
    """Rows as `csv` writes them."""
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows(rows)
    return written.getvalue()


@pytest.mark.parametrize(
    ("data", "config"),
    [
        *((lines(mark).encode(), {}) for mark in ",;\t|"),
        (lines(";").encode("utf-8-sig"), {}),
        (lines("\t").encode("utf-16"), {}),
        (lines(",").encode("utf-32"), {}),
        (lines(";").encode("utf-16-le"), {"encoding": "utf-16-le"}),
        (lines(";").encode("cp1252"), {"encoding": "cp1252"}),
        (b"sep=;\r\n" + lines(";").encode(), {}),
        (lines(",").replace("\r\n", "\r").encode(), {}),
    ],
)
def test_lists_of_other_delimiters_and_encodings_are_read(data: bytes, config: dict[str, str], tmp_path: Path) -> None:
    images(tmp_path, 2)
    (tmp_path / "list.csv").write_bytes(data)
    found = Outcome(tmp_path / "list.csv", tmp_path / "manifests", **config)
    assert found.table["label"].to_pylist() == ["Löwe, alt", "Bär"]


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (
            lines(",").encode("utf-16-le"),
            {},
            "UTF-16 without a byte order mark, or not text. Set `encoding: utf-16-le`",
        ),
        (lines(",").encode("cp1252"), {}, "not UTF-8: .*Row #2: .* Set `encoding: cp1252` where Windows wrote it"),
        ("path,Größe\n".encode("cp1252"), {}, "not utf-8: .* Set `encoding: cp1252` where Windows wrote it"),
        (
            lines(",").encode("cp1252"),
            {"encoding": "ascii"},
            "not ascii: .* Set another `encoding`, or save the list as UTF-8.",
        ),
        (b"PK\x03\x04" + bytes(100), {}, r"expected a list of text lines, got zip \(a spreadsheet\?\). Save it as CSV"),
        (b"\x1f\x8b" + bytes(100), {}, "expected a list of text lines, got gzip. Save it as CSV, uncompressed."),
        (b"name^label\n", {}, "unknown column 'path'"),
        (
            b'path,label\n0.png,"cat\n1.png,dog\n2.png,dog\n',
            {},
            "the value of 'label' in the row of '0.png' continues over further rows, the first with '1.png'. Close",
        ),
        (
            b'path,label,x\n0.png,cat,"\n1.png,dog,"\n',
            {"columns": ("label",)},
            "the value of 'x' in the row of '0.png'",
        ),
        (b'path,label\n0.png,"a\n' + b"x" * 2**18 + b'"\n', {}, "1 of 1 files cannot be used"),
        (b"path" + b"x" * 2**18 + b",label\n", {}, "unknown column 'path'"),
        (
            b'path,label\n0.png,"' + b"x\n" * 2**24,
            {},
            "a row of more than 16,777,216 bytes. Close the quote that is open",
        ),
    ],
    ids=[
        "utf-16",
        "cp1252",
        "header",
        "ascii",
        "spreadsheet",
        "gzip",
        "delimiter",
        "quote",
        "quote elsewhere",
        "long line",
        "long name",
        "long row",
    ],
)
def test_lists_that_cannot_be_read_say_why(data: bytes, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        Outcome(tmp_path / "list.csv", tmp_path / "manifests", **config)


def test_an_encoding_that_python_does_not_know_is_refused(tmp_path: Path) -> None:
    for name in ("nonsense", "hex"):
        with pytest.raises(
            ValidationError, match=f"expected an encoding that Python knows, such as cp1252, got '{name}'"
        ):
            PrepareConfig(root=tmp_path, encoding=name)


@pytest.mark.usefixtures("small_blocks")
def test_values_of_several_lines_are_read_wherever_they_lie(tmp_path: Path) -> None:
    text = "first line\nsecond, line"
    rows = [("path", "note"), *((f"{number % 2}.png", text) for number in range(1000))]
    (tmp_path / "list.csv").write_text(lines(",", rows), newline="")
    notes = [one.labels["note"] for one in find(PrepareConfig(root=tmp_path / "list.csv"))]
    assert notes == [text] * 1000


def test_columns_that_are_not_asked_for_decide_nothing(tmp_path: Path) -> None:
    images(tmp_path, 1)
    (tmp_path / "list.csv").write_bytes(b"path,label,odd,odd\n0.png,cat,\xff,1\n")
    found = Outcome(tmp_path / "list.csv", tmp_path / "manifests", columns=("label",))
    assert found.table["label"].to_pylist() == ["cat"]


def test_tab_separated_lists_are_lists_and_others_are_named(tmp_path: Path) -> None:
    images(tmp_path, 1)
    (tmp_path / "list.tsv").write_text("path\tlabel\n0.png\tcat\n")
    assert Outcome(tmp_path / "list.tsv", tmp_path / "manifests").table["label"].to_pylist() == ["cat"]
    (tmp_path / "list.jsonl").touch()
    with pytest.raises(DataError, match=r"Write a list of another kind, such as .jsonl, as .csv or .parquet."):
        Outcome(tmp_path / "list.jsonl", tmp_path / "manifests")


# What other tools write ----------------------------------------------------------------------------------------------


def img2dataset(folder: Path, shard: int, *, first: int) -> None:
    """A shard as img2dataset 1.47 writes it: an archive, a table with a row for each URL, and statistics."""
    rows = [
        {
            "url": f"http://x/{n}",
            "caption": f"a photo {n}",
            "key": f"{shard:05d}{n:04d}",
            "status": "success",
            "width": 8,
        }
        for n in range(3)
    ]
    rows[2] |= {"status": "failed_to_download", "width": None}
    members: list[tuple[str, bytes]] = []
    for number, row in enumerate(rows[:2]):
        members += [(f"{row['key']}.jpg", picture(first + number)), (f"{row['key']}.txt", b"a photo")]
        members += [(f"{row['key']}.json", json.dumps(row, indent=4).encode())]
    pack(folder / f"{shard:05d}.tar", members)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
    (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 2}')


def test_an_output_folder_of_img2dataset_is_read(tmp_path: Path) -> None:
    for shard in range(2):
        img2dataset(tmp_path / "out", shard, first=10 * shard)
    for name in ("00000.idx", "index.json", "README.md", "00001.tar.md5"):
        (tmp_path / "out" / name).touch()
    found = Outcome(tmp_path / "out", tmp_path / "manifests")
    assert (found.prepared.rows, found.prepared.excluded) == (4, {"other": 8})
    assert found.excluded["00000.parquet"] == ("other", "a table that describes the archive of the same name")
    assert found.excluded["00000_stats.json"] == ("other", "no image, by its extension")
    assert found.column("data:key")["00001.tar/000010000.jpg"] == "000010000"
    assert found.column("caption")["00000.tar/000000001.jpg"] == "a photo 1"
    (tmp_path / "out" / "other.parquet").write_bytes((tmp_path / "out" / "00000.parquet").read_bytes())
    with pytest.raises(DataError, match=r"expected either .tar or .parquet files, got both"):
        Outcome(tmp_path / "out", tmp_path / "manifests")


def test_its_output_as_parquet_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    rows = {"jpg": [picture(0), picture(1), None], "key": ["a", "b", "c"], "status": ["success", "success", "failed"]}
    pq.write_table(pa.table(rows), tmp_path / "out" / "00000.parquet")
    (tmp_path / "out" / "00000_stats.json").touch()
    found = Outcome(tmp_path / "out", tmp_path / "manifests", image="jpg", max_rejected=0.5)
    assert found.column("data:key") == {"00000.parquet/0": "a", "00000.parquet/1": "b"}
    assert found.prepared.excluded == {"other": 1, "unreadable": 1}


@pytest.mark.parametrize(
    ("name", "todo"),
    [
        ("metadata.csv", "Set `root: {path}` and `path: file_name` to read them."),
        ("metadata.jsonl", "Write it as CSV or Parquet, and set `root` to that."),
        ("0.json", "Pack the folder as a .tar, with a .json for each image, or write a list as CSV or Parquet."),
    ],
)
def test_labels_that_are_not_read_with_a_folder_are_noted(name: str, todo: str, tmp_path: Path) -> None:
    names = images(tmp_path / "photos" / "train", 20)
    path = tmp_path / "photos" / "train" / name
    path.write_text("file_name,label\n" + "".join(f"{image},cat\n" for image in names))
    found = Outcome(tmp_path / "photos", tmp_path / "manifests")
    [note] = found.prepared.notes
    assert note == f"{path} may hold labels, which are not read with a folder of images. {todo.format(path=path)}"
    if name == "metadata.csv":
        listed = Outcome(path, tmp_path / "manifests", path="file_name")
        assert set(listed.table["label"].to_pylist()) == {"cat"}
        assert listed.prepared.rows == 20


# Names whose lower case is longer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["İstanbul", "x.parquet#y", "x.TAR", "ẞ.Parquet#image"])
def test_containers_below_folders_of_odd_names_are_read(folder: str, tmp_path: Path) -> None:
    pack(tmp_path / folder / "a.TAR", [("0.png", picture(0))])
    with_features(tmp_path / folder / "b.PARQUET", {}, label=["cat"])
    for name, config in (("a.TAR", {}), ("b.PARQUET", {"image": "image"})):
        found = Outcome(tmp_path / folder / name, tmp_path / "manifests", **config)
        assert found.prepared.rows == 1
        assert found.reread() == found.column("key")


def test_a_column_of_bytes_beside_one_that_begins_with_its_name_is_read(tmp_path: Path) -> None:
    columns = {"jpg.caption": [b"no image"], "jpg": [picture(0)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = Outcome(tmp_path / "a.parquet", tmp_path / "manifests", image="jpg", columns=())
    assert found.reread() == found.column("key")


# The stages ----------------------------------------------------------------------------------------------------------


def test_the_stages_print_what_may_be_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = images(tmp_path / "data" / "raw", 40)
    rows = [
        (name, "ab"[number % 2], f"p{number} " if number > 32 else f"p{number}") for number, name in enumerate(names)
    ]
    (tmp_path / "data" / "raw" / "list.csv").write_text(lines(",", [("path", "label", "size"), *rows]), newline="")
    params = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    params["prepare"]["digits"]["root"] = "data/raw/list.csv"
    params["split"]["digits"] = {"datasets": ["digits"], "group": "size"}
    params |= {name: {} for name in ("fit", "finetune", "teach", "distill")}  # which ask for few labels
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage", "digits"])
    project.run(stages.prepare.main)
    assert capsys.readouterr().out.splitlines() == [
        "digits: 40 files, 40 samples",
        "  note: data/raw/list.csv: the column 'size' of the data is 'data:size' in the manifest, and 'size' in "
        "settings.",
    ]
    project.run(stages.split.main)
    *notes, last, _ = capsys.readouterr().out.splitlines()
    assert notes == [
        f"  note: the group of digits: 'p{number} ' has blanks or control characters that cannot be seen."
        for number in range(33, 38)
    ]
    assert last == "  note: the group of digits: 2 more of the kind."
