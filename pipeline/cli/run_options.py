"""The arguments with which `predict`, `export` and `explain` select a run, and the lookup of its folder."""

from pathlib import Path
from typing import Annotated

import typer

RunName = Annotated[str, typer.Argument(help="A run of the project, or a run's folder such as data/models/pets.")]
Head = Annotated[str | None, typer.Option(help="The file of a head in the run's folder. [default: the selected one]")]
BackboneFolder = Annotated[
    Path | None, typer.Option(help="The folder of the head's backbone. [default: that of the project]")
]


def find_run(name: str) -> Path:
    """Return the folder of a run, given its name in the project or its path.

    Raises DataError for a run of params.yaml that was not computed yet, and for a name outside of a project.
    """
    from pipeline.errors import DataError
    from pipeline.settings.params import read_params
    from stages import project

    path, own = Path(name), project.MODELS / name
    if (path / "model.json").is_file() or path.is_file() or len(path.parts) > 1:
        return path
    if not (path.exists() or project.DATA.is_dir() or project.PARAMS.is_file()):
        raise DataError(
            f"{name}: expected a run of a project, got no project here (no {project.PARAMS}). Run the command in the "
            "root of a project, or name the folder of a run."
        )
    if own.is_dir() or not project.PARAMS.is_file():
        return own
    settings = read_params(project.PARAMS)
    for stage in ("fit", "finetune", "distill"):
        named = settings.get(stage) if isinstance(settings, dict) else None
        if isinstance(named, dict) and name in named:
            raise DataError(f"{own}: the run was not made yet. Run `icecore repro {stage}@{name}`.")
    return own
