"""The head as which a new classifier starts: which rows it is fitted to, and classes that these rows lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import small_training

from pipeline.task import KIND, TYPES, Kind, Task, Training
from pipeline.training import linear_probe
from pipeline.training.linear_probe import Probe, fit_probe, sample

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted(folder: Path, kind: Kind, targets: list[Any], train: int) -> Probe:
    """A probe on the first rows of a task, of a network with random weights on noise of three brightnesses."""
    found, samples = small_training.backbone(folder), small_training.samples(len(targets))
    columns = {
        "key": pa.array([f"{key:032x}" for key in range(len(targets))]),
        "target": pa.array(targets, TYPES[kind]),
        "split": pa.array(["train"] * len(targets)),
    }
    task = Task(pa.table(columns).replace_schema_metadata({KIND: kind}))
    last = found.module.get_submodule("classifier")
    training = Training(np.arange(train), None, None)

    def clean(rows: np.ndarray) -> Any:
        return small_training.PixelSamples(
            samples._pixels, samples.targets[torch.from_numpy(rows)], samples.keys[rows], seed=0
        )

    return fit_probe(task, training, last, found.module, clean, small_training.setting())


def test_of_many_rows_as_many_of_each_class_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "MOST_ROWS", 10)
    targets = np.array(["common"] * 50 + ["rare"] * 4 + ["left out"] * 3, dtype=object)
    rows = sample(np.arange(54), targets, "classification")
    assert sorted(rows.tolist()) == rows.tolist()
    assert [int((targets[rows] == name).sum()) for name in ("common", "rare", "left out")] == [6, 4, 0]
    assert len(set(sample(np.arange(57), np.arange(57.0), "regression"))) == 10
    assert sample(np.arange(9), targets, "classification").tolist() == list(range(9))


def test_classes_without_a_training_row_are_improbable_and_labels_that_all_rows_have_are_probable(
    tmp_path: Path,
) -> None:
    classes = fitted(tmp_path / "one", "classification", ["abc"[i % 3] for i in range(30)] + ["never"] * 3, 30)
    assert classes.linear is not None
    logits = classes.linear(torch.zeros(1, classes.record["width"]))
    assert logits.softmax(1)[0, 3] < 0.1  # of a, b, c, never
    assert (classes.linear.weight[3] == 0).all()
    labels = [[["a"], ["b"], ["a", "b"]][i % 3] + ["always"] for i in range(30)] + [["never"]] * 3
    several = fitted(tmp_path / "two", "multilabel", labels, 30)
    assert several.linear is not None
    chances = several.linear(torch.zeros(1, several.record["width"])).sigmoid()[0]
    assert chances[[1, 3]].tolist() == pytest.approx([31 / 32, 1 / 32])  # of a, always, b, never
