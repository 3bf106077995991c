"""Work on all cores: results come in order, and only a few of them wait. Seeds: all draws repeat themselves."""

import contextlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.runtime import CUBLAS, cores, parallel_map, repeatable_kernels, seed_everything


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_their_items(count: int) -> None:
    assert list(parallel_map(lambda number: number * 2, range(count))) == [2 * number for number in range(count)]


def test_no_more_results_are_made_than_a_few_before_they_are_read() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def act(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    for read, number in enumerate(parallel_map(act, range(100))):
        assert read == number
        assert len(begun) <= read + 2 * cores() + 1


def test_an_error_in_one_item_comes_out_where_its_result_would() -> None:
    found = parallel_map(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_equal_seeds_give_equal_draws() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(7)
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_repeatable_kernels_end_with_their_block(mode: str, workspace: str | None, monkeypatch: Any) -> None:
    own: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode()
    monkeypatch.delenv(CUBLAS, raising=False)
    if workspace is not None:
        monkeypatch.setenv(CUBLAS, workspace)
    monkeypatch.setattr(own, "fill_uninitialized_memory", True)
    try:
        torch.set_deterministic_debug_mode(mode)
        started = torch.get_deterministic_debug_mode()
        with contextlib.suppress(ZeroDivisionError), repeatable_kernels():
            assert torch.get_deterministic_debug_mode() == 1  # repeatable kernels, and a warning where there is none
            assert not own.fill_uninitialized_memory
            assert os.environ[CUBLAS] == (workspace or ":4096:8")
            raise ZeroDivisionError
        assert torch.get_deterministic_debug_mode() == started
        assert own.fill_uninitialized_memory
        assert os.environ.get(CUBLAS) == workspace
    finally:
        torch.set_deterministic_debug_mode(before)


ASK = "from pipeline.runtime import can_start_processes\nprint(can_start_processes())\n"
GUARDED = f"if __name__ == '__main__':\n    {ASK.replace(chr(10), chr(10) + '    ')}\n"


@pytest.mark.parametrize(
    ("words", "script", "can"),
    [
        (["script.py"], ASK, False),
        (["script.py"], GUARDED, True),
        (["-m", "script"], ASK, False),
        (["-m", "script"], GUARDED, True),
        (["-m", "package"], ASK, True),  # a new process does not run the __main__.py of a package
        (["-"], GUARDED, False),
        (["-c", ASK], "", True),
    ],
    ids=lambda value: " ".join(value).partition("\n")[0] if isinstance(value, list) else "",
)
def test_processes_can_be_started_where_the_script_can_be_run_again(
    words: list[str], script: str, can: bool, tmp_path: Path
) -> None:
    (tmp_path / "package").mkdir()
    for name in ("script.py", "package/__main__.py"):
        (tmp_path / name).write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, *words],
        input=script,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{can}\n"
