"""Time whole processes over few images: python benchmarks/start.py.

    python benchmarks/start.py                     plain lines and icecore, two networks, 100 and 800 photos
    python benchmarks/start.py --peers PYTHON      thingsvision too, with the Python of its environment

Every run is a process that is timed from start to end, with empty caches of features. All runs of a table take turns in
one process of this script, round after round; the best round of each counts, and `of plain` is the plain lines' time
divided by it.

    plain lines          benchmarks/plain.py --once: a DataLoader, an eager network, np.save
    thingsvision         benchmarks/peers.py --once
    icecore              icecore extract: weights from a file, into an empty cache
      engine remembered  the same where an earlier job has left its choice of engine and its graph
      nothing new        the same command again
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pictures

from pipeline.engines import autotune
from pipeline.runtime import versions

HERE = Path(__file__).parent
REMEMBERED = ("engines", "onnx", "openvino")
"""The folders of the cache that hold no feature."""


def seconds_of(command: Sequence[object], environment: Mapping[str, str]) -> float:
    """Run a command; return the seconds of its process."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def emptied(cache: Path) -> None:
    """Remove the features from a cache."""
    for path in cache.iterdir():
        if path.name not in REMEMBERED:
            shutil.rmtree(path)


def measure(model: str, count: int, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return the best time of each way, seconds, for some images and a network."""
    photos = pictures.unpack(given.data, folder, count)
    paths = sorted(str(path) for path in photos.rglob("*") if path.is_file())
    listed, out, cache = folder / "images.json", folder / "out", folder / "cache"
    listed.write_text(json.dumps(paths))
    weights = pictures.weights_of(model, folder)
    plain = ["--model", model, "--weights", weights, "--images", listed, "--out", folder / "rows.npy", "--once"]
    command = [Path(sys.executable).parent / "icecore", "extract", "--backbone", model, "--file", weights]
    command += ["--weights", "IMAGENET1K_V1", "--data", photos, "--out", out, "--quiet"]
    environment = {**os.environ, "ICECORE_CACHE": str(cache)}
    best: dict[str, float] = {}

    def note(name: str, call: Sequence[object]) -> None:
        best[name] = min(best.get(name, float("inf")), seconds_of(call, environment))

    for _ in range(given.rounds):
        note("plain lines", [sys.executable, HERE / "plain.py", *plain])
        if given.peers:
            note("thingsvision", [given.peers, HERE / "peers.py", *plain])
        for left in (cache, out):
            shutil.rmtree(left, ignore_errors=True)
        note("icecore", command)
        emptied(cache)
        shutil.rmtree(out)
        note("icecore, engine remembered", command)
        note("icecore, nothing new", command)
    return best


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 800], help="how many images")
    parser.add_argument("--data", choices=(*pictures.ARCHIVES, "drawn"), default=pictures.data_sets()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", help="the Python of an environment that has thingsvision")
    given = parser.parse_args()
    print(autotune.machine(), versions("torch", "torchvision", "openvino", "pillow"))
    for model in given.models:
        print(
            f"\n{given.data}, {model}\n\n| seconds, whole process | "
            + " | ".join(f"{n:,} images" for n in given.counts)
        )
        print("|---|" + "---|" * len(given.counts), flush=True)
        columns = []
        for count in given.counts:
            with tempfile.TemporaryDirectory() as name:
                columns.append(measure(model, count, given, Path(name)))
        for way in columns[0]:
            cells = [f"{column[way]:.1f} ({column['plain lines'] / column[way]:.2f} of plain)" for column in columns]
            print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
