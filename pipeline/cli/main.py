"""The command `icecore`: its groups of commands, and the printing of errors."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import (
    cache,
    explain,
    export,
    extract,
    features,
    layers,
    predict,
    project,
    project_add,
    project_new,
    results,
)
from pipeline.errors import PipelineError
from pipeline.runtime import closed_pipe_is_quiet, keep_freed_memory, print_any_text

COMMANDS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "Vectors of a folder": (extract.extract, layers.layers),
    "A project": (
        *(project_new.init, project_new.run, project_new.demo),
        *(project.settings, project.check, project.plan, project.forecast, project.repro, project.stage),
    ),
    "A trained model": (predict.predict, explain.explain, export.export),
    "Results": (results.info, results.leaderboard, results.wrong),
}
"""The commands under each heading of `icecore --help`."""

GROUPS: Mapping[str, Mapping[str, typer.Typer]] = {
    "A project": {"add": project_add.app},
    "Stored features": {"features": features.app, "cache": cache.app},
}
"""The groups of commands, such as `icecore cache`, under each heading."""

PASSES_ARGUMENTS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


class Headings(TyperGroup):
    """A group whose help lists its commands under the headings of their `rich_help_panel`, as plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write a section per heading, with its commands and the first sentence of their help."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*COMMANDS, *GROUPS)}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            heading = str(getattr(command, "rich_help_panel", None))
            rows[heading].append((name, command.get_short_help_str(width)))
        for heading, lines in rows.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


app = typer.Typer(
    cls=Headings,
    help="Transfer-learning features: extracted once, reused by every head. `icecore repro` runs the pipeline, as "
    "`dvc repro` does, and shows where it is.",
    epilog="`icecore COMMAND --help` shows the options of a command and examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for heading, commands in COMMANDS.items():
    for command in commands:
        app.command(
            rich_help_panel=heading,
            context_settings=PASSES_ARGUMENTS_ON if command in (project.repro, project.stage) else None,
        )(command)
for heading, groups in GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=heading)


def main() -> None:
    """Run a command; print errors of icecore and of the operating system without a traceback."""
    print_any_text()
    keep_freed_memory()
    if Path("params.yaml").is_file():  # for the project's own modules in `source: module`; installed modules come first
        sys.path.append(str(Path.cwd()))
    try:
        with closed_pipe_is_quiet():
            app()
    except PermissionError as error:
        from pipeline.files import denied

        refused = error if error.filename is None else denied(Path(error.filename))
        raise SystemExit(f"error: {refused.filename}: {refused.strerror}. Change its owner or mode.") from None
    except (PipelineError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
