"""Shared by all stages: checked settings, paths of artefacts, and the handling of errors."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, PipelineError, unknown
from pipeline.files import denied
from pipeline.runtime import closed_pipe_is_quiet, keep_freed_memory, note_error, print_any_text
from pipeline.settings.check import Section, check, refuse
from pipeline.settings.params import read_params, unusual_values, with_lines
from pipeline.settings.repair import UNKNOWN
from stages import name_of_stage
from stages.cross_references import disagreements
from stages.terminal import QUIET, VERBOSE

PARAMS = Path("params.yaml")
DATA = Path("data")
SETTINGS = DATA / "settings"
RAW = DATA / "raw"
MANIFESTS = DATA / "manifests"
PRETRAINED = DATA / "pretrained"
CODE = DATA / "code"
BACKBONES = DATA / "backbones"
FEATURES = DATA / "features"
DIGESTS = DATA / "digests"
TASKS = DATA / "tasks"
AUDITS = DATA / "audits"
MODELS = DATA / "models"
MODEL_DIGESTS = DATA / "model_digests"
TEACHERS = DATA / "teachers"
PREDICTIONS = DATA / "predictions"
CURVES = DATA / "curves"
METRICS = DATA / "metrics"
NUMBERS = METRICS / "runs"
TABLES = DATA / "plots"
COMPARISONS = DATA / "comparisons"
REPORT = DATA / "report" / "index.html"

# For each section of params.yaml, which is also a stage: the settings model, and whether the section has named entries.
# Models are import paths, so that a stage depends on the code of its own section only.
SECTIONS: Mapping[str, tuple[str, bool]] = {
    "sample": ("pipeline.sample.config:SampleConfig", True),
    "prepare": ("pipeline.prepare.config:PrepareConfig", True),
    "pretrain": ("pipeline.pretrain.config:PretrainConfig", True),
    "freeze": ("pipeline.freeze.config:FreezeConfig", True),
    "extract": ("pipeline.extract.config:ExtractConfig", True),
    "split": ("pipeline.split.config:SplitConfig", True),
    "audit": ("pipeline.audit.config:AuditConfig", False),
    "fit": ("pipeline.fit.config:FitConfig", True),
    "finetune": ("pipeline.finetune.config:FinetuneConfig", True),
    "teach": ("pipeline.teach.config:TeachConfig", True),
    "distill": ("pipeline.distill.config:DistillConfig", True),
    "evaluate": ("pipeline.evaluate.config:EvaluateConfig", False),
    "compare": ("pipeline.compare.config:CompareConfig", False),
    "report": ("pipeline.report.config:ReportConfig", False),
}
STAGES = (*SECTIONS, "settings")

# What to do if the system refuses a file or a folder.
HINTS: Mapping[type[OSError], str] = {
    PermissionError: " Change its owner or mode.",
    FileExistsError: " A file is in the place of a folder: move it away.",
    NotADirectoryError: " A file is in the place of a folder: move it away.",
}


def sections() -> dict[str, Section]:
    """Import the settings model of each section."""
    imported = {}
    for name, (path, named) in SECTIONS.items():
        module, attribute = path.split(":")
        imported[name] = Section(getattr(importlib.import_module(module), attribute), named)
    return imported


def settings(path: Path = PARAMS, *, lines: bool = False) -> dict[str, Any]:
    """Return the checked settings of params.yaml; raises ConfigError with every problem, and its line with `lines`."""
    values, problems = examine(path)
    refuse(with_lines(problems, path) if lines else problems, where=str(path))
    return values


def examine(path: Path = PARAMS) -> tuple[dict[str, Any], list[str]]:
    """Return the valid settings of params.yaml, and every problem of the file."""
    raw = read_params(path)
    values, problems = check(raw, sections())
    known = {line.partition(": ")[0] for line in problems}
    problems += [line for line in unusual_values(raw) if line.partition(": ")[0] not in known]
    return values, [*problems, *(line for line in disagreements(values, raw) if UNKNOWN not in line)]


def entry(section: str, argv: list[str] | None = None) -> tuple[str, Any]:
    """Return the entry named by the command `python -m stages.<section> <name>`, and its settings."""
    arguments, named = _arguments(argv), settings()[section]
    if len(arguments) != 1:
        raise ConfigError(
            f"usage: python -m stages.{section} NAME [{QUIET}] [{VERBOSE}], where NAME is one of: {', '.join(named)}"
        )
    _refuse_unknown(section, arguments, named)
    return arguments[0], named[arguments[0]]


def entries(stage: str, named: Mapping[str, Any], argv: list[str] | None = None) -> list[str]:
    """Return the entries named by the command `python -m stages.<stage> <name> …`; all if it names none."""
    arguments = _arguments(argv)
    _refuse_unknown(stage, arguments, named)
    return arguments or list(named)


def runs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries that write predictions: those of `fit`, `finetune` and `distill`, whose names differ."""
    return {**values["fit"], **values["finetune"], **values["distill"]}


