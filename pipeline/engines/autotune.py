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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import ENGINES, PRECISIONS_OF, Engine, create
from pipeline.engines.parity_gate import ROWS, ParityCard, check_parity
from pipeline.errors import EngineError, bullets
from pipeline.files import digest, read_json, write_json
from pipeline.runtime import Reporter, cores
from pipeline.settings.check import Settings
from pipeline.store.location import writable
from pipeline.store.use import touch
from pipeline.text import table

AUTO = "auto"
SECONDS = 4.0
"""Timing takes no longer, all engines together, after each ran once; of a job that torch does in less than `LONG`, a
twentieth of that time."""

LONG = 80.0
# How long torch must need for the whole job before another engine is prepared: OpenVINO traces a network in 2 s,
# exporting takes 10 s, compiling minutes.
MIN_JOB_SECONDS = {
    "torch": 0.0,
    "onnxruntime": 60.0,
    "openvino": 6.0,
    "onnxruntime_cuda": 30.0,
    "torch_compiled": 1200.0,
}


@dataclass(frozen=True)
class Job:
    """What is to be run: a backbone, taps, and how."""

    backbone: Backbone
    specs: Mapping[str, TapSpec]
    batch_size: int
    precision: str = "float32"
    cache: Path | None = None

    def engine(self, name: str, specs: Mapping[str, TapSpec] | None = None, *, precision: str | None = None) -> Engine:
        """Make an engine for the job's taps, or for some of them."""
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
    """An engine, why it was chosen, and the card if the gate was passed just now."""

    name: str
    engine: Engine
    card: ParityCard | None = None
    why: str = "as the settings say"
    measured: str = ""
    """What every engine did, as a table, where they were tried."""


class Choice(Settings):
    """What is remembered. `samples`: torch was taken unmeasured for a job of so many."""

    engine: str
    samples: int | None = None


def choose(name: str, job: Job, pixels: Callable[[], np.ndarray], *, samples: int, reporter: Reporter) -> EngineChoice:
    """Take the engine `name`, or for `auto` the best; `pixels` gives the first of the `samples` that are to be run,
    or none where none can be read.

    Raises EngineError if the one that was asked for cannot run, or none can. Nothing is gated but what was measured.
    """
    if name != AUTO:
        return EngineChoice(name, job.engine(name))
    remembered = load_choice(job, samples)
    if remembered is not None:
        try:
            made = job.engine(remembered)
        except EngineError as error:
            reporter.message(f"engine {remembered}, remembered for this machine, cannot run any more: {error}")
        else:
            return EngineChoice(remembered, made, why="remembered for this machine and backbone")
    return _measure(job, pixels(), samples=samples, reporter=reporter)


def gate(job: Job, name: str, engine: Engine, pixels: np.ndarray) -> ParityCard:
    """Measure an engine against torch float32; raises EngineError with the taps that fail."""
    plain = name == "torch" and job.precision == "float32"
    reference = engine if plain else job.engine("torch", precision="float32")
    return _gate(job, engine, reference, pixels)


def _gate(job: Job, engine: Engine, reference: Engine, pixels: np.ndarray) -> ParityCard:
    autocast = None
    if job.precision in ("bfloat16", "float16"):
        ours = engine.provenance["engine"] == "torch"
        autocast = engine if ours else job.engine("torch", precision=job.precision)
    return check_parity(engine, reference, pixels, job.specs, batch_size=job.batch_size, autocast=autocast)


def candidates(precision: str) -> list[str]:
    """Return the engines that may run here in some precision: those of the GPU where there is one, else those of the
    CPU.
    """
    import torch

    names = ["torch", "torch_compiled"]
    if torch.cuda.is_available():
        names += ["onnxruntime_cuda"] if _is_installed("onnxruntime") else []
    else:
        names += [library for library in ("onnxruntime", "openvino") if _is_installed(library)]
    return [name for name in names if precision in PRECISIONS_OF[name] and (precision != "tf32" or gpus() > 0)]


