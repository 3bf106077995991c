"""Prepare a data set and a network, and time runs on them: benchmarks/extract.py says what the rows mean."""

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pictures

from pipeline import manifest
from pipeline.backbones import serialization
from pipeline.backbones.spec import TapSpec, read_spec
from pipeline.engines import autotune, parity_gate
from pipeline.engines.autotune import Job, choose
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.image import ImageReader
from pipeline.runtime import SILENT, cores
from pipeline.store import cache

HERE = Path(__file__).parent
TAP = "penultimate"
MAPS = {"mobilenet_v2": "features.18", "resnet50": "layer4"}
"""Whose mean is the penultimate vector."""


@dataclass
class Case:
    """A prepared data set and network, and the times of every run by its name."""

    folder: Path
    model: str
    precision: str
    batch: int
    backbone: Path
    weights: Path
    paths: list[str]
    keys: list[str]
    engine: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def best(self, name: str) -> float:
        """Return the best time of a run, seconds; infinite without a run."""
        return min(self.seconds.get(name, [np.inf]))

    def rate(self, name: str, less: str = "") -> float:
        """Return the images per second of the best round; the time of `less`, a run over one batch, is subtracted."""
        if not less:
            return len(self.paths) / self.best(name)
        return (len(self.paths) - self.batch) / max(self.best(name) - self.best(less), 1e-9)

    @property
    def taps(self) -> dict[str, TapSpec]:
        """The penultimate vector; in bfloat16 as the mean of the last map, whose rows are not replayed: it strays more
        from the network's logits than the replay of float32's own allows.
        """
        if self.precision == "float32":
            return {TAP: TapSpec(node=TAP)}
        return {TAP: TapSpec(node=MAPS[self.model], pool="mean")}

    @property
    def bound(self) -> float:
        """Return the images per second if the cores only decoded and computed."""
        return 1 / (1 / self.rate("decode") + 1 / self.rate("forward"))


def prepared(folder: Path, data: str, model: str, precision: str, given: argparse.Namespace) -> Case:
    """Unpack images, list all images and the first batch separately, and freeze the network."""
    photos = folder / data
    if not photos.is_dir():
        pictures.unpack(data, folder, given.images)
        prepare(PrepareConfig(root=photos), ManifestPaths(folder / "manifests", data))
        paths = manifest.read(folder / "manifests", data, ["path"])["path"].to_pylist()
        listed = folder / "first.csv"
        listed.write_text("\n".join(["path", *paths[: given.batch]]))
        prepare(PrepareConfig(root=listed, base=Path("/")), ManifestPaths(folder / "first", data))
    backbone, weights = pictures.backbone_of(model, folder)
    table = manifest.read(folder / "manifests", data, ["key", "path"])
    paths, keys = table["path"].to_pylist(), table["key"].to_pylist()
    return Case(folder, model, precision, given.batch, backbone, weights, paths, keys)


def decoded(case: Case, paths: list[str]) -> np.ndarray:
    """Decode images to uint8 (images, height, width, channels), with a thread per core."""
    reader = ImageReader(read_spec(case.backbone).input.image)
    with ThreadPoolExecutor(cores()) as pool:
        return np.stack([sample["pixels"] for sample in pool.map(lambda path: reader(Path(path).read_bytes()), paths)])


def decode(case: Case) -> None:
    """Read and decode every image, without storing pixels."""
    reader = ImageReader(read_spec(case.backbone).input.image)
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda path: reader(Path(path).read_bytes())["pixels"].shape, case.paths):
            pass


def fastest(case: Case) -> Callable[[], None]:
    """Choose the fastest engine that passes the parity check; return a function that runs it over all images."""
    backbone = serialization.read(case.backbone)
    job = Job(backbone, case.taps, case.batch, case.precision, cache=case.folder / "engine-cache")
    shapes = {TAP: backbone.spec.taps[TAP].shape}
    pixels = decoded(case, case.paths[: parity_gate.rows_for(shapes, case.batch, case.precision)])
    chosen = choose(autotune.AUTO, job, lambda: pixels, samples=10**9, reporter=SILENT)
    case.engine = chosen.name
    whole = np.resize(pixels, (case.batch, *pixels.shape[1:]))

    def forward() -> None:
        for start in range(0, len(case.paths), case.batch):
            chosen.engine.run({"pixels": whole[: len(case.paths) - start]})

    return forward


def run(case: Case, *, engine: str, root: Path, manifests: str = "manifests") -> Path:
    """Extract; returns the folder of the features."""
    data = Path(case.paths[0]).relative_to(case.folder).parts[0]
    config = ExtractConfig(
        datasets=(data,),
        taps=case.taps,
        batch_size=case.batch,
        engine=engine,
        precision=case.precision,
    )
    out = root / "features"
    extract(config, backbone=case.backbone, manifests=case.folder / manifests, out=out, cache_root=root / "cache")
    return out / TAP


def emptied(root: Path) -> Path:
    """Remove rows and features from a cache; its graphs, choices and parity cards stay."""
    for column in cache.columns(root / "cache"):
        for record in list(column.records()):
            column.drop(record)
    shutil.rmtree(root / "features", ignore_errors=True)
    return root


def child(case: Case, script: str, python: str) -> dict[str, object]:
    """Run plain.py or peers.py; return the printed JSON. The vectors are in `<script>.npy`."""
    listed = case.folder / "images.json"
    listed.write_text(json.dumps(case.paths))
    command = [python, HERE / script, "--model", case.model, "--weights", case.weights, "--images", listed]
    command += ["--batch", case.batch, "--precision", case.precision, "--out", case.folder / f"{script}.npy"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def clock(case: Case, name: str, act: Callable[[], object]) -> None:
    """Time one run."""
    start = time.perf_counter()
    act()
    case.seconds.setdefault(name, []).append(time.perf_counter() - start)
