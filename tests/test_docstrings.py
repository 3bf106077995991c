"""Examples in docstrings run, and every class of docs/python-api.md has one."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import shards

from pipeline.backbones import glyphs, serialization
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.readers.sample_key import content_key
from pipeline.store import index, key_arrays
from pipeline.store.shard_format import Layout
from pipeline.task import Task

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in [ROOT / "icecore.py", *(ROOT / "pipeline").rglob("*.py")]
    if ">>> " in path.read_text(encoding="utf-8")
)
API = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")


def public_classes() -> list[type]:
    """The classes of docs/python-api.md, without errors."""
    names = re.findall(r"autoclass:: (\S+)", API)
    for module, members in re.findall(r"automodule:: (\S+)\n   :members: (.+)", API):
        names += [f"{module}.{member}" for member in members.split(", ")]
    objects = [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    return [item for item in objects if inspect.isclass(item)]


@pytest.mark.parametrize("public", public_classes(), ids=lambda public: public.__name__)
def test_a_public_class_has_an_example(public: type) -> None:
    assert ">>> " in (public.__doc__ or "")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a task, stored features, a fitted head and a backbone."""
    folder = tmp_path_factory.mktemp("project")
    names = [(label, split) for label in ("cat", "dog") for split in ("train", "train", "test")]
    rows = [
        {"key": content_key(f"{number}".encode()), "target": label, "split": split}
        for number, (label, split) in enumerate(names)
    ]
    rows.sort(key=lambda row: row["key"])
    Task(pa.Table.from_pylist(rows)).write(folder / "data" / "tasks" / "photos.parquet")

    keys = key_arrays.from_hex(row["key"] for row in rows)
    values = np.random.default_rng(0).normal(size=(len(rows), 3)).astype(np.float16)
    layout = Layout("ab" * 32, "float16", (3,))
    index.commit(
        folder / "features" / "penultimate",
        identity={"node": "penultimate", "pool": "none", "dtype": "float16", "weights": "cd" * 32},
        layout=layout,
        shards=[shards.write(folder / "features" / "penultimate", keys, values, layout)],
        keys=[keys],
        wanted=keys,
        rejected={},
    )
    fit(
        FitConfig(task="photos", backbone="tiny", inputs=("penultimate",), head="ridge", search=None),
        task=folder / "data" / "tasks" / "photos.parquet",
        features=folder / "features",
        models=folder / "data" / "models" / "probe",
        predictions=folder / "data" / "predictions" / "probe.parquet",
    )
    torch.manual_seed(0)
    serialization.write(
        folder / "data" / "backbones" / "tiny",
        glyphs.GlyphNet(classes=2, widths=(4,)),
        architecture={"family": "glyphs", "classes": 2, "widths": [4]},
        origin={"source": "pretrained"},
        inputs=glyphs.INPUT,
        classes=["cat", "dog"],
    )
    (folder / "photos").mkdir()
    for number in range(2):
        Image.new("L", (32, 32), 100 * number).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    result = doctest.testmod(importlib.import_module(module))
    assert (result.failed, result.attempted > 0) == (0, True)
