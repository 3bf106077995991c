"""Rows in pieces: how they are cut, and that what is made of them does not depend on who works on a piece."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.preprocessing import StandardScaler
from support.chunks import even_chunks
from support.features import PLAIN, Place, make
from support.forkserver import forked_workers
from support.worker_tasks import deadly, refusing, square
from test_rows import keys_of, stored

from pipeline.errors import ClusterError, HeadError
from pipeline.fit import workers
from pipeline.fit.config import FitConfig
from pipeline.fit.workers import Sums, by_workers
from pipeline.heads.saved import load
from pipeline.predictions import PredictionsFile
from pipeline.streaming import chunks
from pipeline.streaming.accumulate import CachedMoments
from pipeline.streaming.chunks import ChunkedSource, by_threads, cut_chunks, take_rows
from pipeline.streaming.lda import StreamingLDA
from pipeline.streaming.rows import Rows
from pipeline.streaming.scaler import StreamingScaler
from pipeline.workers import WorkersConfig, ordered_map
from pipeline.workers import client as workers_client
from pipeline.workers.client import open_client

if TYPE_CHECKING:
    from distributed import Client

TWO = WorkersConfig(workers=2)


@pytest.fixture(scope="module")
def client() -> Iterator["Client"]:
    """Two processes of this machine."""
    with forked_workers(), open_client(TWO, gpus=0) as found:
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """240 rows of 6 values, in the order of three shards of 80."""
    X = np.random.default_rng(0).normal(size=(240, 6)).astype(np.float32) + 3
    tap = stored(tmp_path / "tap", X, keys_of(240))
    return Rows([tap], tap.key_array[np.argsort(tap.find(tap.key_array))])


# Cuts ----------------------------------------------------------------------------------------------------------------


def test_pieces_end_where_shards_do(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cut_chunks(rows) == [slice(0, 240)]
    monkeypatch.setattr(chunks, "PIECE_ROWS", 70)
    assert cut_chunks(rows) == [
        slice(0, 60),
        slice(60, 120),
        slice(120, 180),
        slice(180, 240),
    ]  # no end of a shard is near
    monkeypatch.setattr(chunks, "PIECE_ROWS", 90)
    assert cut_chunks(rows) == [slice(0, 80), slice(80, 160), slice(160, 240)]
    monkeypatch.setattr(chunks, "PIECE_BYTES", 4 * 6 * 100)
    monkeypatch.setattr(chunks, "PIECE_ROWS", 10**6)
    assert cut_chunks(rows) == [slice(0, 80), slice(80, 160), slice(160, 240)]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 200), size=st.integers(1, 60), shards=st.lists(st.integers(0, 200), max_size=6))
def test_every_row_is_in_one_piece(count: int, size: int, shards: list[int]) -> None:
    class Some:
        shape = (count, 1)

    Some.shards = np.searchsorted(np.sort(shards), np.arange(count), side="right")  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "PIECE_ROWS", size)
        found = cut_chunks(Some())  # type: ignore[arg-type]
    assert np.concatenate([np.arange(count)[one] for one in found]).tolist() == list(range(count))
    assert all(one.stop > one.start for one in found) or count == 0
    assert all(one.stop - one.start <= 1.5 * size + 1 for one in found)


def test_a_part_is_its_rows_and_pickles_without_the_others(rows: Rows) -> None:
    whole = CachedMoments(ChunkedSource(rows, even_chunks(240, 4)))
    for source in (rows, whole):
        own = take_rows(source, slice(60, 90))
        np.testing.assert_array_equal(own[:], rows[60:90])
        again = pickle.loads(pickle.dumps(own))  # noqa: S301
        np.testing.assert_array_equal(again[5:9], rows[65:69])
        assert len(pickle.dumps(own)) < len(pickle.dumps(rows)) - 210 * 7  # places of eight bytes
    scaled = StreamingScaler().fit(whole).transform(whole)
    np.testing.assert_array_equal(take_rows(scaled, slice(60, 90))[:], scaled[60:90])


# Who works -----------------------------------------------------------------------------------------------------------


def ways(client: "Client", width: int) -> list[Any]:
    """In one thread, in several, and in two processes."""
    return [map, by_threads(width), by_workers(client, width)]


def test_sums_scalers_and_shrinkage_are_the_same_bytes_whoever_works(rows: Rows, client: "Client") -> None:
    y = np.arange(240) % 3
    found = []
    for way in ways(client, 6):
        source = CachedMoments(ChunkedSource(rows, even_chunks(240, 5), way))
        scaler = StreamingScaler().fit(source)
        scaled = scaler.transform(source)
        heads = [StreamingLDA("auto").fit(source, y), StreamingLDA("auto").fit(scaled, y)]
        found.append([one.tobytes() for one in (scaler.mean_, scaler.scale_, heads[0].coef_, heads[1].coef_)])
        assert heads[0].shrinkage_ > 0
    assert found[0] == found[1] == found[2]
    plain = StandardScaler().fit(rows[:].astype(np.float64))
    np.testing.assert_allclose(scaler.mean_, plain.mean_, rtol=1e-6)
    np.testing.assert_allclose(scaler.scale_, plain.scale_, rtol=1e-6)
    np.testing.assert_allclose(
        heads[0].coef_, StreamingLDA("auto").fit(rows[:].astype(np.float64), y).coef_, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_a_scaler_of_pieces_is_that_of_all_rows(weighted: bool, seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(40, 4)) * [1, 100, 0, 1e-3] + [0, 1e4, 7, 5]
    weights = random.integers(1, 4, 40).astype(float) if weighted else None
    scaler = StreamingScaler().fit(ChunkedSource(X, even_chunks(40, count)), sample_weight=weights)
    plain = StandardScaler().fit(X, sample_weight=weights)
    np.testing.assert_allclose(scaler.mean_, plain.mean_, rtol=1e-12)
    np.testing.assert_allclose(scaler.var_, plain.var_, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(scaler.scale_, plain.scale_, rtol=1e-8)
    assert scaler.n_samples_seen_ == plain.n_samples_seen_
    np.testing.assert_allclose(scaler.transform(X), plain.transform(X), atol=1e-8)


def test_a_scaler_of_pieces_has_the_attributes_of_scikit_learns() -> None:
    X = np.arange(12.0).reshape(6, 2)
    for options in ({"with_mean": False}, {"with_std": False}, {"with_mean": False, "with_std": False}):
        scaler = StreamingScaler(**options).fit(ChunkedSource(X, even_chunks(6, 2)))
        plain = StandardScaler(**options).fit(X)
        for name in ("mean_", "var_", "scale_"):
            ours, theirs = getattr(scaler, name), getattr(plain, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                np.testing.assert_allclose(ours, theirs)


def test_rows_too_wide_for_two_pieces_leave_blas_its_threads() -> None:
    from threadpoolctl import threadpool_info

    def threads(_: Any) -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    own = threads(None)
    assert list(by_threads(10)(threads, [0, 1])) == [{1}, {1}]
    assert list(by_threads(100_000)(threads, [0, 1])) == [own, own]
    assert chunks.run_in_worker(threads, 10, 0) == {1}
    assert chunks.run_in_worker(threads, 100_000, 0) == own


def test_results_come_in_order_and_few_items_wait(client: "Client") -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    found = ordered_map.map_in_order(client, square, items())
    assert next(found) == 0
    assert len(taken) <= 2 * ordered_map.AHEAD
    assert list(found) == [number**2 for number in range(1, 20)]
    assert list(ordered_map.map_in_order(client, square, [])) == []
    with pytest.raises(HeadError, match=r"number 5: expected another, got this\."):
        list(ordered_map.map_in_order(client, refusing, [5]))


@pytest.mark.slow
def test_a_piece_that_ends_its_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_client, "DEATHS", 0)
    monkeypatch.setattr(ordered_map, "AHEAD", 0.5)  # one piece at a time: none other is with a worker that dies
    message = r"workers: expected the result of part 4 of the work, but every worker that got this part died: killed"
    with forked_workers(), open_client(TWO, gpus=0) as mortal, pytest.raises(ClusterError, match=message):
        list(ordered_map.map_in_order(mortal, deadly, range(6)))


# A run of `fit` ------------------------------------------------------------------------------------------------------

HEADS: dict[str, dict[str, Any]] = {
    "streaming_ridge": {},
    "streaming_lda": {},
    "streaming_centroid": {},
    "streaming_logistic": {},
    "streaming_knn": {},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A task whose 60 training rows are six pieces or so."""
    monkeypatch.setattr(chunks, "PIECE_ROWS", 10)
    return make(tmp_path, splits={"train": 20, "validation": 12, "test": 10})


