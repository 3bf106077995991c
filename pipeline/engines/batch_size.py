"""The size of batches that suits a GPU: found by trying, safely below what its memory holds, and remembered.

`<cache>/batches/<digest>.json`: the size, by machine, backbone, taps and engine, so that a job that was killed goes on
with batches of the same size, and so with the same kernels.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.engines.autotune import Job, fingerprint
from pipeline.engines.out_of_memory import Measured, best, sizes
from pipeline.files import digest, read_json, write_json
from pipeline.runtime import Reporter
from pipeline.settings.check import Settings
from pipeline.store.location import writable
from pipeline.store.use import touch
from pipeline.text import human, table

RUNS = 3  # of a batch of each size, after a first one that prepares kernels


class Size(Settings):
    """What is remembered."""

    batch_size: int


def batch_size(job: Job, engine: str, pixels: np.ndarray, *, reporter: Reporter) -> int:
    """Return the size of batches for an engine; `pixels` are real ones, uint8 (n, height, width, channels).

    Raises what the engine does, where not even the smallest batch can be run.
    """
    path = None if job.cache is None else _path(job, job.cache, engine)
    remembered = None if path is None else _recall(path)
    if remembered is not None:
        return remembered
    measured = list(measure(job, engine, pixels))
    result = best(measured)
    reporter.message(f"batches of {result}\n{text(measured)}")
    if path is not None and job.cache is not None:
        with writable(job.cache):
            write_json(path, {"batch_size": result})
    return result


def _path(job: Job, cache: Path, engine: str) -> Path:
    return cache / "batches" / f"{digest({**fingerprint(job), 'engine': engine})}.json"


def _recall(path: Path) -> int | None:
    touch(path)
    try:
        return Size.model_validate(read_json(path)).batch_size if path.is_file() else None
    except ValueError:  # damaged, or of another version: it is measured again
        return None


def measure(job: Job, engine: str, pixels: np.ndarray) -> Iterator[Measured]:
    """Return batches of growing size, until memory is short or they gain nothing more."""

    def one(size: int) -> Measured:
        made = replace(job, batch_size=size).engine(engine)
        batch = {"pixels": np.resize(pixels, (size, *pixels.shape[1:]))}
        made.run(batch)
        seconds = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            made.run(batch)
            seconds.append(time.perf_counter() - begin)
        return Measured(size, min(seconds) / size, _used())

    return sizes(one, memory=_memory())


def text(measured: list[Measured]) -> str:
    """Return a table of sizes, samples per second, and memory where it is known."""
    rows = [
        (str(one.size), f"{1 / one.seconds:,.1f}", "-" if one.memory is None else human(one.memory)) for one in measured
    ]
    return table(("batch size", "samples/s", "GPU memory"), rows, inset=True)


def _memory() -> int | None:
    """Return bytes of the GPU's memory."""
    import torch

    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def _used() -> int | None:
    """Return the bytes of the GPU's memory in use by any process: engines keep what a batch needed."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    return int(whole - free)
