"""The files of a job, for workers in other processes and on other machines, so that messages stay small.

    <folder>/job.json       the job, and the missing taps of each unit
    <folder>/units.arrow    the samples, one record batch per unit; a worker maps the file and reads its batch

The folder is in the feature cache, which every worker must see anyway, and is removed when the job ends.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.units import UnitInput
from pipeline.files import read_json, remove_stale, scratch, write_json
from pipeline.loading.samples import SCHEMA, Samples
from pipeline.readers.augment import View

JOBS, JOB, UNITS = "jobs", "job.json", "units.arrow"


@dataclass(frozen=True)
class WorkerJob:
    """The job of a worker: settings with aliases resolved to nodes, and paths.

    samples: the number of samples of the whole job on which the network runs.
    missing_taps: the taps with missing rows.
    view: the augmented view to read instead of the clean samples.
    """

    config: ExtractConfig
    backbone: Path
    cache_root: Path
    samples: int
    missing_taps: tuple[str, ...]
    view: View | None = None


@contextlib.contextmanager
def written(assignment: WorkerJob, works: Iterator[UnitInput]) -> Iterator[tuple[Path, int]]:
    """Write the files of a job; yield their folder and the number of units, and remove the folder at the end."""
    with scratch(assignment.cache_root / JOBS, "job") as folder:
        folder.mkdir()
        yield folder, _write(folder, assignment, works)


def remove_stale_jobs(cache_root: Path) -> int:
    """Remove the job files of killed processes of this machine, and count them; jobs may be old, so age is ignored."""
    return remove_stale(cache_root / JOBS, older_than=math.inf)


def _write(folder: Path, assignment: WorkerJob, works: Iterator[UnitInput]) -> int:
    taps = []
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(folder / UNITS, SCHEMA, options=options) as file:
        for work in works:
            file.write_batch(work.samples.to_batch())
            taps.append(work.taps)
    job = {
        "config": assignment.config.model_dump(mode="json"),
        "backbone": str(assignment.backbone.absolute()),
        "cache": str(assignment.cache_root.absolute()),
        "samples": assignment.samples,
        "missing_taps": assignment.missing_taps,
        "view": None if assignment.view is None else assignment.view.model_dump(mode="json"),
        "units": taps,
    }
    write_json(folder / JOB, job)
    return len(taps)


def read_assignment(folder: Path) -> WorkerJob:
    """Return the job of a worker; raises StoreError if the worker cannot see the folder."""
    job = _read(folder)
    return WorkerJob(
        config=ExtractConfig.model_validate(job["config"]),
        backbone=Path(job["backbone"]),
        cache_root=Path(job["cache"]),
        samples=job["samples"],
        missing_taps=tuple(job["missing_taps"]),
        view=None if job["view"] is None else View.model_validate(job["view"]),
    )


def read_work(folder: Path, number: int) -> UnitInput:
    """Return one unit."""
    taps = _read(folder)["units"][number]
    with pa.memory_map(str(folder / UNITS)) as file:
        batch = pa.ipc.open_file(file).get_batch(number)
        return UnitInput(Samples.from_batch(batch), tuple(taps))


def _read(folder: Path) -> Any:
    path = folder / JOB
    if not path.is_file():
        raise StoreError(
            f"{path}: expected the job's file in the feature cache, got no such file. The cache, the backbone and "
            "the data must lie where every worker sees them under one path: set ICECORE_CACHE to a shared folder."
        )
    return read_json(path)
