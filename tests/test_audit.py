"""The audit of a task: counts and distances by hand, near duplicates and wrong labels as brute force has them."""

import copy
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import shards
from support.projects import SHIPPED

import stages.audit
from pipeline.audit import counts, neighbours
from pipeline.audit.config import AuditConfig, Extracted, Source, choose
from pipeline.audit.neighbours import CentredRows, centre, multiply_adds, near_duplicates, neighbour_votes
from pipeline.audit.run import audit
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.store import index, key_arrays
from pipeline.store.identity import address
from pipeline.store.shard_format import Layout
from pipeline.task import KIND, TYPES, Kind, Task
from stages import project

ROOT = Path(__file__).parent.parent
REAL: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())


def key(number: int) -> str:
    """The key of a sample."""
    return content_key(str(number).encode())


def task_of(targets: Sequence[Any], splits: Sequence[str], *, kind: Kind = "classification", **columns: Any) -> Task:
    """A task of rows 0, 1, ... in that order, not by their keys."""
    table = pa.table(
        {
            "key": [key(number) for number in range(len(targets))],
            "target": pa.array(targets, TYPES[kind]),
            "split": splits,
            **columns,
        }
    )
    return Task(table.replace_schema_metadata({KIND: kind}))


def write_features(folder: Path, keys: Sequence[str], values: np.ndarray) -> None:
    """A features folder of one shard, float32."""
    order = np.argsort(key_arrays.from_hex(keys))
    held, values = key_arrays.from_hex(keys)[order], values[order].astype(np.float32)
    identity = {"node": folder.name, "pool": "none", "dtype": "float32", "weights": "0" * 64}
    layout = Layout(address(identity), "float32", values.shape[1:])
    record = shards.write(folder, held, values, layout)
    index.commit(folder, identity=identity, layout=layout, shards=[record], keys=[held], wanted=held, rejected={})


def write_manifest(root: Path, dataset: str, numbers: Sequence[int], excluded: Sequence[Sequence[str]] = ()) -> None:
    """A manifest of some samples, and what prepare left out of it."""
    paths = ManifestPaths(root, dataset)
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"key": [key(n) for n in numbers], "path": [f"{dataset}/{n}.png" for n in numbers]}), paths.rows
    )
    with paths.excluded.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "size", "kind", "reason"), *excluded])


# Counts --------------------------------------------------------------------------------------------------------------

PETS = task_of(
    ["cat", "cat", "dog", "cat", "dog", "dog", "emu"],
    ["train"] * 4 + ["test"] * 3,
    domain=["a", "a", "a", "b", "b", "b", "b"],
)


def test_classes_and_domains_are_counted_a_split() -> None:
    assert counts.classes(PETS) == {"train": {"cat": 3, "dog": 1, "emu": 0}, "test": {"cat": 0, "dog": 2, "emu": 1}}
    assert counts.domains(PETS) == {"train": {"a": 3, "b": 1}, "test": {"b": 3}}
    assert counts.targets(PETS) is None
    alone = task_of(["cat", "dog"], ["train", "test"], domain=["a", "a"])
    assert counts.domains(alone) is None
    assert counts.domains(task_of(["cat", "dog"], ["train", "test"])) is None


def test_the_distance_of_splits_and_domains_is_the_total_variation_of_their_classes() -> None:
    # train: 3/4 cat, 1/4 dog; test: 2/3 dog, 1/3 emu. a: 2/3 cat, 1/3 dog; b: 1/4 cat, 2/4 dog, 1/4 emu.
    assert counts.shift(PETS) == {
        "measure": "total variation",
        "splits": [{"between": ["train", "test"], "distance": 0.75}],
        "domains": [{"between": ["a", "b"], "distance": round(0.5 * (5 / 12 + 2 / 12 + 3 / 12), 6)}],
    }


def test_labels_are_counted_by_the_rows_that_have_them() -> None:
    task = task_of([["sun", "sea"], ["sun"], []], ["train", "train", "test"], kind="multilabel")
    assert counts.classes(task) == {"train": {"sea": 1, "sun": 2}, "test": {"sea": 0, "sun": 0}}
    assert counts.shift(task)["splits"] == [{"between": ["train", "test"], "distance": 0.5}]


