"""Extraction from encoded files to committed, verified shards, against the bound of its parts and other programs.

    python benchmarks/extract.py                     all that runs on this machine
    python benchmarks/extract.py --peers PYTHON      thingsvision too, with the Python of its environment
    python benchmarks/extract.py --memory [FOLDER]   memory over time instead: benchmarks/memory.py
    python benchmarks/extract.py --no-tables --rerun 0    two workers through Dask alone: benchmarks/workers.py

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
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import memory
import numpy as np
import pictures
import rerun
import workers
from cases import HERE, TAP, Case, child, clock, decode, emptied, fastest, prepared, run
from probe import accuracy

from pipeline.engines import autotune
from pipeline.errors import PipelineError
from pipeline.runtime import versions
from pipeline.store.features import Features

MODELS = ("mobilenet_v2", "resnet50")


def measure(case: Case, given: argparse.Namespace) -> None:
    """Run all rounds of all runs, in turn, and add the times to the case."""
    forward = fastest(case)
    warm = case.folder / f"warm-{case.model}-{case.precision}"
    first = case.folder / f"first-{case.model}-{case.precision}"
    for root in (warm, first):  # the graph is exported once
        shutil.copytree(case.folder / "engine-cache", root / "cache")
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


def rows(case: Case) -> Iterator[tuple[str, float]]:
    """Return the printed rows of a case: a name, and images per second."""
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
    """Return the accuracy of a linear probe on our features and on those of the other programs."""
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
                    except PipelineError as error:
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
    parser.add_argument("--batch", type=int, default=64, help="images per batch, in all runs (64)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument("--peers", help="the Python of an environment that has thingsvision")
    parser.add_argument("--rerun", type=int, default=100_000, help="rows of the runs with nothing new; 0: none")
    parser.add_argument("--no-tables", dest="tables", action="store_false", help="leave the tables of all networks out")
    parser.add_argument("--no-workers", dest="workers", action="store_false", help="leave the two Dask workers out")
    parser.add_argument("--memory", type=Path, nargs="?", const=HERE / "results", help="write memory over time there")
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 200_000], help="rows of --memory")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (the system's temporary folder)")
    given = parser.parse_args()
    if given.images <= given.batch:
        parser.error(f"--images: expected more than one batch of {given.batch}, got {given.images}")
    autotune.MIN_JOB_SECONDS["torch_compiled"] = np.inf  # minutes of compilation
    settings = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA") if name in os.environ}
    print(autotune.machine(), versions("torch", "torchvision", "onnxruntime-gpu", "openvino", "pillow"), settings)
    if given.memory is not None:
        memory.write(given.memory, given.counts, folder=given.folder)
        return
    if given.tables:
        compare(given)
    if given.workers:
        print("\n| two workers through Dask | value |\n|---|---|")
        for what, value in workers.rows(given):
            print(f"| {what} | {value:.2f} |", flush=True)
    if given.rerun:
        print(f"\n{given.rerun:,} images of 8 × 8 px, a tiny network\n\n| what | value |\n|---|---|")
        for what, text in rerun.rows(given.rerun, folder=given.folder):
            print(f"| {what} | {text} |", flush=True)


if __name__ == "__main__":
    main()