def fitted(place: Place) -> dict[str, bytes]:
    """The predictions, and what every head has learnt."""
    found = {"predictions": place.predictions.read_bytes(), "model.json": (place.models / "model.json").read_bytes()}
    for one in place.model()["fits"]:
        head = load(place.models, one["file"]).head
        for number, (_, step) in enumerate(head.steps):
            for name, value in vars(step).items():
                if isinstance(value, np.ndarray) and value.dtype != object:
                    found[f"{one['file']} {number} {name}"] = value.tobytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("before", [{}, {"pca": {"components": 3}, "refit": True}])
def test_a_run_with_workers_leaves_the_bytes_of_one_without(
    place: Place, before: dict[str, Any], client: "Client"
) -> None:
    settings: dict[str, Any] = {"inputs": ["hard"] if before else [["easy", "hard"]], "head": HEADS, **before}
    place.fit(**settings)
    alone = fitted(place)
    assert any("coef_" in name for name in alone)
    assert any("components_" in name for name in alone) == bool(before)
    shared = {**PLAIN, **settings, "run": {"scheduler": client.scheduler.address}}
    done = place.run(FitConfig(task="pets", backbone="tiny", **shared))
    assert fitted(place) == alone
    assert done.notes == [
        "streaming_logistic: workers make its first pass; its search reads the training rows here.",
        "streaming_knn: it is not solved from sums; its training rows are read here.",
    ]