def test_numbers_have_quantiles_and_a_distance_of_their_own() -> None:
    task = task_of([0.0, 1.0, 2.0, 3.0, 4.0, 9.0], ["train"] * 5 + ["test"], kind="regression")
    assert counts.classes(task) is None
    assert counts.targets(task) == {
        "train": {
            "count": 5,
            "mean": 2.0,
            "std": 2**0.5,
            "quantiles": {"0": 0, "0.25": 1, "0.5": 2, "0.75": 3, "1": 4},
        },
        "test": {"count": 1, "mean": 9.0, "std": 0.0, "quantiles": dict.fromkeys(("0", "0.25", "0.5", "0.75", "1"), 9)},
    }
    assert counts.shift(task) == {
        "measure": "Kolmogorov–Smirnov",
        "splits": [{"between": ["train", "test"], "distance": 1.0}],
        "domains": None,
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "validation", "test"])), min_size=1))
def test_distances_lie_between_0_and_1_and_counts_add_up(rows: list[tuple[str, str]]) -> None:
    task = task_of([target for target, _ in rows], [name for _, name in rows])
    assert all(0 <= one["distance"] <= 1 for one in counts.shift(task)["splits"])
    assert sum(sum(found.values()) for found in (counts.classes(task) or {}).values()) == len(rows)


def test_copies_that_were_left_out_are_counted_with_their_paths(tmp_path: Path) -> None:
    excluded = [
        ("copy.png", 3, "duplicate", "same content as a.png"),
        ("twin.png", 3, "conflict", "one content with several labels"),
        ("odd.txt", 3, "unreadable", "no image"),
    ]
    write_manifest(tmp_path, "one", range(5), excluded)
    write_manifest(tmp_path, "two", range(3, 7))
    ManifestPaths(tmp_path, "two").excluded.unlink()
    assert counts.copies(tmp_path, ["one", "two"], PETS) == {
        "across_splits": 0,
        "excluded": 1,
        "conflicts": 1,
        "between_datasets": 2,
        "paths": [
            {"path": "copy.png", "reason": "same content as a.png"},
            {"path": "twin.png", "reason": "one content with several labels"},
        ],
    }


# Near duplicates -----------------------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> CentredRows:
    """Rows of length 1 about their mean."""
    return CentredRows(rows, rows.mean(axis=0), unit=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(1, 12))
def test_near_pairs_are_those_of_brute_force_whatever_the_blocks(
    seed: int, first: int, second: int, block: int, most: int
) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(first + second, 3)).astype(np.float32)
    both = CentredRows(rows, np.zeros(3, np.float32), unit=True)[0 : first + second]
    parts = {"train": both[:first], "test": both[first:]}
    near = float(random.uniform(0.3, 0.95))
    exact = parts["train"].astype(np.float64) @ parts["test"].astype(np.float64).T
    if np.abs(exact - near).min() < 1e-5:
        return  # float32 may count either way
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_ROWS", block)
        count, pairs = near_duplicates(parts, near=near, most=most)
    assert count == int((exact >= near).sum())
    assert len(pairs) == min(count, most)
    assert [pair.similarity for pair in pairs] == pytest.approx(np.sort(exact[exact >= near])[::-1][:most], abs=2e-6)
    assert all(exact[pair.rows] == pytest.approx(pair.similarity, abs=2e-6) for pair in pairs)
    assert len({pair.rows for pair in pairs}) == len(pairs)


def test_pairs_are_of_two_splits_and_the_nearest_come_first() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    rows[25], rows[50] = rows[3] + 0.01, rows[3] * 1.001
    rows[7] = rows[8]  # both of one split: no leak
    parts = {"train": unit(rows[:20]), "validation": unit(rows[20:40]), "test": unit(rows[40:])}
    parts = {name: CentredRows(own.rows, rows.mean(axis=0), unit=True) for name, own in parts.items()}
    count, pairs = near_duplicates(parts, near=0.98, most=2)
    assert count == 3
    assert [(pair.splits, pair.rows) for pair in pairs] == [
        (("train", "test"), (3, 10)),
        (("train", "validation"), (3, 5)),
    ]
    assert 0.98 < pairs[1].similarity < pairs[0].similarity <= 1