def named_run(name: str) -> Any:
    """Return the settings of a run; raises ConfigError with the names of all runs."""
    named = runs(settings())
    _refuse_unknown("fit, finetune and distill", [name], named)
    return named[name]


def _arguments(argv: list[str] | None) -> list[str]:
    return [argument for argument in (sys.argv[1:] if argv is None else argv) if argument not in (QUIET, VERBOSE)]


def _refuse_unknown(stage: str, arguments: list[str], named: Mapping[str, Any]) -> None:
    for name in arguments:
        if name not in named:
            raise ConfigError(f"params.yaml: {unknown(f'entry of {stage}', name, named)}")


def _name(stage: Callable[[], None]) -> str:
    return Path(stage.__code__.co_filename).stem


def _options(name: str) -> dict[str, str]:
    """Return the options of a stage, each with its help text."""
    special = {"--lr-range": "only try learning rates, and print the suggested one"} if name == "finetune" else {}
    return special | {QUIET: "show no progress", VERBOSE: "print more measurements"}


def _takes_entry(name: str) -> bool:
    return name == "audit" or SECTIONS.get(name, ("", False))[1]


def refuse_arguments(name: str, argv: Sequence[str]) -> None:
    """Raise ConfigError for an unknown option, and for a name if the stage takes none."""
    for argument in argv:
        if argument.startswith("-") and argument not in _options(name):
            raise ConfigError(f"python -m stages.{name}: {unknown('option', argument, _options(name))}")
        if not argument.startswith("-") and name != "evaluate" and not _takes_entry(name):
            raise ConfigError(
                f"python -m stages.{name}: expected options only, got {argument!r}. The stage takes all of "
                f"params.yaml; `python -m stages.{name} --help` lists its options."
            )


def usage(stage: Callable[[], None]) -> str:
    """Return the help of a stage: its usage, what it does and writes, and its options."""
    name = _name(stage)
    options = _options(name)
    words = [f"[{option}]" for option in options]
    if name == "evaluate":
        words, options = ["[NAME …]", *words], {"NAME": "a run of fit, finetune or distill in params.yaml"} | options
    elif _takes_entry(name):
        section = "split" if name == "audit" else name
        words, options = ["NAME", *words], {"NAME": f"an entry of `{section}` in params.yaml"} | options
    parts = [
        f"usage: python -m stages.{name} {' '.join(words)}",
        inspect.cleandoc(stage.__globals__["__doc__"]),
        inspect.cleandoc(stage.__doc__ or ""),
        "\n".join(f"  {option:<12}{meaning}" for option, meaning in options.items()),
    ]
    if name in SECTIONS:
        parts.append(f"`icecore settings {name}` lists its settings.")
    return "\n\n".join(parts)


def run(stage: Callable[[], None]) -> None:
    """Run a stage; errors with a message for users are printed without a traceback.

    An interrupted stage exits with 130, as shells expect.
    """
    print_any_text()
    keep_freed_memory()
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(usage(stage))
        return
    try:
        with closed_pipe_is_quiet(), noting_errors(stage):
            if _name(stage) in STAGES:
                refuse_arguments(_name(stage), sys.argv[1:])
            stage()
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        raise SystemExit(130) from None
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        if error.strerror is None:  # from a library, not from the system
            raise
        if isinstance(error, PermissionError) and error.filename is not None:
            error = denied(Path(error.filename))
        where = f"{error.filename}: " if error.filename is not None else ""
        raise SystemExit(f"error: {where}{error.strerror}.{HINTS.get(type(error), '')}") from None


@contextmanager
def noting_errors(stage: Callable[[], None]) -> Iterator[None]:
    """Record the error of a stage for the last lines of `icecore repro`; None for success and an interrupt."""
    name = name_of_stage(_name(stage))
    try:
        yield
    except Exception as error:
        known = isinstance(error, PipelineError | OSError)
        note_error(name, str(error) if known else f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        note_error(name, None)
        raise
    note_error(name, None)
