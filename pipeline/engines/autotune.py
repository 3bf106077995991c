"""Choose the engine of a job: the requested engine, or for `auto` the fastest that passes the parity check.

`auto` times torch on a few real samples. If the job is long enough (`MIN_JOB_SECONDS`), other engines are prepared and
timed too, and the fastest that passes the parity check is chosen and stored for this machine, backbone and set of taps.
A job that is killed and restarted therefore continues with the same engine and writes the same bytes; so does a job of
the same taps over other samples.

`<cache>/engines/<digest>.json`: the choice, and for a short job how many samples it had.
"""

import importlib.util
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones.spec import TapSpec
from pipeline.engines import ENGINES, PRECISIONS_OF, Engine, create
from pipeline.engines.parity_gate import ROWS, ParityCard, check_parity
from pipeline.errors import EngineError, bullets
from pipeline.files import digest, read_json, write_json
from pipeline.runtime import Reporter, cores, gpus
from pipeline.settings.check import Settings
from pipeline.store.location import writable
from pipeline.store.use import touch
from pipeline.text import table

if TYPE_CHECKING:
    from pipeline.backbones.serialization import Backbone

AUTO = "auto"
SECONDS = 4.0
"""The seconds for timing all engines together, after a first run of each; a twentieth of torch's time for jobs shorter
than `LONG`."""

LONG = 80.0
# How long torch must need for the whole job before another engine is prepared: a trace for OpenVINO takes seconds, an
# export to ONNX several times as long, compiling minutes.
MIN_JOB_SECONDS = {
    "torch": 0.0,
    "onnxruntime": LONG,
    "openvino": 20.0,
    "onnxruntime_cuda": 30.0,
    "torch_compiled": 1200.0,
}


@dataclass(frozen=True)
class Job:
    """A backbone with taps to run, the batch size and the precision. `cache`: the folder of the feature cache."""

    backbone: "Backbone"
    specs: Mapping[str, TapSpec]
    batch_size: int
    precision: str = "float32"
    cache: Path | None = None

    @property
    def reference(self) -> Engine:
        """Torch in float32, to compare engines with; in batches of few rows, since torch fills a batch up."""
        return replace(self, batch_size=min(ROWS, self.batch_size)).engine("torch", precision="float32")

    def engine(self, name: str, specs: Mapping[str, TapSpec] | None = None, *, precision: str | None = None) -> Engine:
        """Create an engine for the job's taps, or for the taps `specs`."""
        return create(
            name,
            self.backbone,
            self.specs if specs is None else specs,
            batch_size=self.batch_size,
            precision=precision or self.precision,
            cache=self.cache,
        )


@dataclass(frozen=True)
class EngineChoice:
    """An engine, the reason of the choice, and the card of the parity check if it ran for this choice."""

    name: str
    engine: Engine
    card: ParityCard | None = None
    why: str = "as the settings say"
    measured: str = ""
    """A table with the timing and the outcome of every engine; empty if engines were not timed."""


class Choice(Settings):
    """A stored choice. `samples`: the size of a job too short to time other engines; None if they were timed."""

    engine: str
    samples: int | None = None


def choose(name: str, job: Job, pixels: Callable[[], np.ndarray], *, samples: int, reporter: Reporter) -> EngineChoice:
    """Return the engine `name`, or for `auto` the fastest engine that passes the parity check.

    pixels: returns the first samples of the job; empty if none can be read. samples: the number of samples of the job.

    Raises EngineError if the requested engine, or with `auto` every engine, cannot run. Only engines that were timed
    get a parity check.
    """
    if name != AUTO:
        return EngineChoice(name, job.engine(name))
    stored = load_choice(job, samples)
    if stored is not None:
        try:
            engine = job.engine(stored)
        except EngineError as error:
            reporter.message(f"engine {stored}, remembered for this machine, cannot run any more: {error}")
        else:
            return EngineChoice(stored, engine, why="remembered for this machine and backbone")
    return _measure(job, pixels(), samples=samples, reporter=reporter)


def gate(job: Job, engine: Engine, pixels: np.ndarray) -> ParityCard:
    """Check the parity of an engine with torch float32; raises EngineError with the taps that fail."""
    return _gate(job, engine, job.reference, pixels)


def _gate(job: Job, engine: Engine, reference: Engine, pixels: np.ndarray) -> ParityCard:
    """Check the parity of an engine; torch in float32 is compared with itself, in batches of few rows."""
    if engine.provenance["engine"] == "torch" and job.precision == "float32":
        card = check_parity(reference, reference, pixels, job.specs, batch_size=min(ROWS, job.batch_size))
        return card.model_copy(update={"engine": dict(engine.provenance)})
    autocast = None
    if job.precision in ("bfloat16", "float16"):
        is_torch = engine.provenance["engine"] == "torch"
        autocast = engine if is_torch else job.engine("torch", precision=job.precision)
    return check_parity(engine, reference, pixels, job.specs, batch_size=job.batch_size, autocast=autocast)


def candidates(precision: str) -> list[str]:
    """Return the engines that this machine can run in a precision: for its GPU if it has one, else for the CPU."""
    import torch

    names = ["torch", "torch_compiled"]
    if torch.cuda.is_available():
        names += ["onnxruntime_cuda"] if _is_installed("onnxruntime") else []
    else:
        names += [library for library in ("onnxruntime", "openvino") if _is_installed(library)]
    return [name for name in names if precision in PRECISIONS_OF[name] and (precision != "tf32" or gpus() > 0)]