def test_equal_pairs_come_in_the_order_of_the_rows_and_only_so_many() -> None:
    rows = np.ones((30, 2), np.float32)
    count, pairs = near_duplicates({"train": rows[:20], "test": rows[20:]}, near=0.9, most=5)
    assert count == 200
    assert all(pair.similarity == 1.0 for pair in pairs)
    assert [pair.rows for pair in pairs] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]


def test_only_blocks_of_rows_are_read() -> None:
    rows = np.random.default_rng(0).normal(size=(9000, 2)).astype(np.float32)
    read: list[int] = []

    class Watched(CentredRows):
        def __getitem__(self, wanted: slice) -> np.ndarray:
            read.append(wanted.stop - wanted.start)
            return super().__getitem__(wanted)

    parts = {
        "train": Watched(rows, rows.mean(axis=0), unit=True),
        "test": Watched(rows[:5], rows.mean(axis=0), unit=True),
    }
    count, _ = near_duplicates(parts, near=0.9999, most=5)
    assert count >= 5
    assert max(read) == neighbours.BLOCK_ROWS


def test_rows_that_say_nothing_are_neither_near_nor_part_of_the_mean() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    rows[1], rows[4], rows[6], rows[9, 2], rows[10] = 0, 3, np.nan, np.inf, np.inf
    found = centre(rows)
    assert np.flatnonzero(~found.usable).tolist() == [1, 4, 6, 9, 10]
    np.testing.assert_allclose(found.mean, rows[found.usable].mean(axis=0), rtol=1e-6)


def test_a_tap_whose_rows_are_all_the_same_says_nothing() -> None:
    rows = np.tile(np.random.default_rng(0).normal(size=(1, 7)).astype(np.float32), (40, 1))
    assert not centre(rows).usable.any()
    rows[5] += 1
    assert np.flatnonzero(centre(rows).usable).size == 40  # now each lies on one side of the mean or the other


def test_a_tap_of_one_value_a_row_is_looked_at() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [4.0]], np.float32)
    assert centre(rows).usable.tolist() == [False, True, True, True]


# Contradicted labels -------------------------------------------------------------------------------------------------


def test_a_row_among_rows_of_another_class_is_contradicted() -> None:
    random = np.random.default_rng(0)
    middles = random.normal(size=(3, 8)) * 5
    rows = np.concatenate([middle + random.normal(size=(20, 8)) * 0.1 for middle in middles]).astype(np.float32)
    targets = np.repeat(["cat", "dog", "emu"], 20).astype(object)
    targets[4] = "emu"
    said, share, judged = neighbour_votes(CentredRows(rows, rows.mean(axis=0)), targets, neighbours=10)
    assert judged.all()
    assert np.flatnonzero(said != targets).tolist() == [4]
    assert (said[4], share[4]) == ("cat", 1.0)
    assert (share >= 0.9).all()


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.int8, st.tuples(st.integers(6, 40), st.just(3)), elements=st.integers(-9, 9)),
    st.data(),
)
def test_what_neighbours_say_is_what_brute_force_says(values: np.ndarray, data: st.DataObject) -> None:
    rows = np.unique(values, axis=0).astype(np.float32) + 0.25
    if len(rows) < 6:
        return
    targets = np.array(data.draw(st.lists(st.sampled_from("ab"), min_size=len(rows), max_size=len(rows))))
    said, share, judged = neighbour_votes(rows, targets, neighbours=3)
    lengths = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    distance = (1 - lengths @ lengths.T).astype(np.float32)
    np.fill_diagonal(distance, np.inf)
    for row in range(len(rows)):
        assert judged[row] == ((targets == targets[row]).sum() > 3)
        if not judged.any():
            continue
        order = np.sort(distance[row])
        if order[3] - order[2] < 1e-6:
            continue  # which of two rows at one distance is a neighbour is rounding's to say
        near = targets[np.argsort(distance[row])[:3]]
        assert share[row] == pytest.approx((near == said[row]).mean())
        assert share[row] >= 2 / 3


