"""What the system refuses to open is refused with its words, owner and mode, and is never called missing or damaged."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from support import features
from support.unprivileged import closed, open_folder

from pipeline import manifest
from pipeline.backbones import glyphs, serialization
from pipeline.cli import info
from pipeline.errors import TrainingError
from pipeline.freeze.config import FreezeConfig
from pipeline.freeze.state_dict import read_entry
from pipeline.heads import saved
from pipeline.manifest import ManifestPaths
from pipeline.predictions import PredictionsFile
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.roots import inspect_roots
from pipeline.store import index
from pipeline.store.features import Features
from pipeline.task import Task
from pipeline.training import checkpoint
from stages import project


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    """A folder with one artefact of each kind."""
    with open_folder() as root:
        write_artefacts(root)
        yield root


def write_artefacts(root: Path) -> None:
    """Write a task, features, a fit run, a backbone, weights, a manifest and a checkpoint of a training."""
    place = features.make(root)
    place.fit(head="centroid")
    network = glyphs.GlyphNet(classes=3, widths=(8, 4))
    architecture = {"family": "glyphs", "classes": 3, "widths": [8, 4]}
    serialization.write(root / "backbone", network, architecture=architecture, origin={}, inputs=glyphs.INPUT)
    safetensors.torch.save_file(network.state_dict(), root / "w.safetensors")
    torch.save(network.state_dict(), root / "w.pth")
    torch.save({"format": 1, "settings": '{"seed": 1}'}, root / "last.pt")
    table = pa.table({"key": ["0" * 32], "path": ["a.jpg"], "size": [1], "label": ["cat"]})
    paths = ManifestPaths(root / "manifests", "pets")
    for path in (paths.rows, paths.files):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def state_dict(path: Path) -> object:
    """Read weights; the digest of those that may not be read is not asked for."""
    return read_entry(path, sha256="")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "backbone": ("backbone/backbone.json", lambda path: serialization.read(path.parent)),
    "weights": ("backbone/weights.safetensors", lambda path: serialization.read(path.parent)),
    "backbone folder": ("backbone", serialization.read),
    "state dict": ("w.safetensors", state_dict),
    "checkpoint": ("w.pth", state_dict),
    "training": ("last.pt", lambda path: checkpoint.resume(path, torch.nn.Identity(), None, None, {})),
    "head": ("models/*.skops", saved.read),
    "model": ("models/model.json", lambda path: saved.load(path.parent)),
    "task": ("tasks/pets.parquet", Task.read),
    "predictions": ("predictions/run.parquet", lambda path: list(PredictionsFile.open(path))),
    "manifest": ("manifests/pets.parquet", lambda path: manifest.read(path.parent, "pets", ["label"])),
    "files of a manifest": (
        "manifests/files/pets.parquet",
        lambda path: list(manifest.read_files(path.parent.parent, ["pets"])),
    ),
    "info": ("tasks/pets.parquet", info.describe),
    "index": ("features/easy/index.json", lambda path: index.read(path.parent)),
    "rows": ("features/easy/rows-*.npy", lambda path: index.open_rows(path.parent, index.read(path.parent))),
    "shard": ("features/easy/*.h5", lambda path: Features.open(path.parent).load()),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_may_not_be_read_is_refused_with_owner_and_mode(world: Path, kind: str) -> None:
    name, read = READERS[kind]
    path = next(world.glob(name))
    with contextlib.suppress(TrainingError):  # as root, who finds a checkpoint of other settings
        read(path)

    def stage() -> None:
        read(path)

    with closed(path, root=world) as named, pytest.raises(SystemExit) as refused:
        project.run(stage)
    below = path / "backbone.json" if path.is_dir() else path
    whose = str(path) if path.is_dir() else "it"
    assert str(refused.value) == f"error: {below}: Permission denied: {whose} {named}. Change its owner or mode."


def test_settings_of_files_that_may_not_be_read_suggest_no_digest(world: Path) -> None:
    weights, backbone = world / "w.pth", world / "backbone" / "backbone.json"
    for path, settings, message in (
        (weights, {"source": "torchvision", "model": "alexnet", "file": weights}, f"{weights}: Permission denied"),
        (backbone, {"source": "folder", "folder": backbone.parent}, f"{backbone}: Permission denied"),
    ):
        with closed(path, root=world), pytest.raises(ValidationError, match=re.escape(f"({message})")):
            TypeAdapter(FreezeConfig).validate_python(settings)


def test_shards_that_may_not_be_read_are_rejects_with_the_words_of_the_system(world: Path) -> None:
    shard = world / "shards" / "a.parquet"
    shard.parent.mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), shard)
    config = PrepareConfig(root=shard.parent, image="image", types={}, max_rejected=1.0)
    with closed(shard, root=world):
        found = list(find(config, inspect_roots(config)))
    assert [(one.path, one.refused) for one in found] == [(str(shard), ("unreadable", "Permission denied"))]
