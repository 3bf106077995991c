"""The test samples that a run answers wrongly: which, in which order, and what they are most similar to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import shards
from support.model_records import heads

from pipeline.errors import DataError
from pipeline.explain.mistakes import Mistakes, Similar, find_mistakes, find_taps
from pipeline.files import write_json
from pipeline.predictions import Predictions, Scores, Writer
from pipeline.store import index, key_arrays
from pipeline.store.shard_format import Layout
from pipeline.task import Kind, Task, column_of

KEYS = np.array([f"{number:032x}" for number in range(8)], dtype=object)
SPLITS = np.array(["train"] * 4 + ["test"] * 4, dtype=object)
PATHS = [f"photos/{number}.jpg" for number in range(8)]
# Rows 4 to 7 are tested; 5 points where 1 does, 6 where 3 does.
ROWS = np.array([[4, 0], [0, 4], [-4, 0], [0, -4], [3, 0], [0, 2], [0, -1], [-3, 0]], dtype=np.float32)
Listed = Callable[..., Mistakes]


def stored(folder: Path, rows: np.ndarray) -> Path:
    """Write features of all samples."""
    held, layout = key_arrays.from_hex(KEYS), Layout("ab" * 32, "float32", rows.shape[1:])
    written = [shards.write(folder, held, rows, layout)]
    index.commit(folder, identity={}, layout=layout, shards=written, keys=[held], wanted=held, rejected={})
    return folder


def run(
    folder: Path,
    kind: Kind,
    targets: np.ndarray,
    predicted: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    given: Scores = "probability",
    draws: Sequence[int | None] = (None,),
    classes: Sequence[str] = ("cat", "dog"),
) -> Listed:
    """Write a task and a run's predictions of its test rows; return what lists the mistakes."""
    names, labels = ([] if kind == "regression" else list(classes)), None if draws == (None,) else 1
    columns: dict[str, Any] = {"key": KEYS, "path": PATHS, "target": column_of(targets, kind, names), "split": SPLITS}
    columns |= {f"draw_{draw}": pa.array([0, 1, 1, 0, -1, -1, -1, -1]) for draw in draws if draw is not None}
    Task(pa.table(columns).replace_schema_metadata({"kind": kind})).write(folder / "task.parquet")
    task, test = Task.read(folder / "task.parquet"), SPLITS == "test"
    scores = np.full((4, len(names)), np.nan, np.float32) if scores is None else np.asarray(scores, np.float32)
    with Writer(folder / "pets.parquet", kind, names, {"knn": given}, paths_of=task.paths_of) as writer:
        for draw in draws:
            parts = (KEYS[test], SPLITS[test], targets[test], predicted)
            writer.add(Predictions("knn", "late", labels, draw, *parts, scores))
    stored(folder / "features" / "net" / "late", ROWS)
    made = {
        "run": "pets",
        "made_from": heads(settings={"backbone": "net"}),
        "selected": {"head": "knn", "input": "late", "labels": labels},
    }

    def listed(**more: Any) -> Mistakes:
        evaluation = made | more.pop("evaluation", {})
        taps = find_taps(evaluation, folder / "features", task)
        found = {"predictions": folder / "pets.parquet", "task": folder / "task.parquet", "taps": taps, "most": 50}
        return find_mistakes(evaluation, **(found | more))

    return listed


PETS = np.array(["cat", "dog"] * 4, dtype=object)
ANSWERS = np.array(["cat", "cat", "dog", "cat"], dtype=object)
SURE = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]


def test_predictions_carry_the_path_and_the_label_of_each_sample(tmp_path: Path) -> None:
    run(tmp_path, "classification", PETS, ANSWERS)
    written = pq.read_table(tmp_path / "pets.parquet", columns=["path", "target"])
    assert written.to_pylist() == [{"path": PATHS[row], "target": PETS[row]} for row in range(4, 8)]


def test_the_most_confident_mistake_comes_first_with_the_most_similar_training_sample(tmp_path: Path) -> None:
    found = run(tmp_path, "classification", PETS, ANSWERS, scores=SURE)()
    assert (found.tested, found.count) == (4, 3)
    told = [(one.path, one.target, one.predicted, round(one.confidence or 0, 3), one.nearest) for one in found.listed]
    assert told == [
        ("photos/6.jpg", "cat", "dog", 0.8, Similar("photos/3.jpg", "dog", 1.0)),
        ("photos/7.jpg", "dog", "cat", 0.7, Similar("photos/2.jpg", "cat", 1.0)),
        ("photos/5.jpg", "dog", "cat", 0.6, Similar("photos/1.jpg", "dog", 1.0)),
    ]
    text = str(run(tmp_path, "classification", PETS, ANSWERS, scores=SURE)(most=1)).splitlines()
    assert text[0] == "knn on late, all labels: 3 of 4 test samples are wrong (75.0%)"
    assert text[-2].split() == ["photos/6.jpg", "cat", "dog", "0.800", "photos/3.jpg", "dog", "1.000"]
    assert text[-1] == "… and 2 more: --most 3"
    assert "confidence" in text[2]
    decided = run(tmp_path, "classification", PETS, ANSWERS, scores=SURE, given="decision")()
    assert "score" in str(decided).splitlines()[2].split()


