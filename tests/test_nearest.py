"""Exact nearest rows: the answer of a full stable sort in float64, whatever the blocks, and what is refused."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import HeadError
from pipeline.streaming import exact_search as searching
from pipeline.streaming import rows as reading
from pipeline.streaming.exact_search import Metric, nearest

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


def every_distance(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """All distances by their definitions, in float64, rounded to float32: (queries, rows)."""
    a, b = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "cosine":
        a, b = (x / np.where(norm := np.linalg.norm(x, axis=1, keepdims=True), norm, 1) for x in (a, b))
        with_direction = a.any(axis=1)[:, None] & b.any(axis=1)
        apart = ((a[:, None] - b) ** 2).sum(axis=2) / 2
        return np.where(with_direction, apart, 1).astype(np.float32)
    return np.sqrt(((a[:, None] - b) ** 2).sum(axis=2)).astype(np.float32)


def sorted_fully(distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row by a stable sort of all."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, tiles and pieces so small that a few rows take many of each."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4 * 4 * 7)
    monkeypatch.setattr(searching, "QUERIES_BYTES", 4 * 4 * 5)
    monkeypatch.setattr(searching, "TILE", (2, 3))
    monkeypatch.setattr(searching, "PAIRS_BYTES", 64)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_answer_is_that_of_a_full_stable_sort(data: st.DataObject) -> None:
    """Of whole numbers of four columns: many distances are equal, and all are exact."""
    metric = data.draw(st.sampled_from(METRICS))
    numbers = st.integers(-2, 2)
    row = st.lists(numbers, min_size=4, max_size=4)
    rows = np.array(data.draw(st.lists(row, min_size=1, max_size=25)), dtype=np.float32)
    queries = np.array(data.draw(st.lists(row, min_size=1, max_size=12)), dtype=np.float32)
    k = data.draw(st.integers(1, len(rows)))
    distances, found = nearest(queries, rows, k, metric=metric)
    every = every_distance(queries, rows, metric)
    expected, order = sorted_fully(every, k)
    assert distances.dtype == np.float32
    assert found.dtype == np.int64
    if metric == "euclidean":  # whole numbers: no distance is rounded before the last step
        assert np.array_equal(distances, expected)
        assert np.array_equal(found, order)
    else:  # parallel rows of other lengths may differ in the last place of float64
        assert np.allclose(distances, expected, rtol=1e-6, atol=1e-30)
        assert np.allclose(np.take_along_axis(every, found, axis=1), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_no_neighbour_is_lost_to_the_rounding_of_products(metric: Metric, offset: float) -> None:
    """Rows around each query that differ less than products in float32 can tell, and far from the origin."""
    random = np.random.default_rng(0)
    queries = random.normal(size=(40, 30)).astype(np.float32) + np.float32(offset)
    rows = np.repeat(queries, 60, axis=0) + random.normal(size=(2400, 30)).astype(np.float32) * np.float32(1e-4)
    rows = random.permutation(np.concatenate([rows, random.normal(size=(3000, 30)).astype(np.float32)]))
    distances, found = nearest(queries, rows, 10, metric=metric)
    expected, order = sorted_fully(every_distance(queries, rows, metric), 10)
    assert np.array_equal(found, order)
    assert np.allclose(distances, expected, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sources_give_what_arrays_give_and_scikit_learn_agrees(metric: Metric, dtype: Any, tmp_path: Path) -> None:
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(1)
    queries, rows = random.normal(size=(300, 16)).astype(dtype), random.normal(size=(5000, 16)).astype(dtype)
    mapped = np.memmap(tmp_path / "rows", dtype=dtype, mode="w+", shape=rows.shape)
    mapped[:] = rows
    distances, found = nearest(queries, mapped, 7, metric=metric)
    for one, other in zip(nearest(queries, rows, 7, metric=metric), (distances, found), strict=True):
        assert np.array_equal(one, other)
    theirs = NearestNeighbors(n_neighbors=7, algorithm="brute", metric=metric).fit(rows.astype(np.float64))
    far, order = theirs.kneighbors(queries.astype(np.float64))
    assert np.allclose(distances, far, rtol=1e-6)
    assert (found == order).mean() > 0.999  # theirs are not in order of number where distances are equal


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_a_row_is_not_its_own_neighbour_where_that_is_asked_but_its_copy_is(metric: Metric) -> None:
    rows = np.random.default_rng(2).normal(size=(20, 4))
    rows[13] = rows[5]
    distances, found = nearest(rows, rows, 19, metric=metric, exclude_self=True)
    assert all(number not in own for number, own in enumerate(found))
    assert (found[13, 0], found[5, 0]) == (5, 13)
    assert distances[5, 0] == distances[13, 0] == 0
    assert (nearest(rows, rows, 1, metric=metric)[1][:, 0] == np.r_[0:13, 5, 14:20]).all()


def test_memory_does_not_grow_with_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 2**15)  # enough blocks for all that may wait to wait, also of few rows
    rows = np.memmap(tmp_path / "rows", dtype=np.float32, mode="w+", shape=(60_000, 32))
    rows[:] = np.random.default_rng(3).normal(size=rows.shape)
    peaks = []
    for count in (6_000, 60_000):
        tracemalloc.start()
        nearest(np.array(rows[:100]), rows[:count], 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]  # ten times the rows: threads meet at other moments


def test_extreme_lengths() -> None:
    rows = np.array([[1e-30, 0.0], [2e-30, 0.0], [0.0, 1e17], [0.0, 0.0]])
    assert nearest(rows, rows, 4, metric="euclidean")[1].tolist()[0] == [0, 1, 3, 2]
    assert nearest(rows[:2], rows, 4)[1].tolist() == [[0, 1, 2, 3]] * 2
    assert nearest(rows[3:], rows, 2)[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("queries", "rows", "options", "message"),
    [
        (4, 4, {"metric": "hamming"}, r"unknown metric 'hamming'\. Expected one of: cosine, euclidean"),
        (4, 4, {"k": 0}, r"neighbours: expected k from 1 to 4, got 0\. Ask for fewer"),
        (4, 4, {"k": 4, "exclude_self": True}, r"neighbours: expected k from 1 to 3, got 4"),
        (3, 4, {"exclude_self": True}, r"neighbours: expected the database as queries, got 3 queries and 4 rows"),
    ],
)
def test_what_is_refused(queries: int, rows: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        nearest(np.zeros((queries, 2)), np.zeros((rows, 2)), **{"k": 1, **options})


def test_rows_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(HeadError, match=r"neighbours: expected queries and rows of equal width, got 3 and 2"):
        nearest(np.zeros((2, 3)), np.zeros((2, 2)), 1)
    with pytest.raises(HeadError, match=r"neighbours: expected rows shorter than 1e\+18, got 1e\+20\. Scale them"):
        nearest(np.ones((1, 2)), np.array([[1e20, 0.0]]), 1)
