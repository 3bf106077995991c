"""The `icecore` command: look at artefacts and check settings. The work itself is started by `dvc repro`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import PipelineError

app = typer.Typer(
    help="Transfer-learning features: extracted once, reused by every head. The pipeline itself is run by `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def info(
    artefact: Annotated[Path, typer.Argument(help="A file or folder below data/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what an artefact is and what it was made from.

    Examples:

      icecore info data/backbones/glyphs

      icecore info data/features/glyphs/block3 --json

      icecore info data/tasks/digits.parquet
    """
    from pipeline.info import describe, render

    found = describe(artefact)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else render(found))


@app.command()
def check(params: Annotated[Path, typer.Argument(help="The settings to check.")] = Path("params.yaml")) -> None:
    """Check params.yaml and print every problem in it.

    Example:

      icecore check && dvc repro
    """
    from stages import project

    values = project.settings(params)
    counts = [f"{len(value)} {name}" for name, value in values.items() if isinstance(value, dict)]
    typer.echo(f"{params}: no problems ({', '.join(counts)})")


@app.command()
def leaderboard(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the leaderboard of the runs that params.yaml names, and where the report lies.

    Example:

      icecore leaderboard --json
    """
    from pipeline.report import leaderboard as board
    from stages import project

    runs = board.read(project.TABLES, list(project.settings()["fit"]))
    if as_json:
        rows: list[dict[str, Any]] = [
            {"run": run["run"], "task": board.task_of(run), **run["selected"]} for run in runs
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{board.text(runs)}\n\nreport: {project.REPORT}")


def main() -> None:
    """Entry point; an error that was raised on purpose is printed without a traceback."""
    try:
        app()
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
