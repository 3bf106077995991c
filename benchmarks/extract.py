"""Extraction from encoded files to committed, verified shards, against what its parts allow and what users have.

    python benchmarks/extract.py                     all that runs on this machine
    python benchmarks/extract.py --peers PYTHON      thingsvision too, with the Python of its environment
    python benchmarks/extract.py --memory [FOLDER]   memory over time instead: benchmarks/memory.py

All rows of a table are measured in one run, in turn, round after round; the best round of each counts. `of the bound`
is the speed against 1 / (1/decode + 1/forward): what a machine can do whose cores decode each image and run the network
on it, and do nothing else. Each extraction is timed twice: whole, and beyond its first batch, that is less the time of
the same over as many images as a batch has. So neither start-up nor what is done once at the end is in the second.

    decode          our reader over all files, a thread a core
    forward         the fastest engine over decoded images
    icecore         extract() into an empty cache: weights, export, parity gate, shards, index, all of it
      beyond        extract() with the graph and the parity card there but no row, less the same over one batch
      auto          the first again, the engine chosen by `engine: auto`
    plain torch     benchmarks/plain.py in a process of its own, from building the network to the saved .npy
      beyond        less the same over one batch
    thingsvision    benchmarks/peers.py, likewise

Set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 where a virtual machine names AMX and cannot run it. Without ICECORE_ASSETS
drawn images and random weights are used.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import memory
import numpy as np
import pictures
import rerun
from probe import accuracy

from pipeline import manifest
from pipeline.backbones import artefact
from pipeline.backbones.spec import TapSpec
from pipeline.engines import gate, select
from pipeline.engines.select import Job, choose
from pipeline.errors import EngineError
from pipeline.extract import ExtractConfig
from pipeline.extract.run import extract
from pipeline.manifest import ManifestPaths
from pipeline.prepare import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.readers.image import ImageReader
from pipeline.runtime import cores, versions
from pipeline.store import cache
from pipeline.store.features import Features

HERE = Path(__file__).parent
MODELS = ("mobilenet_v2", "resnet50")
TAP = "penultimate"


@dataclass
class Case:
    """One data set and one network, prepared; the time of every run by its name."""

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
        """The best time of a run, seconds; infinite if there was none."""
        return min(self.seconds.get(name, [np.inf]))

    def rate(self, name: str, less: str = "") -> float:
        """Images a second, of the best round; `less` is a run over one batch whose time is taken off."""
        if not less:
            return len(self.paths) / self.best(name)
        return (len(self.paths) - self.batch) / max(self.best(name) - self.best(less), 1e-9)

    @property
    def bound(self) -> float:
        """Images a second if the cores did nothing but decode and compute."""
        return 1 / (1 / self.rate("decode") + 1 / self.rate("forward"))


def prepared(folder: Path, data: str, model: str, precision: str, given: argparse.Namespace) -> Case:
    """Unpack images, list them and the first batch alone, and freeze the network."""
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
    """The pixels of some images, uint8 (images, height, width, channels), by a thread a core."""
    reader = ImageReader(artefact.read_spec(case.backbone).input.image)
    with ThreadPoolExecutor(cores()) as pool:
        return np.stack([sample["pixels"] for sample in pool.map(lambda path: reader(Path(path).read_bytes()), paths)])


def decode(case: Case) -> None:
    """Read and decode every image, and keep none."""
    reader = ImageReader(artefact.read_spec(case.backbone).input.image)
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda path: reader(Path(path).read_bytes())["pixels"].shape, case.paths):
            pass


def fastest(case: Case) -> Callable[[], None]:
    """Choose the fastest engine that passes the gate; return what runs it over as many images as there are."""
    backbone, specs = artefact.read(case.backbone), {TAP: TapSpec(node=TAP)}
    job = Job(backbone, specs, case.batch, case.precision, cache=case.folder / "engine-cache")
    shapes = {TAP: backbone.spec.taps[TAP].shape}
    pixels = decoded(case, case.paths[: gate.rows_for(shapes, case.batch, case.precision)])
    chosen = choose(select.AUTO, job, pixels, samples=10**9, say=lambda _: None)
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
        taps={TAP: TapSpec(node=TAP)},
        batch_size=case.batch,
        engine=engine,
        precision=case.precision,
    )
    out = root / "features"
    extract(config, backbone=case.backbone, manifests=case.folder / manifests, out=out, cache_root=root / "cache")
    return out / TAP


def emptied(root: Path) -> Path:
    """The same cache with its graphs, choices and parity cards, and without rows or features."""
    for column in cache.columns(root / "cache"):
        for record in list(column.records()):
            column.drop(record)
    shutil.rmtree(root / "features", ignore_errors=True)
    return root


def child(case: Case, script: str, python: str) -> dict[str, object]:
    """Run plain.py or peers.py; the JSON it prints. Its vectors are `<script>.npy`."""
    listed = case.folder / "images.json"
    listed.write_text(json.dumps(case.paths))
    command = [python, HERE / script, "--model", case.model, "--weights", case.weights, "--images", listed]
    command += ["--batch", case.batch, "--precision", case.precision, "--out", case.folder / f"{script}.npy"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, given: argparse.Namespace) -> None:
    """All rounds of all runs, in turn; the times go to the case."""
    forward = fastest(case)
    warm = case.folder / f"warm-{case.model}-{case.precision}"
    first = case.folder / f"first-{case.model}-{case.precision}"
    run(case, engine=case.engine, root=warm)
    run(case, engine=case.engine, root=first, manifests="first")

    def fresh(engine: str) -> None:
        with tempfile.TemporaryDirectory(dir=case.folder) as empty:
            run(case, engine=engine, root=Path(empty))

    timed: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(case),
        "forward": forward,
        "icecore": lambda: fresh(case.engine),
        "auto": lambda: fresh("auto"),
    }
    children = {"plain torch": ("plain.py", sys.executable)}
    if given.peers and case.precision == "float32":
        children["thingsvision"] = ("peers.py", given.peers)
    for _ in range(given.rounds):
        for name, act in timed.items():
            clock(case, name, act)
        emptied(warm), emptied(first)
        clock(case, "warm", lambda: run(case, engine=case.engine, root=warm))
        clock(case, "warm first", lambda: run(case, engine=case.engine, root=first, manifests="first"))
        for name, (script, python) in children.items():
            said = child(case, script, python)
            case.seconds.setdefault(name, []).append(said["seconds"])
            case.seconds.setdefault(f"{name} first", []).append(said["seconds_of_first"])


def clock(case: Case, name: str, act: Callable[[], object]) -> None:
    """Time one run."""
    start = time.perf_counter()
    act()
    case.seconds.setdefault(name, []).append(time.perf_counter() - start)


def rows(case: Case) -> Iterator[tuple[str, float]]:
    """What is printed of a case: a name, and images a second."""
    yield "decode", case.rate("decode")
    yield f"forward ({case.engine})", case.rate("forward")
    yield "bound", case.bound
    yield f"icecore ({case.engine}), whole", case.rate("icecore")
    yield f"icecore ({case.engine}), beyond the first batch", case.rate("warm", "warm first")
    yield "icecore (auto), whole", case.rate("auto")
    for name in ("plain torch", "thingsvision"):
        if name in case.seconds:
            yield f"{name}, whole", case.rate(name)
            yield f"{name}, beyond the first batch", case.rate(name, f"{name} first")


def probes(case: Case) -> Iterator[str]:
    """The accuracy of a linear probe on our features and on the others'."""
    warm = case.folder / f"warm-{case.model}-{case.precision}"
    ours = Features.open(warm / "features" / TAP).load(case.keys)
    found = {"icecore": accuracy(ours, case.paths)}
    for name, script in (("plain torch", "plain.py"), ("thingsvision", "peers.py")):
        if name in case.seconds:
            found[name] = accuracy(np.load(case.folder / f"{script}.npy"), case.paths)
    for name, value in found.items():
        yield f"{name} {100 * value:.1f} %" + (
            "" if name == "icecore" else f" (icecore {100 * (found['icecore'] - value):+.1f} points)"
        )


