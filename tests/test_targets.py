"""Targets of every kind: classes, sets of labels, numbers, levels of classes; and what is no target."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.split.assign import assign
from pipeline.split.config import SplitConfig
from pipeline.split.run import split
from pipeline.split.targets import strata
from pipeline.task import LEVEL, SPLITS, Task

Manifest = Callable[..., None]


def config(**options: Any) -> SplitConfig:
    """Settings of a task over the data set `photos`."""
    return SplitConfig(**{"datasets": ("photos",), **options})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A function that writes the manifest of a data set: keys for its rows, and label columns."""

    def write(dataset: str = "photos", *, first: int = 0, **columns: Sequence[Any] | pa.Array) -> None:
        (rows,) = {len(values) for values in columns.values()}
        numbers = range(first, first + rows)
        keys = [content_key(str(number).encode()) for number in numbers]
        path = ManifestPaths(tmp_path, dataset).rows
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"key": keys, "path": [f"{n:03d}.png" for n in numbers], **columns}), path)

    return write


def lines(caught: pytest.ExceptionInfo[DataError]) -> list[str]:
    """The lines of an error."""
    return str(caught.value).splitlines()


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [float(number) / 7 for number in range(60)],
        list(range(60)),
        [f"{number / 7:.3f}" for number in range(60)],
        pa.array(range(60), pa.decimal128(6, 2)),
        pa.array([str(number) for number in range(60)], pa.large_string()),
    ],
)
def test_numbers_and_texts_of_numbers_are_targets_of_a_regression(
    manifest: Manifest, tmp_path: Path, values: Any
) -> None:
    manifest(age=values)
    task = split(config(kind="regression", target="age"), tmp_path)
    assert task.kind == "regression"
    assert task.classes == []
    assert task.targets.dtype == np.float64
    texts = values.to_pylist() if isinstance(values, pa.Array) else values
    assert sorted(task.targets) == [float(value) for value in texts]
    task.write(tmp_path / "task.parquet")
    assert Task.read(tmp_path / "task.parquet").kind == "regression"


def test_rows_without_a_finite_number_are_counted_and_the_first_five_named(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=["1.5", "old", None, "nan", "-inf", "1_000", "", *["2"] * 20])
    with pytest.raises(DataError) as caught:
        split(config(kind="regression", target="age"), tmp_path)
    assert lines(caught) == [
        "the target 'age' of photos: 6 rows have no finite number. Add it, or leave the rows out of the data set. "
        "The first of them:",
        "  - 001.png: 'old'",
        "  - 002.png: no value",
        "  - 003.png: 'nan'",
        "  - 004.png: '-inf'",
        "  - 005.png: '1_000'",
    ]


def test_nan_and_infinity_in_a_column_of_numbers_are_no_targets(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=[1.0, float("nan"), float("inf"), 2.0])
    with pytest.raises(DataError, match=r"2 rows have no finite number.*\n  - 001.png: nan\n  - 002.png: inf"):
        split(config(kind="regression", target="age"), tmp_path)


@pytest.mark.parametrize(
    ("values", "kind"), [([True, False], "bool"), ([["a"], ["b"]], "list"), (pa.array([1, 2], pa.date32()), "date32")]
)
def test_a_column_of_another_kind_is_no_target_of_a_regression(
    manifest: Manifest, tmp_path: Path, values: Any, kind: str
) -> None:
    manifest(age=values)
    message = rf"the target 'age' of photos: expected numbers, got {kind}.*Choose another column, or another `kind`"
    with pytest.raises(DataError, match=message):
        split(config(kind="regression", target="age"), tmp_path)


def test_a_regression_on_one_number_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=[3] * 30)
    with pytest.raises(DataError, match=r"the target 'age' of photos: expected at least two numbers, got \[3.0\]"):
        split(config(kind="regression", target="age"), tmp_path)


def test_a_regression_without_rows_in_a_split_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=[1, 2, 3], split=["train", "test", "test"])
    with pytest.raises(DataError, match=r"without rows; .*\n  - expected at least 2 rows in train, got 1."):
        split(config(kind="regression", target="age", by="column"), tmp_path)


