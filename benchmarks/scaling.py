"""Measure costs that more workers do not reduce: the scheduler, the fixed cost of a shard, the main process.

    python benchmarks/scaling.py                       tasks a second, a unit's own time, 10^5 and 10^6 rows
    python benchmarks/scaling.py --rows 10000000       the last for 10^7 rows: some minutes, 3 GB of memory

    scheduler      units that do nothing by two workers on this machine: handed out a few at a time, as
                   pipeline/extract/dask_run.py does, and given to the scheduler all at once
    unit           units of one row against one unit of as many rows: spools, shards, fsync, records
    main process   each step over so many rows of a manifest with paths of 60 characters, in a process of its own: its
                   time, the memory it adds for good and at most; `known` is a run that finds all rows in the cache

docs/scaling.md says what follows from the numbers.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
from memory import resident

from pipeline.backbones.spec import TapSpec, read_spec
from pipeline.extract import dask_run, job_files
from pipeline.extract.commit import commit
from pipeline.extract.config import ExtractConfig, RunConfig
from pipeline.extract.dask_tasks import TaskResult
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.request import of_samples
from pipeline.extract.timing import Timings
from pipeline.extract.units import UnitInput, UnitResult
from pipeline.extract.worker import Worker
from pipeline.loading.samples import read_samples
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.runtime import SILENT
from pipeline.store import key_arrays

TAP = "x"
CONFIG = ExtractConfig(
    datasets=("many",), taps={TAP: TapSpec(node="penultimate")}, engine="torch", batch_size=256, shard_mb=1
)
PATH = "/data/images/train/n01440764_{:06d}/n01440764_{:014d}.jpg"  # 60 characters, as ImageNet's are
BLOCK = 100_000


# The scheduler --------------------------------------------------------------------------------------------------------


def nothing(folder: str, number: int) -> TaskResult:
    """Return at once, as a unit without work."""
    del folder
    return TaskResult(number, UnitResult([], {}), Timings(), [])


def tasks(count: int) -> Iterator[tuple[str, str]]:
    """Time units without work: assigned as in pipeline/extract/dask_run.py, then all at once."""
    begin = time.perf_counter()
    with dask_run.open_client(RunConfig(workers=2), gpus=0) as client:
        yield "two workers started", f"{time.perf_counter() - begin:.1f} s"
        hand_out(client, 50)  # imports
        for what, ahead in (("handed out a few at a time", 2 * dask_run.AHEAD), ("given at once", count)):
            begin = time.perf_counter()
            hand_out(client, count, ahead=ahead)
            each = (time.perf_counter() - begin) / count
            yield f"{count:,} units that do nothing, {what}", f"{1 / each:,.0f} a second, {1000 * each:.2f} ms each"


def hand_out(client: Any, count: int, *, ahead: int = 1) -> None:
    """Give tasks to workers, a number at a time, and take the results."""
    from distributed import as_completed

    waiting = (client.submit(nothing, "folder", number, pure=False) for number in range(count))
    ready = as_completed(itertools.islice(waiting, ahead), loop=client.loop)
    for future in ready:
        future.result()
        for more in itertools.islice(waiting, 1):
            ready.add(more)


# A unit ---------------------------------------------------------------------------------------------------------------


def units(count: int, taps: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Time one unit per image against one unit of all images; the same rows in two caches."""
    config = CONFIG.model_copy(
        update={
            "datasets": ("tiny",),
            "taps": {f"{TAP}{n}": TapSpec(node="penultimate", project=n + 1) for n in range(taps)},
        }
    )
    backbone = pictures.tiny(folder / "net")
    if not (folder / "tiny").is_dir():
        pictures.draw(folder / "tiny", count)
        prepare(PrepareConfig(root=folder / "tiny"), ManifestPaths(folder / "manifests", "tiny"))
    samples = read_samples(folder / "manifests", ("tiny",))
    took = []
    for name, parts in (("alone", count), ("together", 1)):
        assignment = WorkerJob(config, backbone, folder / f"{name}-{taps}", count, tuple(config.taps))
        works = [UnitInput(samples.take(rows), tuple(config.taps)) for rows in np.array_split(np.arange(count), parts)]
        with contextlib.closing(Worker(assignment, reporter=SILENT)) as worker:
            worker.prepare([samples])
            for _ in worker.make([replace(works[0])], done=lambda _: None, spent=Timings()):
                pass  # threads and folders are there
            begin = time.perf_counter()
            for _ in worker.make(works, done=lambda _: None, spent=Timings()):
                pass
            took.append(time.perf_counter() - begin)
    each = (took[0] - took[1]) / (count - 1)
    yield f"a unit of one row, {taps} taps, beyond its row", f"{1000 * each:.1f} ms, {1000 * each / taps:.1f} ms a tap"


# The main process -----------------------------------------------------------------------------------------------------


