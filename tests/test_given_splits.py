"""Splits that the data say: they are used, with a sentence; `sizes` cut what has none; `use` says what each is."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig, SplitSizes
from pipeline.split.run import split

TRAIN_VAL = ["train"] * 24 + ["val"] * 16
ALL_THREE = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10


def made(folder: Path, *columns: list[Any] | None, patient: list[str] | None = None, **options: Any) -> Any:
    """Return the rows of each value of the split column in each split, and what was said.

    A data set of forty rows of two classes is written for each split column, without one for None.
    """
    names = []
    for number, values in enumerate(columns):
        names.append(f"photos{number}")
        rows = range(40 * number, 40 * number + 40)
        table = {
            "key": [content_key(str(row).encode()) for row in rows],
            "path": [f"{row}.png" for row in rows],
            "label": ["cat", "dog"] * 20,
            **({} if values is None else {"split": values}),
            **({} if patient is None else {"patient": patient}),
        }
        path = ManifestPaths(folder, names[-1]).rows
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
    said: list[str] = []
    task = split(SplitConfig(datasets=tuple(names), **options), folder, reporter=Reporter(message=said.append))
    found = dict(zip(task.keys, task.table["split"].to_pylist(), strict=True))
    rows_of = [
        (values[row] if values is not None else None, found.get(content_key(str(40 * number + row).encode())))
        for number, values in enumerate(columns)
        for row in range(40)
    ]
    return Counter(rows_of), said


CASES: dict[str, tuple[list[Any], dict[str, Any], dict[Any, int]]] = {
    "splits as they are": (
        [ALL_THREE],
        {},
        {("train", "train"): 20, ("validation", "validation"): 10, ("test", "test"): 10},
    ),
    "sizes move no row that has a split": (
        [ALL_THREE],
        {"sizes": {"train": 0.2, "validation": 0.2, "test": 0.6}},
        {("train", "train"): 20, ("validation", "validation"): 10, ("test", "test"): 10},
    ),
    "validation rows report without test rows": (
        [TRAIN_VAL],
        {},
        {("train", "train"): 24, ("val", "test"): 16},
    ),
    "val is my test": (
        [ALL_THREE],
        {"use": {"val": "test", "test": "none"}},
        {("train", "train"): 20, ("validation", "test"): 10, ("test", None): 10},
    ),
    "validation rows cut from train, none for test": (
        [TRAIN_VAL],
        {"use": {"val": "test"}, "sizes": {"train": 0.75, "validation": 0.25}, "stratify": True},
        {("train", "train"): 18, ("train", "validation"): 6, ("val", "test"): 16},
    ),
    "test rows cut from train": (
        [TRAIN_VAL],
        {"use": {"val": "validation"}, "stratify": True},
        {("train", "train"): 18, ("train", "test"): 6, ("val", "validation"): 16},
    ),
    "an unknown split is left out": (
        [["train"] * 20 + ["extra"] * 10 + ["test"] * 10],
        {"use": {"extra": "none"}},
        {("train", "train"): 20, ("extra", None): 10, ("test", "test"): 10},
    ),
    "one split divides nothing": (
        [["train"] * 40],
        {"stratify": True},
        {("train", "train"): 24, ("train", "validation"): 8, ("train", "test"): 8},
    ),
    "a data set without splits": (
        [ALL_THREE, None],
        {"stratify": True},
        {
            **{("train", "train"): 20, ("validation", "validation"): 10, ("test", "test"): 10},
            **{(None, "train"): 24, (None, "validation"): 8, (None, "test"): 8},
        },
    ),
    "rows without a split": (
        [[*TRAIN_VAL[:36], *([None] * 4)]],
        {"sizes": {"train": 0.5, "validation": 0, "test": 0.5}, "stratify": True},
        {("train", "train"): 24, ("val", "validation"): 12, (None, "train"): 2, (None, "test"): 2},
    ),
    "hash passes over splits": (
        [ALL_THREE],
        {"by": "hash", "sizes": {"train": 1}},
        {("train", "train"): 20, ("validation", "train"): 10, ("test", "train"): 10},
    ),
}


@pytest.mark.parametrize(("columns", "options", "expected"), CASES.values(), ids=CASES)
def test_the_splits_of_the_data_are_used_and_sizes_cut_the_rest(
    columns: list[Any], options: dict[str, Any], expected: dict[Any, int], tmp_path: Path
) -> None:
    found, said = made(tmp_path, *columns, **options)
    assert found == expected
    assert bool(said) == (options.get("by") != "hash")


def test_what_was_done_is_said_with_numbers(tmp_path: Path) -> None:
    _, said = made(tmp_path, TRAIN_VAL)
    assert said == [
        "`split` of photos0 gives the split: 24 train, 16 validation. It comes from folders, files or a column; "
        "`by: hash` ignores it.",
        "there are no test rows: the validation rows become the test rows, as with `use: {validation: test}`. To keep "
        "them, and take test rows from the training rows, write `use: {validation: validation}`.",
    ]
    _, said = made(tmp_path, TRAIN_VAL, use={"val": "test"})
    assert said[0] == "val rows are used as test rows, as `use` says."
    assert said[1].startswith("`split` of photos0 gives the split: 24 train, 16 test. It comes from")
    config = SplitConfig(datasets=("photos0",), use={"val": "test"})
    assert split(config, tmp_path).given == said
    assert split(SplitConfig(datasets=("photos0",), by="hash"), tmp_path).given == []
    assert split(SplitConfig(datasets=("photos0",), by="column", use={"val": "test"}), tmp_path).given == [
        "val rows are used as test rows, as `use` says.",
        "`split` of photos0 gives the split: 24 train, 16 test.",
    ]
    _, said = made(tmp_path, TRAIN_VAL, use={"val": "validation"}, stratify=True)
    assert said[1:] == ["6 test rows are taken from the training rows, by `sizes`: the data have no test rows."]
    _, said = made(tmp_path, ["fold1"] * 20 + ["fold2"] * 20)
    assert said == [
        "the values of `split` name no split (fold1, fold2): `sizes` cut all rows. If they are splits, map each to "
        "one: `use: {fold1: train}`."
    ]


def test_rows_without_a_split_have_that_of_their_group(tmp_path: Path) -> None:
    patient = [str(row // 4) for row in range(40)]
    values = [None if row % 4 == 3 else name for row, name in enumerate(TRAIN_VAL)]
    found, _ = made(tmp_path, values, patient=patient, group="patient")
    assert found == {("train", "train"): 18, ("val", "test"): 12, (None, "train"): 6, (None, "test"): 4}


def test_photos_without_labels_below_test_can_be_left_out(tmp_path: Path) -> None:
    keys = [content_key(str(row).encode()) for row in range(40)]
    table = {"key": keys, "path": keys, "label": ["cat", "dog"] * 15 + [None] * 10, "split": ALL_THREE}
    path = ManifestPaths(tmp_path, "photos").rows
    pq.write_table(pa.table(table), path)
    message = r"10 rows have no value.*All of them are 'test' rows, which `use: \{test: none\}` leaves out"
    with pytest.raises(DataError, match=message):
        split(SplitConfig(datasets=("photos",)), tmp_path)
    task = split(SplitConfig(datasets=("photos",), use={"test": "none"}), tmp_path)
    assert Counter(task.table["split"].to_pylist()) == {"train": 20, "test": 10}  # the validation rows report


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            ["train", "extra"] * 20,
            {},
            r"got also extra. Map each with `use: \{extra: train\}`, leave rows out with `none`",
        ),
        (ALL_THREE, {"use": {"vall": "test"}}, r"`use` of a task on photos0: unknown split 'vall'. Expected one of"),
        (None, {"use": {"val": "test"}}, "`use` of a task on photos0: the data have no splits. Leave it out."),
        (TRAIN_VAL, {"use": {"train": "test"}}, "expected at least 1 row in train, got 0."),
    ],
)
def test_splits_that_cannot_be_used_are_refused(
    values: list[Any] | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        made(tmp_path, values, **options)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 0.8, "validation": 0.2}, (0.8, 0.2, 0)),
        ({"train": 60, "test": 20}, (60, 0, 20)),
        ({"train": 1}, (1, 0, 0)),
        ({"train": 0.6, "validation": 0.2}, (0.6, 0.2, 0.2)),
        ({}, (0.6, 0.2, 0.2)),
    ],
)
def test_sizes_that_make_a_whole_leave_the_other_splits_without_rows(
    sizes: dict[str, float], expected: tuple[float, float, float]
) -> None:
    found = SplitSizes(**sizes)
    assert (found.train, found.validation, found.test) == expected