def test_a_stratified_regression_cuts_each_quantile_at_its_shares(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=[float(number) for number in range(400)])
    task = split(config(kind="regression", target="age", stratify=True), tmp_path)
    for low in range(0, 400, 40):
        names = task.table["split"].to_numpy()[(task.targets >= low) & (task.targets < low + 40)]
        assert Counter(names) == {"train": 24, "validation": 8, "test": 8}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_equal_numbers_are_of_one_quantile_and_larger_ones_of_none_below(values: list[int]) -> None:
    table = pa.table({"target": pa.array(values, pa.float64())})
    found = [int(place) for place in strata(table, config(kind="regression", stratify=True))]
    pairs = sorted(zip(values, found, strict=True))
    assert [place for _, place in pairs] == sorted(found)
    assert len(set(pairs)) == len(set(values))
    assert set(found) <= set(range(10))


# Several labels ------------------------------------------------------------------------------------------------------

SETS = [["sun"], ["sea", "sun"], [], ["sea"], ["sea", "sun", "dog"]] * 24


def labels_of(task: Task) -> Counter[tuple[str, ...]]:
    """How often each set of labels is there."""
    return Counter(tuple(labels) for labels in task.table["target"].to_pylist())


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"tags": SETS}, {"target": "tags"}),
        ({"tags": ["; ".join(labels) or ";" for labels in SETS]}, {"target": "tags"}),
        ({"tags": ["|".join(labels) or "|" for labels in SETS]}, {"target": "tags", "separator": "|"}),
        (
            {name: [name in labels for labels in SETS] for name in ("sun", "sea", "dog")},
            {"target": ("sun", "sea", "dog")},
        ),
        (
            {name: [float(name in labels) for labels in SETS] for name in ("sun", "sea", "dog")},
            {"target": ("sun", "sea", "dog")},
        ),
    ],
)
def test_lists_texts_and_columns_of_flags_give_the_same_task(
    manifest: Manifest, tmp_path: Path, columns: dict[str, Any], options: dict[str, Any]
) -> None:
    manifest(**columns)
    task = split(config(kind="multilabel", **options), tmp_path)
    assert task.kind == "multilabel"
    assert task.classes == ["dog", "sea", "sun"]
    assert labels_of(task) == Counter(tuple(sorted(labels)) for labels in SETS)
    assert task.targets.shape == (120, 3)
    assert task.targets.dtype == np.bool_
    assert task.targets.sum(axis=0).tolist() == [24, 72, 72]


def test_labels_are_numbers_too_are_renamed_and_stand_once(manifest: Manifest, tmp_path: Path) -> None:
    manifest(tags=[[10, 9, 9], [9], [11], []] * 40)
    task = split(config(kind="multilabel", target="tags", rename={"11": "9"}), tmp_path)
    assert task.classes == ["9", "10"]
    assert labels_of(task) == {("10", "9"): 40, ("9",): 80, (): 40}


def test_a_label_to_be_renamed_must_exist(manifest: Manifest, tmp_path: Path) -> None:
    manifest(tags=SETS)
    with pytest.raises(DataError, match=r"unknown class 'see'. Did you mean 'sea'"):
        split(config(kind="multilabel", target="tags", rename={"see": "sea"}), tmp_path)