def _measure(job: Job, pixels: np.ndarray, *, samples: int, reporter: Reporter) -> EngineChoice:
    if not len(pixels):  # there is nothing to run
        return EngineChoice("torch", job.engine("torch"), why="nothing is to be computed")
    names, few = candidates(job.precision), pixels[: min(ROWS, job.batch_size)]
    if not names:
        raise EngineError(f"precision {job.precision!r}: no engine has it here. Choose float32.")
    notes: dict[str, str] = {}
    engines: dict[str, Engine] = {}
    reference = job.engine("torch", precision="float32")
    per_row = _seconds_of_torch(reference, few) / len(few)
    whole = per_row * samples
    batch = pixels[: job.batch_size] if whole >= LONG else few
    tried = [name for name in names if whole >= MIN_JOB_SECONDS[name]]
    for name in tried:
        try:
            plain = name == "torch" and job.precision == "float32"
            engines[name] = reference if plain else job.engine(name)
            engines[name].run({"pixels": batch})
        except EngineError as error:
            notes[name] = str(error)
            reporter.message(f"engine {name} is left out: {error}")
    short = len(tried) == 1 and len(names) > 1
    best = {} if short else _time_engines(engines, batch, seconds=SECONDS * min(1.0, whole / LONG))
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
            why = f"the whole job takes it about {whole:.0f} s, too little to try others"
            return EngineChoice(name, engines[name], card, why)
        unlike = {name: "not tried: the job is too short" for name in names if name not in tried}
        drawn = _describe_timings(best, len(batch), torch_seconds, job.precision, {name: "taken"} | unlike | notes)
        why = "the fastest" if name == "torch" else f"{torch_seconds / best[name]:.1f} times as fast as torch"
        return EngineChoice(name, engines[name], card, why, drawn)
    raise EngineError(bullets("no engine computes these taps", notes.values()))


def _seconds_of_torch(engine: Engine, batch: np.ndarray) -> float:
    """Return how long a batch takes; the first run, which prepares kernels, counts only where it takes long itself."""
    for _ in range(2):
        start = time.perf_counter()
        engine.run({"pixels": batch})
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds


def _time_engines(engines: Mapping[str, Engine], batch: np.ndarray, *, seconds: float) -> dict[str, float]:
    """Return the best time of a batch for each engine, measured in turn, for so many seconds."""
    best = dict.fromkeys(engines, np.inf)
    begin = time.perf_counter()
    while engines:
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run({"pixels": batch})
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() - begin >= seconds:
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
    drawn = table((f"engine, {precision}", "samples/s", "of torch"), rows, inset=True).splitlines()
    return "\n".join(
        [drawn[0], *(f"{line}  {notes.get(name, '')}".rstrip() for line, name in zip(drawn[1:], names, strict=True))]
    )


def save_choice(job: Job, choice: Choice) -> None:
    """Write a choice down; a cache that cannot be written says what to do."""
    if job.cache is None:
        return
    with writable(job.cache):
        write_json(_path(job, job.cache), choice.model_dump())


def load_choice(job: Job, samples: int) -> str | None:
    """Return the engine that was chosen before, if the choice holds for so many samples."""
    path = None if job.cache is None else _path(job, job.cache)
    if path is None or not path.is_file():
        return None
    try:
        choice = Choice.model_validate(read_json(path))
    except ValueError:  # damaged, or of another version: it is measured again
        return None
    touch(path)
    if choice.engine not in ENGINES or (choice.samples is not None and samples > choice.samples):
        return None
    return choice.engine


def _path(job: Job, cache: Path) -> Path:
    return cache / "engines" / f"{digest(fingerprint(job))}.json"


def fingerprint(job: Job) -> dict[str, Any]:
    """Return what a choice depends on: machine, network, taps, precision, size of batches, versions."""
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
    """Return processor, cores and GPU."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # no Linux
        named = []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": named[0] if named else platform.processor(), "cores": cores(), "gpu": gpu}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def gpus() -> int:
    """Return how many GPUs this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