def _measure(job: Job, pixels: np.ndarray, *, samples: int, reporter: Reporter) -> EngineChoice:
    if not len(pixels):  # no samples to run
        return EngineChoice("torch", job.engine("torch"), why="nothing is to be computed")
    names, small_batch = candidates(job.precision), pixels[: min(ROWS, job.batch_size)]
    if not names:
        raise EngineError(f"precision {job.precision!r}: no engine has it here. Choose float32.")
    notes: dict[str, str] = {}
    engines: dict[str, Engine] = {}
    reference = job.reference
    per_row = _time_torch(reference, small_batch) / len(small_batch)
    job_seconds = per_row * samples
    batch = pixels[: job.batch_size] if job_seconds >= LONG else small_batch
    tried = [name for name in names if job_seconds >= MIN_JOB_SECONDS[name]]
    for name in tried:
        try:
            engines[name] = job.engine(name)
            if len(tried) > 1:
                engines[name].run({"pixels": batch})
        except EngineError as error:
            notes[name] = str(error)
            reporter.message(f"engine {name} is left out: {error}")
    short = len(tried) == 1 and len(names) > 1
    timed = dict(engines)
    if batch is small_batch and job.precision == "float32" and "torch" in engines:
        timed["torch"] = reference  # which does not fill the few rows up
    best = {} if short else _time_engines(timed, batch, seconds=SECONDS * min(1.0, job_seconds / LONG))
    torch_seconds = best.get("torch", per_row * len(batch))
    for name in sorted(engines, key=lambda name: best.get(name, 0.0)):
        try:
            card = _gate(job, engines[name], reference, pixels)
        except EngineError as error:
            notes[name] = "refused: " + str(error).replace("\n", " ")
            reporter.message(f"engine {name} is refused: {error}")
            continue
        save_choice(job, Choice(engine=name, samples=samples if short else None))
        if short:
            why = f"the whole job takes it about {job_seconds:.0f} s, too little to try others"
            return EngineChoice(name, engines[name], card, why)
        untried = {name: "not tried: the job is too short" for name in names if name not in tried}
        timings = _describe_timings(best, len(batch), torch_seconds, job.precision, {name: "taken"} | untried | notes)
        why = "the fastest" if name == "torch" else f"{torch_seconds / best[name]:.1f} times as fast as torch"
        return EngineChoice(name, engines[name], card, why, timings)
    raise EngineError(bullets("no engine computes these taps", notes.values()))


def _time_torch(engine: Engine, batch: np.ndarray) -> float:
    """Return the seconds of a batch; the first run, which prepares kernels, counts only if it takes over a second."""
    for _ in range(2):
        start = time.perf_counter()
        engine.run({"pixels": batch})
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds


def _time_engines(engines: Mapping[str, Engine], batch: np.ndarray, *, seconds: float) -> dict[str, float]:
    """Return the best time of a batch for each engine, running the engines in turn for `seconds`."""
    best = dict.fromkeys(engines, np.inf)
    start_of_all = time.perf_counter()
    while engines:
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run({"pixels": batch})
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() - start_of_all >= seconds:
            break
    return best


def _describe_timings(
    best: Mapping[str, float], rows_timed: int, torch_seconds: float, precision: str, notes: Mapping[str, str]
) -> str:
    names = [*sorted(best, key=lambda name: best[name]), *(name for name in notes if name not in best)]
    rows = [
        (
            name,
            f"{rows_timed / best[name]:.1f}" if name in best else "-",
            f"{torch_seconds / best[name]:.2f}" if name in best else "-",
        )
        for name in names
    ]
    lines = table((f"engine, {precision}", "samples/s", "of torch"), rows, inset=True).splitlines()
    return "\n".join(
        [lines[0], *(f"{line}  {notes.get(name, '')}".rstrip() for line, name in zip(lines[1:], names, strict=True))]
    )


def save_choice(job: Job, choice: Choice) -> None:
    """Store a choice in the cache; raises StoreError if the cache cannot be written."""
    if job.cache is None:
        return
    with writable(job.cache):
        write_json(_path(job, job.cache), choice.model_dump())


def load_choice(job: Job, samples: int) -> str | None:
    """Return the stored choice of engine if it is valid for this number of samples; None otherwise."""
    path = None if job.cache is None else _path(job, job.cache)
    if path is None or not path.is_file():
        return None
    try:
        choice = Choice.model_validate(read_json(path))
    except ValueError:  # damaged, or written by another version: measure again
        return None
    touch(path)
    if choice.engine not in ENGINES or (choice.samples is not None and samples > choice.samples):
        return None
    return choice.engine


def _path(job: Job, cache: Path) -> Path:
    return cache / "engines" / f"{digest(fingerprint(job))}.json"


def fingerprint(job: Job) -> dict[str, Any]:
    """Return everything that a choice depends on: machine, network, taps, precision, batch size, versions."""
    spec = job.backbone.spec
    return {
        "machine": machine(),
        "architecture": spec.architecture,
        "weights": spec.weights_digest,
        "input": spec.input.model_dump(mode="json"),
        "taps": sorted(f"{tap.node} {tap.pool} {tap.project}" for tap in job.specs.values()),
        "precision": job.precision,
        "batch_size": job.batch_size,
        "versions": {name: _version(name) for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino")},
    }


def machine() -> dict[str, str | int]:
    """Return the names of processor and GPU, and the number of cores."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": names[0] if names else platform.processor(), "cores": cores(), "gpu": gpu}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