def dask_against_local(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The Dask runner against the local one, beyond the first batch: nothing yet, until there is one."""
    del given
    yield from ()


def compare(given: argparse.Namespace) -> None:
    """Print the tables of all data sets, networks and precisions."""
    for data in given.data:
        for model in given.models:
            for precision in given.precisions:
                with tempfile.TemporaryDirectory(dir=given.folder) as name:
                    case = prepared(Path(name), data, model, precision, given)
                    print(f"\n{data}, {len(case.paths):,} images, {model}, {precision}\n")
                    try:
                        measure(case, given)
                    except EngineError as error:
                        print(f"left out: {error}", flush=True)
                        continue
                    print("| what | images/s | of the bound |\n|---|---|---|")
                    for what, rate in rows(case):
                        print(f"| {what} | {rate:,.1f} | {rate / case.bound:.2f} |", flush=True)
                    if model == "mobilenet_v2" and data == "caltech":
                        print(f"\nlinear probe: {'; '.join(probes(case))}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=(*pictures.ARCHIVES, "drawn"), default=pictures.data_sets())
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--images", type=int, default=800, help="of each data set (800)")
    parser.add_argument("--batch", type=int, default=64, help="images a batch, in all runs (64)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument("--peers", help="the Python of an environment that has thingsvision")
    parser.add_argument("--rerun", type=int, default=100_000, help="rows of the runs with nothing new; 0: none")
    parser.add_argument("--memory", type=Path, nargs="?", const=HERE / "results", help="write memory over time there")
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 200_000], help="rows of --memory")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (the system's temporary folder)")
    given = parser.parse_args()
    if given.images <= given.batch:
        parser.error(f"--images: expected more than one batch of {given.batch}, got {given.images}")
    select.WORTH["torch_compiled"] = np.inf  # minutes of compilation
    settings = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA") if name in os.environ}
    print(select.machine(), versions("torch", "torchvision", "onnxruntime-gpu", "openvino", "pillow"), settings)
    if given.memory is not None:
        memory.write(given.memory, given.counts, folder=given.folder)
        return
    compare(given)
    for what, value in dask_against_local(given):
        print(f"| {what} | {value:.2f} |")
    if given.rerun:
        print(f"\n{given.rerun:,} images of 8 × 8 px, a tiny network\n\n| what | value |\n|---|---|")
        for what, text in rerun.rows(given.rerun, folder=given.folder):
            print(f"| {what} | {text} |", flush=True)


if __name__ == "__main__":
    main()