def test_rows_of_a_class_with_fewer_others_than_neighbours_are_not_judged() -> None:
    rows = np.random.default_rng(0).normal(size=(14, 4)).astype(np.float32)
    targets = np.array(["cat"] * 11 + ["dog"] * 3)
    _, _, judged = neighbour_votes(rows, targets, neighbours=10)
    assert judged.tolist() == [True] * 11 + [False] * 3
    assert not neighbour_votes(rows, targets, neighbours=11)[2].any()


def test_the_cost_counts_products_across_splits_and_of_all_rows() -> None:
    assert multiply_adds([3, 2, 5], 7, neighbours=False) == 7 * (3 * 2 + 3 * 5 + 2 * 5)
    assert multiply_adds([3, 2, 5], 7, neighbours=True) == 7 * (31 + 100)


# Which features ------------------------------------------------------------------------------------------------------

EXTRACTED = {
    "small": Extracted(["digits"], ["block2", "penultimate"]),
    "large": Extracted(["digits", "photos"], ["block1", "block9"]),
}


def test_the_first_extraction_of_all_data_sets_is_taken() -> None:
    def chosen(config: AuditConfig, *datasets: str) -> list[tuple[str, str]]:
        return [(one.backbone, one.tap) for one in choose(config, datasets, EXTRACTED) if isinstance(one, Source)]

    large = [("large", "block1"), ("large", "block9")]
    assert chosen(AuditConfig(), "digits") == [("small", "block2"), ("small", "penultimate"), *large]
    assert chosen(AuditConfig(), "digits", "photos") == large
    assert chosen(AuditConfig(tap="block2"), "digits") == [("small", "block2")]
    assert chosen(AuditConfig(tap="block2"), "digits", "photos") == large


def test_where_no_extraction_has_the_data_sets_the_reason_is_given() -> None:
    why = choose(AuditConfig(), ["digits", "text"], EXTRACTED)
    assert why == "no extraction has all data sets of the task: digits, text"


# The whole -----------------------------------------------------------------------------------------------------------

Audit = Callable[..., dict[str, Any]]


