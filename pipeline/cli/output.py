"""The option `--json`, and the printing of JSON."""

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""The option `--json` of a command."""


def print_json(values: Any) -> None:
    """Print values as indented JSON, without escapes for letters outside ASCII."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
