"""The size of batches: measured on an engine, remembered, and never part of the features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import TapSpec
from pipeline.engines import batch_size
from pipeline.engines.autotune import Job
from pipeline.engines.out_of_memory import SIZES, SizeTiming
from pipeline.runtime import Reporter

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> serialization.Backbone:
    """A tiny network of random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("net")
    architecture = {"family": "glyphs", "classes": 3, "widths": [4]}
    network = glyphs.GlyphNet(classes=3, widths=(4,))
    serialization.write(folder, network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    return serialization.read(folder)


def job(backbone: serialization.Backbone, cache: Path | None) -> Job:
    """One tap of the network."""
    return Job(backbone, {"last": TapSpec(node="logits")}, batch_size=64, cache=cache)


def test_a_size_is_measured_once_for_a_machine_a_network_and_an_engine(
    tmp_path: Path, backbone: serialization.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    found = batch_size.batch_size(job(backbone, tmp_path), "torch", PIXELS, reporter=Reporter(message=said.append))
    assert found in SIZES
    assert said[0].startswith(f"batches of {found}\n")
    assert "samples/s" in said[0]
    (note,) = (tmp_path / "batches").glob("*.json")
    monkeypatch.setattr(batch_size, "measure_sizes", None)  # it would fail
    assert (
        batch_size.batch_size(job(backbone, tmp_path), "torch", PIXELS, reporter=Reporter(message=said.append)) == found
    )
    assert len(said) == 1
    monkeypatch.undo()
    note.write_text("{")
    assert (
        batch_size.batch_size(job(backbone, tmp_path), "torch", PIXELS, reporter=Reporter(message=said.append)) in SIZES
    )
    assert len(said) == 2
    assert batch_size.batch_size(job(backbone, None), "torch", PIXELS, reporter=Reporter(message=said.append)) in SIZES


def test_sizes_are_listed_with_what_they_take() -> None:
    text = batch_size.describe_sizes([SizeTiming(32, 0.001, 2_000_000_000), SizeTiming(64, 0.0005)])
    assert [line.split() for line in text.splitlines()] == [
        ["batch", "size", "samples/s", "GPU", "memory"],
        ["32", "1,000.0", "2.0", "GB"],
        ["64", "2,000.0", "-"],
    ]
