"""The feed: batches of one unit each, in the order in which samples are read; the plan puts containers together."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.crashing_reader import Words

from pipeline.extract.plan import Plan, plan
from pipeline.loading.batches import Batch, batches, first_pixels
from pipeline.loading.decoders import Threads
from pipeline.loading.samples import WHERE, Samples, reading_order
from pipeline.readers import Sample
from pipeline.readers.sample_key import content_key
from pipeline.store import key_arrays


@pytest.fixture(scope="module")
def threads() -> Iterator[Threads]:
    """Decoders that several tests use."""
    with contextlib.closing(Threads(Words(), 2)) as made:
        yield made


def samples_of(folder: Path, texts: list[str]) -> Samples:
    """Files with some texts, as a unit: sorted by key."""
    rows = []
    for text in texts:
        path = folder / content_key(text.encode())
        path.write_text(text)
        rows.append({"key": path.name, "path": str(path), "container": None, "offset": None, "size": len(text)})
    rows.sort(key=lambda row: str(row["key"]))
    where = pa.RecordBatch.from_pylist([{name: row[name] for name in WHERE.names} for row in rows], schema=WHERE)
    return Samples(key_arrays.from_hex([str(row["key"]) for row in rows]), where)


def in_containers(places: list[tuple[str | None, int | None]], *, seed: int = 0) -> Samples:
    """Samples with random keys, sorted, that lie in containers."""
    keys = np.sort(np.frombuffer(np.random.default_rng(seed).bytes(16 * len(places)), key_arrays.DTYPE))
    rows = [
        {"path": f"{container}/{offset}", "container": container, "offset": offset, "size": 1}
        for container, offset in places
    ]
    return Samples(keys, pa.RecordBatch.from_pylist(rows, schema=WHERE))


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_batches_have_samples_of_one_unit_and_the_last_one_of_each_says_so(
    tmp_path: Path, threads: Threads, ahead: int
) -> None:
    sizes = (7, 4, 1, 9)
    units = [samples_of(tmp_path, [f"{unit} {number}" for number in range(size)]) for unit, size in enumerate(sizes)]
    found = list(batches(iter(units), threads, batch_size=4, ahead=ahead))
    assert [(batch.unit, batch.rows, batch.last) for batch in found] == [
        *((0, 4, False), (0, 3, True), (1, 4, True), (2, 1, True)),
        *((3, 4, False), (3, 4, False), (3, 1, True)),
    ]
    for number, unit in enumerate(units):
        keys = np.concatenate([batch.keys for batch in found if batch.unit == number])
        assert keys.tolist() == unit.keys.tolist()
    for batch in found:
        texts = [content_key(bytes(row)) for row in batch.arrays["bytes"]]
        assert texts == key_arrays.to_hex(batch.keys)


def test_rejects_are_with_their_batch_and_no_row_stands_for_them(tmp_path: Path, threads: Threads) -> None:
    texts = [f"{word} {number:02d}" for number, word in enumerate(["fair", "bad"] * 5)]
    texts = [text.ljust(10) for text in texts]
    unit = samples_of(tmp_path, [*texts, *(f"bad {number}" for number in range(8))])
    found = list(batches([unit], threads, batch_size=5))
    assert sum(batch.rows for batch in found) == 18
    assert sum(len(batch.keys) for batch in found) == 5
    for batch in found:
        assert batch.rows == len(batch.keys) + len(batch.rejects)
        assert {reject.reason for reject in batch.rejects} <= {"damaged"}
        if len(batch.keys):
            assert len(batch.arrays["bytes"]) == len(batch.keys)
    keys = [key for batch in found for key in [*key_arrays.to_hex(batch.keys), *(one.key for one in batch.rejects)]]
    assert sorted(keys) == key_arrays.to_hex(unit.keys)


def test_a_batch_of_which_nothing_could_be_read_has_no_arrays(tmp_path: Path, threads: Threads) -> None:
    (batch,) = batches([samples_of(tmp_path, ["bad 1", "bad 2"])], threads, batch_size=4)
    assert (batch.rows, len(batch.keys), batch.arrays, len(batch.rejects), batch.last) == (2, 0, {}, 2, True)


def test_an_error_of_whoever_gives_the_units_comes_out_after_what_was_given_before(
    tmp_path: Path, threads: Threads
) -> None:
    def units() -> Iterator[Samples]:
        yield samples_of(tmp_path, ["one", "two"])
        raise LookupError("no more")

    found: list[Batch] = []
    with pytest.raises(LookupError, match="no more"):
        found.extend(batches(units(), threads, batch_size=1, ahead=0))
    assert len(found) <= 2
    assert not reading()


def reading() -> list[threading.Thread]:
    """The threads that read ahead; those that decode have another pool."""
    return [one for one in threading.enumerate() if one.name.startswith("feed")]


def test_a_feed_that_is_closed_early_leaves_no_thread_behind(tmp_path: Path, threads: Threads) -> None:
    unit = samples_of(tmp_path, [f"{number:03d}" for number in range(100)])
    before = threading.active_count()
    feed = batches([unit], threads, batch_size=3)
    next(feed)
    assert reading()
    feed.close()
    assert not reading()
    assert threading.active_count() <= before + 2  # those that decode


class Pixels(Words):
    """The same with the name that a network wants."""

    def __call__(self, data: bytes) -> Sample:
        """One byte."""
        return {"pixels": super().__call__(data)["bytes"][-1:]}


def test_the_first_pixels_are_those_of_the_first_samples_that_can_be_read(tmp_path: Path) -> None:
    units = [samples_of(tmp_path, [f"{word}{n} {n}" for n in range(6)]) for word in ("bad ", "a", "b")]
    expected = [bytes(Path(place.path).read_bytes())[-1] for unit in units[1:] for place in unit.places()]
    wanted = np.concatenate([unit.keys for unit in units[1:]])
    with contextlib.closing(Threads(Pixels(), 1)) as threads:
        for count in (1, 5, 6, 7, 12, 50):
            keys, pixels = first_pixels(units, threads, count=count, batch_size=4)
            assert pixels.tolist() == [[value] for value in expected[:count]]
            assert keys.tolist() == wanted[:count].tolist()
        for none in (units[:1], []):
            assert [part.tolist() for part in first_pixels(none, threads, count=3, batch_size=4)] == [[], []]


# Containers -----------------------------------------------------------------------------------------------------------

PLACES = st.lists(
    st.one_of(
        st.tuples(st.just(None), st.just(None)), st.tuples(st.sampled_from(["a.tar", "b.tar", "c.tar"]), st.integers(0))
    ),
    max_size=40,
)


@given(places=PLACES)
def test_containers_are_read_one_after_another_and_each_from_front_to_back(
    places: list[tuple[str | None, int | None]],
) -> None:
    places = [(name, None if offset is None else offset % 2**40) for name, offset in places]
    samples = in_containers(places)
    order = reading_order(samples)
    assert sorted(order.tolist()) == list(range(len(places)))
    read = [places[row] for row in order]
    names = [name for number, (name, _) in enumerate(read) if number == 0 or name != read[number - 1][0]]
    assert len(names) == len(set(names))
    for name in set(names) - {None}:
        offsets = [offset for one, offset in read if one == name]
        assert offsets == sorted(offsets, key=int)  # type: ignore[call-overload]
    files = [row for row in order.tolist() if places[row][0] is None]
    assert files == sorted(files)  # whole files keep the order of their keys


@st.composite
def jobs(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """What is known of some taps, the container of each sample, and the rows of a unit."""
    samples, taps = draw(st.integers(0, 40)), draw(st.integers(1, 3))
    row = st.lists(st.booleans(), min_size=samples, max_size=samples)
    known = {f"tap{number}": np.array(draw(row), dtype=bool) for number in range(taps)}
    containers = draw(st.lists(st.integers(-1, 3), min_size=samples, max_size=samples))
    return known, np.array(containers, dtype=np.int64), draw(st.integers(1, 7))


def as_text(todo: Plan) -> list[tuple[list[int], tuple[str, ...]]]:
    """Units as plain values."""
    return [(unit.rows.tolist(), unit.taps) for unit in todo.units]


@given(job=jobs())
def test_every_missing_row_is_in_one_unit_and_containers_follow_each_other(
    job: tuple[dict[str, np.ndarray], np.ndarray, int],
) -> None:
    known, containers, unit_rows = job
    todo = plan(known, unit_rows=unit_rows, containers=containers)
    for tap, rows in known.items():
        planned = [row for unit in todo.units if tap in unit.taps for row in unit.rows.tolist()]
        assert sorted(planned) == np.flatnonzero(~rows).tolist()
    for unit in todo.units:
        assert 0 < len(unit.rows) <= unit_rows
        assert unit.rows.tolist() == sorted(unit.rows.tolist())
    for taps in {unit.taps for unit in todo.units}:
        own = [set(containers[unit.rows].tolist()) for unit in todo.units if unit.taps == taps]
        for name in set().union(*own):
            units = [number for number, names in enumerate(own) if name in names]
            assert units == list(range(units[0], units[-1] + 1))  # no other unit lies between
        assert all(len(unit.rows) == unit_rows for unit in [u for u in todo.units if u.taps == taps][:-1])


@given(job=jobs(), names=st.permutations(range(-1, 4)))
def test_the_names_of_containers_do_not_matter(
    job: tuple[dict[str, np.ndarray], np.ndarray, int], names: list[int]
) -> None:
    known, containers, unit_rows = job
    renamed = np.array([names[number + 1] for number in containers], dtype=np.int64)
    todo = as_text(plan(known, unit_rows=unit_rows, containers=containers))
    assert as_text(plan(known, unit_rows=unit_rows, containers=renamed)) == todo


@given(job=jobs(), data=st.data())
def test_with_containers_too_the_rest_is_cut_as_before(
    job: tuple[dict[str, np.ndarray], np.ndarray, int], data: st.DataObject
) -> None:
    known, containers, unit_rows = job
    todo = plan(known, unit_rows=unit_rows, containers=containers)
    done = data.draw(st.sets(st.integers(0, max(0, len(todo.units) - 1))))
    later = {tap: rows.copy() for tap, rows in known.items()}
    for number, unit in enumerate(todo.units):
        if number in done:
            for tap in unit.taps:
                later[tap][unit.rows] = True
    left = [unit for number, unit in enumerate(as_text(todo)) if number not in done]
    assert as_text(plan(later, unit_rows=unit_rows, containers=containers)) == left
