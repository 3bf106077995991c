"""Pairs of sources, taps, stored types and engines, by `benchmarks/sources.py`: equal content gives equal bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from projects import ROOT

from pipeline.backbones import artefact, glyphs


@pytest.fixture
def sources() -> Iterator[ModuleType]:
    """The benchmark, imported as it is when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import sources

        yield sources


def test_the_benchmark_has_every_pair_that_can_go_together(sources: ModuleType) -> None:
    assert sources.uncovered(sources.pairwise(sources.LEVELS), sources.LEVELS) == {
        *(("memory", other) for other in ("processes", "workers", "scheduler")),
        ("onnxruntime", "bfloat16"),
    }


@pytest.mark.usefixtures("one_thread")
def test_wherever_images_lie_rows_are_those_of_the_folder(
    sources: ModuleType, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    architecture = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    artefact.write(tmp_path / "net", network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    photos = image_folder(each=9)
    sources.add_oddities(photos)
    levels = {
        **sources.LEVELS,
        "source": ("tar", "webdataset", "parquet", "memory"),
        "taps": ("default", "two", "views"),
        "dtype": ("float16", "int8"),
        "decode": ("threads",),
        "engine": ("torch", "onnxruntime"),
        "model": ("net",),
        "who": ("local",),
        "precision": ("float32",),
    }
    written = sources.write_sources(photos, tmp_path / "written", http="", names=("folder", *levels["source"]))
    ready = sources.Bench(tmp_path, {"net": (tmp_path / "net", "block1")}, written, scheduler="")
    cells = sources.pairwise(levels)
    assert sources.uncovered(cells, levels) == set()
    assert [ready.check(cell) for cell in cells] == [cell.engine for cell in cells]
    tap = sources.Cell("default", "float16", "tar", "threads", "torch", "net", "local", "float32")
    [(keys, rows)] = ready.extract(tap)[0].values()
    assert (len(keys), len(rows)) == (18, 18 * 4 * 2)  # without the copy and the damaged one
