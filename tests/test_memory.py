"""Batches and memory: one that does not fit is run in halves, also where memory is really lacking."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import SPEC_FILE
from pipeline.engines.out_of_memory import (
    GAIN,
    SHARE,
    SIZES,
    SizeTiming,
    choose_size,
    first_line,
    grow_sizes,
    is_out_of_memory,
    run_halving_on_oom,
)
from pipeline.engines.parity import compare
from pipeline.errors import EngineError
from pipeline.files import write_json

LACKS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
    RuntimeError("std::bad_alloc"),
]


# Halves ---------------------------------------------------------------------------------------------------------------


def limited(limit: int, ran: list[int], error: Exception | None = None) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A network whose memory holds `limit` samples."""

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        ran.append(len(pixels))
        if len(pixels) > limit:
            raise error or MemoryError("no room")
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        return [flat, flat.sum(axis=1, keepdims=True)]

    return run


@given(rows=st.integers(1, 70), limit=st.integers(1, 80))
def test_halves_give_the_same_rows_in_the_same_order(rows: int, limit: int) -> None:
    pixels = np.random.default_rng(rows).integers(0, 255, (rows, 2, 2, 1), dtype=np.uint8)
    ran: list[int] = []
    found = run_halving_on_oom(limited(limit, ran), pixels)
    for one, expected in zip(found, limited(rows, [])(pixels), strict=True):
        assert np.array_equal(one, expected)
    assert sum(count for count in ran if count <= limit) == rows
    assert min(ran) >= min(rows, max(1, limit // 2))  # no smaller than they must be


@pytest.mark.parametrize("error", LACKS, ids=lambda error: type(error).__name__)
def test_every_library_says_in_its_own_words_that_memory_is_lacking(error: Exception) -> None:
    assert is_out_of_memory(error)
    found = run_halving_on_oom(limited(3, [], error), np.zeros((10, 2, 2, 1), np.uint8))
    assert [one.shape for one in found] == [(10, 4), (10, 1)]


@pytest.mark.parametrize("smallest", [1, 4])
def test_what_cannot_be_divided_any_more_is_refused_with_what_to_do(smallest: int) -> None:
    ran: list[int] = []
    message = (
        rf"expected memory for {smallest} × 24 × 32 pixels at once, got too little: no room. Set a smaller batch_size, "
        "request fewer taps, pool the maps, or end other programs that use the memory"
    )
    with pytest.raises(EngineError, match=message):
        run_halving_on_oom(limited(0, ran), np.zeros((8, 24, 32, 3), np.uint8), smallest=smallest)
    assert ran == [8, 4, 2, 1][: ran.index(smallest) + 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_let_through_at_once(error: Exception) -> None:
    assert not is_out_of_memory(error)
    ran: list[int] = []
    with pytest.raises(type(error)) as caught:
        run_halving_on_oom(limited(0, ran, error), np.zeros((8, 2, 2, 1), np.uint8))
    assert caught.value is error
    assert ran == [8]


def test_the_first_line_of_an_error_is_that_which_says_something() -> None:
    assert first_line(RuntimeError("\n  a b.\nc")) == "a b"
    assert first_line(MemoryError()) == "MemoryError"


# The size of a batch --------------------------------------------------------------------------------------------------


def measured(seconds: dict[int, float], memory: Callable[[int], int | None] = lambda _: None) -> list[SizeTiming]:
    """What a device would have measured."""
    return [SizeTiming(size, seconds[size], memory(size)) for size in seconds]


def tried(results: dict[int, SizeTiming | Exception], *, memory: int | None = None) -> list[int]:
    """The sizes that are measured, and not too large."""

    def measure(size: int) -> SizeTiming:
        found = results[size]
        if isinstance(found, Exception):
            raise found
        return found

    return [one.size for one in grow_sizes(measure, memory=memory)]


def test_sizes_grow_until_they_gain_nothing_more() -> None:
    falling = {size: SizeTiming(size, 1 / size) for size in SIZES}
    assert tried(dict(falling)) == list(SIZES)
    assert tried({**falling, 256: SizeTiming(256, 1 / 130)}) == [32, 64, 128, 256]
    assert tried({**falling, 64: SizeTiming(64, 1 / 20)}) == [32, 64]


def test_sizes_end_where_memory_does() -> None:
    results = {size: SizeTiming(size, 1 / size, memory=size * 10) for size in SIZES}
    assert tried(dict(results), memory=10_000) == [32, 64, 128, 256, 512]
    assert tried(dict(results), memory=int(2_560 / SHARE)) == [32, 64, 128, 256]
    assert tried(dict(results), memory=10) == [32]  # there is none smaller
    for error in (MemoryError(), EngineError("expected memory")):
        assert tried({**results, 128: error}) == [32, 64]
        with pytest.raises(type(error)):
            tried({**results, 32: error})
    with pytest.raises(ValueError, match="something else"):
        tried({**results, 128: ValueError("something else")})


def test_the_best_size_is_the_smallest_that_is_as_fast_as_the_fastest() -> None:
    assert choose_size(measured({32: 1.0, 64: 0.5, 128: 0.41, 256: 0.4, 512: 0.45})) == 128
    assert choose_size(measured({32: 1.0})) == 32
    assert choose_size(measured({32: 0.4 * GAIN, 64: 0.4})) == 32


# A process without memory ---------------------------------------------------------------------------------------------

# The network's first map takes 64 MB for one batch of 16, so a batch takes far more than half of one, whatever the
# libraries take for themselves; the rest of the program needs a few MB.
ROOM = 100 * 2**20
CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from pipeline.backbones import serialization
from pipeline.backbones.spec import SPEC_FILE, TapSpec
from pipeline.engines.torch_engine import TorchEngine

torch.set_num_threads(1)
engine = TorchEngine(serialization.read(Path(sys.argv[1])), {"t": TapSpec(node="block1.0", pool="mean")}, batch_size=16)
pixels = np.random.default_rng(0).integers(0, 255, (16, 256, 256, 1), dtype=np.uint8)
network, ran = engine._network, []
engine.run({"pixels": pixels[:1].repeat(1, 0)})  # what the libraries load
plain = engine.run({"pixels": pixels})["t"]
engine._network = lambda batch: ran.append(len(batch)) or network(batch)
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]), -1))
found = engine.run({"pixels": pixels})["t"]
np.save(sys.argv[2], np.stack([plain, found]))
print(*ran)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GlyphNet for large images: a map of `block1.0` takes 8 MB."""
    folder = tmp_path_factory.mktemp("backbones") / "net"
    image = glyphs.INPUT.image.model_copy(update={"resize": (256, 256)})
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(32, 8))
    architecture = {"family": "glyphs", "classes": 3, "widths": [32, 8]}
    inputs = glyphs.INPUT.model_copy(update={"image": image})
    spec = serialization.write(folder, network, architecture=architecture, origin={}, inputs=inputs)
    # Without its probe: the process would keep the memory that the whole network took for that image.
    write_json(folder / SPEC_FILE, spec.model_dump(mode="json", exclude={"probe"}))
    return folder


def test_a_process_without_memory_for_a_batch_computes_it_in_halves(large: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.npy"
    command = [sys.executable, "-c", CHILD, str(large), str(rows), str(ROOM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["16", "8", "8"]
    plain, found = np.load(rows)
    assert compare(plain, found).problems(reduced=False) == []


def test_a_process_without_memory_for_one_sample_says_so(large: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(large), str(tmp_path / "rows.npy"), str(4 * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "EngineError: expected memory for 1 × 256 × 256 pixels at once, got too little: " in done.stderr
