"""Commands under "Results": describe artefacts, rank runs, list wrong answers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.output import AsJson, print_json


def info(
    artefact: Annotated[Path, typer.Argument(help="A file or folder below data/.")], as_json: AsJson = False
) -> None:
    """Describe an artefact: its kind, its content, and what it was made from.

    Examples:

      icecore info data/backbones/glyphs

      icecore info data/features/glyphs/block3 --json

      icecore info data/tasks/digits.parquet
    """
    from pipeline.cli.info import describe, render

    description = describe(artefact)
    if as_json:
        print_json(description)
    else:
        typer.echo(render(description))


def leaderboard(as_json: AsJson = False) -> None:
    """Rank the runs of params.yaml, and print where the report lies.

    Example:

      icecore leaderboard --json
    """
    from pipeline.report import leaderboard as board
    from pipeline.report.trained import below_probe
    from stages import project

    known = list(project.runs(project.settings()))
    names = [name for name in known if (project.TABLES / f"{name}.json").is_file()] or known
    runs = board.read(project.TABLES, names)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"run": run["run"], "task": board.task_of(run), **run["selected"]} for run in runs
        ]
        print_json(rows)
    else:
        notes = [f"note: {line}" for of_task in board.by_task(runs).values() for line in below_probe(of_task)]
        notes += [f"{name}: not measured: {why}" for name, why in board.unmeasured(project.TABLES, names).items()]
        if missing := [name for name in known if name not in names]:
            notes.append(f"not evaluated: {', '.join(missing)}. Run `icecore repro`.")
        typer.echo("\n\n".join([board.text(runs), *notes, f"report: {project.REPORT}"]))


def wrong(
    run: Annotated[str, typer.Argument(help="A run of fit, finetune or distill in params.yaml.")],
    most: Annotated[int, typer.Option(min=1, help="How many samples to list.")] = 50,
    draw: Annotated[int | None, typer.Option(help="The few-shot draw or seed. [default: the first]")] = None,
    as_json: AsJson = False,
) -> None:
    """List the test samples that a run's selected method predicts wrongly, the most confident prediction first.

    Each line has the sample's path, and the training sample with the most similar features. In a regression, the
    largest errors come first.

    Examples:

      icecore wrong digits_full

      icecore wrong digits_logistic --most 10 --draw 2 --json
    """
    from pipeline.errors import DataError
    from pipeline.explain.mistakes import find_mistakes, find_taps
    from pipeline.files import read_json
    from pipeline.task import Task
    from stages import project

    config = project.named_run(run)
    table = project.TABLES / f"{run}.json"
    if not table.is_file():
        raise DataError(f"{table}: no evaluation of {run}. Run `icecore repro`.")
    evaluation, task = read_json(table), project.TASKS / f"{config.task}.parquet"
    mistakes = find_mistakes(
        evaluation,
        predictions=project.PREDICTIONS / f"{run}.parquet",
        task=task,
        taps=find_taps(evaluation, project.FEATURES, Task.read(task)),
        most=most,
        draw=draw,
    )
    if as_json:
        print_json(mistakes.to_json())
    else:
        typer.echo(str(mistakes))
