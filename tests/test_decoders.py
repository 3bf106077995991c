"""Decoders: threads and processes give the same, memory is shared and never mixed up, and a kill loses nothing."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.crashing_reader import Unloadable, Words

from pipeline.errors import ClusterError
from pipeline.loading import decoders as module
from pipeline.loading.decoders import CHUNK, Decoders, Processes, Threads, start_decoders
from pipeline.loading.samples import Item, Reject
from pipeline.readers import Sample
from pipeline.readers.sample_key import content_key
from pipeline.sources import SampleLocation

ROOM = 256  # bytes that a sample is said to have


def given_bytes(data: bytes, *, path: str = "box.tar/x") -> Item:
    """A sample that was read already."""
    return Item(content_key(data), SampleLocation(path, "box.tar", 0, len(data)), data)


def plain(found: list[Sample | Reject]) -> list[object]:
    """Answers as values that can be compared."""
    return [
        one if isinstance(one, Reject) else {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in one.items()}
        for one in found
    ]


def words(count: int, *, word: str = "slow", seed: int = 0) -> list[Item]:
    """Samples of different lengths."""
    random = np.random.default_rng(seed)
    return [given_bytes(f"{word} {seed} {n} ".encode() + random.bytes(random.integers(0, 200))) for n in range(count)]


def expected(items: list[Item]) -> list[object]:
    """What a thread makes of the same samples."""
    with contextlib.closing(Threads(Words(), 1)) as threads:
        return plain(threads.submit(items)())


def children() -> set[int]:
    """The decoding processes of this one."""
    return {child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}


def gone(pids: set[int], *, within: float = 10.0) -> bool:
    """Whether processes end, some of them perhaps without anybody who asks for their last word."""
    end = time.monotonic() + within
    while alive := {pid for pid in pids if running(pid)}:
        if time.monotonic() > end:
            return not alive
        time.sleep(0.05)
    return True


def running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Two decoding processes that several tests use."""
    with contextlib.closing(Processes(Words(), 2, sample_bytes=ROOM)) as made:
        yield made


# The same from threads and processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Samples of every kind: good, damaged, missing and changed files, bytes that were read, and why they were not."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for number, text in enumerate(("good 1", "good 2", "bad file", "changed", "missing", "", "long " + 900 * "x")):
        path = folder / str(number)
        path.write_text("something else" if text == "changed" else text)
        found.append(Item(content_key(text.encode()), SampleLocation(str(path), None, None, len(text))))
        if text == "missing":
            path.unlink()
    cut_off = Item("0" * 32, SampleLocation("box.tar/cut", "box.tar", 512, 9), OSError("the archive ends before it"))
    return [*found, given_bytes(b"good 3"), given_bytes(b"bad bytes"), cut_off, given_bytes(b"large " + bytes(30_000))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.lists(st.integers(0, 10), max_size=30), min_size=1, max_size=4))
def test_threads_and_processes_give_the_same_in_the_same_order(
    processes: Processes, files: list[Item], chosen: list[list[int]]
) -> None:
    batches = [[files[number] for number in numbers] for numbers in chosen]
    answers = [processes.submit(batch) for batch in batches]
    assert [plain(answer()) for answer in answers] == [expected(batch) for batch in batches]