def test_a_run_without_mistakes_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, "classification", PETS, PETS[4:], given="none")()
    assert str(found) == "knn on late, all labels: 0 of 4 test samples are wrong (0.0%)"
    assert found.to_json()["mistakes"] == []


def test_only_what_a_draw_learnt_from_is_similar_and_another_draw_can_be_asked_for(tmp_path: Path) -> None:
    listed = run(tmp_path, "classification", PETS, ANSWERS, given="none", draws=(0, 3))
    found = listed(draw=3)
    assert (found.draw, [one.confidence for one in found.listed]) == (3, [None] * 3)
    assert {one.nearest.path for one in found.listed if one.nearest} <= {"photos/0.jpg", "photos/3.jpg"}
    with pytest.raises(DataError, match=r"pets\.parquet: expected a draw of knn on late, got 1\. There is: 0, 3\.$"):
        listed(draw=1)


def test_of_several_labels_the_most_plainly_wrong_comes_first(tmp_path: Path) -> None:
    targets = np.array([[1, 0], [0, 1]] * 4, dtype=bool)
    predicted = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=bool)
    found = run(tmp_path, "multilabel", targets, predicted, scores=[[0.9, 0.1], [0.6, 0.9], [0.1, 0.2], [0.4, 0.6]])()
    assert [(one.path, one.target, one.predicted) for one in found.listed] == [
        ("photos/6.jpg", "cat", "none"),
        ("photos/5.jpg", "dog", "cat; dog"),
    ]
    assert [one.confidence for one in found.listed] == pytest.approx([0.9, 0.6])


def test_of_numbers_the_largest_errors_come_first(tmp_path: Path) -> None:
    found = run(tmp_path, "regression", np.arange(8.0), np.array([4, 5.5, 9, 7.1]))(most=2)
    assert [(one.path, one.target, one.predicted) for one in found.listed] == [
        ("photos/6.jpg", "6", "9"),
        ("photos/5.jpg", "5", "5.5"),
    ]
    assert (
        str(found).splitlines()[0] == "knn on late, all labels: 3 of 4 test samples are not predicted exactly (75.0%)"
    )


def test_a_trained_network_is_compared_by_the_narrowest_tap_of_its_backbone(tmp_path: Path) -> None:
    listed = run(tmp_path, "classification", PETS, ANSWERS, scores=SURE)
    (tmp_path / "features" / "net" / "late").rename(tmp_path / "features" / "net" / "narrow")
    stored(tmp_path / "features" / "net" / "a_wide", np.tile(ROWS, 3))
    found = listed().listed[0].nearest
    assert found == Similar("photos/3.jpg", "dog", 1.0)
    for folder in (tmp_path / "features" / "net").iterdir():
        folder.rename(tmp_path / folder.name)
    assert [one.nearest for one in listed().listed] == [None] * 3


def test_a_run_that_was_not_measured_has_no_selected_method(tmp_path: Path) -> None:
    listed = run(tmp_path, "classification", PETS, ANSWERS)
    with pytest.raises(DataError, match=r"^pets: no method was selected: map cannot be measured$"):
        listed(evaluation={"unavailable": "map cannot be measured"})


def test_the_command_lists_mistakes_and_names_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main
    from stages import project

    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {name: {} for name in project.SECTIONS}
    said |= {
        "prepare": {"photos": {"root": "photos"}},
        "freeze": {"net": {"source": "torchvision", "model": "resnet18"}},
        "extract": {"net": {"datasets": ["photos"], "taps": {"late": {"node": "penultimate"}}}},
        "split": {"pets": {"datasets": ["photos"]}},
        "fit": {"pets": {"task": "pets", "backbone": "net", "inputs": ["late"], "head": "knn"}},
    }
    write_json(Path("params.yaml"), said)

    def shown(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["icecore", "wrong", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return capsys.readouterr().out + (ended.value.code if isinstance(ended.value.code, str) else "")

    assert "unknown entry of fit, finetune and distill 'cats'. Did you mean 'pets'? Expected one of: pets." in shown(
        "cats"
    )
    assert shown("pets") == f"error: {Path('data/plots/pets.json')}: no evaluation of pets. Run `icecore repro`."
    run(tmp_path / "data", "classification", PETS, ANSWERS, scores=SURE)
    (tmp_path / "data" / "task.parquet").rename(tmp_path / "data" / "pets.task")
    for name, source in {"tasks": "pets.task", "predictions": "pets.parquet"}.items():
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / source).rename(tmp_path / "data" / name / "pets.parquet")
    selected = {"head": "knn", "input": "late", "labels": None}
    write_json(
        tmp_path / "data" / "plots" / "pets.json",
        {"run": "pets", "made_from": heads(settings={"backbone": "net"}), "selected": selected},
    )
    assert (
        shown("pets", "--most", "1").splitlines()[0] == "knn on late, all labels: 3 of 4 test samples are wrong (75.0%)"
    )
    assert '"path": "photos/6.jpg"' in shown("pets", "--json")
