"""Measure the memory of extractions over time, for different numbers of samples.

Run through `python benchmarks/extract.py --memory [FOLDER]`. Each extraction runs in a process of its own, whose
resident memory is looked at twice a second: all of it, and what is its own without the pages of files that it maps,
such as libraries, of which the system keeps in memory what it likes. `FOLDER/memory.json` has the numbers,
`FOLDER/memory.png` the curves.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pictures
from matplotlib.figure import Figure

from pipeline.engines import autotune
from pipeline.files import atomic, write_json
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.runtime import versions

INTERVAL = 0.5  # seconds
MIB = 2**20
CHILD = """
import sys
from pathlib import Path
from rerun import CONFIG
from pipeline.extract.run import extract
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
extract(CONFIG, backbone=root / "net", manifests=root / "manifests", out=root / "features", cache_root=root / "cache")
"""


def write(results: Path, counts: list[int], *, folder: Path | None) -> None:
    """Measure extractions of growing numbers of tiny images; write memory.json and memory.png, print the peaks."""
    runs = [measure(count, folder=folder) for count in counts]
    first = runs[0]
    print("| images | seconds | peak MiB | against the first | without files | against the first |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        both = [f"{run[name]:.0f} | {run[name] / first[name]:.3f}" for name in ("peak_mib", "own_peak_mib")]
        print(f"| {run['images']:,} | {run['seconds']:.1f} | {' | '.join(both)} |")
    results.mkdir(parents=True, exist_ok=True)
    told = {"machine": autotune.machine(), "versions": versions("torch", "numpy", "h5py", "pyarrow"), "runs": runs}
    write_json(results / "memory.json", told)
    draw(results / "memory.png", runs)
    print(f"\n{results / 'memory.json'}, {results / 'memory.png'}")


def measure(count: int, *, folder: Path | None) -> dict[str, Any]:
    """Measure an extraction; return its time, peaks, memory after the imports, and traces in MiB, every `INTERVAL`."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        pictures.tiny(root / "net")
        pictures.draw(root / "tiny", count)
        prepare(PrepareConfig(root=root / "tiny", check="header"), ManifestPaths(root / "manifests", "tiny"))
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{CHILD}"]
        process = subprocess.Popen([*command, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        imports = resident(process.pid, "VmRSS")
        process.stdin.write("go\n")
        process.stdin.flush()
        begin, peak = time.perf_counter(), imports
        trace: list[float] = []
        own: list[float] = []
        while process.poll() is None:
            now, peak = resident(process.pid, "VmRSS"), max(peak, resident(process.pid, "VmHWM"))
            if now:
                trace.append(round(now / MIB, 1))
                own.append(round(resident(process.pid, "RssAnon") / MIB, 1))
            time.sleep(max(0.0, begin + len(trace) * INTERVAL - time.perf_counter()))
        if process.returncode:
            raise SystemExit(f"the extraction of {count:,} images ended with {process.returncode}")
        seconds = round(time.perf_counter() - begin, 1)
    found = {"images": count, "seconds": seconds, "imports_mib": round(imports / MIB, 1)}
    found |= {"peak_mib": round(peak / MIB, 1), "own_peak_mib": max(own), "interval_seconds": INTERVAL}
    return found | {"trace_mib": trace, "own_trace_mib": own}


def resident(process: int, which: str) -> int:
    """Return the bytes of a process in memory on Linux: now (VmRSS), at most so far (VmHWM), without files (RssAnon).

    0 when it has ended.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(which)), 0)


def draw(path: Path, runs: list[dict[str, Any]]) -> None:
    """Draw the curves, over the share of each run's time."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        for name, told, style in (("trace_mib", "", "-"), ("own_trace_mib", ", without files", ":")):
            times = [place * INTERVAL / run["seconds"] for place in range(len(run[name]))]
            axes.plot(times, run[name], style, label=f"{run['images']:,} images{told}")
    axes.set(xlabel="share of the run", ylabel="resident memory (MiB)", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
