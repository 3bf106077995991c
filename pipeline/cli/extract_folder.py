"""Embed a folder with the options of `icecore extract`, and name options in errors."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from pipeline.errors import Interrupted, PipelineError, counted

OPTIONS: Mapping[str, str] = {
    "root": "--data",
    "taps": "--tap",
    "image": "--image",
    "columns": "--columns",
    "max_pixels": "--max-pixels",
    "max_rejected": "--max-rejected",
    "batch_size": "--batch-size",
    "file": "--file",
    "weights": "--weights",
    "entry": "--entry",
}
"""The options of `icecore extract`, by the name of the setting in messages of the library."""

PROJECT_ONLY = frozenset(
    "folders base path types encoding check disk run input strip_prefix project".split()  # noqa: SIM905
)
"""Settings in messages of the library that have no option in `icecore extract`."""


NAMED = re.compile(
    r"`([a-z_]+)(?:`|: )|^ *(?:- )?(?:prepare|freeze|extract|split|fit)\.[\w-]+\.([a-z_]+)", re.MULTILINE
)
"""A setting in an error: `batch_size`, or fit.probe.head at the start of a line."""


def name_options(error: str, options: Mapping[str, str]) -> list[str]:
    """Return a line for each option whose setting an error names, and one for settings that need a project."""
    settings = dict.fromkeys(match[1] or match[2] for match in NAMED.finditer(error))
    lines = [f"`{name}` is {options[name]} here." for name in settings if name in options]
    if absent := [f"`{name}`" for name in settings if name in PROJECT_ONLY | OPTIONS.keys() and name not in options]:
        is_are = "is a setting" if len(absent) == 1 else "are settings"
        lines.append(f"{', '.join(absent)} {is_are} of a project's params.yaml, see `icecore settings`.")
    return lines


@contextlib.contextmanager
def naming_options(options: Mapping[str, str] = OPTIONS) -> Iterator[None]:
    """Append to an error the options of the settings in it, and which of its settings need a project."""
    try:
        yield
    except PipelineError as error:
        if not (lines := name_options(str(error), options)):
            raise
        raise type(error)("\n".join([str(error), *lines])) from None


def extract_folder(
    backbone: str,
    data: str,
    out: Path,
    *,
    image: str | None,
    taps: list[str],
    weights: dict[str, Any],
    settings: dict[str, Any],
    rehash: bool,
    plan_only: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Embed the images of `data` into `out`, and print a summary; with `plan_only`, print what would be computed.

    weights:  the fields of `Weights`.
    settings: the other keyword arguments of `embed.job`.
    rehash:   open all images, also those whose files are unchanged.

    Exits with 130 if the user interrupts the extraction.
    """
    from pipeline import embed
    from pipeline.extract import summary
    from pipeline.freeze.library_model import Weights
    from pipeline.runtime import SILENT, Reporter, process_seconds
    from pipeline.store import index, location
    from stages import terminal

    job = embed.job(backbone, taps, data, image=image, weights=Weights(**weights), out=out, **settings)

    def say(text: object) -> None:
        if not quiet:
            more = getattr(text, "more", "") if verbose else ""
            typer.echo(f"{text}\n{more}" if more else text)

    reporter = SILENT
    if not quiet:
        reporter = Reporter(message=say, log=terminal.log, bar=lambda title: terminal.bar(title, "images"))
    root = location.default_root()
    if plan_only:
        request, disk = embed.plan(job, out, cache_root=root, rehash=rehash, reporter=reporter)
        say(disk)
        refuse_if_full(request, disk, out)
        return
    try:
        embedded = embed.embed(job, out, cache_root=root, rehash=rehash, reporter=reporter)
    except Interrupted as error:
        typer.echo(f"interrupted: {error}", err=True)
        raise SystemExit(130) from None
    for note in embedded.prepared.notes:
        say(f"note: {note}")
    say(summary.describe_cache(root, embedded.extracted))
    say(summary.text(str(out), embedded.extracted, process=process_seconds()))
    for kind, count in embedded.prepared.excluded.items():
        say(f"{count:,} {kind}: see {out / 'excluded.csv'}")
    for name in job.extract.taps:
        say(f"{out / name}: {counted(index.read(out / name).stored, 'row')}")
    say(f"{out / 'files.parquet'}: the file of each row")


def refuse_if_full(request: Any, forecast: Any, out: Path) -> None:
    """Raise StoreError if the features of a request do not fit on the disks of `out` and of the feature cache."""
    from pipeline.extract.disk_check import explain_shortage
    from pipeline.extract.disk_forecast import raise_if_short
    from pipeline.store import location

    raise_if_short(explain_shortage(request, forecast, cache_root=location.default_root(), out=out))
