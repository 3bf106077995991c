"""Commands under "A project": list and check settings, forecast extractions, and run the pipeline."""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.extract_folder import refuse_if_full
from pipeline.cli.output import AsJson, print_json
from pipeline.errors import ConfigError, unknown


def settings(
    section: Annotated[str | None, typer.Argument(help="A section of params.yaml. [default: all]")] = None,
    as_json: AsJson = False,
) -> None:
    """List every key of params.yaml, with its type, default and meaning.

    Examples:

      icecore settings split

      icecore settings --json
    """
    from pipeline.settings import reference
    from stages import project

    sections = project.sections()
    if section is not None and section not in sections:
        raise ConfigError(unknown("section", section, sections))
    listed = sections if section is None else {section: sections[section]}
    if as_json:
        print_json(reference.settings_to_json(listed))
    else:
        typer.echo(reference.describe_settings(listed))


def check(
    params: Annotated[Path, typer.Argument(help="The settings to check.")] = Path("params.yaml"),
    fast: Annotated[
        bool, typer.Option("--fast", help="Check only the settings, not the files, models and data that they name.")
    ] = False,
) -> None:
    """Check params.yaml and the data, weights, models and nodes that it names; print every problem, compute nothing.

    Examples:

      icecore check && icecore repro

      icecore check --fast
    """
    from pipeline.settings.check import refuse
    from pipeline.settings.params import check_rewriting, with_lines
    from stages import check_files_and_models, project

    note_upgrade()

    values, problems = project.examine(params)
    if not fast:
        problems += check_files_and_models.find_problems(values)
    refuse(with_lines(problems, params), where=str(params))
    for line in check_rewriting(params):
        typer.echo(f"note: {line}", err=True)
    counts = [f"{len(value)} {name}" for name, value in values.items() if isinstance(value, dict)]
    typer.echo(f"{params}: no problems ({', '.join(counts)})")


def problems_of(params: Path) -> list[str]:
    """Return every problem of settings, as `icecore check` does, with paths relative to the working directory."""
    from stages import check_files_and_models, project

    values, problems = project.examine(params)
    return [*problems, *check_files_and_models.find_problems(values)]


def plan(
    name: Annotated[str, typer.Argument(help="An entry of `extract` in params.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Print what an extraction would compute: missing rows, shards and bytes of each tap, against the free disk.

    Example:

      icecore plan glyphs
    """
    from stages import project

    request, disk = _forecast_disk(name)
    if as_json:
        print_json(disk.to_json())
    else:
        typer.echo(str(disk))
    refuse_if_full(request, disk, project.FEATURES / name)


def forecast(
    name: Annotated[str, typer.Argument(help="An entry of `extract` in params.yaml.")],
    images: Annotated[int, typer.Option(min=1, help="How many samples to measure with; more for a GPU.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the choice of samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the plan, and measure on some images how long it takes and what is slowest. No feature is stored.

    Examples:

      icecore forecast mobilenet

      icecore forecast mobilenet --images 512 --json
    """
    from pipeline.extract.throughput import measure_throughput
    from pipeline.store import location
    from stages import project

    request, disk = _forecast_disk(name)
    if not as_json:
        typer.echo(str(disk))
    rates = measure_throughput(request, cache_root=location.default_root(), images=images, seed=seed)
    if as_json:
        print_json({**disk.to_json(), "pilot": None if rates is None else rates.to_json()})
    else:
        typer.echo("nothing is missing" if rates is None else str(rates))
    refuse_if_full(request, disk, project.FEATURES / name)


def _forecast_disk(name: str) -> Any:
    """Return the request of an entry of `extract` in params.yaml, and the forecast of its bytes on disk."""
    from pipeline.extract.disk_check import forecast_disk
    from pipeline.extract.request import read
    from pipeline.store import location
    from stages import project

    _, config = project.entry("extract", [name])
    root = location.default_root()
    request = read(config, backbone=project.BACKBONES / name, manifests=project.MANIFESTS, cache_root=root)
    return request, forecast_disk(request, cache_root=root, out=project.FEATURES / name)


def repro(context: typer.Context) -> None:
    """Check params.yaml, run `dvc repro`, and print the leaderboard; every argument is passed on to DVC.

    Each stage is shown with its number, how long it took, and the time that is left by earlier runs. The last lines
    say where the time went.

    Examples:

      icecore repro

      icecore repro extract@glyphs

      icecore repro --force --downstream fit@digits_full
    """
    run_pipeline(context.args)


def run_pipeline(arguments: Sequence[str] = (), explain: Callable[[str], Iterable[str]] | None = None) -> None:
    """Run the pipeline of the project in the working directory, as `icecore repro` does with these arguments.

    explain: returns the lines to print below the error of a failed stage.
    """
    from pipeline.cli.reproduce import reproduce, stages_of
    from pipeline.cli.results import leaderboard
    from pipeline.settings.params import read_params
    from stages import project

    note_upgrade()
    values = project.settings(lines=True)
    status, ran = reproduce(
        arguments, stages=stages_of(read_params(Path("dvc.yaml")), values), say=typer.echo, explain=explain
    )
    if status:
        raise SystemExit(status)
    if not arguments and project.runs(values) and "report" not in ran:  # `report` prints the leaderboard itself
        leaderboard()


def run_in_process() -> None:
    """Run all stages of the project in the working directory in this process, one after the other, then `dvc commit`.

    Libraries are imported only once, which takes most of the time of a small project.
    """
    from pipeline.cli.reproduce import commit, stages_of
    from pipeline.settings.params import read_params
    from stages import project

    names = stages_of(read_params(Path("dvc.yaml")), project.settings(lines=True))
    arguments = sys.argv
    try:
        for number, name in enumerate(names, start=1):
            typer.echo(f"Running stage {number} of {len(names)}, {name}")
            stage_name, *entry = name.split("@")
            sys.argv = [stage_name, *entry]
            project.run(importlib.import_module(f"stages.{stage_name}").main)
            typer.echo()
    finally:
        sys.argv = arguments
    commit()


def note_upgrade() -> None:
    """Update the digests of the installed code, and print the stages that an upgrade changed."""
    from pipeline.projects.code import update_digests

    if changed := update_digests():
        typer.echo(f"note: the installed code of these stages is another one: {', '.join(changed)}", err=True)


def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml, such as fit.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="The entry of the stage's section, and options of the stage.")
    ] = None,
) -> None:
    """Run one stage in this process, without DVC: the commands of a project's dvc.yaml are these.

    Examples:

      icecore stage fit photos_mobilenet_v2

      icecore stage report
    """
    sys.argv = [name, *(arguments or [])]  # before `stages` is imported, which notes that a stage starts
    from pipeline.projects.code import update_stage_digest
    from stages import project

    if name not in project.STAGES:
        raise ConfigError(unknown("stage", name, project.STAGES))
    update_stage_digest(name)
    project.run(importlib.import_module(f"stages.{name}").main)
