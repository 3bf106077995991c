"""Classes and labels without training or test rows: kept, dropped, merged; said with their rows; measured as can be."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.info import describe
from pipeline.errors import DataError
from pipeline.evaluate import breakdown
from pipeline.evaluate.methods import Methods
from pipeline.manifest import ManifestPaths
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.split.config import SplitConfig
from pipeline.split.run import split
from pipeline.task import Task

SPLITS = ["train"] * 6 + ["test"] * 4
CLASSES = ["cat", "dog", "cat", "dog", "yak", "yak", "cat", "dog", "emu", "emu"]
"""A class without training rows, emu, and one without test rows, yak."""

LABELS = [["sun"], ["sea"], ["sun", "dog"], ["sea"], [], ["dog"], ["sun"], ["sea"], ["sun", "emu"], []]
"""The same of labels: emu and dog."""


def made(folder: Path, values: list[Any], **options: Any) -> tuple[Task, list[str]]:
    """Return the task of ten rows with these targets, and what was said but for the sentence about the split."""
    keys = [content_key(str(row).encode()) for row in range(10)]
    table = pa.table({"key": keys, "path": [f"{row}.png" for row in range(10)], "label": values, "split": SPLITS})
    path = ManifestPaths(folder, "photos").rows
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    said: list[str] = []
    task = split(SplitConfig(datasets=("photos",), **options), folder, reporter=Reporter(message=said.append))
    task.write(folder / "task.parquet")
    return Task.read(folder / "task.parquet"), [line for line in said if "gives the split" not in line]


def test_a_class_that_cannot_be_learnt_leaves_and_one_that_cannot_be_tested_stays(tmp_path: Path) -> None:
    task, said = made(tmp_path, CLASSES)
    assert task.classes == ["cat", "dog", "yak"]
    assert len(task) == 8
    assert task.rare == {"unlearnt": {"emu": 2}, "unmeasured": {"yak": 2}}
    assert describe(tmp_path / "task.parquet")["rare classes"] == said
    assert said == [
        "1 class has no training row and is left out, with its rows (rows: emu 2).",
        "1 class has no test row: it is learnt and not measured (training rows: yak 2).",
    ]


def test_a_label_that_cannot_be_learnt_leaves_its_rows(tmp_path: Path) -> None:
    task, said = made(tmp_path, LABELS, kind="multilabel")
    assert task.classes == ["dog", "sea", "sun"]
    assert len(task) == 10
    assert task.rare == {"unlearnt": {"emu": 1}, "unmeasured": {"dog": 2}}
    assert said[0] == "1 label has no training row or all of them and is left out (rows: emu 1)."


def test_a_label_of_every_training_row_cannot_be_learnt(tmp_path: Path) -> None:
    task, _ = made(tmp_path, [[*labels, "all"] for labels in LABELS], kind="multilabel")
    assert task.rare["unlearnt"] == {"all": 10, "emu": 1}


@pytest.mark.parametrize(
    ("values", "options", "classes", "rows"),
    [
        (CLASSES, {"rare": "drop"}, ["cat", "dog"], 6),
        (CLASSES, {"rare": "merge"}, ["cat", "dog", "other"], 10),
        (LABELS, {"rare": "drop", "kind": "multilabel"}, ["sea", "sun"], 10),
        (LABELS, {"rare": "merge", "kind": "multilabel"}, ["other", "sea", "sun"], 10),
        # Merged, it still has no test row.
        ([*CLASSES[:8], "cat", "dog"], {"rare": "merge"}, ["cat", "dog", "other"], 10),
    ],
)
def test_rare_classes_are_dropped_or_merged(
    values: list[Any], options: dict[str, Any], classes: list[str], rows: int, tmp_path: Path
) -> None:
    task, said = made(tmp_path, values, **options)
    assert (task.classes, len(task)) == (classes, rows)
    assert said


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (CLASSES, {"rare": "refuse", "by": "column"}, "class 'emu': expected at least 1 row in train, got 0."),
        (
            [*CLASSES[:9], "other"],
            {"rare": "merge"},
            "expected no class 'other', which is the name of the merged class",
        ),
        (["cat"] * 6 + ["emu"] * 4, {}, "the split leaves cat of the classes to learn; add samples or change `sizes`"),
        ([["sun"]] * 10, {"kind": "multilabel"}, "expected at least two classes, got"),
        ([["sun"], *([["sun", "dog"]] * 9)], {"kind": "multilabel", "rare": "drop"}, None),
    ],
)
def test_what_cannot_be_learnt_at_all_is_refused(
    values: list[Any], options: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    if message is None:
        assert made(tmp_path, values, **options)[0].classes == ["dog"]
        return
    with pytest.raises(DataError, match=message):
        made(tmp_path, values, **options)


def test_a_class_without_test_rows_is_not_measured() -> None:
    names = np.array(["cat", "dog"], dtype=object)
    keys, scores = np.array(["0", "1"], dtype=object), np.full((2, 3), 1 / 3, np.float32)
    one = Predictions("knn", "last", None, None, keys, np.array(["test"] * 2), names, names[[0, 0]], scores)
    task = Task(pa.table({"key": keys, "target": names, "split": ["test", "test"]}))
    file = PredictionsFile(Path("run.parquet"), "classification", ["cat", "dog", "yak"], {"knn": "probability"})
    methods = Methods(file, task, {}, np.arange(2))
    rows = breakdown.tables(methods, [one], breakdown.Resampling("accuracy", 0.95, 100, 0))["per_class"]
    assert rows[2] == {"class": "yak", **dict.fromkeys(("precision", "recall", "f1", "average_precision")), "rows": 0}
    assert (rows[0]["recall"], rows[1]["recall"]) == (1.0, 0.0)


def test_classes_with_fewer_rows_than_the_counts_are_said(tmp_path: Path) -> None:
    _, said = made(tmp_path, ["cat", "dog"] * 5, by="hash", sizes={"train": 4, "test": 3})
    assert said == ["2 classes have fewer than 4 rows in train: cat 2, dog 2."]
