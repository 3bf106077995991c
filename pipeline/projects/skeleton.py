"""The files of a project, and how they are written: only where none of them is, and with or without git."""

import importlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, requires
from pipeline.files import write_text
from pipeline.projects.code import update_digests
from pipeline.projects.pipeline_text import pipeline_text
from pipeline.runtime import nearest_existing

OWN = ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc", ".icecore/code.json", "data")
"""What a project is made of: where one of these is, nothing is written."""

SOURCES = ("pretrained", "folder", "torchvision", "timm", "module")
STARTS = ("backbone", "scratch")
WITHOUT_ENTRIES = (
    "audits",
    "backbones",
    "digests",
    "features",
    "manifests",
    "metrics",
    "models",
    "predictions",
    "pretrained",
    "tasks",
    "teachers",
)
KEPT = (
    *(f"data/{name}" for name in WITHOUT_ENTRIES),
    *(f"data/code/{source}" for source in SOURCES),
    *(f"data/model_digests/{start}" for start in STARTS),
)
"""Folders that stages depend on, also where no entry of params.yaml writes into them."""

DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    autostage = false
{scm}[cache]
    type = "hardlink,copy"
"""
NO_SCM = "    no_scm = true\n"

Git = Literal["none", "around", "new"]


def write_project(folder: Path, params: str, *, git: bool = False) -> list[str]:
    """Write the files of a project with `params` as its params.yaml; return those that were there and stay as they are.

    git: make a git repository of the folder, unless it lies in one. Without git around, DVC works by itself.

    Raises ConfigError where the folder is a file or holds a project, and where git is asked for and missing,
    MissingExtraError where DVC is missing.
    """
    check_folder(folder)
    with requires("pipeline", what="a project"):
        importlib.import_module("dvc")
    files = _files(params, has_git=find_git(folder) or git)
    folder.mkdir(parents=True, exist_ok=True)
    if git and not find_git(folder):
        _init_git(folder)
    kept = [name for name in files if (folder / name).exists()]
    for name, text in files.items():
        if name not in kept:
            write_text(folder / name, text)
    update_digests(folder)
    return kept


def check_folder(folder: Path) -> None:
    """Raise ConfigError where a project cannot be written into a folder, with what is there."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder, got a file. Choose another name.")
    if there := [name for name in OWN if (folder / name).exists()]:
        raise ConfigError(
            f"{folder}: expected a folder without a project, got one with {', '.join(there)}. Nothing was written. "
            "Choose another folder, or move these away; `icecore add` writes further entries into params.yaml."
        )


def check_empty(folder: Path) -> None:
    """Raise ConfigError where a folder is not empty or is a file."""
    check_folder(folder)
    if folder.is_dir() and (there := sorted(path.name for path in folder.iterdir() if path.name != ".git")):
        shown = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
        raise ConfigError(f"{folder}: expected an empty folder, got one with {shown}. Choose another.")


def find_git(folder: Path) -> bool:
    """Return whether a folder lies in a git repository that does not ignore it."""
    if shutil.which("git") is None:
        return False
    place = nearest_existing(folder)
    inside = _git(place, "rev-parse", "--is-inside-work-tree")
    return inside == 0 and _git(place, "check-ignore", "-q", str(folder.absolute() / "dvc.yaml")) != 0


def _init_git(folder: Path) -> None:
    if shutil.which("git") is None:
        raise ConfigError("git: expected the program `git`, got none. Install it, or leave out `--git`.")
    if _git(folder, "init", "-q"):
        raise ConfigError(f"{folder}: `git init` failed. Leave out `--git`, or see what it says there.")


def _git(folder: Path, *arguments: str) -> int:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    return done.returncode


def _files(params: str, *, has_git: bool) -> Mapping[str, str]:
    """Return the files of a project, with their texts."""
    data = ["*", "!.gitignore", "!*.dvc", *(f"!{place}/" for place in _folders_of_data())]
    kept = (
        "# Kept so that stages can depend on this folder where no entry of params.yaml writes here.\n*\n!.gitignore\n"
    )
    return {
        "params.yaml": params,
        "dvc.yaml": pipeline_text(),
        ".dvc/config": DVC_CONFIG.format(scm="" if has_git else NO_SCM),
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "__pycache__\n*.pyc\n.venv\n",
        ".gitignore": "__pycache__/\n.venv/\n",
        "data/.gitignore": "\n".join(data) + "\n",
        **{f"{name}/.gitignore": kept for name in KEPT},
    }


def _folders_of_data() -> list[str]:
    """Return the folders below data/ that are kept, each after those around it."""
    below = [Path(name).relative_to("data") for name in KEPT]
    every = {place.as_posix(): None for path in below for place in [*reversed(path.parents), path] if place.name}
    return list(every)