def test_every_reject_comes_with_its_reason(processes: Processes, files: list[Item]) -> None:
    reasons = [one.reason for one in processes.submit(files)() if isinstance(one, Reject)]
    assert reasons == [
        "damaged",
        "changed since its data set was prepared; run prepare again",
        "No such file or directory",
        "damaged",
        "the archive ends before it",
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_memory_is_used_again_and_never_mixed_up(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REGIONS", 2)
    with contextlib.closing(Processes(Words(), 1, sample_bytes=ROOM)) as pool:
        batches = [words(3 * CHUNK, word="quick", seed=seed) for seed in range(8)]
        answers = [pool.submit(batch) for batch in batches]  # 24 chunks for two regions
        found = [plain(answer()) for answer in answers[::order]]
        assert found == [expected(batch) for batch in batches[::order]]
        kept = [pool.submit(batch)() for batch in batches]  # what was handed out is not written over
        assert [plain(one) for one in kept] == [expected(batch) for batch in batches]


def test_samples_that_are_larger_than_was_said_come_all_the_same(processes: Processes) -> None:
    large = [given_bytes(bytes([number]) * size) for number, size in enumerate((100_000, 3, ROOM, 1_000_000, 20))]
    assert plain(processes.submit(large)()) == expected(large)


# Kills ----------------------------------------------------------------------------------------------------------------


def test_a_killed_process_loses_nothing_also_not_what_was_given_to_those_after_it() -> None:
    with contextlib.closing(Processes(Words(), 2, sample_bytes=ROOM)) as pool:
        batches = [words(20, seed=seed) for seed in range(4)]
        first, second = pool.submit(batches[0]), pool.submit(batches[1])
        killed = children().pop()
        os.kill(killed, signal.SIGKILL)
        found = [plain(first())]
        third = pool.submit(batches[2])  # to new processes, while answers of the old ones are still to be had
        found += [plain(second()), plain(third())]
        os.kill(children().pop(), signal.SIGKILL)  # this one has nothing to do
        time.sleep(0.3)
        found += [plain(pool.submit(batches[3])())]
        assert found == [expected(batch) for batch in batches]
        assert killed not in children()


def test_what_ends_its_process_each_time_is_rejected_and_the_others_are_answered(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    once = given_bytes(f"once {trap}".encode())
    items = [*words(5, word="quick"), given_bytes(b"end", path="box.tar/bad"), *words(6, word="quick", seed=1), once]
    with contextlib.closing(Processes(Words(), 2, sample_bytes=ROOM)) as pool:
        found = plain(pool.submit(items)())
    reason = "the process that decodes it died 3 times; check the file and the free memory"
    assert found[5] == Reject(content_key(b"end"), "box.tar/bad", reason, permanent=False)
    assert not trap.exists()
    assert found[:5] + found[6:] == expected(items[:5] + items[6:])


MAIN = """
import sys, time
import psutil
from support.crashing_reader import Words
from pipeline.loading.decoders import Processes
from test_decoders import children, expected, plain, words

if __name__ == "__main__":
    pool = Processes(Words(), 2, sample_bytes=256)
    pool.submit(words(20))()
    pids = children()
    print(*pids, flush=True)
    items = words(100)
    answer = pool.submit(items)
    try:
        found = answer()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)
        assert children() == pids
        assert plain(pool.submit(items)()) == expected(items)
        print("answered after Ctrl-C", flush=True)
        pool.close()
"""


@pytest.fixture
def main(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with decoders, in a session of its own; its first line names them."""
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def test_no_decoding_process_outlives_a_killed_main_process(main: "subprocess.Popen[str]") -> None:
    assert main.stdout is not None
    pids = set(map(int, main.stdout.readline().split()))
    assert len(pids) == 2
    assert all(map(running, pids))
    main.kill()
    main.wait()
    assert gone(pids)


def test_ctrl_c_reaches_the_main_process_only(main: "subprocess.Popen[str]") -> None:
    assert main.stdout is not None
    pids = set(map(int, main.stdout.readline().split()))
    time.sleep(0.3)
    os.killpg(main.pid, signal.SIGINT)  # as a terminal does
    out, said = main.communicate(timeout=30)
    assert (out, said, main.returncode) == ("answered after Ctrl-C\n", "", 0)
    assert gone(pids)


# Start and end --------------------------------------------------------------------------------------------------------


def test_close_ends_all_processes_and_drops_what_was_not_begun() -> None:
    before = children()
    pool = Processes(Words(), 2, sample_bytes=ROOM)
    pool.submit(words(12_000))
    started = children() - before
    assert len(started) == 2
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() - begin < 60  # a second; all of it would take twice as long
    assert gone(started)


def kind_of(pool: Decoders) -> type:
    """The class of decoders, which are closed."""
    pool.close()
    return type(pool)


def test_auto_takes_processes_beside_a_gpu_and_on_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of(start_decoders(Words(), "threads", sample_bytes=1, with_gpu=True)) is Threads
    assert kind_of(start_decoders(Words(), "processes", sample_bytes=1)) is Processes
    assert kind_of(start_decoders(Words(), "auto", sample_bytes=1, with_gpu=True)) is Processes
    monkeypatch.setattr(module, "MANY_CORES", 1000)
    assert kind_of(start_decoders(Words(), "auto", sample_bytes=1)) is Threads
    monkeypatch.setattr(module, "MANY_CORES", 0)
    assert kind_of(start_decoders(Words(), "auto", sample_bytes=1)) is Processes
    monkeypatch.delattr(os, "memfd_create")  # not Linux
    assert kind_of(start_decoders(Words(), "auto", sample_bytes=1)) is Threads


def test_a_daemon_may_not_start_processes_and_auto_takes_threads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert kind_of(start_decoders(Words(), "auto", sample_bytes=1, with_gpu=True)) is Threads
    with pytest.raises(ClusterError, match=r"decode: expected a worker that may start processes, got a daemon.*DAEMON"):
        start_decoders(Words(), "processes", sample_bytes=1)


def test_processes_that_end_at_once_are_an_error_and_no_reason_to_reject(capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(Processes(Unloadable(), 1, sample_bytes=ROOM)) as pool:
        answer = pool.submit(words(3))
        with pytest.raises(
            ClusterError, match=r"decode: expected a process that decodes, got a process that ends at once"
        ):
            answer()
    assert "this reader cannot be made here" in capfd.readouterr().err


def test_a_system_that_starts_no_process_is_named() -> None:
    with contextlib.closing(Processes(Words(), 1, sample_bytes=ROOM)) as pool:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(ClusterError, match=r"got \[Errno 24\] Too many open files.*decode: threads") as caught:
                pool.submit(words(1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "decode: expected a process that decodes" in str(caught.value)
