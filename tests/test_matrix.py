"""Pairs of settings of an extraction, by `benchmarks/source_cells.py`: equal content gives equal bytes.

The sample has every pair of source, taps, stored type, engine, precision and of who computes: this process, or the
worker of a scheduler, which is another process. Processes take seconds to start, so that two cells decode in processes,
and `run: {workers: 2}` and OpenVINO's bfloat16 are left to `benchmarks/sources.py`, which has every pair.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from support.projects import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "squeezenet1_1"
SIDE = 48
SOURCES = ("folder", "list", "tar", "webdataset", "parquet", "http_tar", "s3_tar")
PLAIN = {
    **{"dtype": "float16", "source": "memory", "decode": "threads", "engine": "torch"},
    **{"precision": "float32", "taps": "default", "who": "local", "model": MODEL},
}
PROCESSES: tuple[dict[str, str], ...] = (  # what differs from PLAIN
    {"source": "tar", "decode": "processes", "taps": "two", "engine": "onnxruntime"},
    {"source": "http_list", "decode": "processes", "dtype": "int8"},
)


@pytest.fixture(scope="module")
def cells() -> Iterator[ModuleType]:
    """The module that the benchmark has its cells from, imported as there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import source_cells

        yield source_cells


def sampled(cells: ModuleType) -> dict[str, tuple[str, ...]]:
    """Return the levels of the covering sample, in an order in which allpairspy gives all pairs."""
    small = {"decode": ("threads",), "model": (MODEL,), "source": SOURCES, "who": ("local", "scheduler")}
    levels = {**cells.LEVELS, **small}
    order = ("source", "taps", "who", "engine", "precision", "dtype", "decode", "model")
    return {name: levels[name] for name in order}


def quick(cells: ModuleType, cell: Mapping[str, str]) -> bool:
    """Return whether values go together without a process for each cell, which OpenVINO starts for bfloat16."""
    return cells.possible(cell) and not (cell.get("precision") == "bfloat16" and cell.get("engine") == "openvino")


def sample(cells: ModuleType) -> list[Any]:
    """Return the cells of the covering sample."""
    return cells.pairwise(sampled(cells), lambda cell: quick(cells, cell))


@pytest.fixture(scope="module")
def bench(cells: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Small photos in every source, a network with real weights where there are some, and a scheduler."""
    from pictures import data_sets, unpack

    root = tmp_path_factory.mktemp("sources")
    photos = unpack(data_sets()[0], root / "images", 6)
    for file in [file for file in photos.rglob("*") if file.is_file()]:
        with Image.open(file) as image:
            small = image.convert("RGB").resize((SIDE + 16, SIDE + 8))
        small.save(file.with_suffix(".png"))
        file.unlink()
    cells.add_oddities(photos)
    (root / "served").mkdir()
    with ExitStack() as stack:
        http = stack.enter_context(cells.http_server(root / "served"))
        stack.enter_context(cells.s3_server())
        sources = cells.write_sources(photos, root / "served", http=http, names=(*SOURCES, "http_list", "memory"))
        networks = {MODEL: cells.freeze_small(MODEL, root, side=SIDE)}
        yield cells.Bench(root, networks, sources, stack.enter_context(cells.scheduler(processes=True)))


def test_the_benchmark_has_every_pair_that_can_go_together(cells: ModuleType) -> None:
    assert cells.uncovered(cells.pairwise(cells.LEVELS), cells.LEVELS) == {
        *(("memory", other) for other in ("processes", "workers", "scheduler")),
        ("onnxruntime", "bfloat16"),
    }


def test_the_sample_has_every_pair_that_needs_no_other_process(cells: ModuleType) -> None:
    assert cells.uncovered(sample(cells), sampled(cells)) == {("onnxruntime", "bfloat16"), ("openvino", "bfloat16")}


def test_wherever_images_lie_rows_are_those_of_the_folder(cells: ModuleType, bench: Any) -> None:
    for cell in sample(cells):
        assert bench.check(cell) == ("torch" if cell.engine == "auto" else cell.engine)  # the job is short
    [(keys, rows)] = bench.extract(cells.Cell(**PLAIN))[0].values()
    assert (len(keys), rows.shape) == (6, (6, 512))  # without the copy and the damaged one


@pytest.mark.parametrize("settings", PROCESSES, ids=lambda settings: "-".join(settings.values()))
def test_whichever_process_works_rows_are_those_of_the_folder(
    cells: ModuleType, bench: Any, settings: dict[str, str]
) -> None:
    cell = cells.Cell(**{**PLAIN, **settings})
    assert bench.check(cell) == cell.engine
