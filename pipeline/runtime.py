"""The running process: reporting, cores, threads, seeds, and versions of packages."""

import contextlib
import ctypes
import io
import json
import os
import random
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

CORES = "ICECORE_CORES"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt in glibc's malloc.h."""

KEPT_BYTES = 2**31 - 1
"""Freed memory above this many bytes is returned to the kernel."""

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvhost-gpu", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of GPUs: NVIDIA's, of its Jetson computers, AMD's, and in Windows' Linux."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def _no_progress(done: int, total: int) -> None:
    """Show nothing of the progress."""


def _no_line(line: object) -> None:
    """Show nothing of a line."""


def _no_bar(title: str) -> AbstractContextManager[Progress]:  # noqa: ARG001 - a bar shows its title
    """Open no bar."""
    return nullcontext(_no_progress)


@dataclass(frozen=True)
class Reporter:
    """Receives the reports of a run; silent by default. `Reporter(message=print)` prints messages.

    Every stage's function takes one and hands it down.

    progress  called with (done, total)
    message   a line, or an object that prints as one or more: what a person has to know before or after the work
    log       a line for a log file, about one step of many, such as a stored shard or an epoch
    timings   a short text about where the time went so far, shown beside the progress
    bar       opens the progress of one stage of several, by its title
    """

    progress: Progress = _no_progress
    message: Callable[[Any], None] = _no_line
    log: Callable[[str], None] = _no_line
    timings: Callable[[str], None] = _no_line
    bar: Callable[[str], AbstractContextManager[Progress]] = _no_bar

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Self]:
        """Open a progress bar for a stage, and yield the reporter of that stage."""
        with self.bar(title) as progress:
            yield replace(self, progress=progress)

    def part(self, before: int, total: int) -> Self:
        """Return the reporter of a part of the work that begins after `before` of `total` steps."""

        def progress(done: int, _total: int) -> None:
            self.progress(before + done, total)

        return replace(self, progress=progress)

    def named(self, name: str) -> Self:
        """Return a reporter whose log lines begin with a name."""

        def log(line: str) -> None:
            self.log(f"{name}: {line}")

        return replace(self, log=log)


SILENT = Reporter()


def cores() -> int:
    """Return the number of processor cores that this thread and its children may use."""
    return len(core_numbers())


def core_numbers() -> list[int]:
    """Return the numbers of the processor cores that this thread and its children may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_gpu_driver() -> bool:
    """Return whether the driver of a GPU is loaded, without importing torch."""
    return any(Path(path).exists() for path in GPU_DRIVERS)


def gpus() -> int:
    """Return the number of GPUs that torch can use."""
    if not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def keep_to_cores() -> None:
    """Restrict this process to the cores in ICECORE_CORES, such as 0,1,5, if it is set and the system supports it."""
    wanted = os.environ.get(CORES, "")
    if wanted and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(number) for number in wanted.split(",")})


def end_with_parent() -> None:
    """End this process when its parent ends, even by a kill; it would otherwise wait for work forever."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def can_start_processes() -> bool:
    """Return whether processes can be started by spawning: not from a script without `if __name__ == "__main__"`.

    A new process runs the script once more, up to that line, and without it would start processes in its turn. A script
    on standard input cannot be run once more at all.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and (spec.name == "__main__" or spec.name.endswith(".__main__")):
        return True  # of `python -m package` a new process runs nothing
    path = getattr(main, "__file__", None)
    if path is None:  # an interpreter that a person types into, a notebook, `python -c`
        return True
    try:
        return "__main__" in Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # the path is `<stdin>`
        return False


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation instead of returning it to the kernel.

    glibc maps every block above 32 MiB anew, and the kernel clears its pages, which on a CPU takes up to two thirds of
    the time of a network on photos: its activations are that large. For processes of icecore's own, since it counts for
    all code of a process. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def print_any_text() -> None:
    """Let standard output and error print any text: characters that the encoding lacks become `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def closed_pipe_is_quiet() -> Iterator[None]:
    """End the process silently when the reader of standard output has closed it, as in `| head -1`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        raise SystemExit(141) from None  # the status of a process killed by SIGPIPE


def process_seconds() -> float:
    """Return the seconds since this process was started, with Python's own start-up."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Make torch prefer deterministic kernels in this block; its settings are restored afterwards.

    cuBLAS repeats its results where `CUBLAS_WORKSPACE_CONFIG` gives it its own workspace; a value that is set stays.
    """
    import torch

    own: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), own.fill_uninitialized_memory
    workspace = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Torch would also fill uninitialised tensors, for code that reads them.
        own.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        own.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop(CUBLAS, None)


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of packages, for records."""
    return {package: metadata.version(package) for package in sorted(packages)}


def parallel_map(act: Callable[[Any], Any], items: Sequence[Any], *, threads: int | None = None) -> Generator[Any]:
    """Apply a function as `map` does, in threads, one per core by default; only a few results are computed ahead."""
    if len(items) < 2:
        yield from map(act, items)
        return
    waiting: deque[Future[Any]] = deque()
    threads = threads or cores()
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        for item in items:
            waiting.append(pool.submit(act, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


ERRORS = "ICECORE_ERRORS"
"""Environment variable: the file to which stages write their errors."""


def note_error(stage: str, error: str | None) -> None:
    """Write the error of a stage to the file of `icecore repro`, if that runs it; None for no error."""
    if path := os.environ.get(ERRORS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "error": error}) + "\n")


def free_disk(folder: Path) -> int:
    """Return the free bytes for this user in a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """Return a folder, or its nearest existing parent, which is on the same file system."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())
