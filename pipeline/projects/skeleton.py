"""Write the files of a new project into a folder without a project, with or without git."""

import contextlib
import importlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, requires
from pipeline.files import write_text
from pipeline.projects.code import update_digests
from pipeline.projects.pipeline_text import pipeline_text
from pipeline.runtime import nearest_existing

PROJECT_FILES = ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc", ".icecore/code.json", "data")
"""The files of a project. A folder with any of them is not overwritten."""

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
STANDING_FOLDERS = (
    *(f"data/{name}" for name in WITHOUT_ENTRIES),
    *(f"data/code/{source}" for source in SOURCES),
    *(f"data/model_digests/{start}" for start in STARTS),
)
"""Folders that must exist because stages depend on them, even if no entry of params.yaml writes into them."""

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
    """Write the files of a project, with `params` as its params.yaml; return the existing files that were not changed.

    git: whether to create a git repository, unless the folder is in one. Without git, DVC runs without version control.

    Raises ConfigError if the folder is a file or already has a project, or if git is requested and not installed, and
    MissingExtraError if DVC is missing.
    """
    check_folder(folder)
    with requires("pipeline", what="a project"):
        importlib.import_module("dvc")
    files = _files(params, has_git=find_git(folder) or git)
    folder.mkdir(parents=True, exist_ok=True)
    if git and not find_git(folder):
        _init_git(folder)
    existing = [name for name in files if (folder / name).exists()]
    for name, text in files.items():
        if name not in existing:
            write_text(folder / name, text)
    update_digests(folder)
    return existing


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder, with those around it; on an error remove what was made and is empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # something else lies in it by now
                path.rmdir()
        raise


def check_folder(folder: Path) -> None:
    """Raise ConfigError if a folder is a file or already has a project."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder, got a file. Choose another name.")
    if existing := [name for name in PROJECT_FILES if (folder / name).exists()]:
        raise ConfigError(
            f"{folder}: expected a folder without a project, got one with {', '.join(existing)}. Nothing was written. "
            "Choose another folder, or move these away. `icecore add` adds entries to an existing project."
        )


def check_empty(folder: Path) -> None:
    """Raise ConfigError if a folder is not empty or is a file."""
    check_folder(folder)
    if folder.is_dir() and (names := sorted(path.name for path in folder.iterdir() if path.name != ".git")):
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ConfigError(f"{folder}: expected an empty folder, got one with {listed}. Choose another.")


def find_git(folder: Path) -> bool:
    """Return whether a folder is inside a git repository that does not ignore it."""
    if shutil.which("git") is None:
        return False
    parent = nearest_existing(folder)
    inside = _git(parent, "rev-parse", "--is-inside-work-tree")
    return inside == 0 and _git(parent, "check-ignore", "-q", str(folder.absolute() / "dvc.yaml")) != 0


def _init_git(folder: Path) -> None:
    if shutil.which("git") is None:
        raise ConfigError("git: expected the program `git`, got none. Install it, or leave out `--git`.")
    if _git(folder, "init", "-q"):
        raise ConfigError(f"{folder}: `git init` failed. Leave out `--git`, or run `git init` there to see why.")


def _git(folder: Path, *arguments: str) -> int:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    return done.returncode


def _files(params: str, *, has_git: bool) -> Mapping[str, str]:
    """Return the files of a project with their texts."""
    data = ["*", "!.gitignore", "!*.dvc", *(f"!{folder}/" for folder in _data_folders())]
    gitignore = (
        "# This folder exists because stages depend on it, even if no entry of params.yaml writes here.\n"
        "*\n!.gitignore\n"
    )
    return {
        "params.yaml": params,
        "dvc.yaml": pipeline_text(),
        ".dvc/config": DVC_CONFIG.format(scm="" if has_git else NO_SCM),
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "__pycache__\n*.pyc\n.venv\n",
        ".gitignore": "__pycache__/\n.venv/\n",
        "data/.gitignore": "\n".join(data) + "\n",
        **{f"{name}/.gitignore": gitignore for name in STANDING_FOLDERS},
    }


def _data_folders() -> list[str]:
    """Return the standing folders inside data/ and their parents, each parent first."""
    paths = [Path(name).relative_to("data") for name in STANDING_FOLDERS]
    folders = {part.as_posix(): None for path in paths for part in [*reversed(path.parents), path] if part.name}
    return list(folders)
