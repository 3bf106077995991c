"""The batch size of a GPU: measured, well below the limit of its memory, and stored.

`<cache>/batches/<digest>.json`: the size, by machine, backbone, taps and engine, so that a killed job continues with
the same batch size, and so with the same kernels.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.engines.autotune import Job, fingerprint
from pipeline.engines.out_of_memory import SizeTiming, choose_size, grow_sizes
from pipeline.files import digest, read_json, write_json
from pipeline.runtime import Reporter
from pipeline.settings.check import Settings
from pipeline.store.location import writable
from pipeline.store.use import touch
from pipeline.text import human, table

RUNS = 3  # timed runs per size, after a first run that prepares kernels


class Size(Settings):
    """The stored batch size."""

    batch_size: int


def batch_size(job: Job, engine: str, pixels: np.ndarray, *, reporter: Reporter) -> int:
    """Return the batch size for an engine. `pixels`: real images uint8 (n, height, width, channels).

    Raises the engine's error if not even the smallest batch can run.
    """
    path = None if job.cache is None else _size_path(job, job.cache, engine)
    remembered = None if path is None else _load_size(path)
    if remembered is not None:
        return remembered
    measured = list(measure_sizes(job, engine, pixels))
    result = choose_size(measured)
    reporter.message(f"batches of {result}\n{describe_sizes(measured)}")
    if path is not None and job.cache is not None:
        with writable(job.cache):
            write_json(path, {"batch_size": result})
    return result


def _size_path(job: Job, cache: Path, engine: str) -> Path:
    return cache / "batches" / f"{digest({**fingerprint(job), 'engine': engine})}.json"


def _load_size(path: Path) -> int | None:
    touch(path)
    try:
        return Size.model_validate(read_json(path)).batch_size if path.is_file() else None
    except ValueError:  # damaged, or of another version: measured again
        return None


def measure_sizes(job: Job, engine: str, pixels: np.ndarray) -> Iterator[SizeTiming]:
    """Yield the timings of growing batch sizes, until memory is short or larger batches gain nothing."""

    def time_size(size: int) -> SizeTiming:
        instance = replace(job, batch_size=size).engine(engine)
        batch = {"pixels": np.resize(pixels, (size, *pixels.shape[1:]))}
        instance.run(batch)
        seconds = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            instance.run(batch)
            seconds.append(time.perf_counter() - begin)
        return SizeTiming(size, min(seconds) / size, _gpu_memory_used())

    return grow_sizes(time_size, memory=_gpu_memory())


def describe_sizes(measured: list[SizeTiming]) -> str:
    """Return a table of batch sizes, samples per second, and memory if known."""
    rows = [
        (str(timing.size), f"{1 / timing.seconds:,.1f}", "-" if timing.memory is None else human(timing.memory))
        for timing in measured
    ]
    return table(("batch size", "samples/s", "GPU memory"), rows, inset=True)


def _gpu_memory() -> int | None:
    """Return the size of the GPU's memory in bytes; None without a GPU."""
    import torch

    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def _gpu_memory_used() -> int | None:
    """Return the bytes of GPU memory in use by all processes: engines keep the memory of their largest batch."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
