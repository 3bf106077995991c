"""`icecore predict` over many inputs: seconds, rows a second and memory, and a prediction that is killed half-way.

    python benchmarks/predict.py                           1,000, 10,000 and 100,000 drawn images of 32 px
    python benchmarks/predict.py --inputs 1000 1000000     other numbers of them; 10^6 take some minutes per core
    python benchmarks/predict.py --folder DIR              work in DIR, by default in the system's temporary folder

The images are PNG files in archives of 10,000, all different. A logistic head on a network of a few weights predicts
them, so that what is measured is all but the network: listing, hashing, decoding, the store, the output. Each
prediction is a process of its own with an empty feature cache. Its memory is its own and that of its children, looked
at ten times a second, without the pages of files that it maps. The last number of inputs is predicted once more, killed
at half of its time, and started again: what it does then, and whether all rows are those of the undisturbed prediction.
"""

import argparse
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pictures
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.manifest import ManifestPaths, read
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.task import Task

SIDE = 32  # px
MEMBERS = 10_000  # of an archive
CLASSES = ("dark", "light")
INTERVAL = 0.1  # seconds
COMMAND = [sys.executable, "-c", "from pipeline.cli.main import main; main()", "predict"]


def image(number: int) -> bytes:
    """Return an image as PNG, dark for even numbers: a shade, and noise that no other image has."""
    noise = np.random.default_rng(number).integers(0, 128, (SIDE, SIDE), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise + np.uint8(number % 2 * 127)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def pack(folder: Path, count: int) -> list[Path]:
    """Write images into archives that are not there yet; return the archives with the first `count` of them."""
    folder.mkdir(exist_ok=True)
    archives = []
    for start in range(0, count, MEMBERS):
        here = range(start, min(start + MEMBERS, count))
        path = folder / f"{start:08d}-{len(here)}.tar"
        archives.append(path)
        if path.is_file():
            continue
        with tarfile.open(path, "w") as archive:
            for number in here:
                data = image(number)
                member = tarfile.TarInfo(f"{number:08d}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return archives


def fit_run(data: Path) -> Path:
    """Fit a head on a network of a few weights in the folder `data` of a project; return the folder of the run."""
    for number in range(40):
        path = data / "raw" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(10**9 + number))
    prepare(PrepareConfig(root=data / "raw"), ManifestPaths(data / "manifests", "drawn"))
    pictures.tiny(data / "backbones" / "tiny")
    extract(
        ExtractConfig.model_validate({"datasets": ["drawn"], "taps": {"last": {"node": "penultimate"}}}),
        backbone=data / "backbones" / "tiny",
        manifests=data / "manifests",
        out=data / "features" / "tiny",
        cache_root=data / "cache",
    )
    rows = read(data / "manifests", "drawn", ["key", "path", "label"]).sort_by("key")
    splits = ["test" if number % 4 == 0 else "train" for number in range(len(rows))]
    Task(rows.rename_columns(["key", "path", "target"]).append_column("split", pa.array(splits))).write(
        data / "tasks" / "shade.parquet"
    )
    config = {"task": "shade", "backbone": "tiny", "inputs": ["last"], "head": "logistic", "search": "none"}
    fit(
        FitConfig.model_validate(config),
        task=data / "tasks" / "shade.parquet",
        features=data / "features" / "tiny",
        models=data / "models" / "shade",
        predictions=data / "predictions" / "shade.parquet",
    )
    return data / "models" / "shade"


def start(run: Path, archives: list[Path], out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a prediction of some archives."""
    words = [str(run), *map(str, archives), "--out", str(out), "--engine", "torch", "--proba", "--quiet"]
    return subprocess.Popen([*COMMAND, *words], env={**os.environ, "ICECORE_CACHE": str(cache)})


def own_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children without the pages of files; 0 of one that has ended."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with psutil.Process(one.pid).oneshot():
            memory = one.memory_info()
            total += memory.rss - memory.shared
    return total


@dataclass(frozen=True)
class Measured:
    """Seconds of a prediction, seconds of all processors that it used, and its largest memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int

    def line(self, what: str, count: int) -> str:
        """Return a line of the table."""
        rate = f"{count / self.seconds:,.0f} | {1e3 * self.cpu_seconds / count:.2f}"
        return f"| {what} | {self.seconds:.1f} | {self.cpu_seconds:.1f} | {rate} | {self.peak / 1e6:.0f} |"


def measure(run: Path, archives: list[Path], out: Path, cache: Path) -> Measured:
    """Predict, and return what that took."""
    begin, peak, before = time.perf_counter(), 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(run, archives, out, cache)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, own_bytes(watched))
        except psutil.NoSuchProcess:
            continue
        time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"the prediction ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(time.perf_counter() - begin, cpu_seconds, peak)


def measure_kill(run: Path, archives: list[Path], out: Path, cache: Path, after: float) -> Measured:
    """Kill a prediction after some seconds and start it again; return what the second one took."""
    process = start(run, archives, out, cache)
    time.sleep(after)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return measure(run, archives, out, cache)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to work")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        run = fit_run(root / "data")
        print(
            "| inputs | seconds | CPU seconds | rows per second | CPU ms per row | peak MB |\n|---|---|---|---|---|---|"
        )
        for count in given.inputs:
            archives, out = pack(root / "archives", count), root / f"{count}.parquet"
            done = measure(run, archives, out, root / f"cache-{count}")
            rows = pq.read_metadata(out).num_rows
            if rows != count:
                raise SystemExit(f"expected {count:,} rows, got {rows:,}")
            print(done.line(f"{count:,}", count), flush=True)
        killed = root / "killed.parquet"
        again = measure_kill(run, archives, killed, root / "cache-killed", done.seconds / 2)
        print(again.line(f"{count:,}, killed after {done.seconds / 2:.1f} s, again", count))
        equal = pq.read_table(killed).equals(pq.read_table(out))
        print(f"\nAll rows of the killed prediction are those of the undisturbed one: {'yes' if equal else 'NO'}.")


if __name__ == "__main__":
    main()