def test_rows_without_a_list_of_labels_are_an_error_and_an_empty_list_is_none(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest(tags=[["sun"], None, [], ["sea", None]])
    with pytest.raises(DataError) as caught:
        split(config(kind="multilabel", target="tags"), tmp_path)
    assert "2 rows have no list of labels" in lines(caught)[0]
    assert "If an empty cell means that a sample has none of the labels, write `empty: none`." in lines(caught)[0]
    assert lines(caught)[1:] == ["  - 001.png: no value", "  - 003.png: ['sea', None]"]
    manifest(tags=[["sun"], None, [], ["sea"]] * 9, text=["sun", None, "", "sea"] * 9)
    for target in ("tags", "text"):
        task = split(config(kind="multilabel", target=target, empty="none"), tmp_path)
        assert labels_of(task) == {("sun",): 9, (): 18, ("sea",): 9}


def test_flags_that_are_neither_0_nor_1_are_named_and_missing_ones_too(manifest: Manifest, tmp_path: Path) -> None:
    manifest(sun=[0, 1, -1, 2], sea=["yes", "no", "yes", "no"], dog=[0, 1, 0, 1])
    with pytest.raises(DataError) as caught:
        split(config(kind="multilabel", target=("sun", "sea", "dog")), tmp_path)
    assert lines(caught) == [
        "the target ('sun', 'sea', 'dog') of photos: expected columns of 0 and 1, or true and false, got also",
        "  - sun: -1, 2",
        "  - sea: yes, no",
    ]
    manifest(sun=[0, 1, None], sea=[1, 0, 1])
    with pytest.raises(DataError, match=r"1 row has no list of labels.*\n  - 002.png: no value, 1"):
        split(config(kind="multilabel", target=("sun", "sea")), tmp_path)


def test_a_column_of_numbers_holds_no_labels(manifest: Manifest, tmp_path: Path) -> None:
    manifest(age=[1, 2, 3])
    with pytest.raises(
        DataError, match=r"expected lists, or texts with labels separated by ';', got int64. Name several"
    ):
        split(config(kind="multilabel", target="age"), tmp_path)


def test_labels_without_rows_in_a_split_and_those_of_every_row_are_all_named(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest(tags=[["sun", "sea"], ["sun"], ["sun", "dog"]], split=["train", "train", "test"])
    with pytest.raises(DataError) as caught:
        split(config(kind="multilabel", target="tags", by="column", rare="refuse"), tmp_path)
    assert lines(caught) == [
        "the split leaves labels without rows; add samples or change the column 'split'",
        "  - label 'dog': expected at least 1 row with it in train, got 0.",
        "  - label 'sea': expected at least 1 row with it in test, got 0.",
        "  - label 'sun': expected at least 1 row without it in train, got 0.",
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=60), st.integers(0, 5))
def test_a_stratified_task_of_labels_has_the_shares_among_rows_of_each_rarest_label(
    rows: list[set[str]], seed: int
) -> None:
    options = config(kind="multilabel", stratify=True, seed=seed)
    table = pa.table({"target": pa.array([sorted(labels) for labels in rows], pa.list_(pa.string()))})
    found = strata(table, options)
    times = Counter(label for labels in rows for label in labels)
    for labels, stratum in zip(rows, found, strict=True):
        assert stratum in labels or (not labels and not stratum)
        assert all(times[stratum] <= times[label] for label in labels)
    splits = assign(found, [str(number) for number in range(len(rows))], options)
    have, total = Counter(zip(found, splits, strict=True)), Counter(found)
    for stratum in total:
        for name in SPLITS:
            assert abs(have[stratum, name] - getattr(options.sizes, name) * total[stratum]) <= 1


def test_two_sets_of_labels_for_one_content_are_an_error_and_their_order_is_none(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest("one", tags=SETS)
    manifest("two", first=60, tags=[labels[::-1] for labels in SETS])
    task = split(config(datasets=("one", "two"), kind="multilabel", target="tags"), tmp_path)
    assert len(task) == 180
    manifest("two", first=119, tags=[["sea"], ["sun"]])
    with pytest.raises(DataError, match=r"1 image has two targets\n.*: \['dog', 'sea', 'sun'\] and \['sea'\]"):
        split(config(datasets=("one", "two"), kind="multilabel", target="tags"), tmp_path)


# Classes -------------------------------------------------------------------------------------------------------------


def test_lists_are_no_classes(manifest: Manifest, tmp_path: Path) -> None:
    manifest(tags=SETS)
    with pytest.raises(
        DataError, match=r"the target 'tags' of photos: expected a class per row, got lists. Set `kind: mul"
    ):
        split(config(target="tags"), tmp_path)


def test_nan_is_no_class(manifest: Manifest, tmp_path: Path) -> None:
    manifest(grade=[1.0, 2.0, float("nan")] * 20)
    with pytest.raises(DataError, match=r"20 rows have no value. Add it, .*\n  - 002.png: nan\n  - 005.png: nan"):
        split(config(target="grade"), tmp_path)


@pytest.mark.parametrize("values", [[number / 3 for number in range(40)], [f"photo {number}" for number in range(40)]])
def test_a_column_with_a_value_a_row_holds_no_classes(manifest: Manifest, tmp_path: Path, values: list[Any]) -> None:
    manifest(age=values)
    message = "the target 'age' of photos: expected classes, got 40 values in 40 rows. Set `kind: regression` if they"
    with pytest.raises(DataError, match=message):
        split(config(target="age"), tmp_path)


def test_a_class_with_one_sample_is_an_error_that_names_it(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat"] * 30 + ["dog"] * 30 + ["emu"])
    with pytest.raises(DataError, match=r"leaves classes without rows; add samples or change `sizes`\n  - class 'emu'"):
        split(config(rare="refuse"), tmp_path)


# Levels --------------------------------------------------------------------------------------------------------------


def test_levels_are_columns_of_the_task(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "lion", "dog"] * 20, family=["felid", "felid", "canid"] * 20, legs=[4] * 60)
    task = split(config(levels=("family", "legs")), tmp_path)
    found = set(zip(task.targets, task.table[LEVEL + "family"].to_pylist(), strict=True))
    assert found == {("cat", "felid"), ("lion", "felid"), ("dog", "canid")}
    assert set(task.table["level:legs"].to_pylist()) == {"4"}


def test_classes_that_lie_in_two_values_of_a_level_are_all_named(manifest: Manifest, tmp_path: Path) -> None:
    manifest(
        label=["cat", "dog"] * 20, family=["felid", "canid"] * 19 + ["felid", "felid"], order=["c", "d", "e", "d"] * 10
    )
    with pytest.raises(DataError) as caught:
        split(config(levels=("family", "order")), tmp_path)
    assert lines(caught) == [
        "`levels` of a task on photos: expected one value of a level per class",
        "  - family: class 'dog' is in canid, felid",
        "  - order: class 'cat' is in c, e",
    ]


def test_rows_without_a_level_and_levels_that_are_not_there_are_errors(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 20, family=["felid", None] * 20)
    with pytest.raises(
        DataError, match=r"the level 'family' of photos: 20 rows have no value.*\n  - 001.png: no value"
    ):
        split(config(levels=("family",)), tmp_path)
    with pytest.raises(DataError, match=r"unknown column 'famliy'. Did you mean 'family'.* unknown column 'genus'"):
        split(config(levels=("famliy", "genus")), tmp_path)


def test_a_group_a_level_or_a_split_that_is_a_list_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"], tags=[["a"], ["b"]])
    for options in ({"levels": ("tags",)}, {"group": "tags"}, {"by": "column", "column": "tags"}):
        with pytest.raises(DataError, match=r"photos.parquet: expected a value per row, got lists in tags"):
            split(config(**options), tmp_path)


def test_rows_without_a_domain_are_of_the_domain_of_their_data_set(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 40, domain=["amazon", None, None, "amazon"] * 20)
    assert set(split(config(), tmp_path).table["domain"].to_pylist()) == {"amazon", "photos"}


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "regression", "rename": {"a": "b"}, "few_shot": {"labels_per_class": 3}, "levels": ["family"]},
            "a task of kind regression does not have one class per row: leave out rename, levels, few_shot",
        ),
        (
            {"kind": "multilabel", "limit_per_class": 3, "sizes": {"train": 60, "validation": 0, "test": 20}},
            "a task of kind multilabel does not have one class per row: leave out limit_per_class, sizes in",
        ),
        ({"target": ["sun", "sea"]}, "several target columns need `kind: multilabel`"),
        ({"target": ["sun", "sun"], "kind": "multilabel"}, "expected each column of `target` once"),
        ({"levels": ["a", "a"]}, "expected each column of `levels` once"),
    ],
)
def test_settings_that_are_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)
