"""Splits: rows that are added move no row, classes get their shares, groups stay whole, draws are nested."""

import shutil
from collections import Counter
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
from pydantic import ValidationError
from support.projects import SHIPPED

import stages.split
from pipeline.errors import DataError
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.split.assign import assign, assign_by_domain, few_shot_ranks, limit_training_rows, position
from pipeline.split.config import FewShot, SplitConfig, SplitSizes
from pipeline.split.run import split
from pipeline.task import SPLITS, Task, training_sets
from stages import project

ROOT = Path(__file__).parent.parent

Manifest = Callable[..., None]

ORDER = {"test": 0, "validation": 1, "train": 2, None: 3}
"""The splits in the order in which they are cut."""

TENTHS = st.tuples(st.integers(0, 10), st.integers(0, 10)).filter(lambda two: sum(two) <= 10)
SHARES = TENTHS.map(lambda two: {"test": two[0] / 10, "validation": two[1] / 10, "train": (10 - sum(two)) / 10})
COUNTS = st.fixed_dictionaries({"test": st.integers(0, 5), "validation": st.integers(0, 5), "train": st.integers(2, 9)})
ROWS = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("abc")), max_size=60, unique_by=lambda row: row[0])
SEEDS = st.integers(0, 5)


def key(number: int) -> str:
    """The key of a sample."""
    return content_key(str(number).encode())


def config(**options: Any) -> SplitConfig:
    """Settings of a task over the data set `photos`."""
    return SplitConfig(**{"datasets": ("photos",), **options})


