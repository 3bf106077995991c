"""The form in which commands print: text, or JSON with `--json`."""

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""The option `--json` of a command."""


def print_json(values: Any) -> None:
    """Print values as JSON, indented, with letters of all languages as they are."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