@pytest.fixture
def audited(tmp_path: Path) -> Audit:
    """A function that audits a task of 60 rows: row 34 is row 5 once more, row 7 has a wrong label, row 8 is zero."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(2, 16)) * 2
    values = np.concatenate([middle + random.normal(size=(30, 16)) for middle in middles])
    values[34], values[7], values[8] = values[5] + 0.001, middles[1], 0
    labels = ["cat"] * 30 + ["dog"] * 30
    labels[34] = "cat"
    splits = [["train", "train", "test"][number % 3] for number in range(60)]
    write_manifest(tmp_path / "manifests", "photos", range(60))
    for tap, width in (("wide", 16), ("narrow", 15)):
        write_features(tmp_path / "features" / "net" / tap, [key(n) for n in range(59)], values[:59, :width])

    def run(*, targets: Sequence[Any] = labels, kind: Kind = "classification", **options: Any) -> dict[str, Any]:
        task = task_of(targets, splits, kind=kind)
        Task(task.table.sort_by("key")).write(tmp_path / "tasks" / "pets.parquet")
        said: list[str] = []
        found = audit(
            AuditConfig(**options),
            "pets",
            ["photos"],
            task=tmp_path / "tasks" / "pets.parquet",
            manifests=tmp_path / "manifests",
            features=tmp_path / "features",
            extracted={"net": Extracted(["photos"], ["wide", "narrow"])},
            reporter=Reporter(message=said.append),
        )
        json.dumps(found, allow_nan=False)
        return found | {"said": said}

    return run


def test_the_audit_names_the_leak_and_the_wrong_label_with_their_paths(audited: Audit) -> None:
    found = audited()
    assert (found["format"], found["task"], found["kind"], found["rows"]) == (1, "pets", "classification", 60)
    assert found["classes"]["train"] == {"cat": 21, "dog": 19}
    near, odd = found["near_duplicates"], found["contradicted"]
    about = {"backbone": "net", "tap": "narrow", "audited": 58, "of": 60, "without_features": 1, "degenerate": 1}
    assert about.items() <= near.items()
    assert about.items() <= odd.items()
    assert (near["threshold"], near["count"]) == (0.95, len(near["pairs"]))
    first = near["pairs"][0]
    assert first["similarity"] > 0.999
    assert first["splits"] == ["train", "test"]
    assert set(first["paths"]) == {"photos/5.png", "photos/34.png"}
    assert set(first["keys"]) == {key(5), key(34)}
    assert (odd["neighbours"], odd["threshold"], odd["not_judged"]) == (10, 0.8, 0)
    assert odd["count"] == len(odd["rows"])
    worst = {row["path"]: row for row in odd["rows"]}
    assert worst["photos/7.png"]["key"] == key(7)
    assert (worst["photos/7.png"]["target"], worst["photos/7.png"]["neighbours_say"]) == ("cat", "dog")
    assert found["said"] == ["58 rows of net/narrow, 15 wide: 6.1e+04 multiply-adds"]


def test_two_audits_are_the_same(audited: Audit) -> None:
    assert audited() == audited()


def test_of_a_large_task_a_sample_is_audited_and_the_audit_says_so(audited: Audit) -> None:
    found = audited(max_rows=40)["near_duplicates"]
    assert found["audited"] + found["degenerate"] == 40
    assert found["of"] == 60
    assert audited(max_rows=40)["near_duplicates"] == found


def test_kinds_without_classes_have_near_duplicates_and_a_reason_for_the_rest(audited: Audit) -> None:
    found = audited(targets=[float(number) for number in range(60)], kind="regression")
    assert found["near_duplicates"]["pairs"][0]["similarity"] > 0.999
    assert found["contradicted"] == {"why": "neighbours vote for a class, and this is a task of kind regression"}
    found = audited(targets=[["a", "b"][: number % 3] for number in range(60)], kind="multilabel")
    assert found["contradicted"] == {"why": "neighbours vote for a class, and this is a task of kind multilabel"}


def test_with_too_few_rows_for_neighbours_there_is_a_reason(audited: Audit) -> None:
    assert audited(neighbours=58)["contradicted"] == {"why": "expected more than 58 rows with features, got 58"}


# Settings and the stage ----------------------------------------------------------------------------------------------


def test_the_stage_writes_the_audit_and_says_what_was_found(
    audited: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audited()
    (tmp_path / "data").mkdir()
    for name in ("manifests", "features", "tasks"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    raw = copy.deepcopy(REAL)
    raw["prepare"] = {"photos": {"root": "photos"}}
    raw["freeze"] = {"net": {"source": "pretrained", "network": "glyphs"}}
    raw["pretrain"]["glyphs"]["dataset"] = "photos"
    raw["extract"] = {"net": {"datasets": ["photos"], "taps": {tap: {"node": tap} for tap in ("wide", "narrow")}}}
    raw["split"], raw["fit"] = {"pets": {"datasets": ["photos"]}}, {}
    raw["finetune"] = raw["teach"] = raw["distill"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["audit.py", "pets"])
    project.run(stages.audit.main)
    found = project.AUDITS / "pets.json"
    counted = json.loads(found.read_text())
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "pets: 58 rows of net/narrow, 15 wide: 6.1e+04 multiply-adds",
        "pets: 1 near duplicate across splits; 1 label that neighbours contradict",
    ]
    assert (counted["near_duplicates"]["count"], counted["contradicted"]["count"]) == (1, 1)
    raw["extract"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    project.run(stages.audit.main)
    why = "no extraction has all data sets of the task: photos"
    assert json.loads(found.read_text())["near_duplicates"] == {"why": why}
    assert f"near duplicates across splits not searched: {why}" in capsys.readouterr().out
    for count, text in ((0, "0 labels"), (1, "1 label"), (2000, "2,000 labels")):
        assert stages.audit._describe({"count": count}, "label", "labels") == text