def write_manifest(folder: Path, count: int) -> Path:
    """Write the manifest of a data set of random keys; return the file."""
    random, path = np.random.default_rng(0), ManifestPaths(folder / "manifests", "many").files
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, FILES_SCHEMA) as file:
        for start in range(0, count, BLOCK):
            some = range(start, min(start + BLOCK, count))
            keys = key_arrays.to_hex(np.frombuffer(random.bytes(16 * len(some)), key_arrays.DTYPE))
            columns = [
                pa.array(keys),
                pa.array([PATH.format(number // 1000, number) for number in some]),
                pa.array(random.integers(10_000, 200_000, len(some))),
                pa.nulls(len(some), pa.string()),
                pa.nulls(len(some), pa.int64()),
            ]
            file.write_batch(pa.record_batch(columns, schema=FILES_SCHEMA))
    return path


class Steps:
    """Steps with their time and memory; MB of 10^6 bytes."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def step(self, name: str, rows: int, **more: int) -> Iterator[dict[str, Any]]:
        """Measure the time of a block, its peak of memory, and the memory that stays."""
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, begin = resident(os.getpid(), "VmRSS"), time.perf_counter()
        record: dict[str, Any] = {"step": name, **more}
        yield record
        record["seconds"] = time.perf_counter() - begin
        record["peak"] = (resident(os.getpid(), "VmHWM") - before) / rows
        pa.default_memory_pool().release_unused()
        record["stays"] = (resident(os.getpid(), "VmRSS") - before) / rows
        self.records.append(record)


def main_process(folder: Path, count: int) -> list[dict[str, Any]]:
    """Measure all steps of the main process for a number of rows. Bytes are per row."""
    steps, cache_root = Steps(), folder / "cache"
    backbone = folder / "net"
    spec = read_spec(backbone)
    asked = {"backbone": backbone, "spec": spec, "cache_root": cache_root}
    with steps.step("read the manifest", count):
        samples = read_samples(folder / "manifests", CONFIG.datasets)
    with steps.step("plan, nothing known", count) as record:
        request = of_samples(CONFIG, samples=samples, **asked)
        record["units"] = len(request.plan.units)
    assignment = WorkerJob(request.config, backbone, cache_root, count, request.missing_taps)
    works = (UnitInput(samples.take(unit.rows), unit.taps) for unit in request.plan.units)
    with steps.step("write the job's files", count) as record, job_files.written(assignment, works) as (job, number):
        record["bytes"] = (job / job_files.UNITS).stat().st_size / count
        record["job_bytes"] = (job / job_files.JOB).stat().st_size / number
        begin = time.perf_counter()
        job_files.read_work(job, number // 2)
        record["read_ms"] = 1000 * (time.perf_counter() - begin)
    column = request.columns[TAP]
    width = request.shapes[TAP][0]
    for unit in request.plan.units:
        with column.writer((width,)) as writer:
            writer.append(samples.keys[unit.rows], np.ones((len(unit.rows), width), np.float32))
            writer.finish(provenance={})
    with steps.step("plan, all known", count):
        of_samples(CONFIG, samples=samples, **asked)
    out = folder / "features" / TAP
    with steps.step("commit", count) as record:
        commit(out, column, samples.keys, (width,), {})
        record["bytes"] = next(out.glob("rows-*.npy")).stat().st_size / count
        record["index_bytes"] = (out / "index.json").stat().st_size / len(request.plan.units)
    files = [*column.folder.glob("*.json"), *column.folder.glob("*.keys")]
    steps.records.append({"step": "cache", "record_bytes": sum(p.stat().st_size for p in files) / count})
    return steps.records


def in_a_child(count: int, folder: Path | None) -> None:
    """Print the table of the steps for a number of rows."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        pictures.tiny(root / "net")
        size = write_manifest(root, count).stat().st_size
        command = [sys.executable, __file__, "--child", str(root), "--rows", str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"\n{count:,} rows, a manifest of {size / count:.0f} bytes per row\n")
    print("| step | seconds | µs per row | bytes per row at most | that stay | more |\n|---|---|---|---|---|---|")
    for found in json.loads(output.splitlines()[-1]):
        seconds, more = (
            found.pop("seconds", 0.0),
            {k: f"{v:,.1f}" for k, v in found.items() if k not in ("step", "peak", "stays")},
        )
        print(
            f"| {found['step']} | {seconds:.2f} | {1e6 * seconds / count:.2f} | {found.get('peak', 0):.0f} "
            f"| {found.get('stays', 0):.0f} | {', '.join(f'{k} {v}' for k, v in more.items())} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--tasks", type=int, default=1000, help="units that do nothing; 0: none (1000)")
    parser.add_argument("--units", type=int, default=200, help="units of one row; 0: none (200)")
    parser.add_argument("--taps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path, default=None, help="where to work (the system's temporary folder)")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(main_process(given.child, given.rows[0])))
        return
    print("| what | value |\n|---|---|")
    for what, value in tasks(given.tasks) if given.tasks else ():
        print(f"| {what} | {value} |", flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for taps in given.taps if given.units else ():
            for what, value in units(given.units, taps, Path(name)):
                print(f"| {what} | {value} |", flush=True)
    for count in given.rows:
        in_a_child(count, given.folder)


if __name__ == "__main__":
    main()
