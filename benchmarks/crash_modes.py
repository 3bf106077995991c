"""Kill one extraction of many images in each mode: `python benchmarks/crash.py --images 20000`.

    threads     the main process is killed, and the extraction run again
    processes   a process that decodes is killed, and the run goes on
    workers     one of two Dask workers is killed, and the run goes on

The kill comes when a random number of samples is done. At the end each cache and each features folder must equal, byte
for byte, those of a run that nobody disturbed.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from crash import contents, draw, leftovers

TAPS = {"deep": {"node": "block2", "pool": "mean"}, "grid": {"node": "block1", "pool": "avg8x8", "dtype": "float32"}}
SHARD_MB = 2  # 256 rows of `grid`
MODES: dict[str, dict[str, Any]] = {
    "threads": {"decode": "threads"},
    "processes": {"decode": "processes"},
    "workers": {"decode": "threads", "workers": 2},
}

Process = subprocess.Popen[str]


def rounds(root: Path, images: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Run all modes, one after another; yield the result and the problems of each."""
    random = np.random.default_rng(seed)
    draw(root, images)
    _, last = run(root, root / "undisturbed", "threads", lambda *_: False)
    whole = contents(root / "undisturbed")
    stored = sum(size(root / "undisturbed").values())
    shards = sum(name.endswith(".h5") and name.startswith("cache/") for name in whole)
    yield f"undisturbed: {last:,} images, {shards} shards, {stored / 2**20:,.0f} MiB", []
    for mode in MODES:
        moment = int(random.integers(images // 10, images * 9 // 10))
        yield disturbed(root, mode, moment, whole)


def disturbed(root: Path, mode: str, moment: int, whole: dict[str, str]) -> tuple[str, list[str]]:
    """Run an extraction in a mode, with a kill, to its end; return the events and the problems."""
    made, at = root / mode, []

    def kill(process: Process, done: int) -> bool:
        if done < moment:
            return False
        at.append(done)
        os.kill(process.pid if mode == "threads" else decoding_or_working(process.pid), signal.SIGKILL)
        return True

    code, last = run(root, made, mode, kill)
    said = f"{mode}: killed at {at[0]:,} images" if at else f"{mode}: not killed"
    wrong = [] if at and code == (-signal.SIGKILL if mode == "threads" else 0) else [f"{mode}: ended with {code}"]
    if mode == "threads":
        found = leftovers(made)
        code, last = run(root, made, mode, lambda *_: False)
        said += f", {found} leftovers, run again for {last:,} images"
        wrong += [f"{mode}: ended with {code}"] if code else []
    now = contents(made)
    differing = [name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name)]
    wrong += [f"{mode}/{name}: differs" for name in sorted(differing)]
    wrong += [f"{mode}: {leftovers(made)} leftovers"] if leftovers(made) else []
    said += f"; {len(now) - len(differing)} of {len(whole)} files equal"
    shutil.rmtree(made)
    return said, wrong


def run(root: Path, made: Path, mode: str, kill: Callable[[Process, int], bool]) -> tuple[int, int]:
    """Extract in another process; return its exit code and the number of samples that it reported.

    `kill` is told each time how many are done, until it has killed.
    """
    command = [sys.executable, __file__, *map(str, (root, made)), mode]
    last, killed = 0, False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            killed = killed or kill(process, last)
    return process.returncode, last


def decoding_or_working(main: int) -> int:
    """Return a child process that decodes or runs units."""
    children = psutil.Process(main).children()
    return max(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))


def size(folder: Path) -> dict[Path, int]:
    """Return the bytes of the shards in a cache."""
    return {path: path.stat().st_size for path in folder.glob("cache/**/*.h5")}


def extract(root: Path, made: Path, mode: str) -> None:
    """Extract the images that `draw` wrote to `root`, and print the number of finished samples."""
    from pipeline.extract.config import ExtractConfig
    from pipeline.extract.run import extract
    from pipeline.runtime import Reporter

    settings = {"datasets": ["drawn"], "taps": TAPS, "shard_mb": SHARD_MB, "engine": "torch", "run": MODES[mode]}
    extract(
        ExtractConfig.model_validate(settings),
        backbone=root / "net",
        manifests=root / "manifests",
        out=made / "features",
        cache_root=made / "cache",
        reporter=Reporter(progress=lambda done, _: print(done, flush=True)),
    )


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
