"""Heads that stream rows from disk, against scikit-learn's with rows in memory: `python benchmarks/heads.py`.

Every fit runs in a process of its own, whose peak of resident memory is told; those that are compared run in turn, and
ratios are of medians. The features are made up, as of a network: positive, correlated, float16, written by the
project's store in shards. Parts: ridge, large, sweep, neighbors; `--scale 0.01` makes everything as much smaller, to
see that it works.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from head_jobs import SHARD, write

from pipeline.engines import autotune
from pipeline.runtime import versions

JOBS = Path(__file__).with_name("head_jobs.py")
TEST = 10_000


def run(job: str, folder: Path, **given: Any) -> dict[str, Any]:
    """Run a job in a separate process; return its results."""
    command = [sys.executable, str(JOBS), job, str(folder)]
    command += [f"{name}={json.dumps(value)}" for name, value in given.items()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(*cells: Any) -> None:
    """Print a line of a table."""
    print(
        "| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def head(*names: str) -> None:
    """Print the head of a table."""
    row(*names)
    print("|" + "---|" * len(names))


def ridge(folder: Path, *, rows: int, width: int, classes: int, repeats: int) -> None:
    """Compare 20 penalties from the store with one in memory.

    Wanted: 1.5 of the time, 0.3 of the memory, 99.99 % equal predictions.
    """
    print(f"\n## Ridge: {rows:,} x {width:,} float16 from the store, {classes} classes\n")
    test = min(TEST, rows)
    write(folder, rows + test, width, classes)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(run("ridge", folder, rows=rows, test=test))
        theirs.append(run("ridge_in_memory", folder, rows=rows, test=test, alpha=ours[-1]["alpha"]))
    one, other = ({name: float(np.median([r[name] for r in runs])) for name in runs[0]} for runs in (ours, theirs))
    head("what", "icecore, 20 alphas, from the store", "scikit-learn, 1 alpha, in memory", "ratio")
    row("fit, seconds", one["seconds"], other["seconds"], one["seconds"] / other["seconds"])
    row("peak memory, MiB", one["peak"], other["peak"], one["peak"] / other["peak"])
    beyond = [found["peak"] - found["imports"] for found in (one, other)]
    row("peak beyond imports, MiB", *beyond, beyond[0] / beyond[1])
    print(f"\n{other['agree']:.4%} of {test:,} test rows predicted alike, {other['accuracy']:.2%} of them right")


def large(folder: Path, *, rows: int, width: int, classes: int) -> None:
    """Fit to many rows on disk, and to twice as many. Wanted: a peak under 2 GB, and at 2x the rows within 5 %."""
    print(f"\n## Rows on the disk: {rows:,} and {2 * rows:,} x {width:,} float16, {classes} classes\n")
    test = min(1000, rows)
    write(folder, 2 * rows + test, width, classes)
    head("head", "rows", "seconds", "passes", "accuracy", "peak MiB", "against half the rows")
    for name in ("ridge", "lda", "logistic", "knn"):
        peaks: list[float] = []
        for count in (rows, 2 * rows):
            found = run("large", folder, head=name, rows=count, test=test)
            peaks.append(found["peak"])
            told = found["seconds"], found["passes"], found["accuracy"], found["peak"]
            row(name, f"{count:,}", *told, peaks[-1] / peaks[0] if len(peaks) > 1 else "")


def sweep(folder: Path, *, rows: int, width: int, classes: int, values: int) -> None:
    """Compare a sweep of all values of C with the median of one value. Wanted: at most 10."""
    print(f"\n## {values} values of C, 1e-6 to 1e5: {rows:,} x {width:,}, {classes} classes\n")
    write(folder, rows, width, classes)
    head("head", "passes", "median of one", "ratio", "each by itself", "sweep, s", "median of one, s", "ratio")
    for name, in_memory in (("streaming", False), ("scikit-learn in memory, as `fit` sweeps", True)):
        found = run("path", folder, rows=rows, values=values, in_memory=in_memory)
        counts = found["count"], found["median_count"], found["count"] / found["median_count"], found["all_count"]
        seconds = found["seconds"], found["median"], found["seconds"] / found["median"]
        row(name, *counts, *seconds)


def neighbors(folder: Path, *, rows: int, width: int, queries: int, repeats: int) -> None:
    """Find 10 neighbours of each query. Wanted: no slower than brute force in memory, 1.5 times as fast as a goal."""
    print(f"\n## 10 neighbours of {queries:,} queries among {rows:,} x {width:,}\n")
    write(folder, rows + queries, width, 100)
    head("metric", "icecore, s", "scikit-learn in memory, s", "times as fast", "peak MiB", "theirs", "alike")
    for metric in ("cosine", "euclidean"):
        ours, theirs = [], []
        for _ in range(repeats):
            given = {"rows": rows, "queries": queries, "metric": metric}
            ours.append(run("knn", folder, **given, in_memory=False))
            theirs.append(run("knn", folder, **given, in_memory=True))
        one, other = (float(np.median([found["seconds"] for found in runs])) for runs in (ours, theirs))
        row(metric, one, other, other / one, ours[-1]["peak"], theirs[-1]["peak"], f"{theirs[-1]['agree']:.4%}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["ridge", "large", "sweep", "neighbors"])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of rows and queries")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of large and neighbors")
    parser.add_argument("--width", type=int, default=None, help="2,048 of ridge, 1,024 of large, 512 of the others")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the rows are written for the time of a part")
    given = parser.parse_args()

    def scaled(count: int) -> int:
        return max(200, int(count * given.scale))

    print(f"{autotune.machine()}, {versions('numpy', 'scikit-learn')}; shards of {SHARD:,} rows")
    parts = {
        "ridge": (ridge, {"rows": scaled(50_000), "width": 2048, "classes": 100, "repeats": given.repeats}),
        "large": (large, {"rows": scaled(given.rows), "width": 1024, "classes": 10}),
        "sweep": (sweep, {"rows": scaled(20_000), "width": 512, "classes": 10, "values": 45}),
        "neighbors": (
            neighbors,
            {"rows": scaled(given.rows), "width": 512, "queries": scaled(10_000), "repeats": given.repeats},
        ),
    }
    for name in given.parts:
        if name not in parts:
            parser.error(f"unknown part {name!r}, expected some of: {', '.join(parts)}")
        part, options = parts[name]
        if given.width:
            options["width"] = given.width
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            part(Path(folder), **options)


if __name__ == "__main__":
    main()