def test_workers_that_have_nothing_to_do_are_not_started(place: Place) -> None:
    run = {"scheduler": "tcp://127.0.0.1:1"}  # where nobody is
    with pytest.raises(ValidationError, match="`run` is of streaming heads, and logistic is none: leave `run` out"):
        FitConfig(task="pets", backbone="tiny", inputs=("easy",), head="logistic", run=run)
    # The rows of the draws are one piece; those that are predicted are several, but nothing is summed of them.
    few = {"head": "streaming_lda", "labels_per_class": (3,), "run": run}
    done = place.run(FitConfig(task="pets", backbone="tiny", inputs=("easy",), **few))
    assert done.notes == ["run: no worker was started: every training set is one piece, or is held in memory."]


def test_a_head_in_memory_beside_streaming_ones_is_named(place: Place, client: "Client") -> None:
    heads, run = ("logistic", "streaming_ridge"), {"scheduler": client.scheduler.address}
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy",), head=heads, run=run)
    assert place.run(config).notes == ["logistic: it holds its training rows; workers have no part in it."]
    assert PredictionsFile.open(place.predictions).scores == {"logistic": "probability", "streaming_ridge": "decision"}


def test_a_scheduler_that_is_not_there_and_one_without_workers_are_errors(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    config = {"task": "pets", "backbone": "tiny", "inputs": ("easy",), "head": "streaming_lda"}
    monkeypatch.setattr(workers_client, "CONNECT", 2)
    with pytest.raises(ClusterError, match=r"scheduler tcp://127\.0\.0\.1:1: expected a Dask scheduler there, got "):
        place.run(FitConfig(**config, run={"scheduler": "tcp://127.0.0.1:1"}))
    monkeypatch.setattr(workers_client, "CONNECT", 30)
    monkeypatch.setattr(workers, "WAIT", 0.2)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None, protocol="tcp") as cluster:
        address = cluster.scheduler_address
        message = rf"scheduler {address}: expected a worker within 0\.2 seconds, got none\. Start one with `dask worker"
        with pytest.raises(ClusterError, match=message):
            place.run(FitConfig(**config, run={"scheduler": address}))


def test_a_scheduler_and_workers_of_this_machine_are_one_too_many() -> None:
    run = {"scheduler": "tcp://127.0.0.1:1", "workers": 2}
    with pytest.raises(ValidationError, match="a scheduler has its own workers: leave out `workers`, or `scheduler`"):
        FitConfig(task="pets", backbone="tiny", inputs=("easy",), run=run)


def test_threads_make_the_sums_where_no_workers_are_asked_for() -> None:
    with Sums(WorkersConfig(workers=1)) as here:
        assert list(here.of(4)(square, [1, 2])) == [1, 4]
        assert not here.started