def assigned(rows: Sequence[tuple[int, str]], **options: Any) -> dict[int, str | None]:
    """The split of each row, which is a number and a class."""
    splits = assign([target for _, target in rows], [key(number) for number, _ in rows], config(**options))
    return dict(zip((number for number, _ in rows), splits, strict=True))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A function that writes the manifest of a data set: keys for its rows, and label columns."""

    def write(dataset: str = "photos", *, first: int = 0, **columns: Sequence[Any]) -> None:
        (rows,) = {len(values) for values in columns.values()}
        numbers = range(first, first + rows)
        table = pa.table({"key": [key(n) for n in numbers], "path": [f"{n}.png" for n in numbers], **columns})
        path = ManifestPaths(tmp_path, dataset).rows
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.append_column("size", pa.array([1] * rows)), path)

    return write


def rows_of(task: Task) -> list[tuple[str, str, str]]:
    """Key, target and split of each row."""
    return [(row["key"], row["target"], row["split"]) for row in task.table.to_pylist()]


# The default: a function of the key ------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS, SHARES, SEEDS)
def test_rows_that_are_added_move_no_row(
    old: list[tuple[int, str]], new: list[tuple[int, str]], sizes: dict[str, float], seed: int
) -> None:
    before = assigned(old, sizes=sizes, seed=seed)
    added = [row for row in new if row[0] not in before]
    after = assigned([*added, *old], sizes=sizes, seed=seed)
    assert {number: after[number] for number in before} == before
    assert set(after.values()) <= {name for name, share in sizes.items() if share > 0}


@settings(max_examples=50, deadline=None)
@given(ROWS, SHARES, SHARES)
def test_test_rows_stay_test_rows_when_only_the_other_two_shares_change(
    rows: list[tuple[int, str]], sizes: dict[str, float], other: dict[str, float]
) -> None:
    rest = 1 - sizes["test"]
    half = {"test": sizes["test"], "validation": rest / 2, "train": rest / 2}
    for changed in (half, {"test": sizes["test"], "validation": 0, "train": rest}):
        is_test = {number: name == "test" for number, name in assigned(rows, sizes=changed).items()}
        assert is_test == {number: name == "test" for number, name in assigned(rows, sizes=sizes).items()}
    if other["test"] > sizes["test"]:  # a larger test split has all rows of the smaller one
        grown = assigned(rows, sizes=other)
        assert all(grown[number] == "test" for number, name in assigned(rows, sizes=sizes).items() if name == "test")


def test_the_shares_are_met_nearly_and_do_not_depend_on_the_class() -> None:
    rows = [(number, "ab"[number % 2]) for number in range(20_000)]
    splits = assigned(rows, sizes={"train": 0.7, "validation": 0.1, "test": 0.2})
    for target in "ab":
        have = Counter(splits[number] for number, label in rows if label == target)
        for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
            assert have[name] / 10_000 == pytest.approx(share, abs=0.015)


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    rows = [(number, "a") for number in range(200)]
    first = assigned(rows, seed=1)
    assert assigned(rows, seed=1) == first
    moved = sum(first[number] != name for number, name in assigned(rows, seed=2).items())
    assert 60 < moved < 150


def test_the_place_of_a_key_never_changes_between_versions() -> None:
    # Were it to change, every task ever made would be split anew.
    assert position("cf4ab791c62b8d2b2109c90275287816", salt="split-0") == 0.9454858347704388
    assert position("cf4ab791c62b8d2b2109c90275287816", salt="split-1") != 0.9454858347704388


# Exact shares in each class ----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(ROWS, SHARES, SEEDS)
def test_stratify_gives_each_class_its_shares_within_one_row(
    rows: list[tuple[int, str]], sizes: dict[str, float], seed: int
) -> None:
    splits = assigned(rows, sizes=sizes, seed=seed, stratify=True)
    total = Counter(target for _, target in rows)
    have = Counter((target, splits[number]) for number, target in rows)
    for target in total:
        for name, share in sizes.items():
            assert abs(have[target, name] - share * total[target]) <= 1
        assert sum(have[target, name] for name in SPLITS) == total[target]


@settings(max_examples=50, deadline=None)
@given(
    ROWS,
    ROWS,
    st.one_of(SHARES.map(lambda sizes: {"sizes": sizes, "stratify": True}), COUNTS.map(lambda c: {"sizes": c})),
)
def test_stratify_moves_over_each_cut_of_a_class_at_most_as_many_rows_as_were_added_to_it(
    old: list[tuple[int, str]], new: list[tuple[int, str]], options: dict[str, Any]
) -> None:
    before = assigned(old, **options)
    added = [row for row in new if row[0] not in before]
    after = assigned([*added, *old], **options)
    grown = Counter(target for _, target in added)
    for cut in (1, 2, 3):
        moved = Counter(
            target for number, target in old if (ORDER[before[number]] < cut) != (ORDER[after[number]] < cut)
        )
        assert all(moved[target] <= grown[target] for target in "abc")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_order_of_rows_does_not_matter(data: st.DataObject) -> None:
    rows = data.draw(ROWS)
    stratify = data.draw(st.booleans())
    turned = data.draw(st.permutations(rows))
    assert assigned(turned, stratify=stratify) == assigned(rows, stratify=stratify)


@settings(max_examples=50, deadline=None)
@given(ROWS, COUNTS)
def test_counts_are_exact_in_each_class_and_further_rows_are_left_out(
    rows: list[tuple[int, str]], sizes: dict[str, int]
) -> None:
    splits = assigned(rows, sizes=sizes)
    have = Counter((target, splits[number]) for number, target in rows)
    for target, total in Counter(target for _, target in rows).items():
        left = total
        for name in ("test", "validation", "train"):
            assert have[target, name] == min(sizes[name], left)
            left -= have[target, name]
        assert have[target, None] == left


def test_rows_beyond_the_counts_are_not_in_the_task(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat"] * 30 + ["dog"] * 12)
    task = split(config(sizes={"train": 6, "validation": 2, "test": 4}), tmp_path)
    assert Counter((target, name) for _, target, name in rows_of(task)) == {
        (target, name): count
        for target in ("cat", "dog")
        for name, count in (("train", 6), ("validation", 2), ("test", 4))
    }


# Groups ------------------------------------------------------------------------------------------------------------

GROUPED = st.lists(st.tuples(st.integers(0, 12).map(str), st.sampled_from("abc")), max_size=60)
MODES = st.one_of(
    SHARES.map(lambda sizes: {"sizes": sizes}),
    SHARES.map(lambda sizes: {"sizes": sizes, "stratify": True}),
    COUNTS.map(lambda counts: {"sizes": counts}),
)


@settings(max_examples=50, deadline=None)
@given(GROUPED, MODES, SEEDS)
def test_groups_are_never_divided(rows: list[tuple[str, str]], options: dict[str, Any], seed: int) -> None:
    groups = [group for group, _ in rows]
    splits = assign([target for _, target in rows], groups, config(group="patient", seed=seed, **options))
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))


@settings(max_examples=50, deadline=None)
@given(GROUPED, GROUPED, SHARES)
def test_by_default_rows_that_are_added_to_a_group_move_no_row(
    old: list[tuple[str, str]], new: list[tuple[str, str]], sizes: dict[str, float]
) -> None:
    def of(rows: list[tuple[str, str]]) -> list[str | None]:
        return assign([target for _, target in rows], [group for group, _ in rows], config(group="g", sizes=sizes))

    assert of([*old, *new])[: len(old)] == of(old)


def test_a_task_by_groups_has_them_as_a_column_and_keeps_them_whole(manifest: Manifest, tmp_path: Path) -> None:
    patients = [number // 4 for number in range(160)]
    manifest(label=["ill" if patient % 2 else "well" for patient in patients], patient=patients)
    for options in ({}, {"stratify": True}, {"sizes": {"train": 40, "validation": 12, "test": 14}}):
        task = split(config(group="patient", **options), tmp_path)
        groups = task.table["group"].to_pylist()
        assert set(groups) <= set(map(str, patients))
        assert len({*zip(groups, task.table["split"].to_pylist(), strict=True)}) == len(set(groups))
    # 14 are asked for: the fourth group begins before them and comes whole.
    assert Counter((target, name) for _, target, name in rows_of(task))["ill", "test"] == 16


def test_a_class_of_a_task_by_groups_may_have_fewer_rows_than_the_counts_say(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest(label=["cat"] * 12 + ["dog"] * 12, patient=[number // 3 for number in range(24)])
    task = split(config(group="patient", sizes={"train": 9, "validation": 0, "test": 4}), tmp_path)
    assert Counter((target, name) for _, target, name in rows_of(task)) == {
        (target, name): 6 for target in ("cat", "dog") for name in ("train", "test")
    }


def test_rows_without_a_group_are_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 5, patient=["x", None] * 5)
    with pytest.raises(DataError, match=r"the group 'patient' of photos: 5 rows have no value. Add it, or leave the"):
        split(config(group="patient"), tmp_path)


# A column ----------------------------------------------------------------------------------------------------------


def test_a_column_says_the_split_whatever_the_sizes_are(manifest: Manifest, tmp_path: Path) -> None:
    names = ["train", "validation", "test", "train"] * 2
    manifest(label=["cat"] * 4 + ["dog"] * 4, split=names)
    task = split(config(by="column", sizes={"train": 500, "validation": 0, "test": 500}), tmp_path)
    assert {key: name for key, _, name in rows_of(task)} == {key(n): name for n, name in enumerate(names)}
    assert task.table.column_names == ["key", "path", "target", "split", "domain"]


def test_a_column_may_have_any_name_and_no_validation_rows(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 2, fold=["train", "train", "test", "test"], split=["?"] * 4)
    task = split(config(by="column", column="fold"), tmp_path)
    assert len(task.rows("train")) == len(task.rows("test")) == 2
    assert len(task.rows("validation")) == 0


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        (["Trainer", "test"], "Trainer"),
        ([None, "train"], "no value"),
        ([1, 2], "1, 2"),
        (list("gfedcba"), "a, b, c, d"),
    ],
)
def test_odd_values_in_the_split_column_are_named(
    manifest: Manifest, tmp_path: Path, values: list[Any], odd: str
) -> None:
    manifest(label=["cat", "dog", "cat", "dog", "cat", "dog", "cat"][: len(values)], split=values)
    with pytest.raises(
        DataError, match=f"the split column 'split': expected train, training, tr for .*; got also {odd}"
    ):
        split(config(by="column"), tmp_path)


def test_a_split_column_names_splits_as_folders_do(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 3, split=["Train", "training", "val", "DEV", "Testing", " test "])
    task = split(config(by="column"), tmp_path)
    assert [len(task.rows(name)) for name in ("train", "validation", "test")] == [2, 2, 2]


def test_a_column_that_divides_groups_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(
        label=["cat", "dog"] * 4, split=["train"] * 4 + ["test"] * 4, patient=["x", "y", "z", "z", "x", "v", "w", "y"]
    )
    with pytest.raises(DataError) as caught:
        split(config(by="column", group="patient"), tmp_path)
    assert str(caught.value).splitlines() == [
        "the split column 'split' divides 2 groups of 'patient'",
        "  - 'x': test, train",
        "  - 'y': test, train",
    ]


def test_a_class_without_training_or_test_rows_in_the_column_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "cat", "dog", "emu"], split=["train", "test", "train", "test"])
    with pytest.raises(DataError) as caught:
        split(config(by="column", rare="refuse"), tmp_path)
    assert str(caught.value).splitlines() == [
        "the split leaves classes without rows; add samples or change the column 'split'",
        "  - class 'dog': expected at least 1 row in test, got 0.",
        "  - class 'emu': expected at least 1 row in train, got 0.",
    ]


# Few-shot draws ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 6), st.integers(1, 3), SEEDS)
def test_draws_rank_the_training_rows_of_each_class_up_to_the_limit(
    rows: list[tuple[int, str]], limit: int, draws: int, seed: int
) -> None:
    keys, targets = [key(number) for number, _ in rows], [target for _, target in rows]
    splits = assign(targets, keys, config())
    found = few_shot_ranks(keys, targets, splits, FewShot(labels_per_class=limit, draws=draws), seed=seed)
    assert len(found) == draws
    for ranks in found:
        assert all(rank == -1 for rank, name in zip(ranks, splits, strict=True) if name != "train")
        for target in set(targets):
            of_class = [rank for rank, label in zip(ranks, targets, strict=True) if label == target and rank >= 0]
            training = sum(label == target and name == "train" for label, name in zip(targets, splits, strict=True))
            assert sorted(of_class) == list(range(min(limit, training)))


@pytest.fixture
def few(manifest: Manifest, tmp_path: Path) -> Task:
    """A task of two classes with four draws."""
    manifest(label=["cat"] * 60 + ["dog"] * 90)
    return split(config(few_shot={"labels_per_class": 20, "draws": 4}, seed=3), tmp_path)


def test_training_sets_of_a_draw_are_balanced_nested_and_only_from_train(few: Task) -> None:
    assert few.draws == 4
    training = set(few.rows("train"))
    for draw in range(4):
        smaller: set[int] = set()
        for labels in range(1, 21):
            rows = few.few(draw, labels)
            assert Counter(few.targets[rows]) == {"cat": labels, "dog": labels}
            assert smaller < set(rows) <= training
            smaller = set(rows)


def test_a_class_with_few_training_rows_gives_all_of_them_to_every_draw(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat"] * 20 + ["dog"] * 5, split=["train"] * 15 + ["test"] * 5 + ["train"] * 3 + ["test"] * 2)
    said: list[str] = []
    task = split(
        config(few_shot={"labels_per_class": 10, "draws": 2}), tmp_path, reporter=Reporter(message=said.append)
    )
    trainings = list(training_sets(task, [2, 10], where="task"))
    assert [Counter(task.targets[one.rows])["dog"] for one in trainings] == [2, 2, 3, 3]
    assert (
        said[-1]
        == "1 class has fewer than the 10 training rows of `few_shot`, so every draw has the same rows of them: dog 3."
    )
    with pytest.raises(DataError, match=r"expected 11 training rows of each of 2 classes, got 13 in all. Raise"):
        list(training_sets(task, [11], where="task"))


def test_draws_differ_and_another_seed_gives_others() -> None:
    keys, asked = [key(number) for number in range(60)], FewShot(labels_per_class=5, draws=4)
    found = [few_shot_ranks(keys, ["cat", "dog"] * 30, ["train"] * 60, asked, seed=seed) for seed in (3, 4)]
    assert len({tuple(ranks) for draws in found for ranks in draws}) == 8


def test_a_draw_does_not_depend_on_how_many_there_are_nor_on_their_limit(few: Task, tmp_path: Path) -> None:
    less = split(config(few_shot={"labels_per_class": 7, "draws": 2}, seed=3), tmp_path)
    for draw in range(2):
        np.testing.assert_array_equal(less.few(draw, 7), few.few(draw, 7))


def test_the_same_settings_give_the_same_bytes(few: Task, tmp_path: Path) -> None:
    again = split(config(few_shot={"labels_per_class": 20, "draws": 4}, seed=3), tmp_path)
    for task, name in ((few, "a"), (again, "b")):
        task.write(tmp_path / "tasks" / f"{name}.parquet")
    assert (tmp_path / "tasks" / "a.parquet").read_bytes() == (tmp_path / "tasks" / "b.parquet").read_bytes()


def test_a_task_by_column_has_draws_too(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 10, split=["train"] * 10 + ["test"] * 10)
    task = split(config(by="column", few_shot={"labels_per_class": 2, "draws": 1}), tmp_path)
    assert set(task.few(0, 2)) <= set(task.rows("train"))
    assert len(task.few(0, 2)) == 4


# Limits a class ------------------------------------------------------------------------------------------------------


def kept(rows: Sequence[tuple[int, str]], most: int, seed: int) -> set[int]:
    """The numbers of the training rows that a limit leaves; every third row is a test row."""
    numbers, targets = [number for number, _ in rows], [target for _, target in rows]
    splits = ["test" if number % 3 == 0 else "train" for number in numbers]
    found = limit_training_rows([key(number) for number in numbers], targets, splits, most, seed=seed)
    assert all(name == "test" for number, name in zip(numbers, found, strict=True) if number % 3 == 0)
    return {number for number, name in zip(numbers, found, strict=True) if name == "train"}


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS, st.integers(1, 6), SEEDS)
def test_a_limit_is_met_a_larger_one_keeps_all_and_new_rows_put_out_at_most_as_many(
    old: list[tuple[int, str]], new: list[tuple[int, str]], most: int, seed: int
) -> None:
    before = kept(old, most, seed)
    training = Counter(target for number, target in old if number % 3)
    assert Counter(target for number, target in old if number in before) == {
        target: min(most, rows) for target, rows in training.items()
    }
    assert before <= kept(old, most + 1, seed)
    there = {number for number, _ in old}
    added = [row for row in new if row[0] not in there]
    assert len(before - kept([*added, *old], most, seed)) <= len(added)


def test_a_task_with_a_limit_has_few_training_rows_of_large_classes_and_all_others(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest(label=["cat"] * 300 + ["dog"] * 30)
    whole, less = split(config(), tmp_path), split(config(limit_per_class=25), tmp_path)
    assert set(rows_of(less)) < set(rows_of(whole))
    left_out = Counter((target, name) for _, target, name in set(rows_of(whole)) - set(rows_of(less)))
    assert set(left_out) == {("cat", "train")}
    have = Counter(less.targets[less.rows("train")])
    assert have["cat"] == 25
    assert have["dog"] == Counter(whole.targets[whole.rows("train")])["dog"] < 25


def test_draws_are_of_the_rows_that_a_limit_leaves(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 50)
    task = split(config(limit_per_class=8, few_shot={"labels_per_class": 8, "draws": 2}), tmp_path)
    assert set(task.few(1, 8)) == set(task.rows("train"))


# Domains -------------------------------------------------------------------------------------------------------------

AMAZON_WEBCAM = {"train": ["amazon"], "test": ["webcam"]}


@pytest.fixture
def office(manifest: Manifest) -> None:
    """Three domains with two classes: 100, 60 and 40 rows."""
    domain = ["amazon"] * 100 + ["webcam"] * 60 + ["dslr"] * 40
    manifest(label=["bike", "mug"] * 100, domain=domain, patient=[number // 4 for number in range(200)])


def domains_of(task: Task) -> Counter[tuple[str, str]]:
    """How many rows each domain has in each split."""
    return Counter(zip(task.table["domain"].to_pylist(), task.table["split"].to_pylist(), strict=True))


@pytest.mark.usefixtures("office")
def test_domains_say_the_split_and_validation_is_a_share_of_the_source(tmp_path: Path) -> None:
    task = split(config(by="domain", domains=AMAZON_WEBCAM), tmp_path)
    have = domains_of(task)
    assert set(have) == {("amazon", "train"), ("amazon", "validation"), ("webcam", "test")}
    assert have["webcam", "test"] == 60
    assert have["amazon", "train"] + have["amazon", "validation"] == 100
    assert 10 < have["amazon", "validation"] < 40  # 0.2 / (0.6 + 0.2) of 100


@pytest.mark.usefixtures("office")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"domains": AMAZON_WEBCAM, "sizes": {"train": 1, "validation": 0, "test": 0}},
            {("amazon", "train"): 100, ("webcam", "test"): 60},
        ),
        (
            {"domains": AMAZON_WEBCAM, "stratify": True},
            {("amazon", "train"): 76, ("amazon", "validation"): 24, ("webcam", "test"): 60},
        ),
        (
            {"domains": {**AMAZON_WEBCAM, "validation": ["dslr"]}, "sizes": {"train": 1, "validation": 0, "test": 0}},
            {("amazon", "train"): 100, ("dslr", "validation"): 40, ("webcam", "test"): 60},
        ),
        (
            {
                "domains": {"train": ["amazon", "dslr"], "test": ["webcam"]},
                "sizes": {"train": 1, "validation": 0, "test": 0},
            },
            {("amazon", "train"): 100, ("dslr", "train"): 40, ("webcam", "test"): 60},
        ),
        (
            {"domains": AMAZON_WEBCAM, "sizes": {"train": 20, "validation": 3, "test": 8}},
            {("amazon", "train"): 40, ("amazon", "validation"): 6, ("webcam", "test"): 16},
        ),
    ],
)
def test_domains_in_all_their_ways(
    options: dict[str, Any], expected: dict[tuple[str, str], int], tmp_path: Path
) -> None:
    assert domains_of(split(config(by="domain", **options), tmp_path)) == expected


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS, SEEDS)
def test_rows_that_are_added_to_domains_move_no_row(
    old: list[tuple[int, str]], new: list[tuple[int, str]], seed: int
) -> None:
    def of(rows: list[tuple[int, str]]) -> dict[int, str | None]:
        options = config(by="domain", domains={"train": ["a"], "test": ["b"]}, seed=seed)
        keys = [key(number) for number, _ in rows]
        assert options.domains is not None
        found = assign_by_domain([""] * len(rows), keys, [name for _, name in rows], options.domains, options)
        return dict(zip((number for number, _ in rows), found, strict=True))

    every = [(-1, "a"), (-2, "b")]  # a domain without rows is an error
    before = of([*every, *old])
    after = of([*every, *old, *(row for row in new if row[0] not in before)])
    assert {number: after[number] for number in before} == before


@pytest.mark.usefixtures("office")
def test_domains_that_no_row_has_are_all_named(tmp_path: Path) -> None:
    domains = {"train": ["amazn"], "test": ["webcam", "caltech"]}
    with pytest.raises(DataError, match=r"`domains` of a task on photos\n") as caught:
        split(config(by="domain", domains=domains), tmp_path)
    assert "unknown domain 'amazn'. Did you mean 'amazon'?" in str(caught.value)
    assert "unknown domain 'caltech'" in str(caught.value)


def test_groups_that_two_domains_share_are_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 4, domain=["a"] * 4 + ["b"] * 4, patient=list("xyzzxvwy"))
    one = {
        "by": "domain",
        "domains": {"train": ["a"], "test": ["b"]},
        "sizes": {"train": 1, "validation": 0, "test": 0},
    }
    with pytest.raises(DataError, match=r"`domains` divide 2 groups of 'patient'\n  - 'x': test, train"):
        split(config(group="patient", **one), tmp_path)


def test_a_class_that_the_test_domain_lacks_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 10 + ["cat"] * 5, domain=["a"] * 20 + ["b"] * 5)
    with pytest.raises(
        DataError, match=r"samples or change `domains`\n  - class 'dog': expected at least 1 row in test"
    ):
        split(config(by="domain", domains={"train": ["a"], "test": ["b"]}, rare="refuse"), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "domain"}, "`by: domain` and `domains` belong together: give both, or none"),
        ({"domains": AMAZON_WEBCAM}, "`by: domain` and `domains` belong together: give both, or none"),
        (
            {"by": "domain", "domains": AMAZON_WEBCAM, "sizes": {"train": 0, "validation": 0, "test": 1}},
            "`by: domain` needs a share of training rows in `sizes`",
        ),
        (
            {"by": "domain", "domains": {"train": ["a", "b"], "validation": ["c"], "test": ["b", "c"]}},
            "expected each domain once, got b, c more than once",
        ),
        (
            {"limit_per_class": 9, "sizes": {"train": 60, "validation": 10, "test": 20}},
            "`sizes` in rows per class are a limit already: leave out `limit_per_class`",
        ),
    ],
)
def test_settings_of_domains_and_limits_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)


# Targets -------------------------------------------------------------------------------------------------------------


def test_a_class_to_be_renamed_must_exist(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 20)
    with pytest.raises(DataError, match=r"`rename` of a task on photos\n.*unknown class 'dgo'. Did you mean 'dog'"):
        split(config(rename={"dgo": "pet"}), tmp_path)


def test_classes_are_renamed_and_merged_and_others_stay(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=[str(number % 5) for number in range(200)])
    task = split(config(rename={"1": "odd", "3": "odd", "0": "zero"}), tmp_path)
    assert Counter(task.targets) == {"odd": 80, "zero": 40, "2": 40, "4": 40}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([10, 9, 1] * 20, ["1", "9", "10"]), ([True, False] * 30, ["false", "true"]), (["b", "10", "9"] * 20, None)],
)
def test_targets_are_text_and_numbers_are_sorted_by_value(
    manifest: Manifest, tmp_path: Path, labels: list[Any], classes: list[str] | None
) -> None:
    manifest(label=labels)
    assert split(config(), tmp_path).classes == (classes or ["9", "10", "b"])


def test_a_single_class_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 20)
    message = (
        r"the target 'label' of photos: expected at least two classes, got \['pet'\]. A class is a folder, or a val"
    )
    with pytest.raises(DataError, match=message):
        split(config(rename={"cat": "pet", "dog": "pet"}), tmp_path)


def test_rows_without_a_target_are_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", None, "dog"] * 5)
    with pytest.raises(DataError, match=r"the target 'label' of photos: 5 rows have no value. Add it, or leave the"):
        split(config(), tmp_path)


def test_a_column_that_the_manifest_lacks_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat", "dog"] * 5)
    for options in ({"target": "labels"}, {"group": "labels"}, {"by": "column", "column": "labels"}):
        with pytest.raises(DataError, match=r"photos.parquet: unknown column 'labels'. Did you mean 'label'\?"):
            split(config(**options), tmp_path)


def test_a_manifest_that_was_never_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos.parquet: no such manifest. Run `icecore repro prepare@photos`"):
        split(config(), tmp_path)


def test_classes_without_rows_in_a_split_are_all_named(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat"] * 40 + ["dog", "dog", "emu"])
    with pytest.raises(DataError) as caught:
        split(config(stratify=True, rare="refuse"), tmp_path)
    title, *lines = str(caught.value).splitlines()
    assert title == "the split leaves classes without rows; add samples or change `sizes`"
    assert [line.split(": ")[0] for line in lines] == ["  - class 'dog'", "  - class 'emu'", "  - class 'emu'"]
    assert lines[1] == "  - class 'emu': expected at least 1 row in validation, got 0."


def test_a_class_without_test_rows_is_no_error_where_no_test_rows_are_asked_for(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest(label=["cat", "dog"])
    task = split(config(sizes={"train": 1, "validation": 0, "test": 0}), tmp_path)
    assert [name for _, _, name in rows_of(task)] == ["train", "train"]


def test_a_class_with_fewer_rows_than_the_counts_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    manifest(label=["cat"] * 20 + ["dog"] * 11)
    with pytest.raises(DataError, match=r"- class 'dog': expected at least 6 rows in train, got 5.") as caught:
        split(config(sizes={"train": 6, "validation": 2, "test": 4}, rare="refuse"), tmp_path)
    assert "cat" not in str(caught.value)


# Several data sets ---------------------------------------------------------------------------------------------------


def test_several_data_sets_make_one_task_with_their_names_or_domains(manifest: Manifest, tmp_path: Path) -> None:
    manifest("one", label=["cat", "dog"] * 20)
    manifest("two", first=100, label=["cat", "dog"] * 20, domain=["webcam", "amazon"] * 20)
    task = split(config(datasets=("one", "two")), tmp_path)
    assert Counter(task.table["domain"].to_pylist()) == {"one": 40, "webcam": 20, "amazon": 20}
    keys = [key for key, _, _ in rows_of(task)]
    assert keys == sorted(keys)


def test_a_row_has_the_same_split_whichever_data_sets_stand_beside_it(manifest: Manifest, tmp_path: Path) -> None:
    manifest("one", label=["cat", "dog"] * 20)
    manifest("two", first=100, label=["cat", "dog"] * 20)
    alone, both = (split(config(datasets=names), tmp_path) for names in (("one",), ("one", "two")))
    assert set(rows_of(alone)) < set(rows_of(both))


def test_a_content_that_several_data_sets_have_is_one_row(manifest: Manifest, tmp_path: Path) -> None:
    manifest("one", label=["cat", "dog"] * 20)
    manifest("two", first=30, label=["cat", "dog"] * 20)
    task = split(config(datasets=("one", "two")), tmp_path)
    assert len(task) == len(set(task.keys)) == 70
    assert Counter(task.table["domain"].to_pylist()) == {"one": 40, "two": 30}


def test_two_targets_for_one_content_are_an_error_unless_they_are_one_after_renaming(
    manifest: Manifest, tmp_path: Path
) -> None:
    manifest("one", label=["cat", "dog"] * 20)
    manifest("two", first=39, label=["hound", "cat", "dog"] * 10)
    with pytest.raises(DataError) as caught:
        split(config(datasets=("one", "two")), tmp_path)
    assert str(caught.value).splitlines() == [
        "one, two: 1 image has two targets",
        f"  - {key(39)}: 'dog' and 'hound'",
    ]
    task = split(config(datasets=("one", "two"), rename={"hound": "dog"}), tmp_path)
    assert set(task.targets) == {"cat", "dog"}


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0.6, 0.2, 0.1), "expected shares that sum to 1, got shares that sum to 0.9"),
        ((1, 1, 1), "expected shares that sum to 1, got shares that sum to 3"),
        ((0, 0, 0), "expected shares that sum to 1, got shares that sum to 0"),
        ((60.5, 10, 20), "expected whole numbers of rows per class, or shares that sum to 1"),
        ((60, 0.5, 20), "expected whole numbers of rows per class, or shares that sum to 1"),
        ((-0.2, 0.6, 0.6), "greater than or equal to 0"),
        ((float("inf"), 0, 0), "finite number"),
        ((float("nan"), 0, 0), "finite number"),
    ],
)
def test_sizes_that_make_no_split_are_refused(sizes: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SplitSizes(train=sizes[0], validation=sizes[1], test=sizes[2])


@pytest.mark.parametrize("sizes", [(0.7, 0.1, 0.2), (1, 0, 0), (1 / 3, 1 / 3, 1 / 3), (60, 0, 20), (2, 1, 1)])
def test_shares_that_sum_to_1_and_whole_counts_are_right(sizes: tuple[float, float, float]) -> None:
    made = SplitSizes(train=sizes[0], validation=sizes[1], test=sizes[2])
    assert made.as_counts == (max(sizes) > 1)


def test_a_task_without_data_sets_or_with_draws_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        config(datasets=())
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FewShot(labels_per_class=0)


# The file ------------------------------------------------------------------------------------------------------------


def test_a_task_comes_back_from_its_file(few: Task, tmp_path: Path) -> None:
    few.write(tmp_path / "tasks" / "photos.parquet")
    back = Task.read(tmp_path / "tasks" / "photos.parquet")
    assert back.table.equals(few.table)
    assert back.table.column_names == [
        "key",
        "path",
        "target",
        "split",
        "domain",
        "draw_0",
        "draw_1",
        "draw_2",
        "draw_3",
    ]
    assert len(back) == 150
    assert list(back.keys) == sorted(back.keys)
    assert sum(len(back.rows(name)) for name in SPLITS) == 150


def test_a_task_that_was_never_made_is_an_error_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos.parquet: no such task. Run `icecore repro split@photos`"):
        Task.read(tmp_path / "photos.parquet")


@pytest.mark.parametrize(("kind", "what"), [("regression", "a number per row"), ("multilabel", "10 labels")])
def test_the_stage_says_what_is_learned(
    kind: str,
    what: str,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest("digits", label=[str(number % 10) for number in range(3000)])
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    shutil.move(tmp_path / "digits.parquet", tmp_path / "data" / "manifests" / "digits.parquet")
    raw = yaml.safe_load(SHIPPED.read_text())
    raw["split"]["digits"] = {"datasets": ["digits"], "kind": kind}
    raw |= {name: {} for name in ("fit", "finetune", "teach", "distill")}  # which ask for few labels
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["split.py", "digits"])
    project.run(stages.split.main)
    assert capsys.readouterr().out.startswith(f"digits: {what}, ")


def test_the_stage_writes_the_task_and_says_how_many_rows_each_split_has(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest("digits", label=[number % 10 for number in range(3000)])
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    shutil.move(tmp_path / "digits.parquet", tmp_path / "data" / "manifests" / "digits.parquet")
    shutil.copy(SHIPPED, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["split.py", "digits"])
    project.run(stages.split.main)
    task = Task.read(tmp_path / "data" / "tasks" / "digits.parquet")
    rows = {name: f"{len(task.rows(name)):,}" for name in SPLITS}
    said = f"digits: 10 classes, {rows['validation']} validation, {rows['train']} train, {rows['test']} test\n"
    assert capsys.readouterr().out == said
